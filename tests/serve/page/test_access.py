"""The page for everybody: with a keyboard alone, a screen reader, a phone, either colour scheme, and less motion."""

from itertools import pairwise
from typing import Any

import pytest

from tests.serve.http.serving import until
from tests.serve.page.conftest import WIDE, Talker, ask, probe

PHONE: Any = {"width": 360, "height": 740}
CONTROLS = {"button", "textbox", "combobox", "slider", "spinbutton", "link", "DisclosureTriangle", "region"}


@pytest.fixture
def full(page: Any, talker: Talker) -> Any:
    """The page with everything on it that it can show: an answer that tells what it was made from, and an error."""
    page.fill("#share-1", "40")
    page.select_option("#collection", "notes")
    talker.says(f"So:\n```\nmake\n```\n{'long' * 60}")
    ask(page)
    page.locator("summary").click()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, json={}))
    ask(page)
    return page


def tree(page: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Role, name and properties of all that a screen reader is told of."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [
        (
            node["role"]["value"],
            node.get("name", {}).get("value", "").strip(),
            {each["name"]: each["value"].get("value") for each in node.get("properties", [])},
        )
        for node in nodes
        if not node["ignored"]
    ]


def test_everything_has_a_name_and_a_place(full: Any) -> None:
    found = tree(full)
    assert {role for role, _, _ in found} >= {"main", "banner", "complementary", "form", *CONTROLS - {"link"}}
    assert [(role, told) for role, name, told in found if role in CONTROLS and not name] == []
    roles = [role for role, _, _ in found]
    assert [roles.count(role) for role in ("main", "banner", "complementary", "status")] == [1, 1, 1, 1]
    levels = [told["level"] for role, _, told in found if role == "heading"]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(deeper - above <= 1 for above, deeper in pairwise(levels))
    names = {name for role, name, _ in found if role in CONTROLS}
    assert {"Your question", "Who answers", "API key", "Temperature", "abbey", "Stop", "Send"} - names == {"Stop"}
    groups = {name for role, name, _ in found if role == "group"}
    assert groups >= {"Mixture", "Answers", "Access"}
    assert full.evaluate("document.documentElement.lang") == "en" and full.title() == "abi"


def test_tab_reaches_everything_in_order_and_is_seen(full: Any) -> None:
    expected = probe(full, "stops")
    full.focus(".skip")
    full.keyboard.press("Shift")
    reached = []
    for _ in expected:
        name, ring, seen = probe(full, "focus")
        reached.append(name)
        assert ring >= 2 and seen, name
        full.keyboard.press("Tab")
    assert reached == expected and len(expected) > 15
    # the way past the conversation
    full.focus(".skip")
    full.keyboard.press("Enter")
    assert full.evaluate("document.activeElement.id") == "question"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_contrast(full: Any, scheme: str, size: Any) -> None:
    full.emulate_media(color_scheme=scheme)
    full.set_viewport_size(size)
    found = probe(full, "contrast")
    assert found["bad"] == [] and found["seen"] > 25
    full.click("#new")
    if size is PHONE:
        full.click("#open")
    found = probe(full, "contrast")
    assert found["bad"] == [] and found["seen"] > 10


@pytest.mark.parametrize("width", [360, 320])
def test_a_phone(full: Any, width: int) -> None:
    full.set_viewport_size({"width": width, "height": 640})
    for state in ("talk", "settings"):
        if state == "settings":
            full.focus("#open")
            full.keyboard.press("Enter")
            assert full.evaluate("document.activeElement.id") == "close"
            assert full.get_attribute("#open", "aria-expanded") == "true"
            assert set(probe(full, "stops")) >= {"close", "share-0", "key"} and "question" not in probe(full, "stops")
        assert full.evaluate("document.documentElement.scrollWidth") <= width
        assert probe(full, "spilled") == [] and probe(full, "small") == []
    full.keyboard.press("Escape")
    assert full.evaluate("document.activeElement.id") == "open" and not full.locator("#panel").is_visible()
    assert "question" in probe(full, "stops")
    full.click("#open")
    full.set_viewport_size(WIDE)
    # the browser tells the page of its new width a frame later
    until(lambda: {"question", "key"} <= set(probe(full, "stops")))


def test_a_screen_reader_hears_an_answer_once(page: Any, talker: Talker) -> None:
    text = "the quick brown fox jumps over the lazy dog; " * 4
    talker.says(text, step_seconds=0.005)
    probe(page, "listen")
    ask(page)
    assert [each for each in page.evaluate("heard") if each] == ["abbey is answering.", text]
    assert (
        page.locator(".said").evaluate("(one) => one.closest('[aria-live], [role=status], [role=alert], [role=log]')")
        is None
    )


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_less_motion(page: Any, talker: Talker, motion: str) -> None:
    page.emulate_media(reduced_motion=motion)
    talker.says("hello " * 60, pause=10)
    page.fill("#question", "Why?")
    page.press("#question", "Enter")
    page.locator("[aria-busy] .said:has-text('hello')").wait_for()
    running = page.evaluate("document.getAnimations().length")
    page.keyboard.press("Escape")
    page.locator(".tools").wait_for()
    assert (running > 0) == (motion == "no-preference")
