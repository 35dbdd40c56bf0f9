"""The pictures that docs/serve.md shows. `pytest tests/serve/page --screenshots` takes them anew."""

from pathlib import Path
from typing import Any

import pytest

from tests.serve.page.conftest import Talker, ask

DOCS = Path(__file__).parents[3] / "docs"
ANSWER = """Being stuck on a red build is tiring, so let us make it small.

1. Scroll up to the very first line that says error. The later ones are often echoes of it.
2. Open the file it names, and change only that.

```sh
make test 2>&1 | grep -m1 error
```

Then build again. A new first error means that you are further than before."""


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where pictures go."""
    return DOCS if request.config.getoption("--screenshots") else tmp_path


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("serve-page.png", {"viewport": {"width": 1180, "height": 1340}}, (1180, 1340)),
        ("serve-page-phone.png", {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2}, (720, 1480)),
    ],
)
def test_a_picture(
    chromium: Any,
    talker: Talker,
    folder: Path,
    name: str,
    settings: dict[str, Any],
    size: tuple[int, int],
) -> None:
    talker.says(ANSWER, step_seconds=0.002)
    page = chromium.new_page(**settings)
    page.goto(talker.url)
    page.wait_for_selector("#share-1", state="attached")
    # as a hand would; on a phone they are on another page
    page.evaluate(
        """() => {
          const [collection, share] = ["collection", "share-1"].map((id) => document.getElementById(id));
          collection.value = "notes";
          share.value = 40;
          share.dispatchEvent(new Event("input"));
        }"""
    )
    ask(page, "My build fails and I am stuck.")
    if name == "serve-page.png":
        page.locator("summary").click()
    page.screenshot(path=folder / name)
    page.close()
    data = (folder / name).read_bytes()
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == size
    assert 20_000 < len(data) < 300_000
