"""What a route is: its path, who may use it, what it takes and gives."""

from dataclasses import dataclass

from pydantic import BaseModel
from starlette.routing import Route

from abi_jax.serve.http.auth import Endpoint, guard
from abi_jax.wdbx.policy import Role


@dataclass(frozen=True)
class Rule:
    """One route.

    role: the lowest that may use it, None for everybody. answer: None where it is no JSON. status: of success.
    shared: it changes what all tenants use, so that no tenant's may use it. late: it is answered while the server
    shuts down, as every GET is.
    """

    method: str
    path: str
    endpoint: Endpoint
    role: Role | None
    about: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    status: int = 200
    shared: bool = False
    late: bool = False

    def route(self) -> Route:
        """As Starlette takes it."""
        guarded = guard(self.endpoint, self.role, self.shared, self.late or self.method == "GET")
        return Route(self.path, guarded, methods=[self.method])
