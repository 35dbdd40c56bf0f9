"""Duplicates, against an oracle that compares every pair word for word."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.data import Record, duplicates
from abi_jax.data.duplicates import exact_key, find_duplicates
from abi_jax.data.minhash import HASHES, MISSED, bands_for, buckets, jaccard, shingles, signatures


def say(answer: str, question: str = "why", persona: str = "abbey") -> Record:
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Record(turns, {persona: 1.0})


def triples(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}


def naive(records: list[Record], held_out: list[Record], similarity: float) -> list[str | None]:
    """Every record against all that stay, in order."""

    def text(record: Record) -> str:
        return "\n".join(turn["content"] for turn in record.turns)

    def alike(a: Record, b: Record) -> bool:
        one, two = triples(text(a)), triples(text(b))
        return a.mixture == b.mixture and len(one & two) / len(one | two) >= similarity

    exact_keys = {(text(r).lower(), *r.mixture) for r in held_out}
    reasons: list[str | None] = []
    seen: set[tuple[str, ...]] = set()
    for record in records:
        key = (text(record).lower(), *record.mixture)
        reasons.append("leaked" if key in exact_keys else "exact" if key in seen else None)
        seen.add(key)
    kept: list[Record] = []
    for at, record in enumerate(records):
        if reasons[at] is None:
            if any(alike(record, other) for other in held_out):
                reasons[at] = "leaked"
            elif any(alike(record, other) for other in kept):
                reasons[at] = "near"
            else:
                kept.append(record)
    return reasons


WORDS = [f"w{i}" for i in range(40)]


@st.composite
def families(draw: st.DrawFn) -> list[Record]:
    """Texts, and edits of them from slight to thorough, by two personas."""
    records: list[Record] = []
    for _ in range(draw(st.integers(1, 4))):
        words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40))
        for _ in range(draw(st.integers(1, 5))):
            edited = list(words)
            for _ in range(draw(st.integers(0, 6))):
                edited[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(WORDS))
            text = " ".join(edited)
            records.append(
                say(text.upper() if draw(st.booleans()) else text, persona=draw(st.sampled_from(["abbey", "abi"])))
            )
    return draw(st.permutations(records))


@settings(max_examples=150, deadline=None)
@given(families(), st.integers(0, 4), st.sampled_from([0.3, 0.5, 0.8, 0.9, 1.0]), st.sampled_from([1, 3, 64]))
def test_the_same_records_go_as_when_every_pair_is_compared(
    records: list[Record], held: int, similarity: float, crowd: int
) -> None:
    held_out, rest = records[:held], records[held:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "CROWD", crowd)
        assert find_duplicates(rest, held_out, similarity) == naive(rest, held_out, similarity)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The similarities that are computed from here on."""
    compared: list[float] = []

    def count(a: np.ndarray, b: np.ndarray) -> float:
        compared.append(jaccard(a, b))
        return compared[-1]

    monkeypatch.setattr(duplicates, "jaccard", count)
    return compared


def test_texts_of_one_template_are_told_apart_without_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of every text is the template's; among 600 are 3 that repeat another but for one word."""
    frame = "what will the weather be like in the city of {} next week on the day {} and will it rain in {}"
    texts = [frame.format(f"city{n}", f"day{n}", f"town{n}") + f" said person{n} again" for n in range(600)]
    for n in (50, 51, 52):
        texts[n + 100] = texts[n] + " please"
    compared = counted(monkeypatch)
    reasons = find_duplicates([say(text) for text in texts], similarity=0.8)
    assert [n for n, reason in enumerate(reasons) if reason] == [150, 151, 152]
    assert len(compared) < 50


def test_texts_a_sixth_of_which_is_their_own_are_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """14 % of the words are a text's own, so J is 0.75, and all are in one bucket or another."""
    monkeypatch.setattr(duplicates, "CROWD", 4)
    frame = " ".join(f"same{n}" for n in range(80))
    texts = [f"{frame} " + " ".join(f"own{n}x{k}" for k in range(13)) for n in range(300)]
    texts[200] = texts[100] + " please"
    compared = counted(monkeypatch)
    reasons = find_duplicates([say(text) for text in texts], similarity=0.8)
    assert [n for n, reason in enumerate(reasons) if reason] == [200]
    assert len(compared) < 50


def test_pairs_that_reject_different_answers_are_different() -> None:
    tale = " ".join(f"word{n}" for n in range(60))
    other = " ".join(f"none{n}" for n in range(9))
    pairs = [dataclasses.replace(say(tale), rejected=r) for r in ("No.", other, f"{other} at all", None)]
    assert find_duplicates(pairs) == [None] * 4
    assert find_duplicates(pairs, similarity=0.6) == [None, None, "near", None]


def test_a_backbone_does_not_hear_who_speaks() -> None:
    tale = " ".join(f"word{n}" for n in range(60))
    one, two, near = say(tale), say(tale, persona="abi"), say(tale + " again", persona="aviva")
    assert find_duplicates([two, near], [one], 0.8) == [None, None]
    assert find_duplicates([two, near], [one], 0.8, by_voice=False) == ["leaked", "leaked"]
    assert find_duplicates([one, two, near], similarity=0.8, by_voice=False) == [None, "exact", "near"]


def test_planted_edits_of_long_texts() -> None:
    """One word in `w` replaced: the similarity is known, and so is who goes."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(5000)])
    originals = [rng.choice(vocabulary, 300).tolist() for _ in range(60)]
    edited = []
    for at, words in enumerate(originals):
        copy = list(words)
        for place in range(5, 300, 60 if at % 2 else 12):  # J = 0.9 and 0.5
            copy[place] = "other"
        edited.append(copy)
    records = [say(" ".join(words)) for words in [*originals, *edited]]
    reasons = find_duplicates(records, similarity=0.8)
    assert reasons == [None] * 60 + [None, "near"] * 30
    assert find_duplicates(records) == [None] * 120
    again = [dataclasses.replace(r, mixture={"abi": 1.0}) for r in records[:60]]
    assert find_duplicates(records[:60] + again, similarity=0.8) == [None] * 120  # another persona may say the same


def test_case_and_space_make_no_difference() -> None:
    one = say("Take  one\nslow breath.", "I am STUCK")
    assert exact_key(one) == exact_key(say("take one slow breath. ", "i am stuck"))
    others = [say("Take one slow breath!", "I am stuck"), say("Take one slow breath.", "I am stuck", "abi")]
    others.append(dataclasses.replace(one, rejected="No."))
    assert len({exact_key(r) for r in [one, *others]}) == 4
    assert find_duplicates([one, one, others[1]], held_out=[others[1]]) == [None, "exact", "leaked"]


def test_buckets_are_of_one_voice() -> None:
    signed = signatures(["one two three four"] * 4 + ["something else altogether here"])
    found = buckets(signed, ["a", "b", "a", "a", "a"], bands_for(0.8))
    assert {tuple(members.tolist()) for members in found} == {(0, 2, 3)}


@given(st.sets(st.integers(0, 60), min_size=1), st.sets(st.integers(0, 60), min_size=1))
def test_jaccard(a: set[int], b: set[int]) -> None:
    arrays = [np.array(sorted(s), np.uint64) for s in (a, b)]
    assert jaccard(*arrays) == pytest.approx(len(a & b) / len(a | b))


def test_shingles_of_short_texts_and_of_scripts_without_spaces() -> None:
    assert len(shingles("one two three four")) == 2
    assert [len(shingles(t)) for t in ("", "?!", "one", "one two", "one, two; three")] == [1] * 5
    assert not np.array_equal(shingles("?"), shingles("!"))
    assert len(shingles("今日は天気がいい")) == 6
    assert len(shingles("a b c a b c a b c")) == 3


def test_signatures_estimate_similarity() -> None:
    words = [f"w{i}" for i in range(400)]
    texts = [" ".join(words[s : s + 200]) for s in (0, 20, 66, 100, 200)]
    signed = signatures(texts)
    assert signed.shape == (5, HASHES) and signed.dtype == np.uint32
    for at in range(1, 5):
        exact = jaccard(shingles(texts[0]), shingles(texts[at]))
        assert abs((signed[0] == signed[at]).mean() - exact) < 4 * np.sqrt(max(exact * (1 - exact), 1e-9) / HASHES)
    alone = [signatures([text])[0] for text in texts]
    np.testing.assert_array_equal(signed, alone)


def test_signatures_are_the_same_in_every_process() -> None:
    expected = [[224120506, 572590397, 271542390], [2417325324, 1922887705, 279040925]]
    assert signatures(["one two three four five", "x"])[:, :3].tolist() == expected


@pytest.mark.parametrize("similarity", [0.2, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_overlook_next_to_nothing(similarity: float) -> None:
    bands = bands_for(similarity)
    assert bands.count * bands.rows <= HASHES
    assert 1 - bands.found(similarity) <= MISSED
