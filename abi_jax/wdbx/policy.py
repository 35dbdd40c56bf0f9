"""Who may do what with which collection: what a server asks before it does it.

The embedded library does not ask: whoever has the files and the key can do everything, and no role stops him. A server
that has both, and gives neither away, is where roles are enforced.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from abi_jax.errors import InputError
from abi_jax.lineage_digest import canonical
from abi_jax.wdbx.errors import ForbiddenError

EVERYTHING = "*"  # of grants: every collection, those to come, and what is of none


class Role(IntEnum):
    """What somebody is to a collection; each may do all that those before it may."""

    READER = 1
    WRITER = 2
    ADMIN = 3


ACTIONS: Mapping[str, Role] = MappingProxyType(
    dict.fromkeys(("get", "query", "count", "export", "log", "at", "prove", "stats"), Role.READER)
    | dict.fromkeys(("upsert", "delete", "import", "tag"), Role.WRITER)
    | dict.fromkeys(
        (
            "create",
            "drop",
            "columns",
            "settings",
            "seal",
            "compact",
            "verify",
            "backup",
            "restore",
            "rotate",
            "erase",
            "grant",
        ),
        Role.ADMIN,
    )
)


@dataclass(frozen=True)
class Grant:
    """`principal` has `role` in `collection`: its name, or `*` for all."""

    principal: str
    role: Role
    collection: str


@dataclass(frozen=True)
class Policy:
    """Grants. What none of them allows is forbidden."""

    grants: frozenset[Grant] = frozenset()

    def role(self, principal: str, collection: str) -> Role | None:
        """The highest role of a principal in a collection (`*`: in all of them); None for none."""
        wanted = {EVERYTHING, collection}
        found = [each.role for each in self.grants if each.principal == principal and each.collection in wanted]
        return max(found, default=None)

    def allows(self, principal: str, action: str, collection: str) -> bool:
        """Whether a principal may do something. Raises `InputError` where there is no such action."""
        lowest, role = needed(action), self.role(principal, collection)
        return role is not None and role >= lowest

    def check(self, principal: str, action: str, collection: str) -> None:
        """Raises `ForbiddenError` where a principal may not do `action` (of `ACTIONS`) with a collection (`*`: all)."""
        if not self.allows(principal, action, collection):
            role = self.role(principal, collection)
            has = f"it is {role.name.lower()}" if role else "it has no role"
            raise ForbiddenError(
                f"{principal!r} may not {action} in collection {collection!r}: {has} there; "
                f"expected {needed(action).name.lower()}"
            )

    def granted(self, principal: str, role: Role | str, collection: str) -> "Policy":
        """The policy with one more grant. Raises `InputError` where there is no such role."""
        return Policy(self.grants | {make_grant(principal, role, collection)})

    def revoked(self, principal: str, collection: str | None = None) -> "Policy":
        """The policy without what a principal was granted for `collection` (None: for anything).

        A grant for all collections is one of its own: revoking one collection leaves it as it is.
        """
        return Policy(
            frozenset(
                each for each in self.grants if each.principal != principal or collection not in (None, each.collection)
            )
        )

    def encode(self) -> bytes:
        """A line of JSON, the same for the same grants."""
        said = sorted([each.principal, each.role.name.lower(), each.collection] for each in self.grants)
        return canonical({"grants": said}) + b"\n"


def needed(action: str) -> Role:
    """The lowest role that may do an action. Raises `InputError` where there is no such action."""
    if action not in ACTIONS:
        raise InputError(f"action {action!r}: expected one of {', '.join(ACTIONS)}")
    return ACTIONS[action]


def make_grant(principal: Any, role: Any, collection: Any) -> Grant:
    """A grant as a user describes it. Raises `InputError` with the value that does not fit."""
    for what, value in (("principal", principal), ("collection", collection)):
        if not isinstance(value, str) or not value:
            raise InputError(f"{what} {value!r} of a grant: expected a name")
    try:
        found = role if isinstance(role, Role) else Role[str(role).upper()]
    except KeyError:
        names = ", ".join(each.name.lower() for each in Role)
        raise InputError(f"role {role!r} of {principal!r}: expected one of {names}") from None
    return Grant(principal, found, collection)


def make_policy(grants: Iterable[tuple[Any, Any, Any]]) -> Policy:
    """A policy of `(principal, role, collection)`."""
    return Policy(frozenset(make_grant(*each) for each in grants))


def read_policy(path: Path) -> Policy:
    """Reads what `Policy.encode` wrote. Raises `InputError` where a file is anything else."""
    try:
        said = json.loads(path.read_bytes())
        grants = [(principal, role, collection) for principal, role, collection in said["grants"]]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a policy") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        expected = '{"grants": [[principal, role, collection], ...]}'
        raise InputError(f"{path} is not a policy; expected JSON: {expected}") from None
    return make_policy(grants)
