"""What requests may say: the parts that several routes share. What is not listed is refused by name."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

Text = Annotated[str, StringConstraints(max_length=2_000_000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Grammar = Annotated[str, StringConstraints(min_length=1, max_length=65_536)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected finite numbers, not {value}")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(each)
    return value


# `allow_inf_nan` does not reach what has no type
Fields = dict[str, Annotated[Any, AfterValidator(_finite)]]


class Strict(BaseModel):
    """Refuses what it does not know, and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class MemoryScope(Strict):
    """What an answer may remember: `texts` as they are, then what a collection holds on the newest question.

    query: looked for instead of the question. where: which rows may be found; at: the version or tag that is asked;
    min_score: rows below it are not remembered.
    """

    texts: Annotated[list[Text], Field(max_length=64)] = []
    collection: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    query: Text | None = None
    top_k: Annotated[int, Field(ge=1, le=64)] = 4
    where: Fields | None = None
    at: int | Name | None = None
    mode: Literal["vector", "keyword", "hybrid"] = "vector"
    min_score: float | None = None


class AbiOptions(Strict):
    """The extension field `abi`. `mixture`: persona -> weight, instead of the model's name."""

    mixture: dict[str, float] | None = None
    user: Name | None = None
    memory: MemoryScope | None = None
    receipt: bool = False


class StreamOptions(Strict):
    """`include_usage`: one more chunk, at the end, with the usage of all choices."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Sampled(Strict):
    """What completions of both kinds take. Fields of a single value are OpenAI's, for what is not done here.

    grammar: in Lark's notation as llguidance reads it; regex: a regular expression. The answer has that form.
    """

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    ignore_eos: bool = False
    grammar: Grammar | None = None
    regex: Grammar | None = None
    user: Name | None = None
    abi: AbiOptions | None = None

    @property
    def options(self) -> AbiOptions:
        """The extension field, or what it means when it is left out."""
        return self.abi or AbiOptions()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


# told apart by their type, so that an error is about the one that was meant
Content = Annotated[
    Annotated[Text, Tag("Text")]
    | Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True), Tag("Parts")],
    Discriminator(lambda content: "Parts" if isinstance(content, list) else "Text"),
]


def text_of(content: Any) -> str:
    """The text of a message's content, parts joined."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())
