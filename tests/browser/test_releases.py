"""Releases in a browser: accessibility of their pages, approving one, rolling one back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from config_house import RULES, House, released
from kneo_process import eventually
from offline_receipts import PromotionVerifier
from service_bench import Json

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Visit = Callable[..., "Page"]

PROD = "/console/environments/prod"


@pytest.fixture(scope="module")
def house(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with released(tmp_path_factory.mktemp("releases")) as house:
        house.repo.git("checkout", "-q", "-b", "next")
        house.repo.environment("prod", {}, **{**RULES, "approvals": {"required": 2, "roles": ["approver"]}})
        house.repo.commit("Plan more")
        house.repo.git("checkout", "-q", "main")
        yield house


@pytest.fixture(scope="module")
def address(house: House) -> str:
    return house.bench.url


def versions(house: House) -> list[tuple[object, object]]:
    served = house.bench.get("/environments/prod")
    return [(one["bundle"], one["version"]) for one in served["releases"]]


def approved(house: House, visit: Visit) -> tuple[Page, Json]:
    """Approve a new release in a browser; return the page with its receipt, and the change."""
    change = house.release()
    page = visit("approver", "/console/inbox")
    page.click(f"[data-task={change['id']}]")
    page.wait_for_url(f"**{change['id']}**")
    page.keyboard.press("a")
    page.fill("textarea[name=reason]", "Read it")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("[data-receipt]")
    assert "approver" in page.inner_text("[data-receipt]")
    return page, change


def test_a_release_is_approved_and_rolled_back(house: House, visit: Visit) -> None:
    for _ in range(2):
        page, _change = approved(house, visit)
    eventually(lambda: versions(house) == [("announcement", "3.0.0")])
    page.goto(f"{PROD}/announcement")
    assert "3.0.0" in page.inner_text("h1")
    page = visit("admin", f"{PROD}/announcement")
    page.click("text=Roll back")
    page.fill("textarea[name=reason]", "It forgets names")
    page.click("form[data-keep] button[type=submit]")
    page.wait_for_selector("[role=status] >> text=rolled back")
    eventually(lambda: versions(house) == [("announcement", "2.0.0")])
    served = house.bench.get("/environments/prod")
    assert [(one["bundle"], one["actor"]) for one in served["holds"]] == [("announcement", "admin")]
    page.goto("/console/environments")
    assert "It forgets names" in page.inner_text("#attention")


def test_the_receipt_of_an_approval_is_downloaded_and_verified_offline(
    house: House, visit: Visit, tmp_path: Path
) -> None:
    if house.bench.get("/environments/prod")["holds"]:
        house.bench.post("/environments/prod/unhold", {"bundle": "announcement"})
    page, change = approved(house, visit)
    assert "kneo promotion receipt verify" in page.inner_text("[data-receipt]")
    verifier = PromotionVerifier(tmp_path, house.bench.url, house.repo.folder, house.repo.pin)
    receipt = verifier.download(page)
    assert receipt["approvers"] == [{"name": "approver", "signed": False}]
    said = receipt["said"]
    assert isinstance(said, dict)
    assert (said["decision"], said["bundleDigest"]) == ("approve", change["digest"])
    downloaded = json.loads((verifier.machine.folder / "receipt.json").read_text())
    payload = downloaded["envelope"]["payload"]
    changed = payload[:99] + ("A" if payload[99] != "A" else "B") + payload[100:]
    assert verifier.refuse({**downloaded, "envelope": {**downloaded["envelope"], "payload": changed}})


def test_pages_of_releases_are_accessible_and_as_wide_as_the_screen(
    house: House, problems_of: Callable[[list[str]], list[object]]
) -> None:
    if not house.bench.get("/promotions", environment="prod", phase="waiting")["promotions"]:
        house.release("Say <b>less</b>.")
    (change,) = house.bench.get("/promotions", environment="prod", phase="waiting")["promotions"]
    acts = [f"{PROD}/{name}?bundle=announcement" for name in ("hold", "unhold", "rollback", "suspend", "reconcile")]
    pages = [
        "/console/environments",
        PROD,
        f"{PROD}/announcement",
        f"/console/promotions/{change['id']}",
        "/console/plan",
        "/console/plan?ref=next",
        "/console/bundles",
        "/console/bundles/announcement",
        "/console/bundles/announcement/diff",
        f"/console/trace/{change['digest']}",
        *acts,
    ]
    assert problems_of(pages) == []
