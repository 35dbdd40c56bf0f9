"""Whatever operation on an encrypted store's keys fails, dies or is torn: nothing is lost, and nothing comes back."""

import contextlib
import json
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.keyring import KEYS_FILE
from tests.thorough import usual
from tests.wdbx.crashes import Operations
from tests.wdbx.test_crash import Story, stop_at

HOW = ("fail", "tear", "power off, some luck")


class EncryptedStory(Story):
    """The same life of an encrypted store; and a tenant comes, is sealed, and is erased."""

    options: ClassVar[dict[str, Any]] = {"key": bytes(range(32))}

    def __init__(self, root: Path, operations: Operations) -> None:
        super().__init__(root, operations)
        self.erased = False

    def _write(self) -> None:
        assert self.db is not None
        with contextlib.suppress(InputError):
            if not self.erased and "t" not in self.db.collections():
                self.db.create_collection("t", 2, metric="l2", tenant="t").upsert(["secret"], [[1, 2]])
        super()._write()
        with contextlib.suppress(InputError):
            self.db.erase_tenant("t")
        self.erased = self.erased or "t" not in self.db.collections()
        self._remember()

    def check(self, folder: Path) -> None:
        with wdbx.open(folder, **self.options) as db:
            assert not (self.erased and "t" in db.collections())
            gone = "t" not in db.collections()
        super().check(folder)
        tenants = {each["tenant"] for each in json.loads((folder / KEYS_FILE).read_bytes())["keys"].values()}
        assert tenants == {""} or not gone
        assert wdbx.verify(folder) == []


def of_keys(tmp_path: Path, share: int) -> list[int]:
    """Of the operations that write `keys.json`, and those beside them, one in five."""
    story = EncryptedStory(tmp_path / "all", Operations(tmp_path / "all"))
    story.run()
    assert story.erased
    renamed = [i for i, each in enumerate(story.operations.done) if each.endswith(KEYS_FILE)]
    assert len(renamed) > 10
    return sorted({stop for i in renamed for stop in range(i - 2, i + 3)})[share::5]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "share"), usual(product(HOW, range(5)), zip(HOW, (0, 2, 4), strict=True)))
def test_operations_on_keys(tmp_path: Path, how: str, share: int) -> None:
    for stop in of_keys(tmp_path, share):
        stop_at(tmp_path, EncryptedStory, how, stop)
