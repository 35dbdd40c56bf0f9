"""RoPE parameters of a `config.json`, to and from `RopeScaling`.

Source: `modeling_rope_utils.py` of transformers 5, whose defaults and precedence this follows.
"""

import math
from collections.abc import Mapping
from typing import Any

from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig, RopeScaling
from abi_jax.model.hf_fields import Fields

_DEFAULT_THETA = 10_000.0
_COMMON = frozenset({"rope_type", "type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"})
_KEYS: Mapping[str, frozenset[str]] = {
    "default": _COMMON,
    "linear": _COMMON | {"factor"},
    "dynamic": _COMMON | {"factor"},
    "llama3": _COMMON | {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": _COMMON | {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"},
}


def read_rope(config: Fields, max_length: int) -> tuple[float, RopeScaling]:
    """Returns the base and the scaling; `InputError` names a type or a key that is not supported."""
    key = "rope_scaling" if config.raw.get("rope_scaling") else "rope_parameters"
    raw = config.raw.get(key) or {}
    if not isinstance(raw, Mapping):
        raise InputError(f"{key} is {raw!r}; expected an object")
    if any(isinstance(v, Mapping) for v in raw.values()):
        raise InputError(f"{key} is {dict(raw)!r}; RoPE that differs between layers is not supported")
    f = Fields(raw, f"{key}.")
    theta = f.number("rope_theta", config.number("rope_theta", _DEFAULT_THETA))
    kind = f.text("rope_type", f.text("type", "default"))
    if kind not in _KEYS:
        raise InputError(f"{key}.rope_type is {kind!r}; supported are {', '.join(_KEYS)}")
    for name, value in raw.items():
        if name not in _KEYS[kind] and value is not None:
            raise InputError(f"{key}.{name} is {value!r}, which rope_type {kind!r} does not have")
    if f.number("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{key}.partial_rotary_factor is {raw['partial_rotary_factor']!r}; expected 1")
    original = config.whole("original_max_position_embeddings", f.whole("original_max_position_embeddings", max_length))
    match kind:
        case "linear":
            return theta, RopeScaling("linear", f.number("factor"))
        case "dynamic":
            if original != max_length:
                # releases of transformers differ in which of the two the base grows from
                raise InputError(f"original_max_position_embeddings is {original}; dynamic RoPE expects {max_length}")
            return theta, RopeScaling("dynamic", f.number("factor"), original)
        case "llama3":
            low, high = f.number("low_freq_factor"), f.number("high_freq_factor")
            if high <= low:
                raise InputError(f"{key}.high_freq_factor is {high}; expected more than low_freq_factor {low}")
            return theta, RopeScaling("llama3", f.number("factor"), original, low, high)
        case "yarn":
            return theta, _read_yarn(f, original, max_length)
    return theta, RopeScaling()


def _read_yarn(f: Fields, original: int, max_length: int) -> RopeScaling:
    factor = f.number("factor", max_length / original)
    attention = f.maybe_number("attention_factor", None)
    mscale, over = f.maybe_number("mscale", None), f.maybe_number("mscale_all_dim", None)
    if attention is None and mscale and over:
        grow = math.log(factor) if factor > 1 else 0.0
        attention = (0.1 * mscale * grow + 1.0) / (0.1 * over * grow + 1.0)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=f.number("beta_fast", 32.0),
        beta_slow=f.number("beta_slow", 1.0),
        attention_factor=attention,
        truncate=f.flag("truncate", True),
    )


def write_rope(config: ModelConfig) -> tuple[float, dict[str, Any] | None]:
    """Returns `rope_theta` and `rope_scaling` as transformers 4 spells them and 5 still reads them."""
    s = config.rope_scaling
    out: dict[str, Any] = {"rope_type": s.kind, "factor": s.factor}
    match s.kind:
        case "none":
            return config.rope_theta, None
        case "llama3":
            out |= {
                "original_max_position_embeddings": s.original_max_length,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
            }
        case "yarn":
            out |= {
                "original_max_position_embeddings": s.original_max_length,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
            }
            if s.attention_factor is not None:
                out["attention_factor"] = s.attention_factor
            if not s.truncate:
                out["truncate"] = False
    return config.rope_theta, out
