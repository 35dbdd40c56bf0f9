"""What a request may cost."""

from dataclasses import dataclass, fields

from abi_jax.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What a request may ask for. Sizes in bytes, times in seconds.

    body_seconds: for a body to arrive. request_seconds: for an answer, waiting included. drain_seconds: for what
    runs when the server is told to stop. choices: prompts of one request times `n`. head_bytes, head_seconds: of a
    request's line and headers. take_seconds: for a client to take anything of what is sent to it. kept_queries,
    kept_bytes, kept_seconds: answers that wait to be asked for.
    """

    max_waiting: int = 256
    body_bytes: int = 4 * 2**20
    body_seconds: float = 20.0
    head_bytes: int = 32 * 2**10
    head_seconds: float = 20.0
    take_seconds: float = 30.0
    request_seconds: float = 600.0
    drain_seconds: float = 120.0
    choices: int = 128
    kept_queries: int = 1024
    kept_bytes: int = 64 * 2**20
    kept_seconds: float = 600.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value <= 0:
                raise InputError(f"{each.name} = {value}; expected a number above 0")
