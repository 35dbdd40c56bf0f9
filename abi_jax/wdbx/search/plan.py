"""How rows are searched, chosen from how many there are, how many may be found, and the recall asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.products import ProductIndex

FEW = 8  # times as long as looking at a row in order takes one that a filter leaves
WORTH_LISTS = 8_000  # rows: fewer are scanned in no more time
MOST = 0.4  # of all rows: where lists hold more than that, a scan of all rows in order is quicker
FEW_SCORED = 4096  # rows that a filter leaves: where no more may be found, all of them are scored exactly
FEW_SUMS = 32  # times as long as a sum of product codes takes an exact score
DEVIATIONS = 3.5  # of the error of codes, which is sure to be less only up to sqrt(D) deviations
BY_LISTS = ("ivf", "ivf+pq")


def counted_errors(recall: float, dim: int) -> float:
    """Of the largest error of codes, what counts: all of it, or what is likely where less than all is asked for."""
    return 1.0 if recall >= 1 else min(1.0, DEVIATIONS / dim**0.5)


@dataclass(frozen=True)
class Plan:
    """How one part is searched.

    way: "flat" (all rows, by codes and the most these may be off), "gather" (the rows that a filter leaves, one by
    one), "quantised" (all rows, by codes and what these are off in all likelihood), "ivf" (the `nearest` lists), "pq"
    or "ivf+pq" (all rows, or these lists, by product codes); also "mesh" (all rows, on its devices) and "keyword" (by
    words). rows: about how many are looked at for a query, of so many.
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
    filtered = allowed < count
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


@dataclass(frozen=True)
class ProductPlan(Plan):
    """How one part is searched by product codes. candidates: rows that are scored exactly."""

    candidates: int


def choose_products(
    count: int,
    allowed: int,
    index: "ProductIndex",
    recall: float,
    top_k: int,
    evenly: Callable[[], bool],
    by_lists: bool = True,
) -> tuple[ProductPlan, float] | None:
    """The plan, and what recall its lists are asked for.

    None where product codes do not reach the recall, or by so many exact scores that int8 codes are better. evenly:
    whether the rows that a filter leaves lie where the others do; elsewhere nothing was measured. Where lists and codes
    both miss some rows, each may miss as many: the recall is the product of theirs. by_lists: whether these are there.
    """
    if allowed <= FEW_SCORED and allowed < count:
        why = f"{allowed} of {count} rows may be found, and all of them are scored"
        return ProductPlan("gather", allowed, count, 0, why, allowed), recall
    filtered = allowed < count
    if filtered and not evenly():
        return None
    neighbours = -(-top_k * count // allowed) if filtered else top_k
    some = f"{allowed} of {count} rows may be found: " if filtered else ""
    made = []
    each = recall**0.5
    nearest, candidates = index.lists.enough(each, neighbours), index.codes.enough(each, neighbours)
    if by_lists and nearest is not None and candidates is not None:
        rows = index.lists.rows_in(nearest)
        why = f"{some}recall {recall:g} was measured with {nearest} lists, of which {candidates} rows are scored"
        made.append((ProductPlan("ivf+pq", rows, count, nearest, why, candidates), each))
    candidates = index.codes.enough(recall, neighbours)
    if candidates is not None:
        why = f"{some}recall {recall:g} was measured with {candidates} rows that are scored"
        made.append((ProductPlan("pq", count, count, 0, why, candidates), recall))
    made = [each for each in made if each[0].candidates * FEW <= count]
    return min(made, key=lambda each: each[0].rows + FEW_SUMS * each[0].candidates, default=None)
