"""Data: chat records in, packed, labelled, resumable batches out."""

from abi_jax.data.balance import Balanced
from abi_jax.data.config import BalanceConfig, DataConfig
from abi_jax.data.examples import Example, ExampleSource
from abi_jax.data.packing import Batch, RowPacker, assemble
from abi_jax.data.pipeline import Batches, merge_states
from abi_jax.data.records import Record, Records, is_held_out, parse_record, read_records, texts
from abi_jax.data.sources import demo_files, resolve
from abi_jax.data.splits import Split, Splits

__all__ = [
    "BalanceConfig",
    "Balanced",
    "Batch",
    "Batches",
    "DataConfig",
    "Example",
    "ExampleSource",
    "Record",
    "Records",
    "RowPacker",
    "Split",
    "Splits",
    "assemble",
    "demo_files",
    "is_held_out",
    "merge_states",
    "parse_record",
    "read_records",
    "resolve",
    "texts",
]
