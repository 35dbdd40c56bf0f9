"""What requests to the vector store may say, and what it answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from abi_jax.serve.http.schema import Fields, Strict, Text

Id = Annotated[str, Field(max_length=4096)] | int
Ids = Annotated[list[Id], Field(min_length=1, max_length=10_000, fail_fast=True)]
Vector = Annotated[list[float], Field(min_length=1, max_length=65_536, fail_fast=True)]
At = int | Annotated[str, Field(max_length=255)]


class CollectionBody(Strict):
    """A collection that is to be made; see `Database.create_collection`."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    dim: Annotated[int, Field(ge=1, le=65_536)] | None = None
    metric: Literal["cosine", "l2", "ip"] = "cosine"
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    fields: dict[str, str] | None = None
    ids: Literal["str", "int"] = "str"
    texts: bool = False


class UpsertBody(Strict):
    """Rows: their vectors, or texts that the store's encoder makes vectors of."""

    ids: Ids
    vectors: Annotated[list[Vector], Field(max_length=10_000, fail_fast=True)] | None = None
    metadata: Annotated[list[Fields], Field(max_length=10_000, fail_fast=True)] | None = None
    documents: Annotated[list[Text | None], Field(max_length=10_000, fail_fast=True)] | None = None


class QueryBody(Strict):
    """A question, by a vector, by a text, or by both; see `CollectionHandle.query`. at: a version or a tag."""

    vector: Vector | None = None
    text: Text | None = None
    top_k: Annotated[int, Field(ge=1, le=10_000)] = 10
    where: Fields | None = None
    at: At | None = None
    mode: Literal["vector", "keyword", "hybrid"] = "vector"
    recall: Annotated[float, Field(gt=0, le=1)] = 1.0


class GetBody(Strict):
    """Rows by id. vectors: tells these, too."""

    ids: Ids
    at: At | None = None
    vectors: bool = False


class DeleteBody(Strict):
    """Rows by id."""

    ids: Ids


class CollectionAnswer(BaseModel):
    """A collection as it is."""

    name: str
    dim: int
    metric: str
    dtype: str
    ids: str
    fields: dict[str, str]
    rows: int


class CollectionsAnswer(BaseModel):
    """All that one may read."""

    version: int
    data: list[CollectionAnswer]


class WrittenAnswer(BaseModel):
    """The version that a write made, once it is durable; of a deletion, how many rows there were."""

    version: int
    deleted: int | None = None


class FoundAnswer(BaseModel):
    """Rows that were found, best first, and the version that was asked."""

    version: int
    data: list[dict[str, Any] | None]
