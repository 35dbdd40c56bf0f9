"""How rows are searched, chosen from how many there are, how many may be found, and the recall asked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abi_jax.wdbx.search.ivf import Lists

FEW = 8  # times as long as looking at a row in order takes one that a filter leaves
WORTH_LISTS = 8_000  # rows: fewer are scanned in no more time
MOST_ALLOWED = 0.9  # of all rows: where fewer may be found, lists are chosen by how many of these they have
MOST = 0.4  # of all rows: where lists hold more than that, a scan of all rows in order is quicker
DEVIATIONS = 3.5  # of the error of codes, which is sure to be less only up to sqrt(D) deviations


@dataclass(frozen=True)
class Plan:
    """How one part is searched.

    way: "flat" (all rows, by codes and the most these may be off), "gather" (the rows that a filter leaves, one by
    one), "quantised" (all rows, by codes and what these are off in all likelihood) or "ivf" (the `nearest` lists);
    also "mesh" (on the devices of one) and "keyword" (by words). rows: about how many are looked at for a query, of so
    many.
    """

    way: str
    rows: int
    of: int
    nearest: int
    why: str


def choose(count: int, allowed: int, lists: "Lists | None", recall: float, top_k: int) -> Plan:
    """The plan for `count` rows, of which `allowed` may be found and `top_k` are asked for."""
    some = f"{allowed} of {count} rows may be found"
    if recall >= 1 or lists is None:
        if allowed < count and allowed * FEW < count:
            return Plan("gather", allowed, count, 0, some)
        if recall >= 1:
            return Plan("flat", count, count, 0, "every row that belongs there is asked for")
        why = f"lists are worth it from {WORTH_LISTS} rows" if count < WORTH_LISTS else "there are no lists yet"
        return Plan("quantised", count, count, 0, why)
    filtered = allowed < MOST_ALLOWED * count
    nearest = lists.enough(recall, -(-top_k * count // max(allowed, 1)) if filtered else top_k)
    looked_at = count if nearest is None else lists.rows_in(nearest)
    if allowed < count and allowed * FEW < min(count, looked_at / MOST):
        return Plan("gather", allowed, count, 0, some)
    if nearest is None:
        more = f"{top_k} of the {allowed} rows that may be found" if filtered else f"{top_k} rows"
        return Plan("quantised", count, count, 0, f"{more} are more than lists were measured with")
    if looked_at > MOST * count:
        return Plan("quantised", count, count, 0, f"{nearest} lists of {len(lists.centroids)} hold most rows")
    why = f"recall {recall:g} was measured with {nearest} lists"
    if filtered:
        why = f"{some}: recall {recall:g} among these takes about {nearest} lists, or all that have some of them"
    return Plan("ivf", looked_at, count, nearest, why)
