"""Texts of people, agents and repositories on every page that shows them: as texts, with marks for what cannot be seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from config_house import House, released
from console_pages import Browser, HtmlPage, signed_in
from hostile_texts import HostilePage, check, hostile_pages, prepare

PAGES = (
    "inbox",
    "form",
    "options",
    "difference",
    "whole text",
    "receipt",
    "decided tasks",
    "one-time link",
    "runs",
    "run",
    "step",
    "fork",
    "cancel",
    "failed run",
    "search",
    "environments",
    "environment",
    "release",
    "review",
    "bundle diff",
    "audit",
    "unknown name",
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with released(tmp_path_factory.mktemp("hostile"), prepare, workers=4) as house:
        yield house


@pytest.fixture(scope="module")
def pages(house: House) -> Mapping[str, HostilePage]:
    return hostile_pages(house)


@pytest.fixture(scope="module")
def browser(house: House) -> Iterator[Browser]:
    yield signed_in(house.bench.url, "admin")
    Browser.close_all()


@pytest.mark.parametrize("name", PAGES)
def test_hostile_texts_are_shown_as_texts(browser: Browser, pages: Mapping[str, HostilePage], name: str) -> None:
    page = pages[name]
    response = browser.client.get(page.path)
    assert response.status_code == page.status, response.text[:2000]
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    check(HtmlPage(response.text), marks=page.marks, has_style=page.has_style)


def test_every_page_with_hostile_texts_is_in_the_table(pages: Mapping[str, HostilePage]) -> None:
    assert tuple(pages) == PAGES
