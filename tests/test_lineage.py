"""A chain holds, or names the link at which it does not."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from abi_jax.errors import InputError
from abi_jax.lineage import GENESIS, Chain, Link


def link(step: int, **changes: object) -> Link:
    said = {"content": f"{step:064x}", "seal": "1" * 64, "config": "2" * 64, "position": "3" * 64, "code": "0.1.0"}
    return Link("model", step, **said | changes)  # type: ignore[arg-type]


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    made = Chain(tmp_path / "lineage" / "chain.jsonl")
    for step in (0, 100, 200, 300):
        made.append(link(step))
    return made


def test_links_follow_each_other(chain: Chain) -> None:
    links = chain.links()
    assert [x.step for x in links] == [0, 100, 200, 300]
    assert [x.previous for x in links] == [GENESIS, *(x.hash for x in links[:-1])]
    assert chain.head == links[-1].hash and not chain.breaks()
    assert all(x.time.endswith("+00:00") for x in links)


def test_no_file_is_an_empty_chain(tmp_path: Path) -> None:
    empty = Chain(tmp_path / "chain.jsonl")
    assert empty.links() == [] and empty.head == GENESIS


def test_every_field_counts() -> None:
    changes = {
        "kind": "memory",
        "step": 8,
        "content": "f" * 64,
        "seal": "f" * 64,
        "config": "f" * 64,
        "position": "f" * 64,
        "code": "0.2.0",
        "parents": ("a" * 64,),
        "time": "2026-01-01T00:00:00+00:00",
        "previous": "e" * 64,
    }
    one = link(7)
    others = {Link(**{**vars(one), name: value}).hash for name, value in changes.items()}
    assert len(others | {one.hash}) == 1 + len(changes) == 1 + len(Link.__dataclass_fields__)


def swap(lines: list[bytes]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def remove(lines: list[bytes]) -> None:
    del lines[1]


def remove_first(lines: list[bytes]) -> None:
    del lines[0]


def repeat(lines: list[bytes]) -> None:
    lines.insert(2, lines[1])


def replace(lines: list[bytes]) -> None:
    lines[1] = link(100, content="a" * 64).line().encode()


def forge(lines: list[bytes]) -> None:
    lines[1] = lines[1].replace(b'"step":100', b'"step":101')


def spaces(lines: list[bytes]) -> None:
    lines[1] = lines[1].replace(b",", b", ")


def not_text(lines: list[bytes]) -> None:
    lines[1] = b"\xff\xfe\n"


@pytest.mark.parametrize("damage", [swap, remove, remove_first, repeat, replace, forge, spaces, not_text])
def test_reordered_deleted_replaced_and_forged_links_are_found(
    chain: Chain, damage: Callable[[list[bytes]], None]
) -> None:
    lines = chain.path.read_bytes().splitlines(keepends=True)
    damage(lines)
    chain.path.write_bytes(b"".join(lines))
    assert chain.breaks()
    with pytest.raises(InputError, match=r"chain.jsonl: link [123]: .*; see abi verify"):
        chain.links()
    with pytest.raises(InputError):
        chain.append(link(400))
    assert chain.path.read_bytes() == b"".join(lines), "a broken chain was written to"


def test_any_flipped_bit_is_found(chain: Chain) -> None:
    whole = chain.path.read_bytes()
    for seed in range(200):
        chosen = random.Random(seed)
        broken = bytearray(whole)
        broken[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
        chain.path.write_bytes(broken)
        assert chain.breaks(), seed


def test_a_link_that_is_not_whole_is_never_there(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"chain.jsonl cannot be written: No space left on device"):
        chain.append(link(400))
    assert chain.path.read_bytes() == before and list(chain.path.parent.iterdir()) == [chain.path]
