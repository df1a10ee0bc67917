"""The handbook's table of messages says what the program says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = r"\.\.\.|\b[A-Z]+(?:\[[A-Z]\])?|[:;,|()'\"]"  # what stands for anything, and what parts sentences


def source() -> str:
    """All of the program's text, with strings that go on in the next line joined."""
    text = " ".join(path.read_text() for path in sorted((ROOT / "raybroker").rglob("*.py")))
    return re.sub(r'"\s*\n?\s*f?"', "", text)


def messages() -> list[str]:
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text[text.index("| it says |") :].split("\n\n")[0].splitlines()[2:]
    cells = [line.split(" | ")[0].strip("| ") for line in table]
    return [message for cell in cells if not cell.startswith("**") for message in cell.split(" / ")]


def told(message: str, text: str) -> bool:
    """Whether the longest part of it without a placeholder stands in the program."""
    parts = [part.strip() for part in re.split(PLACES, message)]
    return max(parts, key=len) in text


@pytest.fixture(scope="module")
def text() -> str:
    return source()


@pytest.mark.parametrize("message", messages())
def test_the_program_says_it(message: str, text: str) -> None:
    assert "anything else" in message or told(message, text), message


def test_a_message_that_nobody_says_is_seen(text: str) -> None:
    assert not told("the moon at ... is too bright", text)
