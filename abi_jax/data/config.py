"""What to train on, and how it is cut into batches."""

from dataclasses import dataclass, field
from typing import Literal

from abi_jax.errors import InputError

ATTRIBUTES = "attributes."
GROUPED_BY = ("persona", "aspect", "dataset")


@dataclass(frozen=True)
class BalanceConfig:
    """Which groups of examples are repeated until they are seen more evenly.

    by: `persona`, `aspect`, `dataset` and `attributes.NAME`; a group is one combination of their values. An
    example of a group of n is drawn with a weight proportional to n ** -alpha: 0 leaves the data as it is,
    at 1 every group is seen equally often.
    """

    by: tuple[str, ...] = ()
    alpha: float = 1.0

    def __post_init__(self) -> None:
        for key in self.by:
            if key not in GROUPED_BY and not key.removeprefix(ATTRIBUTES):
                raise InputError(f"by names {key!r}; expected an attribute's name after {ATTRIBUTES!r}")
            if key not in GROUPED_BY and not key.startswith(ATTRIBUTES):
                raise InputError(f"by names {key!r}; expected {', '.join(GROUPED_BY)} or {ATTRIBUTES}NAME")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha = {self.alpha}; expected a number from 0 (as it is) to 1 (evenly)")


@dataclass(frozen=True)
class DataConfig:
    """Data of a run. Shapes: B = `batch_size` rows over all processes, T = `length` tokens.

    train: files, directories and globs of JSONL, Parquet or ArrayRecord, saved Hugging Face data sets, or
    `demo` for the dialogues that come with the package (`demo/abbey` for one of them). evaluate: the same;
    when empty, one dialogue in `held_out` of `train` is kept apart, chosen by a hash of its first question and
    persona (0: none). folds: with K > 0, instead, the K-th part of the same hashes that `fold` (0 to K - 1) names.
    clean: repair the texts (see `data.clean`). duplicates: which records to leave out, those alike but for case
    and space (`exact`) or also those whose word triples overlap by `similarity` (`near`); either also leaves out
    of training what is held out. balance: see `BalanceConfig`.
    mode: `persona` trains responses with the record's mixture, `backbone` trains every token with no persona.
    response_only: persona terms act only where the response is predicted. bad_records: what a malformed record
    does. group_by: what the per-token `group` index of a batch counts. bias_by: the attribute whose values the
    per-token `attribute` index tells apart. open_rows: rows being filled at once by each stream; more pack
    tighter and read further ahead. prefetch: batches made ahead, in a thread.
    """

    train: tuple[str, ...] = ("demo",)
    evaluate: tuple[str, ...] = ()
    held_out: int = 12
    folds: int = 0
    fold: int = 0
    mode: Literal["persona", "backbone"] = "persona"
    length: int = 512
    batch_size: int = 8
    response_only: bool = True
    bad_records: Literal["fatal", "skip"] = "fatal"
    clean: bool = False
    duplicates: Literal["keep", "exact", "near"] = "keep"
    similarity: float = 0.8
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    group_by: Literal["persona", "dataset"] = "persona"
    bias_by: str = ""
    seed: int = 0
    open_rows: int = 8
    prefetch: int = 2

    def __post_init__(self) -> None:
        if not self.train:
            raise InputError("train is empty; expected at least one data file or 'demo'")
        for name, low, high in (
            ("held_out", 0, 2**31 - 1),
            ("folds", 0, 2**31 - 1),
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
        if self.folds == 1:
            raise InputError("folds = 1 keeps everything apart; expected 0 (no folds) or at least 2")
        if not 0 <= self.fold < max(self.folds, 1):
            known = f"an integer from 0 to {self.folds - 1}" if self.folds else "0, or folds above it"
            raise InputError(f"fold = {self.fold} of folds = {self.folds}; expected {known}")
        if self.folds and self.evaluate:
            raise InputError(f"folds = {self.folds} and evaluate = {list(self.evaluate)}; expected one of them")
        if not 0.2 <= self.similarity <= 1:
            raise InputError(f"similarity = {self.similarity}; expected a number from 0.2 to 1")
