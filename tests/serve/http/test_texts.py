"""`/v1/embeddings` and `/v1/moderations`, through the official client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import pytest

from abi_jax.serve.embedder import SentenceEncoder
from tests.serve.http.serving import Running, serving

pytestmark = pytest.mark.smoke


@dataclass
class Lengths:
    """Makes vectors of how long texts are."""

    model: str = "lengths"
    dimension: int = 3

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        return np.array([[len(text), 0.1, -1] for text in texts], np.float32), sum(map(len, texts))


@dataclass(frozen=True)
class Polite:
    """Knows one bad word."""

    name: str = "polite"

    def judge(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        return [{"rude": 0.9 if "damn" in text else 0.1} for text in texts]


def test_vectors_of_texts() -> None:
    with serving(embedder=Lengths()) as running:
        client = running.openai()
        for form in ("float", openai.NOT_GIVEN):  # the client asks for base64 where nothing is said
            answer = client.embeddings.create(model="lengths", input=["a", "abc"], encoding_format=form)
            assert np.allclose([each.embedding for each in answer.data], [[1, 0.1, -1], [3, 0.1, -1]])
            assert [each.index for each in answer.data] == [0, 1] and answer.usage.prompt_tokens == 4
        assert client.embeddings.create(model="lengths", input="a", dimensions=3).data[0].embedding[0] == 1.0
        for change, message in (
            ({"model": "base"}, "model 'base' makes no vectors; expected 'lengths'"),
            ({"dimensions": 2}, "dimensions = 2: expected 3"),
            ({"input": [1, 2]}, "input.0 = 1: expected a valid string"),
            ({"input": []}, "at least 1 item"),
        ):
            with pytest.raises(openai.APIStatusError, match=message):
                client.embeddings.create(**{"model": "lengths", "input": "a"} | change)


def test_without_an_encoder_that_is_said(plain: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="no sentence encoder"):
        plain.openai().embeddings.create(model="lengths", input="a")


def test_a_sentence_encoder_says_what_it_reads() -> None:
    encoder = SentenceEncoder(Path(__file__).parents[2] / "model" / "golden" / "bge_tiny")
    with serving(embedder=encoder) as running:
        answer = running.openai().embeddings.create(model="bge_tiny", input=["hello", "hello world"])
        assert len(answer.data[0].embedding) == encoder.dimension and answer.usage.prompt_tokens > 4
        assert np.allclose(answer.data[1].embedding, encoder(["hello world"])[0], atol=1e-5)


def test_judged_texts() -> None:
    with serving(moderator=Polite()) as running:
        answer = running.openai().moderations.create(input=["good", "damn"])
        assert [each.flagged for each in answer.results] == [False, True] and answer.model == "polite"
        assert answer.results[1].category_scores.rude == 0.9
        with pytest.raises(openai.NotFoundError, match="does not judge"):
            running.openai().moderations.create(input="a", model="other")


def test_nothing_is_said_to_be_harmless_that_nobody_looked_at(plain: Running) -> None:
    with pytest.raises(openai.InternalServerError, match="no moderation policy") as caught:
        plain.openai(max_retries=2).moderations.create(input="a")
    assert caught.value.status_code == 501
