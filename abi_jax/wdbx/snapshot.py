"""A whole store as it was at one version, for as long as it is wanted."""

from collections.abc import Mapping

from abi_jax.errors import InputError
from abi_jax.wdbx.storage.base import Held
from abi_jax.wdbx.view import View


class Snapshot:
    """Collections at one version. What is written meanwhile changes nothing in it."""

    def __init__(self, version: int, views: Mapping[str, View], pin: Held | None) -> None:
        """pin: keeps the version readable for everybody, until it is closed."""
        self.version = version
        self._views = dict(views)
        self._pin = pin

    def collections(self) -> list[str]:
        """Names of all collections that there were."""
        return sorted(self._views)

    def collection(self, name: str) -> View:
        """The collection of that name."""
        if name not in self._views:
            has = ", ".join(self._views) or "none"
            raise InputError(f"there was no collection {name!r} at version {self.version}; there were: {has}")
        return self._views[name]

    def __getitem__(self, name: str) -> View:
        return self.collection(name)

    def __repr__(self) -> str:
        return f"<snapshot of version {self.version}: {', '.join(self.collections()) or 'no collections'}>"

    def close(self) -> None:
        """Lets the version go. The snapshot holds nothing then."""
        self._views.clear()
        pin, self._pin = self._pin, None
        if pin is not None:
            pin.release()

    def __enter__(self) -> "Snapshot":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
