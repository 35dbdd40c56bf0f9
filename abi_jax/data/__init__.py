"""Data: chat records in, packed, labelled, resumable batches out."""

from abi_jax.data.config import DataConfig
from abi_jax.data.demo import demo_files, resolve
from abi_jax.data.examples import Example, ExampleSource
from abi_jax.data.packing import Batch, RowPacker, assemble
from abi_jax.data.pipeline import Batches, Split, load_split, merge_states
from abi_jax.data.records import Record, Records, is_held_out, parse_record, read_records, texts

__all__ = [
    "Batch",
    "Batches",
    "DataConfig",
    "Example",
    "ExampleSource",
    "Record",
    "Records",
    "RowPacker",
    "Split",
    "assemble",
    "demo_files",
    "is_held_out",
    "load_split",
    "merge_states",
    "parse_record",
    "read_records",
    "resolve",
    "texts",
]
