"""Hostile texts in a browser: no script of theirs runs, and the content security policy has nothing to refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from config_house import House, released
from hostile_texts import hostile_pages, prepare

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def house(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with released(tmp_path_factory.mktemp("hostile"), prepare, workers=4) as house:
        yield house


@pytest.fixture(scope="module")
def address(house: House) -> str:
    return house.bench.url


def test_no_page_runs_what_it_shows(house: House, visit: Callable[..., Page]) -> None:
    page = visit("admin", "/console/help")
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for name, hostile in hostile_pages(house).items():
        # The browser itself notes pages that do not exist.
        if hostile.status != 200:
            continue
        page.goto(hostile.path)
        assert page.evaluate("typeof globalThis.attacked") == "undefined", name
        assert page.locator("img").count() == 0, name
    assert dialogs == []
