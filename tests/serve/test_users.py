"""Users' own adaptations: beside others in one step, few on the device, gone when they are deleted."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from abi_jax.errors import InputError
from abi_jax.model.bank import BANK
from abi_jax.model.generate import Generator
from abi_jax.model.users import UserTerms, from_arrays, shapes, to_arrays
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.engine.users import NOBODY, Source, UserTable
from abi_jax.serve.scheduler import Scheduler, Ticket
from abi_jax.serve.users import UserFolder
from tests.model.cases import trained
from tests.serve.jobs import run, said
from tests.serve.test_paged import SIZES, VOICES, answers, ask

CONFIG, PARAMS = trained("llama")


def adaptation(seed: int) -> UserTerms:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes(CONFIG).items()}
    return from_arrays(CONFIG, arrays, "test")


def engine(rows: int, known: Mapping[str, UserTerms]) -> PagedEngine:
    return PagedEngine(CONFIG, PARAMS, settings=replace(SIZES, users=rows), adaptations=source(known))


def source(known: Mapping[str, UserTerms]) -> Source:
    return lambda user: (known[user], f"digest of {user}") if user in known else None


def as_persona(terms: UserTerms, row: int) -> Any:
    """The weights with a user's adaptation added to a persona's row: what the terms mean."""
    bank = PARAMS[BANK]
    cores = {name: of | {"core": of["core"].at[row].add(terms.cores[name])} for name, of in bank["cores"].items()}
    injection = bank["injection"] | {"embedding": bank["injection"]["embedding"].at[row].add(terms.embedding)}
    return PARAMS | {BANK: bank | {"cores": cores, "injection": injection}}


@pytest.mark.slow
def test_a_user_is_one_more_core_and_one_more_embedding_beside_whoever_speaks() -> None:
    known = {name: adaptation(i) for i, name in enumerate(("ada", "bob"))}
    of = engine(2, known)
    jobs = [ask(20, seed=3, mixture=VOICES[1], user=user) for user in ("ada", "", "bob", "nobody")]
    ada, plain, bob, nobody = answers(of, jobs)
    assert ada == Generator(CONFIG, as_persona(known["ada"], 1)).generate([jobs[0].prompt], 8)[0]
    assert bob == Generator(CONFIG, as_persona(known["bob"], 1)).generate([jobs[2].prompt], 8)[0]
    assert plain == nobody == Generator(CONFIG, PARAMS).generate([jobs[1].prompt], 8)[0]
    assert len({tuple(a) for a in (ada, plain, bob)}) == 3
    guessing = PagedEngine(CONFIG, PARAMS, settings=replace(SIZES, users=2, lookup=3), adaptations=source(known))
    assert answers(guessing, jobs) == [ada, plain, bob, nobody]


def test_more_users_than_rows_take_turns_and_each_answer_is_its_own() -> None:
    known = {f"u{i}": adaptation(i) for i in range(6)}
    of = engine(2, known)
    jobs = [ask(9 + i, seed=i, mixture=VOICES[2], user=f"u{i % 6}") for i in range(18)]
    assert answers(of, jobs) == [answers(of, [job])[0] for job in jobs]


def test_who_is_forgotten_leaves_nothing_and_takes_nothing_of_others() -> None:
    known = {name: adaptation(i) for i, name in enumerate(("ada", "bob", "cat"))}
    of = engine(2, known)
    scheduler, ada = Scheduler(of), Ticket(ask(9, mixture=VOICES[1], user="ada", max_tokens=30))
    scheduler.submit(ada)
    scheduler.submit(Ticket(ask(9, mixture=VOICES[1], user="cat", max_tokens=40)))
    told = said(run(scheduler, until=lambda: ada.produced > 3), ada)[0]
    del known["ada"]
    assert of.users is not None
    of.forget_user("ada")
    bob = Ticket(ask(9, mixture=VOICES[1], user="bob"))
    scheduler.submit(bob)
    events = run(scheduler)
    assert said(events, bob)[0] == answers(of, [bob.job])[0]  # it waited for a row
    known["ada"] = adaptation(0)
    assert told + said(events, ada)[0] == answers(of, [ada.job])[0]  # what she began with, to its end
    del known["ada"]
    of.forget_user("ada")
    assert answers(of, [replace(ada.job, max_tokens=8)]) == answers(of, [replace(ada.job, max_tokens=8, user="")])


def test_an_adaptation_that_does_not_fit_ends_its_job_and_no_other() -> None:
    def broken(user: str) -> None:
        raise (InputError if user == "ada" else OSError)(f"{user} holds nothing")

    of = PagedEngine(CONFIG, PARAMS, settings=replace(SIZES, users=2), adaptations=broken)
    scheduler, good = Scheduler(of), Ticket(ask(9))
    bad = [Ticket(ask(9, user=user)) for user in ("ada", "bob")]
    for ticket in (*bad, good):
        scheduler.submit(ticket)
    events = run(scheduler)
    assert [said(events, ticket) for ticket in bad] == [([], "error")] * 2 and said(events, good)[1] == "length"
    assert of.usage().used == 0


def test_rows_of_the_table() -> None:
    known = {name: adaptation(i) for i, name in enumerate("abc")}
    table = UserTable(CONFIG, 2, source(known))
    a, b = table.take("a"), table.take("b")
    assert {a, b} == {1, 2} and table.take("c") is None and table.take("nobody") == NOBODY
    assert a is not None and b is not None
    table.give(a)
    assert table.take("c") == a
    np.testing.assert_array_equal(table.terms.embedding[a], known["c"].embedding)
    assert not np.asarray(table.terms.embedding[NOBODY]).any()
    assert table.digest(a) == "digest of c" and table.digest(NOBODY) is None


def test_who_waits_for_a_row_is_read_when_it_comes_and_when_a_row_is_free() -> None:
    asked: list[str] = []

    def watched(user: str) -> tuple[UserTerms, str]:
        asked.append(user)
        return adaptation(len(asked)), f"digest {len(asked)}"

    table = UserTable(CONFIG, 1, watched)
    row = table.take("a")
    assert row is not None and [table.take("b") for _ in range(5)] == [None] * 5 and asked == ["a", "b"]
    table.forget("b")
    assert table.take("b") is None and asked == ["a", "b", "b"]
    table.give(row)
    assert table.take("b") == row and table.digest(row) == "digest 4" and len(asked) == 4
    many = [f"user {i}" for i in range(100)]
    for _ in range(3):
        assert all(table.take(each) is None for each in many)
    assert asked[4:] == many


def test_a_folder_keeps_adaptations_whole_and_forgets_what_is_deleted(tmp_path: Path) -> None:
    folder = UserFolder(tmp_path / "users", CONFIG)
    assert folder.get("../ada") is None and not folder.delete("../ada")
    folder.put("../ada", adaptation(0))
    found = folder.get("../ada")
    assert found is not None and len(found[1]) == 64
    for name, array in to_arrays(found[0]).items():
        np.testing.assert_array_equal(array, to_arrays(adaptation(0))[name])
    (file,) = (tmp_path / "users").iterdir()
    assert file.stat().st_size < 40_000
    assert folder.delete("../ada") and folder.get("../ada") is None and not list((tmp_path / "users").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": np.zeros(3, np.float32)}, r"embedding is float32 \(3,\); expected numbers \(32,\)"),
        ({"embedding": np.full(32, np.nan, np.float32)}, "embedding holds NaN"),
        ({"more": np.zeros(1, np.float32)}, "more; expected"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = UserFolder(tmp_path, CONFIG)
    with pytest.raises(InputError, match=message):
        folder.parse(save({**to_arrays(adaptation(0)), **change}), "upload")
    with pytest.raises(InputError, match="upload is not a safetensors file"):
        folder.parse(b"{}", "upload")
    with pytest.raises(InputError, match="has no place"):
        shapes(replace(CONFIG, persona=None))


def test_without_a_table_users_change_nothing() -> None:
    job: Job = ask(9, mixture=VOICES[1])
    plain = PagedEngine(CONFIG, PARAMS, settings=SIZES)
    assert answers(plain, [replace(job, user="ada")]) == answers(plain, [job])
