"""What to train on, and how it is cut into batches."""

from dataclasses import dataclass
from typing import Literal

from abi_jax.errors import InputError


@dataclass(frozen=True)
class DataConfig:
    """Data of a run. Shapes: B = `batch_size` rows over all processes, T = `length` tokens.

    train: JSONL files, or `demo` for the dialogues that come with the package (`demo/abbey` for one of
    them). evaluate: the same; when empty, one dialogue in `held_out` of `train` is kept apart, chosen
    by a hash of its first question and persona (0: none). mode: `persona` trains responses with the
    record's mixture, `backbone` trains every token with no persona. response_only: persona terms act
    only where the response is predicted. bad_records: what a malformed line does. group_by: what the
    per-token `group` index of a batch counts. open_rows: rows being filled at once by each stream;
    more pack tighter and read further ahead. prefetch: batches made ahead, in a thread.
    """

    train: tuple[str, ...] = ("demo",)
    evaluate: tuple[str, ...] = ()
    held_out: int = 12
    mode: Literal["persona", "backbone"] = "persona"
    length: int = 512
    batch_size: int = 8
    response_only: bool = True
    bad_records: Literal["fatal", "skip"] = "fatal"
    group_by: Literal["persona", "dataset"] = "persona"
    seed: int = 0
    open_rows: int = 8
    prefetch: int = 2

    def __post_init__(self) -> None:
        if not self.train:
            raise InputError("train is empty; expected at least one JSONL file or 'demo'")
        for name, low, high in (
            ("held_out", 0, 2**31 - 1),
            ("length", 8, 2**24),
            ("batch_size", 1, 2**20),
            ("seed", 0, 2**32 - 1),
            ("open_rows", 1, 4096),
            ("prefetch", 0, 1024),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} = {value}; expected an integer from {low} to {high}")
        if self.held_out == 1:
            raise InputError("held_out = 1 keeps everything apart; expected 0 (nothing) or at least 2")
