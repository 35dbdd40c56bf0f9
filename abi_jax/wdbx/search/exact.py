"""Scores as they are told: of a few rows, in float64, the same wherever a row lies.

cosine: q.x / (|q| |x|), ip: q.x, both best when high; l2: |q - x|^2, best when low. Search in any other precision only
finds candidates for this.
"""

import numpy as np


def exact_scores(metric: str, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Scores of `vectors` `[n, D]` for `query` `[D]`, or one query each `[n, D]`, float32 `[n]`."""
    q, x = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        made = np.square(x - q).sum(axis=1)
    else:
        made = (x * q).sum(axis=1)
        if metric == "cosine":
            made /= np.sqrt(np.square(x).sum(axis=1)) * np.sqrt(np.square(q).sum(axis=-1))
    with np.errstate(over="ignore"):
        return made.astype(np.float32)


def best_first(metric: str, scores: np.ndarray) -> np.ndarray:
    """Keys that sort scores from best to worst."""
    return scores if metric == "l2" else -scores
