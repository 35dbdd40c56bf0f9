"""Which form of `W x` XLA's CPU backend runs fastest, by number of rows: why `model/matmul.py` is as it is.

    python -m benchmarks.weight_layout --size 768 2048 --layers 12

Chains of alternating products as in an MLP, f32, weights larger than the caches, interleaved in one run. Prints
one JSON object: median GFLOP/s of each form for each number of rows, and the ratio of `project` to the plain form.
"""

import argparse
import json
from collections.abc import Callable
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.model.matmul import project

Form = Callable[[jax.Array, jax.Array], jax.Array]
FORMS: dict[str, tuple[Form, bool]] = {
    "x @ W, W [in, out]": (lambda x, W: x @ W, True),
    "einsum, W [out, in]": (lambda x, W: jnp.einsum("bd,fd->bf", x, W), False),
    "project, W [out, in]": (project, False),
}


def chain(form: Form) -> Callable[[jax.Array, list[tuple[jax.Array, jax.Array]]], jax.Array]:
    """Returns a compiled stack of `x + f(tanh(f(x, A)), B)`."""

    def run(x: jax.Array, weights: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        for a, b in weights:
            x = x + form(jnp.tanh(form(x, a)), b)
        return x

    return jax.jit(run)


def measure(rows: int, size: tuple[int, int], layers: int, repeats: int) -> dict[str, float]:
    """Median GFLOP/s of every form on `rows` rows; `size` is (D, F)."""
    D, F = size
    keys = jax.random.split(jax.random.key(0), 2)
    wide = jax.random.normal(keys[0], (layers, F, D)) * 0.02
    narrow = jax.random.normal(keys[1], (layers, D, F)) * 0.02
    x = jnp.ones((rows, D))
    runs = {}
    for name, (form, transposed) in FORMS.items():
        turn = (lambda w: jnp.array(w.T)) if transposed else jnp.array
        weights = [(turn(a), turn(b)) for a, b in zip(wide, narrow, strict=True)]
        runs[name] = chain(form), weights
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn_number in range(repeats + 1):
        for name, (run, weights) in runs.items():
            start = perf_counter()
            run(x, weights).block_until_ready()
            if turn_number:
                seconds[name].append(perf_counter() - start)
    flops = 4 * rows * D * F * layers
    return {name: round(flops / float(np.median(s)) / 1e9, 1) for name, s in seconds.items()}


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[768, 2048], metavar=("D", "F"))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 64, 256, 512])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    table = {rows: measure(rows, tuple(args.size), args.layers, args.repeats) for rows in args.rows}
    plain, ours = "einsum, W [out, in]", "project, W [out, in]"
    ratios = {rows: round(row[ours] / row[plain], 2) for rows, row in table.items()}
    print(json.dumps({"benchmark": "weight_layout", "gflops": table, "project_over_einsum": ratios}))


if __name__ == "__main__":
    main()
