"""Chat and preference records: one JSON object each.

A chat record is `{"messages": [{"role", "content"}, ...], "persona": "abbey"}` or `"mixture": {...}`,
with optional `aspect`, `labels`, `attributes`, `memory` and `policy`. A preference record is
`{"prompt": [messages], "chosen": ..., "rejected": ..., "persona": ...}`; it is read as the dialogue that
ends with `chosen`. Other keys are ignored.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from abi_jax.data.clean import clean_record
from abi_jax.data.progress import watched
from abi_jax.data.readers import Value, read_values
from abi_jax.errors import InputError
from abi_jax.persona import check_mixture, mixture_name
from abi_jax.text.chat import half_character, split_turns
from abi_jax.text.layout import BREAK, PROBE

# How many reasons of skipped records are kept word for word.
KEPT_REASONS = 20

# Data set -> step ("read", "skipped", "cleaned", ...) -> number of records.
Tally = dict[str, Counter[str]]


@dataclass(frozen=True)
class Record:
    """One dialogue.

    turns alternate user, assistant, beginning with the user and ending with the assistant. policy
    holds the system messages too. mixture is on the simplex, or {} when the record names no persona.
    last_only: only the last answer is to be learned (the earlier ones of a preference record are
    context, not examples). rejected: the answer a preference record turned down.
    """

    turns: tuple[dict[str, str], ...]
    mixture: dict[str, float] = field(default_factory=dict)
    policy: str | None = None
    memory: tuple[str, ...] = ()
    aspect: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    rejected: str | None = None
    last_only: bool = False
    dataset: str = ""
    where: str = ""

    @property
    def question(self) -> str:
        """The first user message."""
        return self.turns[0]["content"]

    @property
    def voice(self) -> str:
        """The mixture as text, the same for the same mixture: `abbey`, `abbey=0.5,aviva=0.5`; `base` for none."""
        return mixture_name(dict(sorted(self.mixture.items())))

    @property
    def answers(self) -> tuple[int, ...]:
        """Indices of the turns to learn."""
        last = len(self.turns) - 1
        return (last,) if self.last_only else tuple(range(1, last + 1, 2))


@dataclass(frozen=True)
class Records:
    """What was read: the usable records; how many were read, skipped and changed by cleaning, by data set; and why
    they were skipped (the first `KEPT_REASONS`).
    """

    records: tuple[Record, ...]
    tally: Tally = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def skipped(self) -> int:
        """How many records were malformed."""
        return sum(counts["skipped"] for counts in self.tally.values())


def read_records(
    files: Mapping[str, Sequence[Path]],
    personas: Sequence[str] | None = None,
    bad: Literal["fatal", "skip"] = "fatal",
    require_persona: bool = False,
    clean: bool = False,
) -> Records:
    """Reads data sets (name -> files, see `readers`) in order.

    personas: the known names; None leaves names unchecked. clean: repair the texts first, see `clean`. Raises
    `InputError` naming file, line and reason for a malformed record (unless `bad` is "skip", which counts it), for
    a file that cannot be read, and for no usable record at all.
    """
    records: list[Record] = []
    reasons: list[str] = []
    tally: Tally = {}
    for dataset, paths in files.items():
        counts = tally[dataset] = Counter()
        for where, value in watched((v for path in paths for v in read_values(path)), f"reading {dataset}"):
            counts["read"] += 1
            try:
                read = decode(value, where)
                cleaned = clean_record(read, where) if clean else read
                records.append(parse_record(cleaned, personas, where, dataset, require_persona))
            except InputError as error:
                if bad == "fatal":
                    raise
                counts["skipped"] += 1
                reasons += [str(error)] if len(reasons) < KEPT_REASONS else []
            else:
                counts["cleaned"] += cleaned != read
    read_all = Records(tuple(records), tally, tuple(reasons))
    if not records:
        names = ", ".join(str(p) for paths in files.values() for p in paths) or "none given"
        why = f"; {read_all.skipped} records were skipped, the first because: {reasons[0]}" if reasons else ""
        raise InputError(f"data set is empty ({names}); expected at least one record{why}")
    return read_all


def decode(value: Value | str, where: str = "record") -> dict[str, Any]:
    """Returns a record's value, from JSON where it is text. Raises `InputError` beginning with `where`."""
    read: Any = value
    if isinstance(value, bytes | str):
        try:
            read = json.loads(value)
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 text: byte {error.start}: {error.reason}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(read, dict):
        raise InputError(f"{where}: {type(read).__name__}; expected a JSON object")
    if half := half_character(json.dumps(read, ensure_ascii=False, default=str)):
        raise InputError(f"{where}: {half}")
    return read


def parse_record(
    value: Value | str,
    personas: Sequence[str] | None = None,
    where: str = "record",
    dataset: str = "",
    require_persona: bool = False,
) -> Record:
    """Reads one record. Raises `InputError` beginning with `where` and naming what does not fit."""
    read = value if isinstance(value, dict) else decode(value, where)
    try:
        return _record(read, personas, where, dataset, require_persona)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def texts(records: Iterable[Record]) -> Iterator[str]:
    """Yields every text of the records, for training a tokenizer."""
    for record in records:
        yield from (turn["content"] for turn in record.turns)
        yield from record.memory
        if record.policy:
            yield record.policy


def is_held_out(record: Record, one_in: int, fold: int = 0) -> bool:
    """True for one dialogue in `one_in`, by a hash of its first question and persona; 0 keeps none apart.

    Dialogues that begin alike for one persona are on the same side, whatever follows. The parts that `fold` = 0 to
    `one_in` - 1 keep apart are all of the data, each dialogue in one of them.
    """
    if one_in == 0:
        return False
    key = "\0".join([record.question.strip(), *(f"{n}={w:g}" for n, w in sorted(record.mixture.items()))])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % one_in == fold


def _record(
    value: dict[str, Any], personas: Sequence[str] | None, where: str, dataset: str, require_persona: bool
) -> Record:
    preference = "chosen" in value or "rejected" in value
    if preference:
        messages = [*_messages(value, "prompt"), {"role": "assistant", "content": _text(value, "chosen")}]
    else:
        messages = _messages(value, "messages")
    for at, message in enumerate(messages):
        # Rendering leaves out its own two characters.
        if not message["content"].replace(BREAK, "").replace(PROBE, "").strip():
            raise InputError(f"message {at} ({message['role']}): content is empty; expected text")
    system, turns = split_turns(messages)
    if turns and turns[0]["role"] != "user":
        raise InputError("the first turn is the assistant's; expected the user's")
    if turns and turns[-1]["role"] == "user":
        turns.pop()  # nobody answered it
    if not turns:
        raise InputError("messages hold no answer; expected an assistant message after the user's")
    policy = [_text(value, "policy")] if value.get("policy") is not None else []
    memory = value.get("memory") or []
    if not isinstance(memory, list) or not all(isinstance(m, str) for m in memory):
        raise InputError(f"memory is {_show(memory)}; expected a list of texts")
    mixture = _mixture(value)
    if require_persona and not mixture:
        raise InputError(f"no persona; expected 'persona' or 'mixture' among the keys {', '.join(value)}")
    return Record(
        turns=tuple(turns),
        mixture=check_mixture(mixture, personas),
        policy="\n\n".join(policy + system) or None,
        memory=tuple(memory),
        aspect=_text(value, "aspect") if value.get("aspect") is not None else None,
        labels=_mapping(value, "labels"),
        attributes=_mapping(value, "attributes"),
        rejected=_text(value, "rejected") if preference else None,
        last_only=preference,
        dataset=dataset,
        where=where,
    )


def _mixture(value: dict[str, Any]) -> dict[str, float]:
    persona, mixture = value.get("persona"), value.get("mixture")
    if persona is not None and mixture is not None:
        raise InputError("both 'persona' and 'mixture' are given; expected one of them")
    if persona is not None:
        return {_text(value, "persona"): 1.0}
    if mixture is None:
        return {}
    if not isinstance(mixture, dict) or not all(
        isinstance(w, (int, float)) and not isinstance(w, bool) for w in mixture.values()
    ):
        raise InputError(f"mixture is {_show(mixture)}; expected an object of persona names and numbers")
    try:
        return {name: float(weight) for name, weight in mixture.items()}
    except OverflowError:
        raise InputError("mixture has a weight that is far too large; expected numbers from 0 to 1") from None


def _messages(value: dict[str, Any], key: str) -> list[dict[str, str]]:
    messages = value.get(key)
    if key not in value:
        raise InputError(f"no {key!r} among the keys {', '.join(value) or '(none)'}; expected a list of messages")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{key} is {_show(messages)}; expected a list of messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError(f"{key}[{at}] is {_show(message)}; expected an object with texts 'role' and 'content'")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise InputError(f"{key} is {_show(text)}; expected text")
    return text


def _mapping(value: dict[str, Any], key: str) -> dict[str, Any]:
    mapping = value.get(key)
    if mapping is not None and not isinstance(mapping, dict):
        raise InputError(f"{key} is {_show(mapping)}; expected an object")
    return mapping or {}


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
