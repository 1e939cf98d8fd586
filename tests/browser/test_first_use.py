"""A newcomer's way: create a repository, start Kneo, open the printed link, answer the question, verify the receipt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kneo_process import Machine, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LINK = re.compile(r"http://\S+/console/link/\S+")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}")
    yield machine
    machine.stop()


@pytest.mark.e2e
def test_a_newcomer_opens_the_printed_link_answers_and_verifies_the_receipt(
    chromium: Browser, machine: Machine, tmp_path: Path
) -> None:
    machine.kneo("init", "acme")
    kneo = machine.up("--repo", "acme")
    link = eventually(lambda: LINK.search("".join(kneo.printed)))[0]

    def is_released() -> bool:
        """Look at the environment, which is there once the controller has reconciled."""
        done = machine.kneo("status", "prod", "--service-url", kneo.url, "--json", expect=None)
        return done.returncode == 0 and bool(json.loads(done.stdout)["releases"])

    eventually(is_released)
    started = ("run", "--bundle", "announcement", "--env", "prod", "--input", "We ship on Friday")
    run = machine.json(*started, "--service-url", kneo.url)
    assert run["status"] == "paused", run

    context = chromium.new_context(base_url=kneo.url)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(link)
    assert page.url.endswith("/console/inbox"), "one click from the terminal to what waits"
    page.click(f"[data-task={run['continuation_id']}]")
    assert "We ship on Friday" in page.inner_text(".subject")
    page.check("input[value=approved]")
    page.click("#decide form[data-keep] button[type=submit]")
    page.wait_for_selector("[data-receipt]")
    receipt = page.request.get(page.get_attribute("[data-receipt] a:text-is('Signed receipt (JSON)')", "href") or "")
    (tmp_path / "receipt.json").write_bytes(receipt.body())
    context.close()

    verified = machine.kneo("task", "receipt", "verify", "receipt.json", "--service-url", kneo.url)
    assert "✓" in verified.stdout + verified.stderr
    eventually(
        lambda: machine.json("runs", "get", str(run["run_id"]), "--service-url", kneo.url)["status"] == "succeeded"
    )
