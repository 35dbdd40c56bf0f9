"""Calls of functions as text: how a model is told of them, what it may write, and what it wrote.

<tool_call>
{"name": "weather", "arguments": {"city": "Oslo"}}
</tool_call>
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from abi_jax.serve.written import written
from abi_jax.text import Tokenizer

BEGIN, END = "<tool_call>", "\n</tool_call>"  # JSON of one line has no line break before its end
MARKS = (BEGIN, END.strip())
_BETWEEN = "\n" + BEGIN
_TOLD = """\
You may call functions. Each is one line of JSON between <tools> and </tools>:
<tools>
{functions}
</tools>
To call one, answer with its name and its arguments as JSON, and nothing after it:
<tool_call>
{{"name": NAME, "arguments": {{...}}}}
</tool_call>
What it returns is told between <tool_response> and </tool_response>."""
# Text cannot hold where a call begins, so that none begins unseen; nothing but calls follows a call.
_GRAMMAR = """\
start: {start}
{call}
function: %json {schema}
TEXT: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/
LINE: /\\n?/
"""
_SPELLED = """\
first: before body
before[suffix="<tool_call>"]: /(?s:.*)/
call: "<tool_call>" body
body: "\\n" function "\\n</tool_call>\""""
_MARKED = """\
first: TEXT? call
call: <[{0}]> "\\n" function "\\n" <[{1}]>"""
_START = {
    ("auto", True): "TEXT | first (LINE call)*",
    ("auto", False): "TEXT | first",
    ("required", True): "call (LINE call)*",
    ("required", False): "call",
}


@dataclass(frozen=True)
class Function:
    """A function that may be called; `parameters` is a JSON schema. strict: nothing of it may be passed over."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False


@dataclass(frozen=True)
class Call:
    """A call; `arguments` is JSON as the model wrote it."""

    name: str
    arguments: str


def policy(functions: Sequence[Function]) -> str:
    """What the model is told of the functions."""
    lines = [
        json.dumps({"name": f.name, "description": f.description, "parameters": f.parameters}, ensure_ascii=False)
        for f in functions
    ]
    return _TOLD.format(functions="\n".join(lines))


def marks(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The tokens that are the marks of a call, of a tokenizer that has both and whose texts show them."""
    shown = {
        token.content: at for at, token in tokenizer.backend.get_added_tokens_decoder().items() if not token.special
    }
    begin, end = map(shown.get, MARKS)
    return None if begin is None or end is None else (begin, end)


def grammar(
    functions: Sequence[Function],
    mode: Literal["auto", "required"],
    parallel: bool,
    marked: tuple[int, int] | None = None,
) -> str:
    """The grammar, in Lark's notation, of an answer that may call functions, or must; once, or as often as it will.

    marked: the tokens that begin and end a call, see `marks`; None where both are spelled.
    """
    kinds = [
        {
            "type": "object",
            "properties": {"name": {"const": f.name}, "arguments": dict(f.parameters)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for f in functions
    ]
    schema: dict[str, Any] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    how = written(lenient=not all(f.strict for f in functions))
    call = _SPELLED if marked is None else _MARKED.format(*marked)
    return _GRAMMAR.format(start=_START[mode, parallel], call=call, schema=json.dumps({**schema, "x-guidance": how}))


def render_call(call: Call) -> str:
    """A call as the model is shown an earlier one."""
    return f'{BEGIN}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}{END}'


def render_result(text: str) -> str:
    """What a function returned, as the model is shown it."""
    return f"<tool_response>\n{text}\n</tool_response>"


class CallReader:
    """Tells calls from text, piece by piece. What looks like a call of a function of `names` and is none is text.

    A line break between two calls is neither.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._inside = self._after = False

    def push(self, piece: str) -> tuple[str, list[Call]]:
        """Takes a piece of an answer; returns the text that is certain to be text, and the calls that are complete."""
        self._held += piece
        text, calls = "", list[Call]()
        while True:
            if not self._inside:
                if self._after and _BETWEEN.startswith(self._held):
                    return text, calls
                if self._after and self._held.startswith(_BETWEEN):
                    self._held = self._held[1:]
                self._after = False
                before, begun, after = self._held.partition(BEGIN)
                if not begun:
                    keep = _overlap(self._held, BEGIN)
                    cut = len(self._held) - keep
                    text, self._held = text + self._held[:cut], self._held[cut:]
                    return text, calls
                text, self._held, self._inside = text + before, after, True
            inside, ended, after = self._held.partition(END)
            if not ended:
                return text, calls
            call = _parse(inside)
            if call is None or call.name not in self._names:
                text += BEGIN + inside + END
            else:
                calls.append(call)
                self._after = True
            self._held, self._inside = after, False

    def flush(self) -> str:
        """What was held back, at the end."""
        rest = (BEGIN if self._inside else "") + self._held
        self._held, self._inside, self._after = "", False, False
        return rest


def _parse(text: str) -> Call | None:
    try:
        found = json.loads(text)
        name, arguments = found["name"], found["arguments"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))


def _overlap(text: str, mark: str) -> int:
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
