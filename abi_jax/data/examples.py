"""Records to examples: one for every answer to learn, tokenised, labelled and no longer than a row."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abi_jax.data.config import DataConfig
from abi_jax.data.records import Record
from abi_jax.errors import InputError
from abi_jax.persona import Persona, loss_weight, mixture_vector
from abi_jax.text.chat import Rendered, render
from abi_jax.text.tokenizer import Tokenizer

MIXED, BASE = "mixed", "base"


@dataclass(frozen=True)
class Example:
    """One answer in its context, as L positions that each predict the next token.

    tokens, targets, roles [L] int32; weights [L] float32, the loss weight of the target; active [L]
    bool, where persona terms act in response-only mode; mixture [P] float32; group: index into
    `ExampleSource.groups`; cuts: what was left out to make it fit.
    """

    tokens: np.ndarray
    targets: np.ndarray
    roles: np.ndarray
    weights: np.ndarray
    active: np.ndarray
    mixture: np.ndarray
    group: int = 0
    cuts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


class ExampleSource:
    """A random-access source of `Example`s for grain, made on demand and kept.

    counts: "examples" made so far, and how many of them lost something to the row length:
    "history_dropped", "prompt_cut", "response_cut".
    """

    def __init__(
        self, records: Sequence[Record], config: DataConfig, tokenizer: Tokenizer, personas: Sequence[Persona]
    ) -> None:
        self._records = records
        self._config = config
        self._tokenizer = tokenizer
        self._personas = tuple(personas)
        self._names = [p.name for p in personas]
        # A backbone learns every token, so one example holds all turns of a dialogue.
        whole = config.mode == "backbone"
        self._index = [(r, a) for r, rec in enumerate(records) for a in (rec.answers[-1:] if whole else rec.answers)]
        self._made: list[Example | None] = [None] * len(self._index)
        datasets = list(dict.fromkeys(r.dataset for r in records))
        self.groups = datasets if config.group_by == "dataset" else [*self._names, MIXED, BASE]
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, at: int) -> Example:
        made = self._made[at]
        if made is None:
            record, answer = self._index[at]
            made = self._made[at] = self._make(self._records[record], answer)
            self.counts.update(["examples", *made.cuts])
        return made

    def _make(self, record: Record, answer: int) -> Example:
        config = self._config
        backbone = config.mode == "backbone"
        rendered, cuts = self._fit(record, answer)
        known = {n: w for n, w in record.mixture.items() if n in self._names}
        mixture = np.zeros(len(self._names), np.float32) if backbone else mixture_vector(known, self._names)
        scale = 1.0 if backbone else loss_weight(self._personas, record.mixture, record.aspect)
        weights = np.ones_like(rendered.loss) if backbone else rendered.loss * np.float32(scale)
        return Example(
            tokens=rendered.tokens[:-1],
            targets=rendered.tokens[1:],
            roles=rendered.roles[:-1],
            weights=weights[:-1],
            active=rendered.active[:-1],
            mixture=mixture,
            group=self._group(record),
            cuts=cuts,
        )

    def _fit(self, record: Record, answer: int) -> tuple[Rendered, tuple[str, ...]]:
        """Renders the answer in as much of its context as a row holds."""
        limit = self._config.length + 1
        turns = list(record.turns[:answer])
        response = record.turns[answer]["content"]
        cuts: list[str] = []
        while True:
            try:
                rendered = render(self._tokenizer, turns, record.memory, record.policy, response)
            except InputError as error:
                raise InputError(f"{record.where}: {error}") from None
            if len(rendered.tokens) <= limit or len(turns) == 1:
                break
            del turns[:2]
            cuts = ["history_dropped"]
        if len(rendered.tokens) > limit:
            rendered, more = cut(rendered, limit, self._tokenizer.bos_id)
            cuts += more
        return rendered, tuple(cuts)

    def _group(self, record: Record) -> int:
        if self._config.group_by == "dataset":
            return self.groups.index(record.dataset)
        whole = [n for n, w in record.mixture.items() if w == 1.0 and n in self._names]
        return self.groups.index(whole[0] if whole else MIXED if record.mixture else BASE)


def cut(rendered: Rendered, limit: int, bos: int | None = None) -> tuple[Rendered, list[str]]:
    """Shortens to `limit` tokens: the prompt loses its left part, but keeps its opening token and a quarter of
    `limit`; what is still too much comes off the end of the response. Returns what was cut as well.
    """
    total, prompt = len(rendered.tokens), rendered.prompt
    keep = min(prompt, max(limit - (total - prompt), limit // 4, 1))
    opening = 1 if keep > 1 and bos is not None and rendered.tokens[0] == bos else 0
    answer = min(total - prompt, limit - keep)
    kept = np.r_[np.arange(opening), np.arange(prompt - keep + opening, prompt + answer)]
    loss = rendered.loss[kept]
    loss[-1] = 0.0
    active = rendered.active[kept]
    active[-1] = False
    cuts = ["prompt_cut"] * (keep < prompt) + ["response_cut"] * (answer < total - prompt)
    return Rendered(rendered.tokens[kept], rendered.roles[kept], active, loss, keep), cuts
