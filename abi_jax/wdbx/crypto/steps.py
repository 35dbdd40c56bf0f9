"""Steps of arrays, sealed before they reach a storage and opened behind it."""

from collections.abc import Mapping

import numpy as np

from abi_jax.wdbx.crypto.keyring import Keyring
from abi_jax.wdbx.crypto.pages import SealedArrays, StepKey, seal_arrays


def seal_step(ring: Keyring, step: str, arrays: Mapping[str, np.ndarray], tenant: str) -> dict[str, np.ndarray]:
    """The arrays of a step of a tenant as they are stored, under a data key of their own."""
    number = ring.new([(step, ring.token(tenant))])[0]
    return seal_arrays(StepKey(ring.key(number), ring.store, step), arrays)


def open_step(ring: Keyring, step: str, frames: Mapping[str, np.ndarray]) -> SealedArrays:
    """The arrays of a step that was sealed."""
    return SealedArrays(StepKey(ring.key(ring.number(step)), ring.store, step), frames)
