"""Roles: what is not granted is forbidden, a higher role may do more, and an error says what it would have taken."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi_jax.errors import InputError
from abi_jax.wdbx.errors import ForbiddenError
from abi_jax.wdbx.policy import ACTIONS, EVERYTHING, Policy, Role, make_policy, needed, read_policy

PRINCIPALS = st.sampled_from(["ada", "bob", "carol", "*"])
COLLECTIONS = st.sampled_from(["notes", "memory", "logs"])
ROLES = st.sampled_from(list(Role))
GRANTS = st.lists(st.tuples(PRINCIPALS, ROLES, COLLECTIONS | st.just(EVERYTHING)), max_size=8)
ACTS = st.sampled_from(list(ACTIONS))


def test_as_an_example() -> None:
    policy = make_policy([("ada", "admin", "*"), ("bob", "reader", "notes"), ("bob", "writer", "memory")])
    policy.check("ada", "drop", "notes")
    policy.check("ada", "columns", "notes")
    policy.check("bob", "query", "notes")
    policy.check("bob", "upsert", "memory")
    with pytest.raises(ForbiddenError) as refused:
        policy.check("bob", "upsert", "notes")
    assert str(refused.value) == ("'bob' may not upsert in collection 'notes': it is reader there; expected writer")
    with pytest.raises(ForbiddenError, match="'eve' may not get in collection 'notes': it has no role there; expected"):
        policy.check("eve", "get", "notes")
    with pytest.raises(ForbiddenError, match="'bob' may not columns in collection 'memory'"):
        policy.check("bob", "columns", "memory")
    with pytest.raises(ForbiddenError, match="'bob' may not rotate in collection '\\*'"):
        policy.check("bob", "rotate", "*")


@given(grants=GRANTS, principal=PRINCIPALS, action=ACTS, collection=COLLECTIONS | st.just(EVERYTHING))
def test_allowed_is_what_some_grant_allows(
    grants: list[tuple[str, Role, str]], principal: str, action: str, collection: str
) -> None:
    policy = make_policy(grants)
    expected = any(
        who == principal and where in (EVERYTHING, collection) and role >= ACTIONS[action]
        for who, role, where in grants
    )
    assert policy.allows(principal, action, collection) == expected
    if not expected:
        with pytest.raises(ForbiddenError) as refused:
            policy.check(principal, action, collection)
        for said in (repr(principal), action, repr(collection), needed(action).name.lower()):
            assert said in str(refused.value)
    else:
        policy.check(principal, action, collection)


@given(grants=GRANTS, extra=st.tuples(PRINCIPALS, ROLES, COLLECTIONS), principal=PRINCIPALS, collection=COLLECTIONS)
def test_a_grant_takes_nothing_away_and_helps_nobody_else(
    grants: list[tuple[str, Role, str]], extra: tuple[str, Role, str], principal: str, collection: str
) -> None:
    before, after = make_policy(grants), make_policy(grants).granted(*extra)
    for action in ACTIONS:
        now, then = after.allows(principal, action, collection), before.allows(principal, action, collection)
        assert now >= then
        if (principal, collection) != (extra[0], extra[2]):
            assert now == then


@given(grants=GRANTS, principal=PRINCIPALS, collection=COLLECTIONS, action=ACTS)
def test_what_is_revoked_is_gone(
    grants: list[tuple[str, Role, str]], principal: str, collection: str, action: str
) -> None:
    policy = make_policy(grants)
    assert not policy.revoked(principal).allows(principal, action, collection)
    one = policy.revoked(principal, collection)
    assert one.role(principal, collection) == policy.role(principal, EVERYTHING)
    others = {each for each in policy.grants if each.principal != principal}
    assert set(policy.revoked(principal).grants) == others


@given(grants=GRANTS)
def test_a_policy_is_read_as_it_was_written(
    grants: list[tuple[str, Role, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("policy") / "policy.json"
    policy = make_policy(grants)
    path.write_bytes(policy.encode())
    assert read_policy(path) == policy
    assert make_policy(reversed(grants)).encode() == policy.encode()


def test_nobody_may_do_anything_at_first() -> None:
    assert not any(Policy().allows("ada", action, "notes") for action in ACTIONS)


def test_bad_input(tmp_path: Path) -> None:
    policy = Policy()
    for call, said in (
        (lambda: policy.granted("", "reader", "notes"), "principal '' of a grant: expected a name"),
        (
            lambda: policy.granted("ada", "owner", "notes"),
            "role 'owner' of 'ada': expected one of reader, writer, admin",
        ),
        (lambda: policy.granted("ada", "reader", 7), "collection 7 of a grant"),  # type: ignore[arg-type]
        (lambda: policy.allows("ada", "fly", "notes"), "action 'fly': expected one of get, query"),
        (lambda: read_policy(tmp_path / "none"), "No such file or directory; expected a policy"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    for text in ("", "[]", '{"grants": 7}', '{"grants": [["ada", "reader"]]}', "[" * 100_000):
        (tmp_path / "policy").write_text(text)
        with pytest.raises(InputError, match="is not a policy; expected JSON"):
            read_policy(tmp_path / "policy")
    (tmp_path / "policy").write_text(json.dumps({"grants": [["ada", "reader", ""]]}))
    with pytest.raises(InputError, match="collection '' of a grant"):
        read_policy(tmp_path / "policy")
