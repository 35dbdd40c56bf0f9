"""What a model was made from: its chain, newest link first.

A link is made from the one below it, unless it says "made from": then from a link of another chain, from an earlier
one of this chain, from files, or from nothing that has a link.

  abi log runs/personas
"""

import argparse
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError

HELP = "a model's history, link by link"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("model", type=Path, help="model directory")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prints and returns the links."""
    from abi_jax.lineage import GENESIS
    from abi_jax.model.directory import ModelDirectory
    from abi_jax.model.provenance import Provenance

    provenance = Provenance(ModelDirectory.open(options.model).path)
    links, here = provenance.chain.links(), provenance.steps()
    told: list[dict[str, Any]] = [
        {
            "number": number,
            "hash": link.hash,
            "step": link.step,
            "time": link.time,
            "content": link.content,
            "code": link.code,
            "parents": list(link.parents),
            "here": here.get(link.step) == number,
            "made_from": _made_from(provenance, number) if link.step == 0 else {},
        }
        for number, link in enumerate(links, 1)
    ]
    if not options.json:
        for entry, link in zip(reversed(told), reversed(links), strict=True):
            older = links[entry["number"] - 2] if entry["number"] > 1 else None
            print(f"link {entry['number']}  {link.hash[:16]}  step {link.step:<8} {link.time}")
            print(f"    content {link.content[:16]}{'' if entry['here'] else ', no longer here'}; {link.code}")
            for parent in link.parents:
                print(f"    made from {'nothing that has a link' if parent == GENESIS else parent[:16]}")
            for name, digest in entry["made_from"].items():
                print(f"    made from {name}  sha256 {digest[:16]}")
            if older is not None and link.config != older.config:
                print("    with another configuration than the link before it")
        if not links:
            print(f"{options.model}: no links yet")
    return {"model": str(options.model), "links": told}


def _made_from(provenance: Any, number: int) -> dict[str, str]:
    """SHA-256 of the files that an imported model was read from; nothing where its record is damaged."""
    try:
        position = provenance.record(number).position
    except InputError:
        return {}
    return dict(position.get("made_from", {})) if isinstance(position, dict) else {}
