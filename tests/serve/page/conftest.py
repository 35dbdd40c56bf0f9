"""A browser, and a server that says what a test wants."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abi_jax import wdbx
from abi_jax.persona import Sampling
from abi_jax.serve.answered import Answered
from tests.serve.http.serving import PATIENCE, PausingEngine, Running, script, serving, until, voices
from tests.serve.http.test_store import encoder

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SAID = "hello, world! She said: hello"
LINK = "9f2c" * 16
MEMORY = "The nightly build runs on the cluster called Juno."
WIDE: Any = {"width": 1180, "height": 780}
PROBES = Path(__file__).with_name("probes.js").read_text(encoding="utf-8")


class Chained:
    """The lineage of a model and a memory."""

    def told(self) -> Mapping[str, Any]:
        """Two links."""
        return {"model": {"step": 400, "link": LINK}, "memory": {"version": 3, "link": LINK[::-1]}}

    def receipt(self, about: Answered) -> Mapping[str, Any]:
        """Short."""
        return {"tokens": list(about.tokens)}


class Talker(Running):
    """A server whose engine says what it is given."""

    @property
    def engine(self) -> PausingEngine:
        """The engine."""
        engine = self.service.worker.engine
        assert isinstance(engine, PausingEngine)
        return engine

    @property
    def store(self) -> Any:
        """The vector store, with one row in the collection `notes`."""
        return self.service.store

    def says(self, text: str, step_seconds: float = 0.0, pause: int = 0) -> None:
        """From now on. pause: after so many tokens of the next answer, until `goes_on`."""
        engine = self.engine
        engine.script, engine.step_seconds, engine.pause = script(text), step_seconds, pause + 2 if pause else 0

    def goes_on(self, step_seconds: float = 0.0) -> None:
        """After a pause, or without one."""
        self.engine.pause, self.engine.step_seconds = 0, step_seconds
        self.engine.hold.clear()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Headless Chromium, of each module anew: its event loop runs as long as it does, and others cannot have theirs."""
    api = pytest.importorskip("playwright.sync_api", reason="the page is tested with the package playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"the page is tested in a browser, and this machine has none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, timeout=1e3 * PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def _talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    titles = {"abbey": "Abbey, the empathetic polymath", "aviva": "Aviva, the direct expert"}
    sampling = Sampling(temperature=0.0, max_tokens=600)
    personas = tuple(replace(p, title=titles[p.name], sampling=sampling) for p in voices().personas)
    engine = PausingEngine(vocab_size=400, max_length=2048, pages=256)
    speaking = replace(voices(), personas=personas)
    told: Any = {"lineage": Chained(), "name": "personas", "store_encoder": encoder}
    with wdbx.open(tmp_path_factory.mktemp("page") / "store.wdbx", encoder=encoder) as store:
        store.create_collection("notes", encoder=encoder).upsert(["n-17"], documents=[MEMORY])
        with serving(engine, speaking=speaking, store=store, **told) as running:
            yield Talker(running.service, running.port, running.server)


@pytest.fixture
def talker(_talker: Talker) -> Iterator[Talker]:
    """A server of two personas that says `SAID`."""
    _talker.says(SAID)
    yield _talker
    _talker.goes_on()
    until(lambda: not _talker.engine.works)


@pytest.fixture(scope="module")
def _tab(chromium: Any) -> Iterator[Any]:
    context = chromium.new_context(viewport=WIDE)
    context.set_default_timeout(1e3 * PATIENCE)
    yield context.new_page()
    context.close()


@pytest.fixture
def page(_tab: Any, talker: Talker) -> Iterator[Any]:
    """The page, once it knows who can speak; whatever the browser complains about fails the test."""
    complaints: list[str] = []

    def failed(error: Any) -> None:
        complaints.append(str(error))

    def told(message: Any) -> None:
        # what a test makes the server refuse is in the console, too
        if message.type == "error" and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    _tab.on("pageerror", failed)
    _tab.on("console", told)
    _tab.set_viewport_size(WIDE)
    _tab.emulate_media(color_scheme="light", reduced_motion="no-preference")
    _tab.goto(talker.url)
    _tab.wait_for_selector("#share-1", state="attached")
    yield _tab
    _tab.unroute_all()
    _tab.evaluate("sessionStorage.clear()")
    _tab.remove_listener("pageerror", failed)
    _tab.remove_listener("console", told)
    assert complaints == []


def probe(page: Any, name: str) -> Any:
    """What one of `probes.js` finds."""
    return page.evaluate(f"({PROBES}).{name}()")


def ask(page: Any, text: str = "Why does my build fail?") -> None:
    """Asks, and waits for the end of the answer."""
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.locator("article:last-child .tools").wait_for()
