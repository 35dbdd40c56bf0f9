"""The page's files as they are served."""

import re
from pathlib import Path

import pytest

from abi_jax.serve.http import site
from tests.serve.page.conftest import Talker

pytestmark = pytest.mark.smoke

FOLDER = Path(site.__file__).with_name("page")
SERVED = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}


@pytest.mark.parametrize("path", SERVED)
def test_a_file_and_its_headers(talker: Talker, path: str) -> None:
    answer = talker.http.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"] == f"{SERVED[path]}; charset=utf-8"
    assert answer.content == (FOLDER / (path[1:] or "index.html")).read_bytes()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-cache"
    again = talker.http.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content and again.headers["etag"] == answer.headers["etag"]
    plain = talker.http.get(path, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.content == answer.content
    assert int(answer.headers["content-length"]) < int(plain.headers["content-length"])
    assert talker.http.head(path).status_code == 200 and talker.http.post(path).status_code == 405


def test_nothing_comes_from_elsewhere() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {"index.html", "page.css", "page.js"}
    texts = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    for name, text in texts.items():
        assert set(re.findall(r"https?://[^'\"\s]*", text)) <= {"http://www.w3.org/2000/svg"}, name
    assert sum(map(len, texts.values())) < 50_000


def test_texts_never_become_html() -> None:
    source = (FOLDER / "page.js").read_text(encoding="utf-8")
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc", source
    )
    assert not re.findall(r"localStorage|indexedDB|document\.cookie", source)
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", page)
