"""How a mesh searches each part: which lists queries look at, where that takes less time than all rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from abi_jax.wdbx.search.codes import make_query_codes
from abi_jax.wdbx.search.filtered import choose_lists
from abi_jax.wdbx.search.ivf import Lists
from abi_jax.wdbx.search.mesh_layout import Layout
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_pool import Pool
from abi_jax.wdbx.search.mesh_select import BLOCK
from abi_jax.wdbx.search.plan import Plan, choose

COPIED = {"cpu": 1.5}  # times as long as a row in its place takes one of a list, which is copied; elsewhere:
MOST_COPIED = 3.0
BALANCED = {"cpu": 16}  # queries up to which products take no longer than reading the rows; elsewhere:
MOST_BALANCED = 256


def plan(part: MeshPart, lists: Lists | None, recall: float, top_k: int, batch: int, platform: str) -> Plan:
    """The plan for a part, of `batch` queries at once: "ivf", or "mesh" (all rows)."""
    count, allowed = len(part.vectors), int(np.count_nonzero(part.allowed))
    if recall >= 1:
        return Plan("mesh", count if allowed else 0, count, 0, "")
    made = choose(count, allowed, lists, recall, top_k)
    if made.way == "ivf" and not pays(made, batch, platform):
        why = f"for {batch} queries at once all rows take no longer than {made.nearest} lists for each"
        made = replace(made, way="flat", why=why)
    return made if made.way == "ivf" else Plan("mesh", count if allowed else 0, count, 0, made.why)


def pays(plan: Plan, batch: int, platform: str) -> bool:
    """Whether looking at lists query by query takes less time than multiplying all queries with all rows."""
    by_lists = plan.rows * batch * COPIED.get(platform, MOST_COPIED)
    return by_lists < plan.of * max(1.0, batch / BALANCED.get(platform, MOST_BALANCED))


@dataclass(frozen=True)
class Probe:
    """What queries look at of a part that stands by lists: query and block, int64 `[n]`; lists per query on average."""

    layout: Layout
    query: np.ndarray
    block: np.ndarray
    lists: float

    @property
    def rows(self) -> int:
        """Rows that are looked at, of all queries."""
        return len(self.block) * BLOCK


def probes_for(
    pool: Pool, parts: Sequence[MeshPart], plans: Sequence[Plan], queries: np.ndarray, top_k: int, recall: float
) -> dict[int, Probe]:
    """By number of the part, the blocks of the lists that each query `[B, D]` is to look at.

    They are those lists that the search of a host would choose.
    """
    made = {}
    for number, (part, each) in enumerate(zip(parts, plans, strict=True)):
        layout = pool.layout(part)
        if each.way != "ivf" or layout is None:
            continue
        coded = make_query_codes(pool.shape.metric, queries)
        allowed = layout.counted(part.allowed)
        if allowed is None:
            chosen = layout.lists.nearest(coded, each.nearest)
        else:
            chosen = choose_lists(layout.lists, allowed, coded, top_k, recall)
        made[number] = Probe(layout, *layout.blocks_of(chosen), np.count_nonzero(chosen >= 0) / len(chosen))
    return made
