"""Hugging Face checkpoints in and out: the public face of `hf_config`, `hf_names`, `hf_import` and `hf_export`."""

from abi_jax.model.hf_config import FAMILIES, from_hf, stored_dtype, to_hf
from abi_jax.model.hf_export import export_hf
from abi_jax.model.hf_import import import_hf, read_hf_config

__all__ = ["FAMILIES", "export_hf", "from_hf", "import_hf", "read_hf_config", "stored_dtype", "to_hf"]
