"""Serve a model to any OpenAI client, from a configuration file or a model directory.

  abi serve runs/personas
  abi serve configs/serve/local.yaml --port 8001 --set engine.slots=16
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "abbey", "messages": [{"role": "user", "content": "My build fails."}]}'

A persona is a model's name, and so is a mixture (abbey=0.6,aviva=0.4) and base. The file is overridden by environment
variables such as ABI_PORT and by --set. SIGTERM finishes what runs and refuses what is new; an engine that fails ends
the server with status 1, to be started again. Without keys (`abi key`) it serves this machine alone. With
--set engine.quantization=int8 weights take a quarter of the memory of float32, and with
--set engine.kv_cache_dtype=int8 keys and values do. Started as several processes (`launch/local`, SLURM, Kubernetes),
with a `mesh` over all their devices, the first listens and leads the others.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError

HELP = "serve a model to any OpenAI client"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("config", type=Path, help="YAML file, a name in configs/serve, or a model directory")
    parser.add_argument("--host", help="where to listen")
    parser.add_argument("--port", type=int, help="the port; 0 takes a free one")
    parser.add_argument("--model", help="model directory")
    parser.add_argument("--slots", type=int, metavar="N", help="answers at a time")
    parser.add_argument("--keys", metavar="FILE", help="file of keys that open the server")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key (repeatable)"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Serves until a signal ends it, or the engine fails."""
    from abi_jax.config import find_config, load
    from abi_jax.sharding import initialize

    try:
        from abi_jax.serve.build import follow_leader, make_service
        from abi_jax.serve.config import ServeConfig
        from abi_jax.serve.engine.led import Leader
        from abi_jax.serve.http.observe import set_up_logs
        from abi_jax.serve.http.server import raise_file_limit, run
    except ModuleNotFoundError as error:
        raise InputError(
            f"abi serve needs {error.name}, which is not installed: pip install 'abi-jax[serve]'"
        ) from None

    flags = {"host": options.host, "port": options.port, "model": options.model, "keys": options.keys}
    flags |= {"engine.slots": options.slots}
    overrides = [*options.overrides, *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    if (options.config / "model.yaml").is_file():
        config = load(ServeConfig, None, [f"model={options.config}", *overrides])
    else:
        config = load(ServeConfig, find_config(options.config, "serve"), overrides)
    set_up_logs(sys.stderr, config.json_logs)
    raise_file_limit()
    cluster = initialize()
    if cluster is not None and cluster.num_processes > 1:
        if config.mesh is None:
            raise InputError(f"mesh is not given, and there are {cluster.num_processes} processes; expected their mesh")
        if cluster.process_id:
            follow_leader(config, cluster)
            return {"model": config.model, "host": None, "port": None}
    service = make_service(config, cluster)
    tls = {} if config.tls is None else {"ssl_certfile": config.tls.cert, "ssl_keyfile": config.tls.key}
    try:
        port = run(service, config.host, config.port, **tls)
    finally:
        if isinstance(service.worker.engine, Leader):
            service.worker.engine.close()
    told = {"model": config.model, "host": config.host, "port": port}
    failed = service.worker.failed
    return told if failed is None else {**told, "ok": False, "error": f"the engine failed: {failed}"}
