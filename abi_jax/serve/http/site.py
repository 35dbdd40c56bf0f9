"""The page at `/`: three files that the browser runs as they are, and that load nothing from anywhere else."""

import gzip
import hashlib
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from abi_jax.serve.http.auth import Endpoint
from abi_jax.serve.http.rule import Rule

_FOLDER = Path(__file__).with_name("page")
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
# Trusted types make the browser itself refuse whatever would turn a text into HTML.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # asked for again each time, and answered with 304: a new server is never shown an old page
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


@cache
def _load(name: str) -> tuple[bytes, bytes, str]:
    """A file as it is, compressed, and its tag."""
    data = (_FOLDER / name).read_bytes()
    return data, gzip.compress(data, mtime=0), hashlib.sha256(data).hexdigest()[:32]


def _file(name: str) -> Endpoint:
    async def file(http: Request) -> Response:
        data, packed, tag = _load(name)
        headers = {**_HEADERS, "etag": f'W/"{tag}"'}
        if tag in http.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in http.headers.get("accept-encoding", ""):
            data, headers = packed, {**headers, "content-encoding": "gzip"}
        return Response(data, headers={**headers, "content-type": _KINDS[Path(name).suffix]})

    return file


RULES = (
    Rule("GET", "/", _file("index.html"), None, "The page."),
    Rule("GET", "/page.css", _file("page.css"), None, "How the page looks."),
    Rule("GET", "/page.js", _file("page.js"), None, "What the page does."),
)
