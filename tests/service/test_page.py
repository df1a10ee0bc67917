"""The page's files, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import raybroker.service

PAGE = Path(raybroker.service.__file__).parent / "page"
HTML, CSS = (PAGE / "index.html").read_text(), (PAGE / "page.css").read_text()
FILES = sorted(file for file in PAGE.iterdir() if file.is_file())
JS = "".join(file.read_text() for file in sorted(PAGE.glob("*.js")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_comes_from_outside(file: Path) -> None:
    """Other sites stand in links alone, which a person may follow; `draw` names SVG's namespace."""
    text = file.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"//cdn|@import", text)
    assert ("https://" in text) == (file.name == "links.js")
    assert not re.search(r"http://|fetch|\.src\b", text) or file.name != "links.js"


def test_every_element_that_the_script_asks_for_is_there() -> None:
    asked = set(re.findall(r'\$\("([\w-]+)"\)', JS))
    assert asked <= set(re.findall(r'id="([\w-]+)"', HTML))
    assert len(asked) > 15


def test_nothing_is_written_as_html() -> None:
    """Names, reasons and comments come from outside: they are text."""
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", JS)


def test_no_script_or_handler_is_inline() -> None:
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=", HTML)
