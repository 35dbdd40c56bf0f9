"""Which model a store stands on: links of a checkpoint's chain (`abi_jax/lineage.py`), told in a version of its own.

The other way round, a model's chain names the link of a version among its `parents`: both are hashes of 64 digits.
"""

from pathlib import Path
from typing import Any

from abi_jax.errors import InputError
from abi_jax.lineage import Chain

CHAIN = Path("lineage") / "chain.jsonl"  # in a model directory


def model_parent(source: Chain | Path | str, step: int | None = None) -> dict[str, Any]:
    """What a version says of a model: the hash, number and step of a link of its chain.

    source: a model directory, or a chain. step: of the checkpoint, whose newest link it is (the chain's last). Raises
    `InputError` where there is no such link, or the chain does not hold.
    """
    chain = source if isinstance(source, Chain) else Chain(_chain_path(Path(source)))
    links = chain.links()
    found = [number for number, link in enumerate(links, 1) if step is None or link.step == step]
    if not found:
        has = ", ".join(map(str, dict.fromkeys(link.step for link in links))) or "none"
        raise InputError(f"{chain.path} has no link of step {step}; its steps: {has}")
    link = links[found[-1] - 1]
    return {"link": link.hash, "kind": link.kind, "step": link.step, "number": found[-1]}


def _chain_path(path: Path) -> Path:
    chain = path / CHAIN if path.is_dir() else path
    if not chain.is_file():
        raise InputError(f"{path} has no chain; expected a model directory with {CHAIN}, or a chain.jsonl")
    return chain
