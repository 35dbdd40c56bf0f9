"""The `abi` command: one module a verb, imported only when it is used."""

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from abi_jax import __version__
from abi_jax.cli.shared import simulate
from abi_jax.errors import InputError, Preempted
from abi_jax.sharding.compile_cache import compile_cache

VERBS = (
    *("demo", "data", "import", "train", "sweep", "launch", "generate", "chat", "serve", "key", "export", "embed"),
    *("info", "log", "verify", "diff", "receipt", "check-receipt", "replay", "wdbx", "bench"),
)
READING = ("data", "generate", "chat", "embed", "info", "log", "diff")  # nothing is lost where nobody reads on
READING_ACTIONS = ("query", "get", "log", "stats")  # of wdbx, likewise
WRITING = ("demo", "import", "export", "launch", "key")  # several processes would write over each other

EPILOG = """examples:
  abi demo                                          the whole story in ten minutes on a laptop
  abi data inspect chats.jsonl                      what is in it: counts, lengths, duplicates, bad records
  abi import ~/models/Qwen3-0.6B runs/base          a Hugging Face directory becomes a model directory
  abi train configs/train/personas.yaml --set model.init=runs/base --set data.train=chats.jsonl
  abi sweep configs/train/personas.yaml --grid optimizer.learning_rate=1e-3,3e-3 --folds 3
  abi launch slurm configs/launch/example.yaml --dry-run
  abi generate runs/personas "My build fails and I am stuck" --persona abbey=0.6,aviva=0.4
  abi chat runs/personas --persona aviva
  abi serve runs/personas                           to any OpenAI client, at http://127.0.0.1:8000/v1
  abi export runs/personas out/ --persona aviva     back to Hugging Face, the persona merged where it can be
  abi log runs/personas; abi verify runs/personas   what it was made from; whether it still is
  abi wdbx query memory.wdbx "how do I reset the cluster"
  abi bench serve --url http://127.0.0.1:8000       throughput and latency of any OpenAI server under load

Exit status: 0 done, 1 a check or a server's engine failed, 2 bad input, 143 stopped by SIGTERM with everything saved,
141 nobody read what train, verify and the like had to say."""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs, without importing JAX."""
    parser = argparse.ArgumentParser(
        prog="abi",
        description="Train, run and remember: a Transformer that speaks as several personas.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"abi-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        module = _module(verb)
        sub = verbs.add_parser(
            verb,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # A verb with several actions returns their parsers; one that is not given there leaves what was given before.
        for action in module.add_arguments(sub) or ():
            _add_common(action, argparse.SUPPRESS, argparse.SUPPRESS)
        _add_common(sub, False, None)
    return parser


def _add_common(parser: argparse.ArgumentParser, as_json: Any, devices: Any) -> None:
    parser.add_argument("--json", action="store_true", default=as_json, help="print one JSON object on standard output")
    parser.add_argument(
        "--devices",
        type=int,
        default=devices,
        metavar="N",
        help="simulate N devices on the CPU (as XLA_FLAGS=--xla_force_host_platform_device_count=N does)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    options = build_parser().parse_args(arguments)
    _prepare_environment()
    try:
        if options.devices is not None:
            simulate(options.devices)
        if options.verb in WRITING and os.environ.get("ABI_NUM_PROCESSES", "1") != "1":
            raise InputError(f"abi {options.verb} is for one process; abi train and abi serve are started as several")
        result = _module(options.verb).run(options)
        if options.json and result is not None:
            print(json.dumps(result), flush=True)
    except InputError as error:
        return _fail("; ".join([str(error), *getattr(error, "__notes__", ())]), options.json)
    except Preempted as stopped:
        if options.json:
            print(json.dumps({"stopped": str(stopped), "step": stopped.step}))
        print(f"abi: {stopped}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reads = options.verb in READING or (options.verb == "wdbx" and options.action in READING_ACTIONS)
        return 0 if reads else 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", options.json)
    except KeyboardInterrupt:
        return 130
    if result is not None and result.get("ok") is False:
        return 1
    return 0 if result is None else int(result.get("exit_status", 0))


def _module(verb: str) -> Any:
    return importlib.import_module("abi_jax.cli." + ("import_" if verb == "import" else verb.replace("-", "_")))


def _fail(message: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": message}))
    print(f"abi: error: {message}", file=sys.stderr)
    return 2


def _prepare_environment() -> None:
    """Sets what must be set before JAX and transformers are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.update(compile_cache(os.environ))
