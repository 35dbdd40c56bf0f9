"""Arguments that several verbs take, and what they mean."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TextIO

from abi_jax.errors import InputError
from abi_jax.sharding.simulate import simulated_count, simulated_devices


def simulate(devices: int, *, unless_set: bool = False) -> None:
    """Makes JAX, not yet imported, see that many CPU devices.

    With `unless_set`, a number or a platform that the environment names stays.
    """
    if not unless_set or (simulated_count(os.environ) == 1 and "JAX_PLATFORMS" not in os.environ):
        os.environ.update(simulated_devices(devices, os.environ))


def read_lines(source: TextIO) -> Iterator[str]:
    """Yields the lines of what is piped or typed in. Raises `InputError` where it is not text."""
    try:
        yield from iter(source.readline, "")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: byte {error.start}: {error.reason}") from None


def add_actions(
    parser: argparse.ArgumentParser, actions: Iterable[str], module: Callable[[str], Any]
) -> list[argparse.ArgumentParser]:
    """Declares a verb's actions, each with the arguments of its module; returns their parsers."""
    there = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    made = []
    for action in actions:
        of = module(action)
        form = argparse.RawDescriptionHelpFormatter
        made.append(there.add_parser(action, help=of.HELP, description=of.__doc__, formatter_class=form))
        of.add_arguments(made[-1])
    return made


def track_tensors(names: Iterable[str], total: int) -> Iterable[str]:
    """The names of tensors as they are worked on, with a progress bar in a terminal."""
    from tqdm import tqdm

    bar: Iterable[str] = tqdm(names, "tensors", total, disable=not sys.stderr.isatty(), leave=False)
    return bar


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """`--mesh`: how to spread a model over devices."""
    parser.add_argument(
        "--mesh", metavar="AXES", help="axes and sizes, e.g. data=2,tensor=4; -1 takes all that are left"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Persona and sampling arguments; what is not given comes from the persona's file."""
    parser.add_argument(
        "--persona", default="", metavar="MIX", help="a persona, a mixture such as abbey=0.6,aviva=0.4, or base"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens (all that fits)")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the likeliest tokens that sum to P")
    parser.add_argument("--min-p", type=float, metavar="P", help="leave out tokens below P times the likeliest")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 discourages repeating")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same answer")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at TEXT (repeatable)")
    parser.add_argument("--policy", metavar="TEXT", help="policy text that stands before the conversation")
    parser.add_argument("--memory", action="append", default=[], metavar="TEXT", help="a remembered text (repeatable)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    add_mesh(parser)


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `serve.local.Request` that `add_sampling` collected."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "policy")
    return {name: getattr(options, name) for name in names} | {
        "stop": tuple(options.stop),
        "memory": tuple(options.memory),
    }


def mesh_config(text: str) -> Any:
    """Reads `data=2,tensor=4` as a `MeshConfig`; an axis that is not named has size 1."""
    from abi_jax.sharding.mesh import AXES, MeshConfig

    sizes: dict[str, Any] = {"data": 1}
    for part in text.split(","):
        name, _, size = (s.strip() for s in part.partition("="))
        if name not in AXES:
            raise InputError(f"--mesh {text!r}: unknown axis {name!r}; known: {', '.join(AXES)}")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise InputError(f"--mesh {text!r}: {part!r} is not AXIS=SIZE; expected e.g. data=2,tensor=4") from None
    return replace(MeshConfig(), **sizes)


def parse_mesh(text: str | None) -> Any:
    """Returns the mesh that `--mesh` describes, or None."""
    from abi_jax.sharding import make_mesh

    return None if text is None else make_mesh(mesh_config(text))
