"""From this process's share of the data to batches on the mesh, and back to one position for all processes."""

import json
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from abi_jax.data import Batches, Split, merge_states
from abi_jax.errors import InputError
from abi_jax.sharding.mesh import describe
from abi_jax.sharding.rules import AxisRules
from abi_jax.train.objectives import BATCH_AXES, Arrays
from abi_jax.train.setup import Run

HOST_ONLY = ("active",)  # where persona terms act is in the mixture already


def open_batches(run: Run, split: Split, **changes: Any) -> Batches:
    """This process's share of the run's data; `changes` override fields of its `DataConfig`, of what is read none."""
    config = replace(run.config.data, **changes)
    share = batch_share(config.batch_size, run.mesh, run.rules)
    return Batches(config, run.tokenizer, run.personas, split, *share, splits=run.splits)


def pad_personas(batch: dict[str, np.ndarray], capacity: int) -> dict[str, np.ndarray]:
    """Widens the batch's mixture to the model's persona axis."""
    missing = capacity - batch["mixture"].shape[-1]
    return {**batch, "mixture": np.pad(batch["mixture"], [(0, 0), (0, 0), (0, missing)])} if missing else batch


def feed(run: Run, batch: dict[str, np.ndarray]) -> Arrays:
    """Puts a batch of the run on its mesh."""
    return place_batch(pad_personas(batch, run.capacity), run.mesh, run.rules, run.config.data.batch_size)


def batch_share(batch_size: int, mesh: Mesh, rules: AxisRules) -> tuple[int, int]:
    """Which rows of a global batch this process feeds to its devices: part `index` of `count` equal parts.

    Processes that hold the same rows, because the mesh splits something else between them, have the same part.
    """
    rows = NamedSharding(mesh, rules.spec(BATCH_AXES[:1], mesh))
    held: dict[int, set[int]] = {}
    places: Any = rows.devices_indices_map((batch_size,))
    for device, (part,) in places.items():
        held.setdefault(device.process_index, set()).update(range(batch_size)[part])
    parts = sorted({tuple(sorted(mine)) for mine in held.values()})
    if sum(map(len, parts)) != batch_size:
        raise InputError(
            f"{len(held)} processes on {describe(mesh)}: their rows of a batch overlap in part; "
            "expected a mesh that gives two processes the same rows or no row in common"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, rules: AxisRules, rows: int) -> Arrays:
    """Puts this process's share of a batch of `rows` on the mesh: rows over data axes, tokens over sequence.

    What no program reads stays on the host: see `HOST_ONLY`.
    """

    def put(x: np.ndarray) -> jax.Array:
        axes = (*BATCH_AXES, *(None,) * (x.ndim - 2))
        placed = NamedSharding(mesh, rules.spec(axes, mesh))
        return jax.make_array_from_process_local_data(placed, x, (rows, *x.shape[1:]))

    return {name: put(x) for name, x in batch.items() if name not in HOST_ONLY}


def gather_position(batches: Batches) -> dict[str, Any]:
    """The data position of all processes as one, for a checkpoint that any number of them can continue."""
    own = batches.get_state()
    if jax.process_count() == 1:
        return own
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([text.size]))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return merge_states([json.loads(bytes(r[: int(n)])) for r, n in zip(rows, sizes.ravel(), strict=True)])
