"""Chat templates: a conversation in, one string out.

The environment is that of Hugging Face transformers, so that any model's template renders here
as it does there, with one difference: `strftime_now` answers a fixed day. A prompt that changes
at midnight could be neither resumed nor replayed.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The day that Llama's templates fall back to.
FIXED_DAY = datetime(2024, 7, 26)

# Our own template. Memory stands right before the newest question, so that the policy and the
# history in front of it stay the same from turn to turn and their keys and values can be re-used.
OWN_TEMPLATE = """\
{{- bos_token -}}
{%- set newest = namespace(user=-1) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {%- set newest.user = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if loop.index0 == newest.user and memory -%}
        {%- for text in memory -%}
            {{- '<|memory|>' + (text | trim) + '<|end|>' -}}
        {%- endfor -%}
    {%- endif -%}
    {%- if message['role'] == 'system' -%}
        {{- '<|policy|>' + (message['content'] | trim) + '<|end|>' -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<|user|>' + (message['content'] | trim) + '<|end|>' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '<|assistant|>' + (message['content'] | trim) + '<|end|>' -}}
    {%- else -%}
        {{- raise_exception('unknown role ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""

# For models that bring no template, such as GPT-2.
PLAIN_TEMPLATE = """\
{%- if bos_token and bos_token != eos_token -%}{{- bos_token -}}{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- (message['content'] | trim) + '\\n\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- 'User: ' + (message['content'] | trim) + '\\n' -}}
    {%- else -%}
        {{- 'Assistant: ' + (message['content'] | trim) + eos_token + '\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Assistant:' -}}
{%- endif -%}
"""


class TemplateRefusal(Exception):
    """The template cannot render this conversation; the message is the template's own."""


class _Generation(Extension):
    """Accepts `{% generation %}`, which marks assistant text in some templates, and renders its body."""

    tags = {"generation"}  # noqa: RUF012 - an instance attribute in the base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **kwargs: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **kwargs)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _fixed_day(form: str) -> str:
    return FIXED_DAY.strftime(form)


@lru_cache(maxsize=64)
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = _fixed_day
    return env.from_string(source), frozenset(meta.find_undeclared_variables(env.parse(source)))


class ChatTemplate:
    """A compiled chat template together with the special tokens it may name."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """`special` holds `bos_token` and the like. Raises `TemplateRefusal` if `source` does not parse."""
        self.source = source
        self._special = dict(special)
        try:
            self._template, names = _compile(source)
        except jinja2.TemplateError as error:
            raise TemplateRefusal(str(error)) from error
        self.takes_memory = "memory" in names

    def render(
        self, messages: Sequence[Mapping[str, str]], memory: Sequence[str] = (), generation_prompt: bool = False
    ) -> str:
        """Returns the conversation as text. Raises `TemplateRefusal` when the template refuses it."""
        try:
            return self._template.render(
                messages=[dict(m) for m in messages],
                memory=list(memory),
                add_generation_prompt=generation_prompt,
                # A reasoning model's scratch text is not part of a persona's answer.
                enable_thinking=False,
                tools=None,
                documents=None,
                **self._special,
            )
        except (jinja2.TemplateError, TypeError, KeyError, IndexError) as error:
            raise TemplateRefusal(str(error)) from error
