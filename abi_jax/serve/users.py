"""Users' own adaptations in a folder, a file each: tens of kilobytes, and deleting one is deleting the file."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from abi_jax.errors import InputError
from abi_jax.files import sync_folder, write_atomically
from abi_jax.model.config import ModelConfig
from abi_jax.model.users import UserTerms, from_arrays, to_arrays


class UserFolder:
    """The adaptations that are there, of one model. File names are hashes: users may be called anything."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.path, self._config = path, config

    def get(self, user: str) -> tuple[UserTerms, str] | None:
        """A user's adaptation and the SHA-256 of its file, hexadecimal; None where there is none.

        Raises `InputError` for a file that cannot be read or does not fit the model.
        """
        where = f"the adaptation of user {user!r}"
        try:
            data = self._file(user).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{where} cannot be read: {error.strerror}") from None
        return self.parse(data, where), hashlib.sha256(data).hexdigest()

    def parse(self, data: bytes, where: str) -> UserTerms:
        """An adaptation from the bytes of a safetensors file. Raises `InputError`, naming `where`."""
        try:
            arrays = load(data)
        except (SafetensorError, ValueError) as error:
            raise InputError(f"{where} is not a safetensors file: {error}") from None
        except (KeyError, TypeError) as error:
            raise InputError(f"{where} holds numbers of type {error}, which cannot be read; expected F32") from None
        return from_arrays(self._config, arrays, where)

    def put(self, user: str, terms: UserTerms) -> None:
        """Writes a user's adaptation over the one that is there; whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file(user), save(to_arrays(terms), {"user": user}))

    def delete(self, user: str) -> bool:
        """Deletes a user's adaptation; False where there was none."""
        try:
            self._file(user).unlink()
        except FileNotFoundError:
            return False
        sync_folder(self.path)
        return True

    def _file(self, user: str) -> Path:
        return self.path / f"{hashlib.sha256(user.encode()).hexdigest()}.safetensors"
