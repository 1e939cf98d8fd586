"""Texts of people, agents and repositories on every page that shows them: as texts, with marks for what cannot be seen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import pytest
from config_house import House, released
from console_pages import Browser, HtmlPage, signed_in
from hostile_texts import HOSTILE, NAME, HostilePage, check, hostile_pages, prepare
from markupsafe import escape

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
    "tool call",
    "tool call by link",
    "run of an agent",
    "step of an agent",
    "conversation",
    "megabyte",
    "receipt of a megabyte",
    "megabyte by link",
    "run of a megabyte",
    "step of a megabyte",
    "plan of hostile files",
    "plan of an unknown ref",
    "environments",
    "environment",
    "release",
    "review",
    "bundle diff",
    "audit",
    "unknown name",
)


MAX_BYTES = 600_000
"""Bytes of a page, also of one about a megabyte."""

FILE_NAME = re.compile(r'attachment; filename="[a-z0-9_.-]{1,80}"')


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
    assert len(response.content) < MAX_BYTES
    check(HtmlPage(response.text), marks=page.marks, has_style=page.has_style)


def test_every_page_with_hostile_texts_is_in_the_table(pages: Mapping[str, HostilePage]) -> None:
    assert tuple(pages) == PAGES


def test_names_of_downloads_hold_no_text_of_a_request(browser: Browser, pages: Mapping[str, HostilePage]) -> None:
    name, receipt = quote(f'{NAME}"\r\nx: y\u202e'), f"{pages['receipt'].path}/receipt"
    for path in (receipt, f"/console/audit.csv?actor={name}", f"/console/audit.json?event={name}"):
        response = browser.client.get(path)
        assert response.status_code == 200, response.text[:500]
        assert FILE_NAME.fullmatch(response.headers["content-disposition"])
        assert "html" not in response.headers["content-type"]
        assert response.headers["x-content-type-options"] == "nosniff"
    for path in (f"/console/inbox/{name}/receipt", f"/console/audit/{name}/proof"):
        response = browser.client.get(path)
        assert response.status_code in {400, 404, 422}
        assert "content-disposition" not in response.headers


def test_a_whole_text_is_downloaded_as_it_is_and_as_text(browser: Browser, pages: Mapping[str, HostilePage]) -> None:
    response = browser.client.get(f"{pages['megabyte'].path}/subject")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert len(response.text) == 1_000_000
    assert response.text.startswith(HOSTILE[:50]) or HOSTILE[:50] in response.text


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/console/plan?ref={}&environment={}", "kneo plan --ref {0} --env {0}"),
        ("/console/environments/prod/hold?bundle={}", "kneo hold prod/{} --reason TEXT"),
        ("/console/environments/prod/rollback?bundle={}", "kneo rollback prod/{} --reason TEXT"),
    ],
)
def test_a_command_to_copy_runs_nothing_that_an_address_names(browser: Browser, path: str, command: str) -> None:
    attack = "x; touch $(id)"
    page = HtmlPage(browser.client.get(path.format(*[quote(attack)] * 2)).text)
    assert escape(command.format(f"'{attack}'")) in page.html
