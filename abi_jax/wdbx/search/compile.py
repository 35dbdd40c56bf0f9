"""How kernels are compiled: once an installation, if what is compiled can be kept, else once a process."""

import logging
from collections.abc import Callable
from typing import Any

import numba

logger = logging.getLogger("abi_jax.wdbx")


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit`; where neither the package nor the user's cache can be written to, nothing is kept."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(**options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            logger.info("search kernels are compiled in every process (NUMBA_CACHE_DIR may name a place): %s", error)
            return numba.njit(**(options | {"cache": False}))(function)

    return compiled
