"""From a conversation to tokens, with the role of every token.

    <begin> policy ... | memory ... | earlier turns ... | newest question | <assistant> answer <end>
    POLICY    POLICY     MEMORY       HISTORY             INPUT             RESPONSE

The text is rendered by the model's own chat template, tokenised once, and each token takes its
role from where it begins. Where a turn begins is found by rendering the conversation without its
last turns: what the template then writes is a prefix of the whole (see `layout.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from abi_jax.errors import InputError
from abi_jax.text.layout import BREAK, Layout
from abi_jax.text.roles import Role
from abi_jax.text.tokenizer import Tokenizer

Message = Mapping[str, str]


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation of T tokens.

    tokens [T] int32; roles [T] int32, values of `Role`. active [T] bool: the NEXT token belongs to
    the response; persona terms act exactly there, so the last token of a bare prompt is active.
    loss [T] float32: 1 where the next token is a target of the response (its end token included).
    prompt: number of tokens before the first token of the response's text.
    """

    tokens: np.ndarray
    roles: np.ndarray
    active: np.ndarray
    loss: np.ndarray
    prompt: int


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    memory: Sequence[str] = (),
    policy: str | None = None,
    response: str | None = None,
) -> Rendered:
    """Renders `messages`, the last of which is the user's, up to the answer or with it.

    `messages` hold `role` (system, user, assistant) and `content`; leading system messages and
    `policy` together are the policy. Without `response` the result ends where generation begins;
    with it, the response and its end token follow. Raises `InputError` naming the message or the
    template that cannot be used.
    """
    system, turns = split_turns(messages)
    if not turns:
        raise InputError(f"{len(messages)} messages hold no question; expected one of the user's")
    if turns[-1]["role"] != "user":
        raise InputError(f"the last of {len(messages)} messages is the {turns[-1]['role']}'s; expected the user's")
    layout = Layout(tokenizer, "\n\n".join(p for p in (policy, *system) if p), turns, memory)
    answer = layout.answer(response) if response is not None else ""
    if half := half_character(layout.text + answer):
        raise InputError(f"the conversation {half}")
    ids, starts, prompt = _tokenise(tokenizer, layout.text, answer)
    if response is not None:
        ids = _end(tokenizer, ids, prompt)
    roles = np.full(len(ids), Role.RESPONSE, np.int32)
    begins = np.asarray([*starts, *([len(layout.text)] * len(ids))][: len(ids)])
    for lo, hi, role in layout.spans:
        roles[(begins >= lo) & (begins < hi)] = role
    active = np.arange(len(ids)) >= prompt - 1
    loss = active.astype(np.float32)
    loss[-1] = 0.0
    if response is not None:
        active[-1] = False
    return Rendered(np.asarray(ids, np.int32), roles, active, loss, prompt)


def split_turns(messages: Sequence[Message]) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the leading system texts and the turns; neighbours of one role are joined into one turn.

    Either may speak first, and there may be no turn at all. Raises `InputError` naming the first message that is out of
    place.
    """
    system: list[str] = []
    turns: list[dict[str, str]] = []
    for at, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise InputError(f"message {at}: content is {type(content).__name__}; expected text")
        if role in ("system", "developer"):
            if turns:
                raise InputError(f"message {at}: a {role} message after the conversation began; expected it first")
            system.append(content)
        elif role not in ("user", "assistant"):
            raise InputError(f"message {at}: role {role!r}; expected system, user or assistant")
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content
        else:
            turns.append({"role": role, "content": content})
    return system, turns


def half_character(text: str) -> str | None:
    """Says where `text` holds half of a character (a lone surrogate), which no tokenizer takes; None if nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[: error.start][-20:]
        return f"holds {text[error.start]!r}, half of a character, after {before!r}; expected Unicode text"
    return None


def _tokenise(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int], int]:
    """Returns the ids, where each begins in `prompt + answer`, and how many are of the prompt."""
    ids, spans = _encode(tokenizer, prompt + answer, 0)
    edge = len(prompt)
    if any(lo < edge < hi for lo, hi in spans):
        # A token across the edge would not be there when the prompt is all there is.
        ids, spans = _encode(tokenizer, prompt, 0)
        more, after = _encode(tokenizer, answer, edge)
        return ids + more, [lo for lo, _ in spans + after], len(ids)
    starts = [lo for lo, _ in spans]
    return ids, starts, sum(start < edge for start in starts)


def _encode(tokenizer: Tokenizer, text: str, base: int) -> tuple[list[int], list[tuple[int, int]]]:
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for piece in text.split(BREAK):
        found, where = tokenizer.encode_offsets(piece)
        ids += found
        spans += [(base + lo, base + hi) for lo, hi in where]
        base += len(piece) + len(BREAK)
    return ids, spans


def _end(tokenizer: Tokenizer, ids: list[int], prompt: int) -> list[int]:
    """Cuts what the template writes after the answer's end token; adds one where it writes none."""
    ends = [i for i in range(len(ids) - 1, prompt - 1, -1) if ids[i] in tokenizer.eos_ids]
    if ends:
        return ids[: ends[0] + 1]
    return [*ids, *tokenizer.eos_ids[:1]]
