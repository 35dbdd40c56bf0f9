"""The engine: slots that speak over one pool of pages, on one device or sharded over a mesh."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.bank import bounded
from abi_jax.model.config import ModelConfig
from abi_jax.model.generate import Prompt
from abi_jax.model.users import UserTerms
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.engine.pool import Chunk, PagePool, chunk_keys
from abi_jax.serve.engine.programs import Programs, Weights, programs_on_one_device
from abi_jax.serve.engine.seam import ENDED, NO_ROW, Job, NoRow, Step, TokenLogprobs, Usage, check_sizes
from abi_jax.serve.engine.speak import Made, Turn
from abi_jax.serve.engine.state import new_state, row_of
from abi_jax.serve.engine.users import NOBODY, Source, UserTable
from abi_jax.sharding.context import use
from abi_jax.sharding.rules import AxisRules
from abi_jax.text.roles import NUM_ROLES


@dataclass(eq=False)
class PagedWork:
    """A job, the chunks of its prompt that others may share, and the pages that are its own."""

    job: Job
    keys: list[bytes]
    mixture: np.ndarray | None  # what its prompt is read with; None for the base model
    reads: np.ndarray | None
    chunks: list[Chunk] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    done: int = 0
    slot: int | None = None
    user: int = NOBODY
    cached_tokens: int = 0
    adaptation: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    scores: list[Made] = field(default_factory=list)

    def pages(self) -> list[int]:
        """The pages of the row, in order."""
        return [page for chunk in self.chunks for page in chunk.pages] + self.own


@dataclass(frozen=True)
class PagedPending:
    """A step on its way. `told`: there are log-probabilities to read."""

    made: Made
    told: bool

    def read(self) -> Step:
        """Waits for the step."""
        tokens = np.asarray(self.made.tokens)
        guessed = None if self.made.guessed is None else np.asarray(self.made.guessed)
        if not self.told:
            return Step(tokens, guessed)
        rest = (self.made.logprobs, self.made.top_ids, self.made.top_logprobs)
        return Step(tokens, guessed, *(np.asarray(x) for x in rest))


class PagedEngine:
    """See `engine/seam.py`.

    `params` is the tree that `describe(lambda: Decoder(config))` describes. A prompt is read up to its last token, in
    chunks of `settings.chunk` tokens and a rest; the last token is the first that the slot is fed. In response-only
    mode the base model reads, so that every persona shares what was read. adaptations: where users' own come from, for
    settings with `users`. Raises `InputError` for settings that do not fit the model.

    What it keeps of `params` is in `dtype`, or codes where `settings.quantization` says so: of those there is no other
    copy on the device once the caller lets go of `params`.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        *,
        stop_ids: Sequence[int] = (),
        settings: EngineConfig | None = None,
        mesh: Mesh | None = None,
        dtype: DTypeLike = jnp.float32,
        adaptations: Source | None = None,
    ) -> None:
        settings = settings or EngineConfig()
        self.settings, self.mesh, self.dtype = settings, mesh, jnp.dtype(dtype)
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise InputError(
                f"dtype = {self.dtype.name}; expected a floating type (int8 is quantization, kv_cache_dtype)"
            )
        self._given = config
        self.config, params = bounded(config, params)
        self.slots, self.vocab_size = settings.slots, config.vocab_size
        self.max_length = min(settings.max_length or config.max_length, config.max_length)
        self._row_pages = -(-self.max_length // settings.chunk) * (settings.chunk // settings.page_size)
        count = settings.pages or settings.slots * self._row_pages + 1
        if count - 1 < self._row_pages:
            raise InputError(f"pages = {count}; expected at least {self._row_pages + 1}, one answer of full length")
        self._pool = PagePool(count)
        with self._around():
            source = adaptations or (lambda _: None)
            self.users = UserTable(self.config, settings.users, source) if settings.users else None
        ends = sorted(set(stop_ids))
        self._stop_ids = np.full(max(8, len(ends)), ENDED, np.int32)
        self._stop_ids[: len(ends)] = ends
        self._epoch = 0
        self._works: dict[int, PagedWork] = {}
        with self._around():
            kept = jnp.int8 if settings.kv_cache_dtype == "int8" else dtype
            sizes = (settings.slots, count, settings.page_size, kept, self._known)
            make = jax.jit(lambda: new_state(self.config, *sizes))
            self._state = make()
        model = (self.config, self.dtype, self.max_length, settings.quantization == "int8", settings.guesses)
        if mesh is None:
            self._programs = programs_on_one_device(*model)
        else:
            self._programs = Programs(*model, jax.tree.map(lambda x: x.sharding, self._state), mesh)
        self._weights = self._programs.flatten(params)
        self._table = np.zeros((self.slots, self._row_pages), np.int32)
        self._alive = np.zeros(self.slots, bool)
        self._unconstrained = np.full((self.slots, -(-self.vocab_size // 32)), -1, np.int32)
        self._turn: Turn | None = None
        self._last_chunk: jax.Array | None = None

    def check(self, job: Job) -> None:
        """Raises `InputError` for a job of wrong sizes."""
        check_sizes(job, self.max_length, self.vocab_size)
        mixture, persona = job.prompt.mixture, self.config.persona
        if mixture is not None and persona is not None and len(mixture) != persona.capacity:
            rows = f"{persona.capacity}, one for each row of the persona bank"
            raise InputError(f"a mixture of {len(mixture)} weights; expected {rows}")

    def begin(self, job: Job) -> PagedWork | NoRow | None:
        """Takes a job on if there are pages for its whole length, and a row for its user's adaptation."""
        user = self._take_user(job.user)
        if user is None:
            return NO_ROW
        prompt = job.prompt
        n = len(prompt.tokens) - 1
        whole = not prompt.response_only and prompt.mixture is not None
        mixture = np.asarray(prompt.mixture, np.float32) if whole else None
        rules = prompt.prompt_reads if prompt.response_only else prompt.reads
        reads = None if rules is None or np.all(rules) else np.asarray(rules, bool)
        keys = []
        if job.prompt_logprobs is None and self.settings.prefix_cache:
            root = b"|".join([*(b"" if x is None else x.tobytes() for x in (mixture, reads)), b"%d" % self._epoch])
            keys = chunk_keys(prompt.tokens[:n], prompt.roles[:n], self.settings.chunk, root + b"|" + job.scope)
        work = PagedWork(job, keys, mixture, reads, user=user)
        if self.users is not None:
            work.adaptation = self.users.digest(user)
        self._find(work)
        length = min(n + job.max_tokens, self.max_length)
        pages = self._pool.take(-(-length // self.settings.page_size) - len(work.pages()))
        if pages is None:
            self.release(work)
            return None
        work.own = pages
        return work

    def prefill(self, work: PagedWork) -> bool:
        """Reads one chunk that nobody has read, or the rest."""
        self._find(work)
        tokens, size = work.job.prompt.tokens, self.settings.chunk
        n = len(tokens) - 1
        if work.done < n:
            count = min(size, n - work.done)
            self._read(work, count)
            if count == size and len(work.chunks) < len(work.keys):
                pages, work.own = work.own[: self._chunk_pages], work.own[self._chunk_pages :]
                before = work.chunks[-1] if work.chunks else None
                work.chunks.append(self._pool.publish(work.keys[len(work.chunks)], pages, before))
            work.done += count
        if work.done < n:
            return False
        if work.job.prompt_logprobs is not None:
            work.prompt_logprobs = self._scored(work)
        return True

    def insert(self, work: PagedWork, slot: int) -> None:
        """Fills a free slot."""
        assert slot not in self._works
        work.slot, self._works[slot] = slot, work
        with self._around():
            row = row_of(work.job, self.config, work.user, self._known)
            self._state = self._programs.insert(self._state, row, np.int32(slot))
        self._table[slot] = self._row(work)
        self._alive[slot] = True
        self._turn = None

    def decode(self) -> PagedPending:
        """Makes the next tokens of every slot."""
        return self.decode_within(self.masks())

    def masks(self) -> dict[int, np.ndarray]:
        """What grammars allow now, by the slots that have one: see `Grammar.mask`."""
        return {slot: w.job.grammar.mask() for slot, w in self._works.items() if w.job.grammar is not None}

    def decode_within(self, masks: Mapping[int, np.ndarray]) -> PagedPending:
        """Makes the next tokens of every slot, one of those that its mask allows where it has one."""
        with self._around():
            if masks:
                turn = self._new_turn(masks)
            else:
                turn = self._turn = self._turn or self._new_turn({})
            self._state, made = self._programs.decode(self._weights, self._state, turn, *self._adapted())
        told = any(w.job.logprobs is not None for w in self._works.values())
        return PagedPending(made, told)

    def release(self, work: PagedWork) -> None:
        """Frees slot and pages. A step on its way still writes to them; what is dispatched later comes after it."""
        if work.slot is not None:
            del self._works[work.slot]
            self._table[work.slot] = 0
            self._alive[work.slot] = False
            self._turn = None
        if self.users is not None:
            with self._around():
                self.users.give(work.user)
            work.user = NOBODY
        self._leave(work)
        self._pool.give(work.own)
        work.own = []

    def usage(self) -> Usage:
        """How full the pool is."""
        return self._pool.usage()

    def warm_up(self) -> None:
        """Compiles every program, and leaves nothing behind but that."""
        with self._around():
            for size in self.settings.buckets:
                for mixture, reads in self._readers():
                    part = self._part(np.zeros(size, np.int32), np.zeros(size, np.int32), 0, self._table[:1], size)
                    pages, _ = self._programs.read(self._weights, self._state.pages, part, mixture, reads)
                    if size == self.settings.chunk:
                        targets = np.zeros(size, np.int32)
                        pages, _ = self._programs.score(self._weights, pages, part, targets, mixture, reads)
                    self._state = replace(self._state, pages=pages)
        with self._around():
            turn = self._new_turn({})
            self._state, made = self._programs.decode(self._weights, self._state, turn, *self._adapted())
        jax.block_until_ready(made)
        nothing = Prompt(np.zeros(1, np.int32), np.zeros(1, np.int32))
        if self.users is not None:
            with self._around():
                self.users.warm_up()
        self.insert(work := PagedWork(Job(nothing, 1), [], None, None), 0)
        self.decode().read()
        self.release(work)

    def prepared(self, params: Any) -> Weights:
        """Weights as the engine keeps them, for `replace_weights`; any thread may ask."""
        return self._programs.flatten(bounded(self._given, params)[1])

    def replace_weights(self, weights: Weights) -> None:
        """Speaks with other weights from the next step on, and forgets what was read with the old ones."""
        self._weights = weights
        self._epoch += 1
        self._pool.clear()

    def forget_user(self, name: str) -> None:
        """Call it where a user's adaptation was changed or deleted: the next answer looks for it anew."""
        if self.users is not None:
            with self._around():
                self.users.forget(name)

    def _take_user(self, name: str) -> int | None:
        if self.users is None or not name:
            return NOBODY
        with self._around():
            return self.users.take(name)

    def _adapted(self) -> tuple[UserTerms, ...]:
        return () if self.users is None else (self.users.terms,)

    @property
    def _known(self) -> int | None:
        """How many tokens of each row the device keeps, to guess by."""
        return self.max_length if self.settings.lookup else None

    @property
    def _chunk_pages(self) -> int:
        return self.settings.chunk // self.settings.page_size

    def _around(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.mesh is None else use(self.mesh, AxisRules())

    def _readers(self) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
        """The kinds of arguments that prompts are read with: by the base model, and by personas or with rules."""
        persona = self.config.persona
        mixture = None if persona is None else np.zeros((1, persona.capacity), np.float32)
        return [(None, None), (mixture, np.ones((1, NUM_ROLES), bool))]

    def _find(self, work: PagedWork) -> None:
        """Takes the chunks that come next from the pool, as far as they were read, in place of pages of its own."""
        while work.done == len(work.chunks) * self.settings.chunk and len(work.chunks) < len(work.keys):
            chunk = self._pool.find(work.keys[len(work.chunks)])
            if chunk is None:
                return
            work.chunks.append(chunk)
            if work.own:
                self._pool.give(work.own[: self._chunk_pages])
                work.own = work.own[self._chunk_pages :]
            work.done += self.settings.chunk
            work.cached_tokens += self.settings.chunk

    def _leave(self, work: PagedWork) -> None:
        for chunk in reversed(work.chunks):
            self._pool.leave(chunk)
        work.chunks = []

    def _row(self, work: PagedWork) -> np.ndarray:
        row = np.zeros(self._row_pages, np.int32)
        pages = work.pages()
        row[: len(pages)] = pages
        return row

    def _read(self, work: PagedWork, count: int) -> None:
        prompt, start = work.job.prompt, work.done
        scoring = work.job.prompt_logprobs is not None
        size = self.settings.chunk if scoring else next(b for b in self.settings.buckets if b >= count)
        stop = start + count
        part = self._part(prompt.tokens[start:stop], prompt.roles[start:stop], start, self._row(work)[None], size)
        mixture, reads = self._readers()[0]
        if work.mixture is not None or work.reads is not None:
            mixture, reads = self._readers()[1]
            mixture = mixture if work.mixture is None else work.mixture[None]
            reads = reads if work.reads is None else work.reads[None]
        with self._around():
            if scoring:
                targets = np.zeros(size, np.int32)
                targets[:count] = prompt.tokens[start + 1 : stop + 1]
                pages, made = self._programs.score(self._weights, self._state.pages, part, targets, mixture, reads)
                work.scores.append(made)
                done = made.tokens
            else:
                pages, done = self._programs.read(self._weights, self._state.pages, part, mixture, reads)
            self._state = replace(self._state, pages=pages)
        # one chunk ahead of the device: what is dispatched can neither be cancelled nor overtaken
        if self._last_chunk is not None:
            self._last_chunk.block_until_ready()
        self._last_chunk = done

    def _part(self, tokens: np.ndarray, roles: np.ndarray, start: int, table: np.ndarray, size: int) -> dict[str, Any]:
        def padded(x: np.ndarray) -> np.ndarray:
            out = np.zeros((1, size), np.int32)
            out[0, : len(x)] = x
            return out

        return {
            "tokens": padded(tokens),
            "roles": padded(roles),
            "count": np.int32(len(tokens)),
            "start": np.int32(start),
            "table": table,
        }

    def _scored(self, work: PagedWork) -> list[TokenLogprobs | None]:
        top = work.job.prompt_logprobs or 0
        out: list[TokenLogprobs | None] = []
        for made in work.scores:
            ids, values = np.asarray(made.top_ids)[:, :top].tolist(), np.asarray(made.top_logprobs)[:, :top].tolist()
            logprobs = np.asarray(made.logprobs).tolist()
            out += [
                TokenLogprobs(p, tuple(zip(i, v, strict=True))) for p, i, v in zip(logprobs, ids, values, strict=True)
            ]
        work.scores = []
        return [None, *out[: len(work.job.prompt.tokens) - 1]]

    def _new_turn(self, masks: Mapping[int, np.ndarray]) -> Turn:
        constrained, allowed = np.zeros(self.slots, bool), self._unconstrained
        if masks:
            allowed = allowed.copy()
            constrained[list(masks)] = True
            for slot, mask in masks.items():
                allowed[slot] = mask
        arrays = (self._table, self._alive, constrained, allowed, self._stop_ids)
        # of copies: the transfer of an array may go on after the call, and these arrays change
        copies = [x.copy() for x in arrays]
        return Turn(*(copies if jax.process_count() > 1 else map(jnp.asarray, copies)))
