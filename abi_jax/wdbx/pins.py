"""Pins: what readers look at, so that nobody takes it away. docs/wdbx-format.md, "Readers"."""

from dataclasses import asdict, dataclass

from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.storage.base import Held, Storage
from abi_jax.wdbx.witness import checked_json, read_checked

DOMAIN = "wdbx pin"


@dataclass(frozen=True)
class Pin:
    """The last version that a reader sees, and the file of the manifest that it stands on, "" for none.

    everything: it is still finding out, and nothing may go.
    """

    version: int
    manifest: str
    everything: bool = False

    def encode(self) -> bytes:
        """The bytes of a pin's file."""
        return checked_json(DOMAIN, asdict(self))


EVERYTHING = Pin(0, "", everything=True)


def read_pin(name: str, data: bytes) -> Pin:
    """Reads a pin's file. Raises `DamagedError` where it is none."""
    try:
        return Pin(**read_checked(DOMAIN, name, data))
    except TypeError:
        raise DamagedError(f"{name} does not say what is read") from None


def hold(storage: Storage, pin: Pin) -> Held | None:
    """Pins until what is returned is released, or the process ends; None where nothing can be written."""
    return storage.pin(pin.encode())


def held(storage: Storage) -> list[Pin]:
    """What readers have pinned; one that cannot be read pins everything. Pins of readers that are gone go."""
    found = []
    for name, data in storage.pins().items():
        try:
            found.append(read_pin(name, data))
        except DamagedError:
            found.append(EVERYTHING)
    return found
