"""What `/v1/completions` takes."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from abi_jax.serve.http.schema import Sampled, Text, TokenId

TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
_MOST = Field(min_length=1, max_length=2048, fail_fast=True)


def _kind(prompt: Any) -> str:
    first = prompt[0] if isinstance(prompt, list) and prompt else ""
    if not isinstance(prompt, list):
        return "Text"
    return "Ids" if isinstance(first, int) else "ManyIds" if isinstance(first, list) else "Texts"


# told apart by their shape, so that an error is about the one that was meant
Prompts = Annotated[
    Annotated[Text, Tag("Text")]
    | Annotated[TokenIds, Tag("Ids")]
    | Annotated[list[Text], _MOST, Tag("Texts")]
    | Annotated[list[TokenIds], _MOST, Tag("ManyIds")],
    Discriminator(_kind),
]


class CompletionRequest(Sampled):
    """OpenAI's request: a text, or token ids, or a list of either. `logprobs`: alternatives with each token."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """All prompts, each a text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt
