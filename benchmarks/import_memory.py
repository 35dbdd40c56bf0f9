"""Host memory of an import: how much more than the destination shards is held at the peak.

    python benchmarks/import_memory.py --gib 3 --files 8

Generates a Hugging Face checkpoint of several files, imports it in a process of its own, prints one JSON object.
On CPU the destination is host memory too, so it is subtracted: what is reported is the peak resident size
less the size before the import less the bytes of all destination shards. Needs Linux (/proc).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MESH = {1: (1, 1), 8: (4, 2)}  # devices -> fsdp, tensor
LIMIT = 2 << 30


def generate(folder: Path, gib: float, files: int, width: int) -> int:
    """Writes a bf16 Llama of about `gib` GiB in `files` files; returns its parameters."""
    import ml_dtypes
    import numpy as np

    from abi_jax.model.config import ModelConfig
    from abi_jax.model.decoder import Decoder
    from abi_jax.model.hf import to_hf
    from abi_jax.model.hf_names import source
    from abi_jax.model.safetensors_writer import write_checkpoint
    from abi_jax.model.weight import Weight, count, describe, map_weights

    def llama(layers: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=32000,
            d_model=width,
            num_layers=layers,
            num_heads=width // 64,
            num_kv_heads=width // 256,
            head_dim=64,
            d_ff=4 * width,
            max_length=4096,
            tied_embeddings=False,
        )

    one, two = (count(describe(partial(Decoder, llama(n)))[1]) for n in (1, 2))
    layers = max(1, round((gib * 2**29 - one) / (two - one)) + 1)
    config = llama(layers)
    _, weights = describe(lambda: Decoder(config))
    tensors: list[tuple[str, tuple[int, ...]]] = []

    def note(path: str, weight: Weight) -> None:
        where = source(config, path, weight.shape)
        tensors.append((where.name, where.shape))

    map_weights(note, weights)
    noise = (np.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype(ml_dtypes.bfloat16)

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape in tensors:
            yield name, np.resize(noise, shape)

    total = 2 * count(weights)
    write_checkpoint(folder, stream(), max_shard_bytes=total // files + 1)
    (folder / "config.json").write_text(json.dumps(to_hf(config, ml_dtypes.bfloat16)))
    return count(weights)


def resident() -> tuple[int, int]:
    """Returns this process's resident bytes, now and at the peak."""
    status = Path("/proc/self/status").read_text()
    found = [re.search(rf"{key}:\s+(\d+) kB", status) for key in ("VmRSS", "VmHWM")]
    now, peak = (int(m.group(1)) << 10 if m else 0 for m in found)
    return now, peak


def measure(folder: Path, devices: int, dtype: str) -> dict[str, object]:
    """Imports `folder` and reports what it took. Runs in a process of its own."""
    import jax

    from abi_jax.model.hf import import_hf
    from abi_jax.sharding.mesh import MeshConfig, make_mesh

    fsdp, tensor = MESH[devices]
    mesh = make_mesh(MeshConfig(data=1, fsdp=fsdp, tensor=tensor)) if devices > 1 else None
    jax.block_until_ready(jax.numpy.zeros(8))
    before, _ = resident()
    start = time.perf_counter()
    _, params = import_hf(folder, mesh=mesh, dtype=dtype, progress=sys.stderr.isatty())
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    after, peak = resident()
    shards = {
        s.data.unsafe_buffer_pointer(): s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards
    }
    on_host = sum(shards.values()) if jax.default_backend() == "cpu" else 0
    largest = max(x.nbytes for x in jax.tree.leaves(params))
    return {
        "platform": jax.default_backend(),
        "devices": devices,
        "dtype": dtype,
        "destination_bytes": sum(shards.values()),
        "largest_tensor_bytes": largest,
        "peak_bytes": peak,
        "peak_beyond_destination_bytes": peak - before - on_host,
        "peak_beyond_final_bytes": peak - after,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Generates, measures in a fresh process, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=3.0, help="size of the generated checkpoint")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--width", type=int, default=2048, help="d_model; a multiple of 256")
    parser.add_argument("--devices", type=int, choices=sorted(MESH), default=1)
    parser.add_argument("--dtype", default="float32", help="dtype of the destination; the files are bfloat16")
    parser.add_argument("--keep", type=Path, help="generate here, and use what is here already")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.devices, args.dtype)))
        return
    with tempfile.TemporaryDirectory(prefix="abi-import-") as temporary:
        folder = args.keep or Path(temporary) / "checkpoint"
        if not (folder / "config.json").exists():
            generate(folder, args.gib, args.files, args.width)
        stored = [p.stat().st_size for p in folder.glob("*.safetensors")]
        env = dict(os.environ)
        if args.devices > 1:
            env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={args.devices}"}
        command = [sys.executable, __file__, "--measure", str(folder), "--devices", str(args.devices)]
        child = subprocess.run([*command, "--dtype", args.dtype], env=env, stdout=subprocess.PIPE, text=True)
        if child.returncode:
            raise SystemExit(child.returncode)
    result = json.loads(child.stdout)
    result = {"benchmark": "import_memory", "files": len(stored), "checkpoint_bytes": sum(stored)} | result
    result |= {"limit_bytes": LIMIT, "pass": result["peak_beyond_destination_bytes"] <= LIMIT}
    print(json.dumps(result))
    sys.exit(0 if result["pass"] else 1)


if __name__ == "__main__":
    main()
