"""Receipts of answers: what regenerates one, bit by bit, and what it was made from.

A receipt has five sections, each with a digest of its own, so that whatever was changed in it is named:

    model     the link of the chain that the weights are, and the root of their digests
    engine    sizes, precision and machine: what the bits of an answer follow from besides
    memory    what was remembered, and of which version
    request   the prompt as tokens and roles, the mixture, how tokens were drawn
    answer    the tokens, and why they ended

Receipts of version 1 say nothing of the end: neither its limit and stop strings, nor what it was.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from abi_jax.errors import InputError
from abi_jax.lineage_digest import canonical, sha256
from abi_jax.model.generate import Prompt
from abi_jax.model.provenance import code
from abi_jax.model.sampling import SamplingConfig
from abi_jax.serve.answered import Answered, Ending
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.engine.seam import Grammar, Job

VERSION = 2
VERSIONS = (1, VERSION)
SECTIONS = ("model", "engine", "memory", "request", "answer")


@dataclass(frozen=True)
class AnswerReceipt:
    """See the module; `digests` by section, hexadecimal."""

    version: int
    model: Mapping[str, Any]
    engine: Mapping[str, Any]
    memory: Sequence[Mapping[str, Any]]
    request: Mapping[str, Any]
    answer: Mapping[str, Any]
    digests: Mapping[str, str]

    def changed(self) -> list[str]:
        """The sections whose digest does not hold."""
        return [name for name in SECTIONS if self.digests.get(name) != digest(name, getattr(self, name))]

    @property
    def ending(self) -> Ending | None:
        """Why the answer ended; None where the receipt does not say."""
        return None if self.version == 1 else Ending(self.answer["finish"], self.answer["stop"])

    @property
    def stops(self) -> tuple[str, ...]:
        """The request's stop strings, as far as the receipt says."""
        return () if self.version == 1 else tuple(self.request["stop"])

    @property
    def silent(self) -> bool:
        """Whether the prompt was to be read alone."""
        return self.version != 1 and self.request["max_tokens"] < 1

    def job(self, grammar: Grammar | None) -> Job:
        """What the engine was asked for, of version 1 up to where the answer ended.

        grammar: the request's, at its beginning.
        """
        asked, tokens = self.request, self.answer["tokens"]
        arrays = {n: None if asked[n] is None else np.asarray(asked[n], t) for n, t in _ARRAYS.items()}
        prompt = Prompt(
            np.asarray(asked["tokens"], np.int32),
            np.asarray(asked["roles"], np.int32),
            arrays["w"],
            arrays["reads"],
            arrays["prompt_reads"],
            response_only=asked["response_only"],
            sampling=SamplingConfig(**asked["sampling"]),
        )
        return Job(
            prompt,
            max(1, len(tokens) if self.version == 1 else int(asked["max_tokens"])),
            frequency_penalty=asked["frequency_penalty"],
            presence_penalty=asked["presence_penalty"],
            logit_bias={int(token): bias for token, bias in asked["logit_bias"].items()},
            ignore_eos=asked["ignore_eos"],
            prompt_logprobs=asked.get("prompt_logprobs"),
            grammar=grammar,
            user=asked["user"]["id"] if asked["user"] else "",
        )

    def settings(self) -> EngineConfig:
        """The sizes of the engine that made the answer."""
        return EngineConfig(**self.engine["settings"])


_ARRAYS: dict[str, Any] = {"w": np.float32, "reads": bool, "prompt_reads": bool}


def digest(section: str, value: Any) -> str:
    """The digest of a section."""
    return sha256(f"answer/{section}", canonical(value)).hex()


def make(about: Answered, *, model: Mapping[str, Any], engine: Mapping[str, Any]) -> dict[str, Any]:
    """The receipt of an answer, as JSON."""
    job, prompt = about.job, about.job.prompt
    arrays = {"w": prompt.mixture, "reads": prompt.reads, "prompt_reads": prompt.prompt_reads}
    request = {
        "tokens": prompt.tokens.tolist(),
        "roles": prompt.roles.tolist(),
        "mixture": dict(about.mixture),
        **{name: None if x is None else np.asarray(x, _ARRAYS[name]).tolist() for name, x in arrays.items()},
        "response_only": prompt.response_only,
        "sampling": asdict(prompt.sampling),
        "frequency_penalty": job.frequency_penalty,
        "presence_penalty": job.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in job.logit_bias.items()},
        "ignore_eos": job.ignore_eos,
        "grammar": None if job.grammar is None else job.grammar.source,
        "user": None if about.adaptation is None else {"id": job.user, "sha256": about.adaptation},
        "max_tokens": job.max_tokens,
        "prompt_logprobs": job.prompt_logprobs,  # a prompt is then read by another program
        "stop": list(about.stops),
    }
    sections = {
        "model": dict(model),
        "engine": dict(engine),
        "memory": [dict(m) for m in about.memories],
        "request": request,
        "answer": {"tokens": list(about.tokens), "finish": about.ending.finish, "stop": about.ending.at},
    }
    return {"version": VERSION, **sections, "digests": {name: digest(name, sections[name]) for name in SECTIONS}}


def read(value: Any, where: str) -> AnswerReceipt:
    """Reads what `make` returned, or an answer of the server that has exactly one receipt.

    Raises `InputError`, which names `where`, for anything else.
    """
    if isinstance(value, dict) and isinstance(value.get("abi"), dict):
        receipts = value["abi"].get("receipts") or []
        if len(receipts) != 1:
            raise InputError(f"{where}: an answer with {len(receipts)} receipts; expected one, or a receipt by itself")
        value = receipts[0]
    names = AnswerReceipt.__dataclass_fields__
    if not isinstance(value, dict) or set(value) != set(names):
        raise InputError(f"{where} is not a receipt of an answer; expected {', '.join(names)}")
    if value["version"] not in VERSIONS:
        expected = " or ".join(map(str, VERSIONS))
        raise InputError(f"{where} is a receipt of version {value['version']!r}; expected {expected}")
    receipt = AnswerReceipt(**value)
    try:
        receipt.settings()
        receipt.job(None)
        _check_end(receipt)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} is not a receipt of an answer: {type(error).__name__}: {error}") from None
    return receipt


def _check_end(receipt: AnswerReceipt) -> None:
    """Raises `ValueError` for an end that no answer has."""
    if receipt.ending is not None and receipt.ending.finish not in ("stop", "length"):
        raise ValueError(f"finish = {receipt.ending.finish!r}")
    if not all(isinstance(stop, str) for stop in receipt.stops):
        raise ValueError(f"stop = {list(receipt.stops)!r}")


def engine_section(engine: PagedEngine) -> dict[str, Any]:
    """What the bits of an engine's answers follow from, besides weights and requests."""
    device = jax.local_devices()[0] if engine.mesh is None else engine.mesh.devices.flat[0]
    return {
        "settings": asdict(engine.settings),
        "dtype": engine.dtype.name,
        "mesh": None if engine.mesh is None else dict(engine.mesh.shape),
        "platform": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count() if device.platform == "cpu" else None,
        "jax": jax.__version__,
        "code": code(),
    }
