"""Regenerates an answer from its receipt, and says what is not as it was."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from abi_jax.errors import InputError
from abi_jax.lineage_digest import content_root, digest_tree
from abi_jax.model.directory import PARAMS, ModelDirectory
from abi_jax.model.provenance import Provenance, named
from abi_jax.model.weight import Tree
from abi_jax.serve.answered import Ending
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.receipt import AnswerReceipt, engine_section
from abi_jax.serve.scheduler import Ended, Scheduler, Ticket, Token
from abi_jax.serve.users import UserFolder
from abi_jax.text import TextStream, Tokenizer
from abi_jax.wdbx import Database


@dataclass(frozen=True)
class Replayed:
    """What a replay found.

    wrong: what makes this another answer than the receipt's, or a receipt that was changed. different: what is not as
    it was, and may or may not matter. tokens: what was said now; None where it could not be regenerated. ending: why
    it ended; None where the receipt does not say why it did.
    """

    wrong: tuple[str, ...]
    different: tuple[str, ...]
    tokens: tuple[int, ...] | None
    ending: Ending | None = None

    @property
    def identical(self) -> bool:
        """Whether the same was said, and nothing is wrong."""
        return not self.wrong and self.tokens is not None


class Replayer:
    """Replays receipts of one model directory; an engine that was made serves all receipts of its kind."""

    def __init__(
        self,
        directory: ModelDirectory,
        mesh: Mesh | None = None,
        store: Database | None = None,
        users: UserFolder | None = None,
    ) -> None:
        """`store`: where memories are looked up; the prompt holds their texts, so that an answer does not need it.

        users: where users' adaptations are, which answers that were spoken with one do need.
        """
        self.directory, self._mesh, self._store, self._users = directory, mesh, store, users
        self._provenance = Provenance(directory.path)
        self._tokenizer: Tokenizer = directory.tokenizer
        self._weights: dict[tuple[int, str], tuple[Tree, str]] = {}
        self._engines: dict[tuple[int, str], tuple[Any, PagedEngine]] = {}
        self._grammars: dict[int, Any] = {}

    def replay(self, receipt: AnswerReceipt) -> Replayed:
        """Regenerates the answer of a receipt."""
        wrong = [f"the receipt's section {name!r} was changed: its digest does not hold" for name in receipt.changed()]
        if self._store is not None:
            wrong += changed_memories(receipt.memory, self._store)
        wrong += self._changed_user(receipt)
        step, findings = self._step(receipt)
        wrong += findings
        if step is None:
            return Replayed(tuple(wrong), (), None)
        params, root = self._load(step, str(receipt.engine["dtype"]))
        if receipt.model["recorded"]:
            root = self._recorded(step)
        if root != receipt.model["weights"]:
            wrong.append(self._changed_weights(step, params, root, receipt))
        engine = self._engine(step, params, receipt)
        if receipt.request["user"] is not None:
            engine.forget_user(receipt.request["user"]["id"])
        different = differences(receipt.engine, engine_section(engine))
        try:
            job = receipt.job(self._grammar(receipt, engine))
            engine.check(job)
        except InputError as error:
            return Replayed((*wrong, f"the request cannot be done: {error}"), tuple(different), None)
        expected = list(receipt.answer["tokens"])
        text = TextStream(self._tokenizer, receipt.stops)
        tokens, end = ([], Ending("length")) if receipt.silent else _say(engine, job, text)
        ending = None if receipt.ending is None else end
        if ending is None:
            tokens = tokens[: len(expected)]
        if tokens != expected:
            at = next((i for i, (a, b) in enumerate(zip(tokens, expected, strict=False)) if a != b), None)
            at = min(len(tokens), len(expected)) if at is None else at
            said, then = (str(each[at]) if at < len(each) else "the end" for each in (tokens, expected))
            wrong.append(f"token {at + 1} of {len(expected)} is {said}; the receipt says {then}")
        elif ending != receipt.ending:
            wrong.append(f"the answer ended with {ending}; the receipt says {receipt.ending}")
        return Replayed(tuple(wrong), tuple(different), tuple(tokens), ending)

    def _changed_user(self, receipt: AnswerReceipt) -> list[str]:
        user = receipt.request["user"]
        if user is None:
            return []
        if self._users is None:
            return [f"user {user['id']!r} spoke with an adaptation; expected the folder of users' adaptations"]
        try:
            found = self._users.get(user["id"])
        except InputError as error:
            return [str(error)]
        if found is not None and found[1] == user["sha256"]:
            return []
        return [f"the adaptation of user {user['id']!r} {'is not there' if found is None else 'is another'}"]

    def _step(self, receipt: AnswerReceipt) -> tuple[int | None, list[str]]:
        """The step to speak with, and what is wrong with it."""
        wanted, links = receipt.model["link"], self._provenance.chain.links()
        there = {links[number - 1].hash: step for step, number in self._provenance.steps().items()}
        if wanted in there:
            return there[wanted], []
        path, step = self.directory.path, receipt.model["step"]
        if wanted is not None and wanted in {link.hash for link in links}:
            return None, [f"step {step} of {path}, link {wanted[:12]}, is not kept any more"]
        steps = self.directory.steps()
        found = f"the model of {path} is another: its chain has no link {str(wanted)[:12]}"
        if wanted is None and step in steps:
            return step, []
        return (step if step in steps else None), [found]

    def _load(self, step: int, dtype: str) -> tuple[Tree, str]:
        if (step, dtype) not in self._weights:
            self._weights, self._engines = {}, {}
            params = self.directory.load_params(step=step, dtype=jnp.dtype(dtype), mesh=self._mesh)
            self._weights = {(step, dtype): (params, content_root(digest_tree(named(PARAMS, params))))}
        return self._weights[step, dtype]

    def _recorded(self, step: int) -> str:
        number = self._provenance.steps().get(step)
        tensors = {} if number is None else self._provenance.record(number).tensors
        return content_root({name: found for name, found in tensors.items() if name.startswith(f"{PARAMS}/")})

    def _changed_weights(self, step: int, params: Tree, root: str, receipt: AnswerReceipt) -> str:
        """Names the weights that are not those of the step's record, where there is one."""
        told = f"the weights are {root[:12]}, the receipt's {str(receipt.model['weights'])[:12]}"
        number = self._provenance.steps().get(step)
        if number is None:
            return told
        record = self._provenance.record(number).tensors
        now = digest_tree(named(PARAMS, params))
        names = [name for name, found in now.items() if name in record and record[name].digest != found.digest]
        return f"{told}: {', '.join(names[:3])}{' and more' if len(names) > 3 else ''} changed" if names else told

    def _engine(self, step: int, params: Tree, receipt: AnswerReceipt) -> PagedEngine:
        key = (step, str(receipt.engine["dtype"]))
        made = self._engines.get(key)
        if made is None or made[0] != receipt.settings():
            made, self._engines = None, {}  # two would not fit
            engine = PagedEngine(
                self.directory.config,
                params,
                stop_ids=self._tokenizer.eos_ids,
                settings=receipt.settings(),
                mesh=self._mesh,
                dtype=jnp.dtype(key[1]),
                adaptations=None if self._users is None else self._users.get,
            )
            self._engines = {key: (receipt.settings(), engine)}
        return self._engines[key][1]

    def _grammar(self, receipt: AnswerReceipt, engine: PagedEngine) -> Any:
        source = receipt.request["grammar"]
        if source is None:
            return None
        from abi_jax.serve.grammar import Grammars

        if engine.vocab_size not in self._grammars:
            self._grammars[engine.vocab_size] = Grammars(self._tokenizer, engine.vocab_size)
        return self._grammars[engine.vocab_size].make(source)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], under: str = "") -> list[str]:
    """What of an engine is not as it was, by name; of what a receipt does not tell, nothing is said."""
    found = []
    for name, was in then.items():
        if name not in now or now[name] == was:
            continue
        if isinstance(was, Mapping) and isinstance(now[name], Mapping):
            found += differences(was, now[name], f"{under}{name}.")
        else:
            found.append(f"{under}{name} was {was!r}, and is {now[name]!r}")
    return found


def changed_memories(memories: Sequence[Mapping[str, Any]], store: Database) -> list[str]:
    """What of the memories is not in the store as it was, version by version and row by row."""
    wrong = []
    for told in memories:
        version, name = told["version"], f"memory {told['collection']}/{told['id']} of version {told['version']}"
        try:
            if store.link(version) != told["link"]:
                wrong.append(f"{name}: that version of the store is another")
                continue
            there = [name for name in store.collections() if _is_of(told, name)]
            rows = [row for c in there for row in store.collection(c).get([told["id"]], version) if row is not None]
            texts = [hashlib.sha256((row.document or "").encode()).hexdigest() for row in rows]
        except InputError as error:
            wrong.append(f"{name} cannot be read: {error}")
            continue
        if told["sha256"] not in texts:
            wrong.append(f"{name} {'has another text' if texts else 'is not there'}")
    return wrong


def _is_of(told: Mapping[str, Any], name: str) -> bool:
    """Whether a memory's collection is stored under a name, which is longer than its tenant knows it by."""
    collection = str(told["collection"])
    if "tenant" in told:
        return name == (f"{told['tenant']}.{collection}" if told["tenant"] else collection)
    return name == collection or name.endswith(f".{collection}")


def _say(engine: PagedEngine, job: Any, text: TextStream) -> tuple[list[int], Ending]:
    """The tokens of a job up to its end, or to the stop string that `text` meets, and which of them it was."""
    scheduler, ticket = Scheduler(engine), Ticket(job)
    scheduler.submit(ticket)
    tokens: list[int] = []
    reason = "stop"
    while not scheduler.idle:
        for _, event in scheduler.step():
            if isinstance(event, Token) and text.stop is None:
                tokens.append(event.id)
                text.push(event.id)
            elif isinstance(event, Token):
                scheduler.cancel(ticket)
            elif isinstance(event, Ended):
                reason = event.reason
    text.flush()
    if text.stop is not None:
        return tokens, Ending("stop", text.stop)
    return tokens, Ending("length" if reason == "length" else "stop")
