"""What is being answered, and what was and waits to be asked for: looked up and ended by id, by whom it belongs to."""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.keys import Principal
from abi_jax.wdbx.policy import Role

if TYPE_CHECKING:
    from abi_jax.serve.http.generation import Generation

_SELF_BYTES = 2048  # about what a query takes besides its answer


class Cancelled(ApiError):
    """Its query was ended by id."""

    def __init__(self) -> None:
        super().__init__(409, "the query was cancelled", code="cancelled")


@dataclass(eq=False)
class Query:
    """One request for an answer. Its end lets go of `made`, with all prompts, and leaves what is told of it.

    answer: JSON; it or `error` is set at the end of one that is `kept`.
    """

    id: str
    made: "Generation | None"
    owner: Principal
    kept: bool = False
    ended: float | None = None
    answer: bytes = b""
    error: ApiError | None = None
    _last: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """waiting, reading, speaking, done, cancelled or failed."""
        if self.answer:
            return "done"
        if self.made is None:
            return str(self._last["status"])
        error = self.error or self.made.given_up
        if error is not None:
            return "cancelled" if isinstance(error, Cancelled) else "failed"
        tickets = [choice.ticket for choice in self.made.choices if choice.ticket is not None]
        if any(ticket.read is not None for ticket in tickets):
            return "speaking"
        return "reading" if any(ticket.begun is not None for ticket in tickets) else "waiting"

    def told(self) -> dict[str, Any]:
        """As JSON, without the answer."""
        made = self.made
        if made is None:
            return self._last
        error = self.error or made.given_up
        return {
            "id": self.id,
            "object": "abi.query",
            "status": self.status,
            "created": made.created,
            "model": made.asked.model,
            "mixture": dict(made.asked.mixture),
            "usage": made.usage(),
            "error": None if error is None else error.body()["error"],
        }

    def whole(self) -> bytes:
        """As JSON, with the answer, null where there is none."""
        return to_json(self.told())[:-1] + b',"answer":' + (self.answer or b"null") + b"}"

    def end(self) -> None:
        """Keeps nothing but what is told."""
        self._last, self.made, self.error, self.ended = self.told(), None, None, time.monotonic()

    @property
    def size(self) -> int:
        """Bytes, about."""
        return _SELF_BYTES + len(self.answer)


class Queries:
    """By id. Those that are `kept` stay for a while after their end.

    Where they are too many or too large, the oldest goes of the tenant that keeps the most.
    """

    def __init__(self, most: int, most_bytes: int, seconds: float) -> None:
        self._most, self._most_bytes, self._seconds = most, most_bytes, seconds
        self._running: dict[str, Query] = {}
        self._kept: OrderedDict[str, Query] = OrderedDict()
        self._by_tenant: dict[str, OrderedDict[str, Query]] = {}
        self._sizes: dict[str, int] = {}

    def add(self, made: "Generation", owner: Principal) -> Query:
        """A request that was submitted."""
        query = self._running[made.id] = Query(made.id, made, owner)
        return query

    def keep(self, made: "Generation") -> Query:
        """Remembers one after its end."""
        query = self._running[made.id]
        query.kept = True
        return query

    def ended(self, made: "Generation") -> None:
        """One is over."""
        query = self._running.pop(made.id, None)
        if query is None or not query.kept:
            return
        if query.size > self._most_bytes:
            message = f"the answer has {len(query.answer)} bytes: expected at most {self._most_bytes} to be kept"
            query.answer, query.error = b"", ApiError(413, message, code="too_large")
        query.end()
        tenant = query.owner.tenant
        self._kept[query.id] = query
        self._by_tenant.setdefault(tenant, OrderedDict())[query.id] = query
        self._sizes[tenant] = self._sizes.get(tenant, 0) + query.size
        self._forget()

    def find(self, id_: str, who: Principal) -> Query:
        """The query with this id. Raises `ApiError` 404 for none, and for one that is somebody else's."""
        self._forget()
        query = self._running.get(id_) or self._kept.get(id_)
        if query is None or not _may_see(who, query.owner):
            raise ApiError(404, f"there is no query {id_[:80]!r}", "id", "not_found")
        return query

    def all(self, who: Principal) -> list[Query]:
        """All that somebody may see, the oldest first."""
        self._forget()
        found = [*self._by_tenant.get(who.tenant, {}).values(), *self._running.values()]
        return [query for query in found if _may_see(who, query.owner)]

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        while self._kept and ((first := next(iter(self._kept.values()))).ended or 0.0) <= oldest:
            self._drop(first)
        while len(self._kept) > self._most or sum(self._sizes.values()) > self._most_bytes:
            fullest = max(self._sizes, key=self._sizes.__getitem__)
            self._drop(next(iter(self._by_tenant[fullest].values())))

    def _drop(self, query: Query) -> None:
        tenant = query.owner.tenant
        del self._kept[query.id]
        del self._by_tenant[tenant][query.id]
        self._sizes[tenant] -= query.size
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant], self._sizes[tenant]


def _may_see(who: Principal, owner: Principal) -> bool:
    """One's own; an administrator's, all of the tenant."""
    return who.tenant == owner.tenant and (who.name == owner.name or who.role >= Role.ADMIN)
