"""A server without keys is for the people at this machine, not for the pages that their browsers show."""

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from abi_jax.serve.http.errors import ApiError, respond


class OwnPages:
    """Middleware: where nobody is asked who he is, refuses what the browser says comes from another site's page.

    On a server for this machine alone, also what it was called by: a name that a stranger's DNS made mean this machine
    would make that stranger's page the server's own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 403."""
        if scope["type"] == "http" and scope["app"].state.service.gate.open:
            error = _objection(scope, scope["app"].state.service.host)
            if error is not None:
                await respond(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _objection(scope: Scope, own: str) -> ApiError | None:
    told = {name: value.decode("latin-1").strip() for name, value in scope["headers"]}
    host, origin = told.get(b"host", ""), told.get(b"origin")
    if own and not (is_loopback(name := _name(host)) or name.lower() == own.lower()):
        message = f"host = {host[:80]!r}: expected localhost or {own!r}, since this server has no keys"
        return ApiError(403, message, code="forbidden")
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        message = f"origin = {origin[:80]!r}: expected this server's own page, since it has no keys"
        return ApiError(403, message, code="forbidden")
    # a link that is followed shows the page to its user alone; nothing of it can be read by where the link stands
    followed = scope["method"] == "GET" and told.get(b"sec-fetch-dest") == "document"
    if told.get(b"sec-fetch-site") == "cross-site" and not followed:
        message = "sec-fetch-site = 'cross-site': expected this server's own page, since it has no keys"
        return ApiError(403, message, code="forbidden")
    return None


def _name(host: str) -> str:
    """A host without its port and, of an address, brackets."""
    return host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
