"""What is served, by its links: what every answer tells of its lineage, and its receipt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from abi_jax.lineage_digest import content_root, digest_tree
from abi_jax.model.directory import PARAMS, ModelDirectory
from abi_jax.model.provenance import Provenance, named
from abi_jax.model.weight import Tree
from abi_jax.serve.answered import Answered
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.receipt import engine_section, make
from abi_jax.wdbx import Database


def model_section(directory: ModelDirectory, step: int, params: Tree) -> dict[str, Any]:
    """The link of a step, and the root of the digests of what was loaded of it; the link is None where it has none.

    recorded: the root is of the step's record instead.
    """
    provenance = Provenance(directory.path)
    number = provenance.steps().get(step)
    link = None if number is None else provenance.chain.links()[number - 1].hash
    if jax.process_count() == 1:
        digests = digest_tree(named(PARAMS, params))
    else:  # no process has all weights: what they were when they were linked, which their files' seals vouch for
        tensors = {} if number is None else provenance.record(number).tensors
        digests = {name: found for name, found in tensors.items() if name.startswith(f"{PARAMS}/")}
    return {
        "name": directory.path.resolve().name,
        "step": step,
        "link": link,
        "weights": content_root(digests),
        "recorded": jax.process_count() > 1,
    }


@dataclass(frozen=True)
class Served:
    """A loaded step of a model directory, on an engine, and a store that is open."""

    model: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    store: Database | None = None

    @classmethod
    def of(cls, directory: ModelDirectory, step: int, params: Tree, engine: PagedEngine) -> "Served":
        """`params`: as they were loaded, before an engine took them."""
        return cls(model_section(directory, step, params), engine_section(engine))

    def told(self) -> Mapping[str, Any]:
        """The links, by step and by version; that of the memory is of its newest version that has one."""
        store = self.store
        version = None if store is None else store.version
        memory = None if store is None or version is None else {"version": version, "link": store.link(version)}
        return {"model": {"step": self.model["step"], "link": self.model["link"]}, "memory": memory}

    def receipt(self, about: Answered) -> Mapping[str, Any] | None:
        """What regenerates an answer."""
        return make(about, model=self.model, engine=self.engine)
