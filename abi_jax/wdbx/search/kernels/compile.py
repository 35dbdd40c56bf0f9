"""How kernels are compiled: once an installation, if what is compiled can be kept, else once a process."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

logger = logging.getLogger("abi_jax.wdbx")

# What is kept of one kernel holds those it calls: it is of no use once any of these files is another.
FILES = sorted(Path(__file__).parent.glob("*.py"))
STAMP = tuple((each.name, each.stat().st_mtime_ns, each.stat().st_size) for each in FILES)


class _Cache(FunctionCache):
    """What numba keeps of a function, as long as no file of this folder changes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, STAMP)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was kept; None, so that it is made again, where that is not whole."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            logger.info("a search kernel is compiled again, since what was kept of it is damaged: %s", error)
            self._leave(self.flush)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps what was compiled, if there is room for it."""
        self._leave(super().save_overload, sig, data)

    def _leave(self, write: Callable[..., Any], *arguments: Any) -> None:
        try:
            write(*arguments)
        except Exception as error:
            logger.info("search kernels are not kept in %s: %s", self._cache_path, error)


def part(**options: Any) -> Any:
    """`numba.njit` for what kernels call.

    References to arrays are not counted, which would take as long as a short loop; so no array can be made.
    """
    return numba.njit(nogil=True, boundscheck=False, **({"_nrt": False} | options))


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` for what is called from outside: where there is a place for it, what is compiled is kept."""

    def compiled(function: Callable[..., Any]) -> Any:
        made = numba.njit(nogil=True, boundscheck=False, **options)(function)
        try:
            made._cache = _Cache(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            logger.info("search kernels are compiled in every process (NUMBA_CACHE_DIR may name a place): %s", error)
        return made

    return compiled
