"""How rows are searched, chosen from how many there are, how many may be found, and the recall asked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from abi_jax.wdbx.search.host import CodedPart

FEW = 8  # where only one row of so many may be found, these are looked at one by one
WORTH_LISTS = 20_000  # rows: fewer are scanned in no more time
MOST_ALLOWED = 0.9  # of all rows: where a filter leaves fewer, the nearest lists may have none of them
MOST = 0.4  # of all rows: where lists hold more than that, a scan of all rows in order is quicker
DEVIATIONS = 3.5  # of the error of codes, which is sure to be less only up to sqrt(D) deviations


@dataclass(frozen=True)
class Plan:
    """How one part is searched.

    way: "flat" (all rows, by codes and the most these may be off), "gather" (the rows that a filter leaves, one by
    one), "quantised" (all rows, by codes and what these are off in all likelihood) or "ivf" (the `nearest` lists).
    rows: about how many are looked at for a query, of so many.
    """

    way: str
    rows: int
    of: int
    nearest: int
    why: str


def choose(part: "CodedPart", recall: float, top_k: int) -> Plan:
    """The plan for a part, of which `top_k` rows are asked for."""
    count = len(part.codes)
    allowed = count if part.allowed is None else int(np.count_nonzero(part.allowed))
    if part.allowed is not None and allowed * FEW < count:
        return Plan("gather", allowed, count, 0, f"{allowed} of {count} rows may be found")
    if recall >= 1:
        return Plan("flat", count, count, 0, "every row that belongs there is asked for")
    if part.lists is None:
        why = f"lists are worth it from {WORTH_LISTS} rows" if count < WORTH_LISTS else "there are no lists yet"
        return Plan("quantised", count, count, 0, why)
    nearest = part.lists.enough(recall, top_k)
    if nearest is None:
        return Plan("quantised", count, count, 0, f"{top_k} rows are more than lists were measured with")
    if allowed < MOST_ALLOWED * count:
        why = f"{allowed} of {count} rows may be found, and perhaps not in the nearest lists"
        return Plan("quantised", count, count, 0, why)
    looked_at = part.lists.rows_in(nearest)
    if looked_at > MOST * count:
        return Plan("quantised", count, count, 0, f"{nearest} lists of {len(part.lists.centroids)} hold most rows")
    return Plan("ivf", looked_at, count, nearest, f"recall {recall:g} was measured with {nearest} lists")
