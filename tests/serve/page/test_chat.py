"""The page in a browser: what it asks the server for, and what it shows of the answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from abi_jax.persona import SIMPLEX_TOLERANCE
from abi_jax.serve.http.auth import Gate
from abi_jax.serve.http.generation import Generation
from abi_jax.serve.http.keys import Key, KeyRing, add_key
from tests.serve.http.serving import script, serving, until
from tests.serve.page.conftest import LINK, MEMORY, SAID, Talker, ask, probe

CHAT = "**/v1/chat/completions"
LONG = "the quick brown fox jumps over the lazy dog; " * 12


def last(page: Any) -> Any:
    return page.locator("article").last


def sent(page: Any, text: str = "Why?") -> Any:
    """Asks; returns what went to the server."""
    with page.expect_request(CHAT) as asked:
        ask(page, text)
    return asked.value.post_data_json


def test_an_answer_comes_in_pieces(page: Any, talker: Talker) -> None:
    talker.says(LONG, pause=60)
    page.fill("#question", "Why?")
    page.press("#question", "Enter")
    page.locator("[aria-busy] .said:has-text('fox jumps')").wait_for()
    assert page.input_value("#question") == "" and page.locator("#send").inner_text() == "Stop"
    talker.goes_on()
    page.wait_for_selector("article .tools")
    assert last(page).locator(".said").inner_text().strip() == LONG.strip()
    assert page.locator("[aria-busy]").count() == 0 and page.locator("#send").inner_text() == "Send"
    assert page.evaluate("document.activeElement.id") == "question"
    for heading in ("You asked", "abbey answered"):
        assert page.get_by_role("heading", name=heading, exact=True, level=3).count() == 1


def test_who_answers(page: Any, talker: Talker) -> None:
    assert page.locator("#who option").all_inner_texts() == ["abbey", "aviva", "base", "a mixture"]
    assert page.locator("#model").inner_text() == "personas"
    assert sent(page)["model"] == "abbey"
    page.select_option("#who", "aviva")
    assert page.locator(".share").all_inner_texts() == ["0 %", "100 %"]
    asked = sent(page)
    assert asked["model"] == "aviva" and "abi" not in asked
    page.fill("#share-1", "40")
    assert page.locator(".share").all_inner_texts() == ["60 %", "40 %"]
    assert page.locator("#share-0").get_attribute("aria-valuetext") == "60 %"
    asked = sent(page)
    assert (asked["model"], asked["abi"]) == ("base", {"mixture": {"abbey": 0.6, "aviva": 0.4}})
    assert page.get_by_role("heading", name="abbey 60 %, aviva 40 % answered", exact=True).count() == 1
    page.fill("#share-0", "100")
    assert page.input_value("#who") == "abbey"
    page.select_option("#who", "base")
    assert sent(page)["model"] == "base"


def test_shares_add_up(page: Any) -> None:
    count = 7
    names = [f"p{i}" for i in range(count)]
    listed = {"data": [{"id": name, "owned_by": "m"} for name in [*names, "base"]]}
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    page.reload()
    page.wait_for_selector(f"#share-{count - 1}")
    for at in range(count):
        page.fill(f"#share-{at}", str(13 * (at + 1) % 97))
        with page.expect_request(CHAT) as asked:
            page.fill("#question", "Why?")
            page.press("#question", "Enter")
        page.wait_for_selector("article:last-child .tools")
        mixture = asked.value.post_data_json["abi"]["mixture"]
        assert abs(sum(mixture.values()) - 1) < SIMPLEX_TOLERANCE and min(mixture.values()) > 0


def test_settings_and_what_was_said_before(page: Any, talker: Talker) -> None:
    ask(page, "First?")
    for name, value in {"temperature": "0.5", "tokens": "90", "seed": "7", "instructions": "Be brief."}.items():
        page.fill(f"#{name}", value)
    page.fill("#memory", "The cluster is called Juno.\n\nIt sleeps at night.")
    asked = sent(page, "Second?")
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": SAID},
        {"role": "user", "content": "Second?"},
    ]
    assert (asked["temperature"], asked["max_tokens"], asked["seed"]) == (0.5, 90, 7)
    assert asked["abi"] == {"memory": {"texts": ["The cluster is called Juno.", "It sleeps at night."]}}
    assert last(page).locator(".error").count() == 0
    page.click("#new")
    assert page.locator("article").count() == 0 and page.locator("#empty").is_visible()
    assert len(sent(page, "Third?")["messages"]) == 2


def test_what_an_answer_was_made_from(page: Any, talker: Talker) -> None:
    page.fill("#share-1", "40")
    page.select_option("#collection", "notes")
    asked = sent(page)
    assert asked["abi"]["memory"] == {"collection": "notes"}
    assert last(page).locator("summary").inner_text().endswith("1 memory")
    last(page).locator("summary").click()
    made = last(page).locator(".made").inner_text()
    assert MEMORY in made and f"collection notes · version {talker.store.version} · id n-17 · score" in made
    assert f"link\n{talker.store.link(talker.store.version)}\nsha256\n" in made
    assert "abbey 60 %, aviva 40 %" in made and "step\n400" in made and LINK in made and LINK[::-1] in made
    assert "receipt" not in made
    rows = last(page).locator("tr").all_inner_texts()
    parts = [
        "waiting for a slot",
        "moderation",
        "memory",
        "model",
        "interface",
        "together",
        "until the first words were seen",
    ]
    assert [row.split("\t")[0].strip() for row in rows] == parts
    assert all(row.endswith("ms") for row in rows)
    assert "seed" in made and "request" in made and "tokens, 0 of them known already" in made


def test_a_receipt_to_take_along(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.check("#receipt")
    assert sent(page)["abi"] == {"receipt": True}
    last(page).locator("summary").click()
    probe(page, "listen")
    last(page).get_by_role("button", name="Copy the receipt").click()
    until(lambda: "Copied." in page.evaluate("heard"))  # shown for two seconds, but heard
    assert json.loads(page.evaluate("navigator.clipboard.readText()"))["tokens"] == list(script(SAID))


@pytest.mark.parametrize("by", ["button", "Escape", "new chat"])
def test_stop_frees_the_slot(page: Any, talker: Talker, by: str) -> None:
    talker.says(LONG * 3, pause=30)
    page.fill("#question", "Why?")
    page.press("#question", "Enter")
    page.locator("[aria-busy] .said:has-text('the quick brown')").wait_for()
    assert len(talker.engine.works) == 1
    if by == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#send" if by == "button" else "#new")
    until(lambda: talker.service.running == 0)
    talker.goes_on(step_seconds=0.2)  # what is not given up takes two minutes more
    until(lambda: not talker.engine.works)
    talker.says(SAID)
    if by == "new chat":
        ask(page)
        assert page.locator("article").count() == 2
        return
    page.wait_for_selector("article .tools")
    assert last(page).locator(".note").inner_text() == "Stopped." and last(page).locator(".error").count() == 0
    assert 10 < len(last(page).locator(".said").inner_text()) < len(LONG)


def test_regenerate_asks_again_for_the_last_answer(page: Any, talker: Talker) -> None:
    ask(page, "First?")
    ask(page, "Second?")
    assert page.get_by_role("button", name="Regenerate").count() == 1
    talker.says("hello")
    page.select_option("#who", "aviva")
    with page.expect_request(CHAT) as asked:
        page.get_by_role("button", name="Regenerate").click()
    page.locator("article:last-child .tools").wait_for()
    assert [m["content"] for m in asked.value.post_data_json["messages"]] == ["First?", SAID, "Second?"]
    assert asked.value.post_data_json["model"] == "aviva"
    assert page.locator(".said").all_inner_texts() == [SAID, "hello"]
    # the button is gone; whoever pressed it is not lost
    assert page.evaluate("document.activeElement.id") == "send"


@pytest.mark.parametrize("allowed", [True, False])
def test_copy(page: Any, talker: Talker, allowed: bool) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    if not allowed:
        page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject())")
    talker.says("so:\n```sh\nmake  test\n```\nthen")
    ask(page)
    probe(page, "listen")
    last(page).get_by_role("button", name="Copy").click()
    until(lambda: "Copied." in page.evaluate("heard"))
    assert page.evaluate("navigator.clipboard.readText()") == "so:\n```sh\nmake  test\n```\nthen"
    assert last(page).locator("pre").inner_text() == "make  test"


def _stream(*chunks: Any) -> str:
    return "".join(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks)


_SOME = {"choices": [{"delta": {"content": "Well"}, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (
            429,
            json.dumps({"error": {"message": "the queue is full"}}),
            "the queue is full\nAsk again in 7 s.",
        ),
        (502, "<h1>Bad gateway</h1>", "The server answered with status 502."),
        (None, "", "The server cannot be reached."),
        (200, _stream(_SOME, {"error": {"message": "the engine failed"}}, "[DONE]"), "the engine failed"),
        (200, _stream(_SOME), "The connection ended before the answer did."),
    ],
)
def test_an_error_is_shown_and_can_be_tried_again(page: Any, status: int | None, body: str, shown: str) -> None:
    headers = {"retry-after": "7"} if status == 429 else {}
    page.route(
        CHAT, lambda route: route.fulfill(status=status, body=body, headers=headers) if status else route.abort()
    )
    ask(page)
    assert last(page).get_by_role("alert").inner_text().partition("No answer")[2].strip() == shown
    assert last(page).locator(".said").inner_text() == ("Well" if status == 200 else "")
    page.unroute(CHAT)
    page.get_by_role("button", name="Try again").click()
    page.locator(f"article:last-child .said p:text-is('{SAID}')").wait_for()
    assert page.get_by_role("alert").count() == 0


def test_what_the_server_refuses_is_said(page: Any) -> None:
    page.fill("#temperature", "5")
    ask(page)
    assert "temperature = 5" in last(page).get_by_role("alert").inner_text()
    page.fill("#temperature", "")
    # a question without an answer is no part of what comes after
    assert len(sent(page)["messages"]) == 1


def test_a_key_stays_in_the_tab(chromium: Any, tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.yaml", Key("reader", "0" * 64))
    with serving(gate=Gate(KeyRing(tmp_path / "keys.yaml"))) as running:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(running.url)
        page.locator("#key:focus").wait_for()
        assert page.get_by_role("alert").inner_text() == "This server asks for an API key."
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.locator("#trouble:has-text('not known')").wait_for()
        page.fill("#key", secret)
        page.keyboard.press("Tab")
        page.wait_for_selector("#share-1")
        assert page.get_by_role("alert").count() == 0
        page.fill("#tokens", "8")
        ask(page)
        assert last(page).locator(".said").inner_text()
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        page.reload()
        page.wait_for_selector("#share-1")
        other = context.new_page()
        other.goto(running.url)
        other.locator("#trouble:has-text('asks for')").wait_for()
        context.close()


HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>&amp;<b>bold</b>'


def test_no_text_becomes_html(page: Any, talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Generation.told
    hostile = {"memories": [{"text": HOSTILE, HOSTILE: HOSTILE}], "lineage": {HOSTILE: [HOSTILE]}}
    monkeypatch.setattr(Generation, "told", lambda made: told(made) | hostile)
    talker.says(f"{HOSTILE}\n```\n{HOSTILE}\n```\n")
    ask(page, HOSTILE)
    last(page).locator("summary").click()
    assert last(page).locator(".said").inner_text().split("\n\n") == [HOSTILE, HOSTILE]
    assert page.locator(".asked p").inner_text() == HOSTILE
    assert last(page).locator(".made").inner_text().count(HOSTILE) == 5
    page.route(CHAT, lambda route: route.fulfill(status=400, json={"error": {"message": HOSTILE}}))
    ask(page, "again")
    assert HOSTILE in page.get_by_role("alert").inner_text()
    listed = {"data": [{"id": HOSTILE, "owned_by": HOSTILE}, {"id": "b", "owned_by": ""}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    page.reload()
    page.wait_for_selector("#share-1")
    assert page.locator("#who option").first.inner_text() == HOSTILE
    assert page.evaluate("window.hit") is None and page.locator("img, b, #turns script").count() == 0


def test_the_browser_itself_refuses_html(chromium: Any, talker: Talker) -> None:
    page = chromium.new_page()
    page.goto(talker.url)
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>'")
    page.close()
