"""Keyword search beside bm25s and rank_bm25, on the same texts and words: building, and one query at a time.

python benchmarks/wdbx_keyword.py --texts clinc_intents.jsonl --rows 500000 --out benchmarks/results/wdbx_keyword.json

`--texts`: JSON lines with a field `text`; `--rows`: so many synthetic texts as well, of words that follow Zipf's law.
The peers hold what they score in memory and know no deaths, versions or filters; bm25s computes scores ahead, in
float32. Times are CPU time of the process.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import bm25s
import numpy as np
from rank_bm25 import BM25Plus

from abi_jax import wdbx
from abi_jax.wdbx.text.words import words_of

TOP_K, QUERIES, ROUNDS = 10, 100, 3


def synthetic(rows: int, words: int = 12, vocabulary: int = 50_000) -> list[str]:
    """Texts of about `words` words of a Zipf distribution."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, vocabulary + 1)
    lengths = rng.integers(words // 2, 2 * words, rows)
    flat = rng.choice(vocabulary, lengths.sum(), p=weights / weights.sum())
    names = np.array([f"w{i}" for i in range(vocabulary)])
    return [" ".join(names[part]) for part in np.split(flat, np.cumsum(lengths)[:-1])]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU time, and what the work made."""
    start = process_time()
    made = work()
    return process_time() - start, made


def measure(texts: list[str], old_peer: bool) -> dict[str, Any]:
    """Seconds to build, and milliseconds a query, in interleaved rounds."""
    tokens = [text.split() for text in texts]
    asked = [texts[i] for i in np.random.default_rng(1).integers(0, len(texts), QUERIES)]
    with tempfile.TemporaryDirectory() as folder, wdbx.open(Path(folder) / "store") as db:
        c = db.create_collection("c", 1, "l2", schema={"document": str}, ids="int")
        c.import_({"vector": np.zeros((len(texts), 1), np.float32), "document": np.array(texts, object)})
        build = {"wdbx": timed(lambda: c.query(text=asked[0], mode="keyword"))[0]}
        model = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        build["bm25s"] = timed(lambda: model.index(tokens, show_progress=False))[0]
        ask: dict[str, Callable[[str], Any]] = {
            "wdbx": lambda text: c.query(text=text, mode="keyword", top_k=TOP_K),
            "bm25s": lambda text: model.retrieve([words_of(text)], k=TOP_K, show_progress=False),
        }
        if old_peer:
            build["rank_bm25"], plus = timed(lambda: BM25Plus(tokens))
            ask["rank_bm25"] = lambda text: np.argpartition(plus.get_scores(words_of(text)), -TOP_K)[-TOP_K:]
        took: dict[str, list[float]] = {name: [] for name in ask}
        for number in range(ROUNDS):
            for text in asked if number else asked[:10]:  # the first round warms up
                for name, work in ask.items():
                    seconds = timed(lambda work=work, text=text: work(text))[0]  # type: ignore[misc]
                    if number:
                        took[name].append(seconds)
        c.delete(range(0, len(texts), 7))
        after = [timed(lambda text=text: ask["wdbx"](text))[0] for text in asked]  # type: ignore[misc]
    query = {name: round(1e3 * median(each), 3) for name, each in took.items()}
    return {
        "rows": len(texts),
        "words": sum(map(len, tokens)),
        "build_seconds": {name: round(each, 3) for name, each in build.items()},
        "query_ms": query,
        "query_ms_with_deaths": round(1e3 * median(after), 3),
        "bm25s_over_wdbx": round(query["bm25s"] / query["wdbx"], 2),
    }


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "wdbx_keyword", "top_k": TOP_K}
    if options.texts is not None:
        lines = options.texts.read_text(encoding="utf-8").splitlines()
        result[options.texts.stem] = measure([json.loads(line)["text"] for line in lines], old_peer=True)
    if options.rows:
        result["synthetic"] = measure(synthetic(options.rows), old_peer=False)
    line = json.dumps(result)
    if options.out is not None:
        options.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
