"""The whole system over real ZTF packets, and a real browser in front of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raybroker import settings as settings_file
from tests.browser.world import TOKENS, System, Visit, settings_of, system_of

PACKETS = 160
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
DESKTOP = {"width": 1360, "height": 860}
PATIENCE_MS = 20_000


def absent(why: str) -> None:
    """A skip, but where everything must be there a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why}, and CI must not pass without it")
    pytest.skip(why)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One headless Chromium. It ends with each file, since Playwright's event loop would be in others' way."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        absent(f"no browser: none of {', '.join(CHROMIUM)} is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def town(
    chromium: Any, ztf_packets: Any, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """Everything up, over a folder of real alerts. Some of their objects have several."""
    folder = tmp_path_factory.mktemp("packets")
    for i, packet in enumerate(ztf_packets("selected_20231018")[:PACKETS]):
        (folder / f"{i:04d}.avro").write_bytes(packet.value)
    settings = settings_of(
        tmp_path_factory.mktemp("archive"), folder, data / "catalogues" / "mangrove.parquet"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(settings_file.TOKENS_VARIABLE, ",".join(f"{n}:{token}" for n, token in TOKENS.items()))
        with system_of(settings) as made:
            yield made


@pytest.fixture
def visit(chromium: Any, town: System) -> Iterator[Callable[..., Visit]]:
    """`visit(name)` opens the page by a link. At the end no console may have complained, and nothing may have been
    asked of anybody but the service."""
    visits: list[Visit] = []
    contexts = contextlib.ExitStack()

    def opened(name: str | None = "maria", **given: Any) -> Visit:
        context = chromium.new_context(**{"viewport": DESKTOP, "timezone_id": "UTC", **given})
        contexts.callback(context.close)
        context.set_default_timeout(PATIENCE_MS)
        made = Visit(context.new_page(), town)
        made.watch()
        visits.append(made)
        made.page.goto(town.link(name) if name else town.url)
        return made

    with contexts:
        yield opened
        for made in visits:
            assert made.complaints() == []
            assert made.strangers() == []
            assert len(made.asked) > 5
