"""Pages whose commands are executed as written, in their order, in an empty folder, with the checkout's ``kneo``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_pages import DOCS, Walk
from kneo_process import Desk, Machine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

WALKS = [
    ["install/README.md", "quickstart.md"],  # a newcomer's way from the first page to an approved run
    ["tutorials/first-release.md"],
    ["tutorials/first-approval.md"],
    ["tutorials/first-audit.md"],
    ["tutorials/build-an-app.md"],
    ["operations/api-keys.md"],
    ["guides/releases/keys.md"],
    ["guides/people/notify.md"],
    ["moving/kneo-serv.md"],
]
PREPARED = {
    "guides/releases/keys.md": ["kneo init acme", "cd acme"],
    "moving/kneo-serv.md": [f"cp {DOCS.parent / 'tests' / 'fixtures' / 'published' / '1.2.0.sqlite'} old.sqlite"],
}
"""What a page says to do before it begins, with a link instead of a block."""

FAILING = {'kneo run specs/announcement.yaml --env prod --input "Hello"': 1}
"""The commands that fail, with their exit status."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Desk(tmp_path / "work", "")
    del made.env["KNEO_SERV_DATABASE_URL"]  # a newcomer sets no variable
    made.env["COLUMNS"] = "200"
    yield made
    made.stop()


@pytest.mark.parametrize("pages", WALKS, ids=lambda pages: pages[-1])
def test_the_commands_of_the_page_work_in_order(pages: list[str], machine: Machine) -> None:
    walk = Walk(machine, FAILING)
    for page in pages:
        for command in PREPARED.get(page, []):
            walk.command(command)
        walk.page(DOCS / page)
