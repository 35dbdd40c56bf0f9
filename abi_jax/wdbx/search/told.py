"""What searches did, as it is told to who asks for it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from abi_jax.wdbx.search.plan import Plan


class Told:
    """How parts were searched, by what was done, for how many queries."""

    def __init__(self) -> None:
        self._done: dict[tuple[bool, int, str, str], tuple[Plan, int, float]] = {}

    def add(self, plans: Iterable[tuple[int, Plan]], queries: int) -> None:
        """Notes how parts, by their numbers, were searched for some queries."""
        for part, plan in plans if queries else ():
            key = (plan.way == "keyword", part, plan.way, plan.why)
            _, count, rows = self._done.get(key, (plan, 0, 0.0))
            self._done[key] = (plan, count + queries, rows + plan.rows * queries)

    def entries(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What was done, part by part, by words last: name, for how many queries, and the plan. names: of parts."""
        done = sorted(self._done.items(), key=lambda each: each[0][:2])
        return [
            {"part": names[key[1]], "queries": count} | asdict(replace(plan, rows=round(rows / count)))
            for key, (plan, count, rows) in done
        ]
