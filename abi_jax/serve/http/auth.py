"""Who asks: a key or a signed token, its role, and how much it may."""

import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from starlette.requests import Request
from starlette.responses import Response

from abi_jax.errors import InputError
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.keys import TENANT, KeyRing, Principal
from abi_jax.serve.http.threads import CALLER
from abi_jax.wdbx.policy import Role

Endpoint = Callable[[Request], Awaitable[Response]]
EVERYBODY = Principal("anonymous", Role.ADMIN)  # where no keys are configured
_MOST_BUCKETS = 10_000
_SUBJECT = re.compile(r"[A-Za-z0-9._@|:/+=-]{1,256}")
_CHALLENGE = {"www-authenticate": "Bearer"}


@dataclass(frozen=True)
class JwtConfig:
    """Signed tokens that are accepted. key_file: the secret of HS256, the public key (PEM) of RS256.

    Who asks is `jwt:` and the token's `sub`; its role and tenant stand in the claims named here. It must have an end
    (`exp`). tenant_optional: tokens without a tenant are accepted, and speak for none.
    """

    algorithm: str = "HS256"
    key_file: str = ""
    issuer: str = ""
    audience: str = ""
    role_claim: str = "role"
    tenant_claim: str = "tenant"
    tenant_optional: bool = False
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0

    def __post_init__(self) -> None:
        if self.algorithm not in ("HS256", "RS256"):
            raise InputError(f"algorithm = {self.algorithm!r}; expected HS256 or RS256")


class Tokens:
    """Reads signed tokens."""

    def __init__(self, config: JwtConfig) -> None:
        """Raises `InputError` for a key that cannot be read."""
        self.config = config
        try:
            self._key = Path(config.key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"jwt.key_file = {config.key_file!r} cannot be read: {error}") from None
        if config.algorithm == "HS256" and len(self._key) < 32:
            raise InputError(f"jwt.key_file = {config.key_file!r} holds less than 32 bytes; expected a secret")

    def read(self, token: str) -> Principal:
        """Who a token speaks for. Raises `ApiError` 401."""
        config = self.config
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[config.algorithm],
                audience=config.audience or None,
                issuer=config.issuer or None,
                options={"require": ["exp", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise refused("the token has expired") from None
        except jwt.PyJWTError as error:
            raise refused(f"the token is not accepted: {error}") from None
        role = str(claims.get(config.role_claim, "")).upper()
        if role not in Role.__members__:
            raise refused(f"the token's claim {config.role_claim!r} names no role")
        tenant = claims.get(config.tenant_claim)
        if tenant in (None, "") and config.tenant_optional:
            tenant = ""
        elif not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            raise refused(f"the token's claim {config.tenant_claim!r} is no tenant's name")
        subject = claims["sub"]
        if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
            raise refused("the token's claim 'sub' is no name; expected letters, digits and . _ @ | : / + = -")
        limits = (config.requests_per_minute, config.tokens_per_minute)
        # no key's name has a colon, so that no token can be made that passes for a key
        return Principal(f"jwt:{subject}", Role[role], tenant, *limits)


@dataclass
class Bucket:
    """Fills at `rate` a second up to a minute's worth, at least 1; may be overdrawn by what is known only later."""

    rate: float
    level: float
    at: float

    def wait(self, amount: float, now: float) -> float:
        """Takes `amount`, or returns the seconds until it can be taken."""
        self.level = min(max(1.0, 60 * self.rate), self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level >= amount:
            self.level -= amount
            return 0.0
        return (amount - self.level) / self.rate


@dataclass
class Gate:
    """What stands before the routes. Without keys and tokens everybody may everything."""

    keys: KeyRing | None = None
    tokens: Tokens | None = None
    _buckets: OrderedDict[tuple[str, str, str], Bucket] = field(default_factory=OrderedDict)

    @property
    def open(self) -> bool:
        """True where nobody is asked who he is."""
        return self.keys is None and self.tokens is None

    def identify(self, authorization: str) -> Principal:
        """Who asks, by the header of that name. Raises `ApiError` 401."""
        if self.open:
            return EVERYBODY
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        if not secret or scheme.lower() != "bearer":
            raise refused("no key; expected the header Authorization: Bearer KEY")
        if self.tokens is not None and secret.count(".") == 2:
            return self.tokens.read(secret)
        found = None if self.keys is None else self.keys.find(secret)
        if found is None:
            raise refused("the key is not known")
        key, good = found
        if not good:
            raise refused("the key has expired")
        role = Role[key.role.upper()]
        return Principal(key.name, role, key.tenant, key.requests_per_minute, key.tokens_per_minute)

    def admit(self, who: Principal) -> None:
        """Counts a request. Raises `ApiError` 429 with the time to wait."""
        self._take(who, "requests", who.requests_per_minute, 1.0)
        self._take(who, "tokens", who.tokens_per_minute, 1.0)

    def count(self, who: Principal, requests: int) -> None:
        """Counts requests more than were admitted, which others wait for then."""
        bucket = self._bucket(who, "requests", who.requests_per_minute)
        if bucket is not None:
            bucket.level -= requests

    def charge(self, who: Principal, tokens: int) -> None:
        """Counts the tokens of a request that was answered."""
        bucket = self._bucket(who, "tokens", who.tokens_per_minute)
        if bucket is not None:
            bucket.level -= tokens - 1

    def _take(self, who: Principal, what: str, a_minute: float, amount: float) -> None:
        bucket = self._bucket(who, what, a_minute)
        wait = 0.0 if bucket is None else bucket.wait(amount, time.monotonic())
        if wait > 0:
            message = f"{who.name!r} may ask for {a_minute:g} {what} a minute"
            raise ApiError(429, message, code="rate_limited", headers={"retry-after": str(int(wait) + 1)})

    def _bucket(self, who: Principal, what: str, a_minute: float) -> Bucket | None:
        if not a_minute:
            return None
        name = (who.tenant, who.name, what)
        if name not in self._buckets:
            self._buckets[name] = Bucket(a_minute / 60, max(1.0, a_minute), time.monotonic())
            if len(self._buckets) > _MOST_BUCKETS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        bucket = self._buckets[name]
        bucket.rate = a_minute / 60  # the file of keys may say another than it did
        return bucket


def who_asks(http: Request) -> Principal:
    """Who a request is of."""
    who: Principal = http.scope["state"].get("who", EVERYBODY)
    return who


def guard(endpoint: Endpoint, role: Role | None, shared: bool = False, late: bool = False) -> Endpoint:
    """The endpoint for those that have at least `role`; for everybody where that is None.

    shared: for no tenant's. late: also while the server shuts down, which waits for every endpoint that has begun.
    """
    if role is None:
        return endpoint

    async def guarded(http: Request) -> Response:
        service = http.app.state.service
        gate: Gate = service.gate
        who = gate.identify(http.headers.get("authorization", ""))
        state: dict[str, Any] = http.scope["state"]
        state["principal"], state["who"] = who.name, who
        CALLER.set(who.share)
        if who.role < role:
            message = f"{who.name!r} is {who.role.name.lower()}: expected {role.name.lower()}"
            raise ApiError(403, message, code="forbidden")
        if shared and who.tenant:
            message = f"{who.name!r} is of tenant {who.tenant!r}, and this changes all tenants: expected a key of none"
            raise ApiError(403, message, code="forbidden")
        if service.draining and not late:
            raise ApiError(503, "the server is shutting down", code="unavailable", headers={"retry-after": "5"})
        gate.admit(who)
        service.running += 1
        try:
            return await endpoint(http)
        finally:
            service.running -= 1

    return guarded


def refused(message: str) -> ApiError:
    """A 401."""
    return ApiError(401, message, code="invalid_api_key", headers=_CHALLENGE)
