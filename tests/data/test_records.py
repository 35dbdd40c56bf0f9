"""Records: what is read, and how a line that cannot be read is reported."""

from collections.abc import Callable
from pathlib import Path

import pytest

from abi_jax.data import demo_files, is_held_out, parse_record, read_records, resolve
from abi_jax.errors import InputError

Write = Callable[..., str]
ASK = {"role": "user", "content": "why?"}
SAY = {"role": "assistant", "content": "because"}
GOOD = {"messages": [ASK, SAY], "persona": "abbey"}


def test_a_full_chat_record(write: Write) -> None:
    path = write(
        {
            "messages": [{"role": "system", "content": "rule"}, ASK, SAY, ASK, SAY, ASK],
            "mixture": {"abbey": 0.5, "aviva": 0.5},
            "aspect": "technical",
            "labels": {"SH": 0},
            "attributes": {"age": "old"},
            "memory": ["m"],
            "policy": "law",
            "id": 7,
        }
    )
    record = read_records({"chats": (Path(path),)}, ["abbey", "aviva"]).records[0]
    assert record.policy == "law\n\nrule" and record.memory == ("m",) and record.aspect == "technical"
    assert record.mixture == {"abbey": 0.5, "aviva": 0.5}
    assert [t["role"] for t in record.turns] == ["user", "assistant"] * 2  # the unanswered question is left out
    assert record.answers == (1, 3) and record.question == "why?"
    assert record.labels == {"SH": 0} and record.attributes == {"age": "old"}
    assert record.where == f"{path}:1" and record.dataset == "chats"


def test_a_preference_record_is_its_chosen_dialogue() -> None:
    line = '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, '
    line += '{"role": "user", "content": "c"}], "chosen": "yes", "rejected": "no", "persona": "abi"}'
    record = parse_record(line)
    assert [t["content"] for t in record.turns] == ["a", "b", "c", "yes"]
    assert record.rejected == "no" and record.answers == (3,)


def test_neighbours_of_one_role_become_one_turn() -> None:
    record = parse_record(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, '
        '{"role": "assistant", "content": "c"}]}'
    )
    assert record.turns[1]["content"] == "b\n\nc" and record.mixture == {}


BAD = [
    ("{", "not JSON: Expecting"),
    ("[1]", "list; expected a JSON object"),
    ("{}", r"no 'messages' among the keys \(none\)"),
    ({"messages": []}, r"messages is \[\]; expected a list of messages"),
    ({"messages": "hi"}, 'messages is "hi"; expected a list'),
    ({"messages": ["hi"]}, r'messages\[0\] is "hi"; expected an object'),
    ({"messages": [{"role": "user"}]}, r"messages\[0\] is .*; expected an object with texts 'role' and 'content'"),
    ({"messages": [ASK]}, "messages hold no answer"),
    ({"messages": [SAY, ASK, SAY]}, "the first turn is the assistant's"),
    ({"messages": [ASK, {"role": "robot", "content": "x"}]}, "message 1: role 'robot'"),
    ({"messages": [ASK, {"role": "assistant", "content": " "}]}, r"message 1 \(assistant\): content is empty"),
    (GOOD | {"persona": "abby"}, r"unknown persona 'abby' \(nearest: 'abbey'\)"),
    (GOOD | {"policy": "\ud83d"}, r"holds '\\ud83d', half of a character"),
    (GOOD | {"persona": 3}, "persona is 3; expected text"),
    (GOOD | {"mixture": {"abbey": 1}}, "both 'persona' and 'mixture'"),
    ({"messages": [ASK, SAY], "mixture": {"abbey": 0.5}}, r"weights of mixture 'abbey=0\.5' sum to 0\.5; expected 1"),
    ({"messages": [ASK, SAY], "mixture": {"abbey": "1"}}, "mixture is .*; expected an object"),
    ({"messages": [ASK, SAY], "mixture": {"abbey": 10**400}}, "mixture has a weight that is far too large"),
    ({"messages": [ASK, {"role": "assistant", "content": " \ue0ff"}]}, r"message 1 \(assistant\): content is empty"),
    ({"messages": [ASK, SAY]}, "no persona; expected 'persona' or 'mixture' among the keys messages"),
    (GOOD | {"memory": "x"}, 'memory is "x"; expected a list of texts'),
    (GOOD | {"labels": [1]}, r"labels is \[1\]; expected an object"),
    (GOOD | {"policy": 1}, "policy is 1; expected text"),
    (GOOD | {"aspect": []}, r"aspect is \[\]; expected text"),
    ({"prompt": [ASK], "chosen": "a", "persona": "abbey"}, "rejected is null; expected text"),
    ({"prompt": "a", "chosen": "a", "rejected": "b"}, 'prompt is "a"; expected a list of messages'),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_malformed_lines_are_reported_by_file_and_line(write: Write, line: object, reason: str) -> None:
    path = write(GOOD, "", line, GOOD)
    with pytest.raises(InputError, match=rf"chats\.jsonl:3: {reason}"):
        read_records({"chats": (Path(path),)}, ["abbey"], require_persona=True)
    read = read_records({"chats": (Path(path),)}, ["abbey"], bad="skip", require_persona=True)
    assert len(read.records) == 2 and read.skipped == 1
    assert read.reasons[0].startswith(f"{path}:3: ")


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"messages": [], "x": 1}\n{"messages": "\xff"}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:1: messages is \[\]"):
        read_records({"x": (path,)})
    with pytest.raises(InputError, match=r"data set is empty .*; 2 records were skipped"):
        read_records({"x": (path,)}, bad="skip")
    path.write_bytes(b'{"messages": "\xff"}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:1: not UTF-8 text"):
        read_records({"x": (path,)})


def test_empty_and_missing_files(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data set is empty .*chats\.jsonl"):
        read_records({"chats": (Path(write("")),)})
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        read_records({"x": (tmp_path / "x.jsonl",)})
    with pytest.raises(InputError, match=r"'nowhere\.jsonl' does not exist"):
        resolve(["nowhere.jsonl"])


def test_data_sets_by_name(write: Write) -> None:
    path = write(GOOD, name="mine.jsonl")
    assert list(resolve(["demo", path])) == ["abbey", "aviva", "abi", "blend", "mine"]
    assert list(resolve(["demo/aviva"])) == ["aviva"]
    with pytest.raises(InputError, match="listed twice"):
        resolve([path, path])


def test_the_demo_dialogues_split_the_same_way_every_time() -> None:
    records = read_records(demo_files(), ["abbey", "aviva", "abi"], require_persona=True).records
    assert len(records) == 527
    held = [r for r in records if is_held_out(r, 12)]
    assert [is_held_out(r, 12) for r in records] == [is_held_out(r, 12) for r in records]
    assert 25 <= len(held) <= 60
    assert {r.dataset for r in held} == {"abbey", "aviva", "abi", "blend"}
    kept = {(r.question, r.dataset) for r in records if not is_held_out(r, 12)}
    assert not kept & {(r.question, r.dataset) for r in held}
    assert not any(is_held_out(r, 0) for r in records)
