"""Measure how fast a server answers.

  abi bench serve --url http://127.0.0.1:8000 --max-concurrency 1 4 16 --figure bench.png
  abi bench serve --url http://127.0.0.1:8000 --request-rate 1 4 16 inf --prompts questions.jsonl --endpoint chat

`abi bench serve --help` tells more.
"""

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from abi_jax.cli.shared import add_actions

HELP = "measure a server: throughput and latency under load"
ACTIONS = ("serve",)


def add_arguments(parser: argparse.ArgumentParser) -> Sequence[argparse.ArgumentParser]:
    """Declares the arguments of every action; returns their parsers."""
    return add_actions(parser, ACTIONS, _module)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one action and returns what it measured."""
    result: dict[str, Any] = _module(options.action).run(options)
    return result


def _module(action: str) -> Any:
    return importlib.import_module(f"abi_jax.cli.bench.{action}")
