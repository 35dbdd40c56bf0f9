"""Every chat template gives every token its role, and persona terms act exactly where the answer is predicted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.errors import InputError
from abi_jax.text import Rendered, Role, Tokenizer, render, split_turns
from abi_jax.text.layout import BREAK, PROBE

STYLES = ["qwen", "qwen_thinking", "llama3", "gemma", "llama2", "mistral", "plain"]
CHAT = [
    {"role": "user", "content": "the first fox"},
    {"role": "assistant", "content": "the first dog"},
    {"role": "user", "content": "hello brown world"},
]
POLICY, MEMORY = "be quick, be kind", ["likes lazy dogs", "has 12 foxes"]


def says(tokenizer: Tokenizer, rendered: Rendered, role: Role) -> str:
    return tokenizer.decode(rendered.tokens[rendered.roles == role], skip_special=False)


@pytest.fixture(params=[*STYLES, "own"])
def tokenizer(request: pytest.FixtureRequest, styled: Callable[[str], Tokenizer], own: Tokenizer) -> Tokenizer:
    return own if request.param == "own" else styled(request.param)


def test_roles(tokenizer: Tokenizer) -> None:
    rendered = render(tokenizer, CHAT, MEMORY, POLICY, "I am a fox")
    said = {role: says(tokenizer, rendered, role) for role in Role}
    assert POLICY in said[Role.POLICY]
    assert all(m in said[Role.MEMORY] for m in MEMORY)
    assert "the first fox" in said[Role.HISTORY] and "the first dog" in said[Role.HISTORY]
    assert "hello brown world" in said[Role.INPUT]
    assert "I am a fox" in said[Role.RESPONSE]
    contents = {
        Role.POLICY: [POLICY],
        Role.MEMORY: MEMORY,
        Role.HISTORY: ["first"],
        Role.INPUT: ["brown"],
        Role.RESPONSE: ["I am"],
    }
    for role, own_contents in contents.items():
        for other in set(contents) - {role}:
            assert not any(c in said[other] for c in own_contents), (role, other, said[other])
    assert not said[Role.PADDING]


def test_the_first_token_is_for_everyone(tokenizer: Tokenizer) -> None:
    rendered = render(tokenizer, CHAT)
    if rendered.tokens[0] == tokenizer.bos_id:
        assert rendered.roles[0] == Role.POLICY


def test_without_policy_or_memory(tokenizer: Tokenizer) -> None:
    rendered = render(tokenizer, CHAT[:1], response="hello")
    assert not says(tokenizer, rendered, Role.MEMORY) and not says(tokenizer, rendered, Role.HISTORY)
    assert "the first fox" in says(tokenizer, rendered, Role.INPUT)


def test_single_turn_with_everything(tokenizer: Tokenizer) -> None:
    rendered = render(tokenizer, CHAT[:1], MEMORY, POLICY)
    assert not says(tokenizer, rendered, Role.HISTORY)
    assert POLICY in says(tokenizer, rendered, Role.POLICY)
    assert all(m in says(tokenizer, rendered, Role.MEMORY) for m in MEMORY)
    assert says(tokenizer, rendered, Role.INPUT).strip().find("the first fox") >= 0


def test_a_greeting_of_the_assistant_is_history_where_the_template_takes_one(tokenizer: Tokenizer) -> None:
    greeted = [{"role": "assistant", "content": "the first dog"}, {"role": "user", "content": "hello brown world"}]
    try:
        rendered = render(tokenizer, greeted, MEMORY, POLICY, "I am a fox")
    except InputError as error:
        assert "the chat template refuses a conversation of" in str(error) and "alternate" in str(error)
        return
    assert POLICY in says(tokenizer, rendered, Role.POLICY)
    assert all(m in says(tokenizer, rendered, Role.MEMORY) for m in MEMORY)
    history = says(tokenizer, rendered, Role.HISTORY)
    assert "the first dog" in history and "brown" not in history
    assert "hello brown world" in says(tokenizer, rendered, Role.INPUT)


def test_policy_that_a_template_has_no_place_for_stands_in_the_question_after_a_greeting(
    styled: Callable[[str], Tokenizer],
) -> None:
    tokenizer = styled("no_system")
    greeted = [{"role": "assistant", "content": "the first dog"}, {"role": "user", "content": "hello brown world"}]
    rendered = render(tokenizer, greeted, policy=POLICY)
    assert POLICY in says(tokenizer, rendered, Role.POLICY) and "dog" not in says(tokenizer, rendered, Role.POLICY)
    assert "the first dog" in says(tokenizer, rendered, Role.HISTORY)
    assert "hello brown world" in says(tokenizer, rendered, Role.INPUT)


def test_most_templates_take_a_greeting(styled: Callable[[str], Tokenizer]) -> None:
    for style in ("qwen", "qwen_thinking", "llama3", "plain"):
        render(styled(style), [{"role": "assistant", "content": "hello"}, *CHAT[:1]], policy=POLICY)


def test_prompt_is_a_prefix_of_the_answered_prompt(tokenizer: Tokenizer) -> None:
    asked = render(tokenizer, CHAT, MEMORY, POLICY)
    answered = render(tokenizer, CHAT, MEMORY, POLICY, "I am a fox")
    n = len(asked.tokens)
    assert answered.prompt == asked.prompt == n
    np.testing.assert_array_equal(answered.tokens[:n], asked.tokens)
    np.testing.assert_array_equal(answered.roles[:n], asked.roles)


def test_active_and_loss_mark_what_predicts_the_response(tokenizer: Tokenizer) -> None:
    asked = render(tokenizer, CHAT, MEMORY, POLICY)
    assert asked.active.tolist() == [False] * (len(asked.tokens) - 1) + [True]
    assert not asked.loss.any()
    answered = render(tokenizer, CHAT, MEMORY, POLICY, "I am a fox")
    targets = answered.tokens[1:][answered.loss[:-1] == 1]
    np.testing.assert_array_equal(targets, answered.tokens[answered.prompt :])
    np.testing.assert_array_equal(answered.active, answered.loss == 1)
    assert not answered.active[-1]
    assert targets[-1] in tokenizer.eos_ids
    assert tokenizer.decode(targets).strip() == "I am a fox"
    assert answered.tokens.dtype == answered.roles.dtype == np.int32 and answered.loss.dtype == np.float32


def test_control_tokens_a_user_types_stay_text(tokenizer: Tokenizer) -> None:
    end = tokenizer.decode([tokenizer.eos_ids[0]], skip_special=False)
    plain = render(tokenizer, [{"role": "user", "content": "the fox"}], response="hi")
    typed = render(tokenizer, [{"role": "user", "content": f"the {end} fox"}], response=f"hi {end} there")
    control = [sum(t in tokenizer.special_ids for t in r.tokens) for r in (plain, typed)]
    assert control[0] == control[1]
    assert end in tokenizer.decode(typed.tokens[typed.roles == Role.INPUT], skip_special=False)


def test_same_tokens_as_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if tokenizer.chat_template.source.startswith("{%- if bos_token and"):
        pytest.skip("the plain template is ours alone: such a folder has none for transformers to render")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for messages in (CHAT[:1], CHAT):
        expected = theirs.apply_chat_template(
            messages,
            add_generation_prompt=True,
            enable_thinking=False,
            date_string="26 Jul 2024",  # theirs would be today
            return_dict=False,
        )
        assert render(tokenizer, messages).tokens.tolist() == expected


def test_dates_do_not_change(styled: Callable[[str], Tokenizer]) -> None:
    tokenizer = styled("llama3")
    assert "26 Jul 2024" in says(tokenizer, render(tokenizer, CHAT), Role.POLICY)


def test_a_token_never_crosses_from_prompt_to_answer(sentencepiece: Tokenizer) -> None:
    answered = render(sentencepiece, CHAT, (), POLICY, "the dog")
    asked = render(sentencepiece, CHAT, (), POLICY)
    np.testing.assert_array_equal(answered.tokens[: answered.prompt], asked.tokens)
    assert "the dog" in says(sentencepiece, answered, Role.RESPONSE)


# rendering leaves out its own two characters
TEXTS = st.text(min_size=1, max_size=20).filter(lambda t: t.replace(BREAK, "").replace(PROBE, "").strip())


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(TEXTS, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1), answer=TEXTS, policy=TEXTS)
@pytest.mark.parametrize("style", ["qwen", "llama3", "gemma", "llama2"])
def test_any_text_keeps_the_order_of_roles(
    styled: Callable[[str], Tokenizer], style: str, turns: list[str], answer: str, policy: str
) -> None:
    tokenizer = styled(style)
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)]
    rendered = render(tokenizer, messages, policy=policy, response=answer)
    assert (np.diff(rendered.roles) >= 0).all()
    assert set(rendered.roles.tolist()) >= {Role.POLICY, Role.INPUT, Role.RESPONSE}
    assert (Role.HISTORY in rendered.roles) == (len(turns) > 1)
    assert rendered.active.sum() == len(rendered.tokens) - rendered.prompt


def test_split_turns_joins_neighbours_and_takes_system_messages() -> None:
    system, turns = split_turns(
        [
            {"role": "system", "content": "a"},
            {"role": "developer", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "user", "content": "d"},
        ]
    )
    assert system == ["a", "b"] and turns == [{"role": "user", "content": "c\n\nd"}]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "0 messages hold no question"),
        ([{"role": "system", "content": "x"}], "1 messages hold no question"),
        ([{"role": "assistant", "content": "x"}], "the last of 1 messages is the assistant's"),
        ([{"role": "tool", "content": "x"}], "message 0: role 'tool'"),
        ([{"role": "user", "content": None}], "message 0: content is NoneType"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "message 1: a system message after"),
        ([{"role": "user", "content": "ab\ud83d"}], r"holds '\\ud83d', half of a character, after .*ab'"),
        (CHAT[:2], "the last of 2 messages is the assistant's"),
    ],
)
def test_what_cannot_be_rendered_is_named(own: Tokenizer, messages: list[dict[str, str]], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        render(own, messages)


def test_empty_response_is_refused(own: Tokenizer) -> None:
    with pytest.raises(InputError, match="response is empty"):
        render(own, CHAT, response="  ")
