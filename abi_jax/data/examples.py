"""Records to examples: one for every answer to learn, tokenised, labelled and no longer than a row."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from abi_jax.data.config import DataConfig
from abi_jax.data.records import Record
from abi_jax.errors import InputError
from abi_jax.persona import Persona, loss_weight, mixture_vector
from abi_jax.text.chat import Rendered, render
from abi_jax.text.tokenizer import Tokenizer

MIXED, BASE = "mixed", "base"
# Tokens of the examples that are kept for the next epoch, 13 bytes each. The 1.4 KB that an example takes besides
# count as so many more.
KEPT_TOKENS, OVERHEAD_TOKENS = 1 << 23, 108


@dataclass(frozen=True)
class Example:
    """One answer in its context, as L positions that each predict the next token.

    tokens, targets, roles [L] int32; weights [L] float32, the loss weight of the target; active [L]
    bool, where persona terms act in response-only mode; mixture [P] float32; group: index into
    `ExampleSource.groups`; attribute: 1 + index into `ExampleSource.attributes`, 0 for none; cuts: what was left
    out to make it fit; where: the record it was made from.
    """

    tokens: np.ndarray
    targets: np.ndarray
    roles: np.ndarray
    weights: np.ndarray
    active: np.ndarray
    mixture: np.ndarray
    group: int = 0
    attribute: int = 0
    cuts: tuple[str, ...] = ()
    where: str = ""

    def __len__(self) -> int:
        return len(self.tokens)


class ExampleSource:
    """A random-access source of `Example`s for grain, made on demand; those used last are kept.

    counts: "examples" different ones made so far, and how many of them lost something to the row length:
    "history_dropped", "prompt_cut", "response_cut". groups, attributes: what `group` and `attribute` index;
    `attributes` are the values of `config.bias_by`, those given or else those of the records, sorted.
    """

    def __init__(
        self,
        records: Sequence[Record],
        config: DataConfig,
        tokenizer: Tokenizer,
        personas: Sequence[Persona],
        attributes: Sequence[str] | None = None,
    ) -> None:
        self._records = records
        self._config = config
        self._tokenizer = tokenizer
        self._personas = tuple(personas)
        self._names = [p.name for p in personas]
        pairs = [(r, a) for r, record in enumerate(records) for a in answers(record, config.mode)]
        self._index = np.array(pairs, np.int32).reshape(-1, 2)
        datasets = list(dict.fromkeys(r.dataset for r in records))
        self.groups = datasets if config.group_by == "dataset" else [*self._names, MIXED, BASE]
        self.attributes = tuple(attribute_values(records, config.bias_by) if attributes is None else attributes)
        self._numbers = {value: number for number, value in enumerate(self.attributes, 1)}
        self.counts: Counter[str] = Counter()
        self._counted = np.zeros(len(self._index), bool)
        self._kept = _Kept(KEPT_TOKENS)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, at: int) -> Example:
        return self._kept.get(int(at), self._made)

    def record_of(self, at: int) -> Record:
        """The record that example `at` is made from."""
        return self._records[self._index[at, 0]]

    def full_length(self, at: int) -> int:
        """Tokens of example `at` before anything is cut."""
        record, answer = self.record_of(at), int(self._index[at, 1])
        return len(self._render(record, record.turns[:answer], answer).tokens) - 1

    def _made(self, at: int) -> Example:
        example = self._make(self.record_of(at), int(self._index[at, 1]))
        if not self._counted[at]:
            self._counted[at] = True
            self.counts.update(["examples", *example.cuts])
        return example

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
            attribute=self._attribute(record),
            cuts=cuts,
            where=record.where,
        )

    def _fit(self, record: Record, answer: int) -> tuple[Rendered, tuple[str, ...]]:
        """Renders the answer in as much of its context as a row holds."""
        limit = self._config.length + 1
        turns = list(record.turns[:answer])
        cuts: list[str] = []
        while True:
            rendered = self._render(record, turns, answer)
            if len(rendered.tokens) <= limit or len(turns) == 1:
                break
            del turns[:2]
            cuts = ["history_dropped"]
        if len(rendered.tokens) > limit:
            rendered, more = cut(rendered, limit, self._tokenizer.bos_id)
            cuts += more
        return rendered, tuple(cuts)

    def _render(self, record: Record, turns: Sequence[dict[str, str]], answer: int) -> Rendered:
        response = record.turns[answer]["content"]
        try:
            return render(self._tokenizer, turns, record.memory, record.policy, response)
        except InputError as error:
            raise InputError(f"{record.where}: {error}") from None

    def _group(self, record: Record) -> int:
        if self._config.group_by == "dataset":
            return self.groups.index(record.dataset)
        whole = [n for n, w in record.mixture.items() if w == 1.0 and n in self._names]
        return self.groups.index(whole[0] if whole else MIXED if record.mixture else BASE)

    def _attribute(self, record: Record) -> int:
        value = record.attributes.get(self._config.bias_by) if self._config.bias_by else None
        return 0 if value is None else self._numbers[str(value)]


class _Kept:
    """The results used last, of no more than `tokens` in all, overhead counted. For several threads."""

    def __init__(self, tokens: int) -> None:
        self._room = tokens
        self._held: OrderedDict[int, Example] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, at: int, make: Callable[[int], Example]) -> Example:
        with self._lock:
            if at in self._held:
                self._held.move_to_end(at)
                return self._held[at]
            made = self._held[at] = make(at)
            self._room -= len(made) + OVERHEAD_TOKENS
            while self._room < 0 and len(self._held) > 1:
                self._room += len(self._held.popitem(last=False)[1]) + OVERHEAD_TOKENS
            return made


def answers(record: Record, mode: str) -> tuple[int, ...]:
    """Returns the turns of a record that are an example each; a backbone learns a whole dialogue as one."""
    return record.answers[-1:] if mode == "backbone" else record.answers


def attribute_values(records: Sequence[Record], name: str) -> list[str]:
    """Returns the different values of an attribute, as text, sorted."""
    found = (r.attributes.get(name) for r in records) if name else ()
    return sorted({str(value) for value in found if value is not None})


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
