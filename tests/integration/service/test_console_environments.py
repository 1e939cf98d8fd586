"""The console's pages of environments, releases, acts and bundles, as a browser without script sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from config_house import RULES, House, released
from console_pages import Browser, HtmlPage, signed_in
from service_bench import Json

from kneo.api.operation import Context
from kneo.api.promotions import PromotionDetailView, get_promotion
from kneo.controller import environment
from kneo.service.console import environments
from kneo.store import requests

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202egnp.exe\u200b {{ 7919*7907 }}"

PRINTED = "".join(letter for letter in HOSTILE if letter.isprintable())

Browse = Callable[[str], Browser]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with released(tmp_path_factory.mktemp("environments")) as house:
        yield house


@pytest.fixture
def browse(house: House) -> Iterator[Browse]:
    """Opens a browser that is signed in with the key of a role."""
    yield lambda role: signed_in(house.bench.url, role)
    Browser.close_all()


def review(browser: Browser, change: Json) -> HtmlPage:
    return browser.get(f"/console/promotions/{change['id']}")


def decided(browser: Browser, change: Json, *, expect: int = 303, **values: str) -> str | HtmlPage:
    """Send the decision form of a change; return where it leads, or the page that refuses it."""
    form = review(browser, change).form(change["id"])
    response = browser.post(form.action, form.values(**values), expect=expect)
    return response.headers["location"] if expect == 303 else HtmlPage(response.text)


def test_a_person_reviews_and_approves_a_release(house: House, browse: Browse) -> None:
    change = house.release(HOSTILE)
    browser = browse("approver")
    matrix = browser.get("/console/environments")
    cells = {(one["data-environment"], one["data-bundle"]) for one in matrix.having("data-bundle")}
    assert cells == {("dev", "announcement"), ("prod", "announcement")}
    assert "waits for admin or approver" in matrix.text
    assert f"/console/promotions/{change['id']}" in matrix.links
    page = review(browser, change)
    assert "Signed by ann" in " ".join(page.text.split())
    assert "<script>alert" not in page.html
    assert "⟨U+202E⟩" in page.html or "u202e" in page.html
    hidden = decided(browser, change, expect=422, decision="approved", reason=f"Read it. {HOSTILE}")
    assert isinstance(hidden, HtmlPage)
    assert "cannot be printed" in hidden.text
    where = decided(browser, change, decision="approved", reason=f"Read it. {PRINTED}")
    assert isinstance(where, str)
    shown = browser.get(where)
    (receipt,) = shown.having("data-receipt")
    address = f"/console/approvals/{receipt['data-receipt']}/receipt"
    assert address in shown.links
    assert f"kneo promotion receipt verify receipt-{receipt['data-receipt']}.json --key service.pem" in shown.text
    file = browser.client.get(address)
    assert file.headers["content-disposition"] == f'attachment; filename="receipt-{receipt["data-receipt"]}.json"'
    assert file.json() == house.bench.get(f"/approvals/{receipt['data-receipt']}/receipt")
    applied = house.bench.get("/promotions", environment="prod", phase="done", limit=1)["promotions"][0]["id"]
    assert f"/console/promotions/{applied}/receipts" in browser.get(f"/console/promotions/{applied}").links
    assert browser.client.get(f"/console/promotions/{applied}/receipts").json()["receipts"] == [file.json()]
    assert address in browser.get("/console/environments/prod").links
    assert "Read it." in shown.text
    assert "approver" in shown.text
    assert "<img" not in shown.html
    assert f"{house.version}.0.0" in browser.get("/console/environments/prod").text


def test_two_people_decide_one_change_and_the_second_keeps_their_words(house: House, browse: Browse) -> None:
    change = house.release()
    first, second = browse("approver"), browse("admin")
    form = review(second, change).form(change["id"])
    assert isinstance(decided(first, change, decision="approved"), str)
    response = second.post(form.action, form.values(decision="rejected", reason="Not yet, Ann"), expect=409)
    page = HtmlPage(response.text)
    assert "not pending any more" in page.text
    assert "Last decision: approver (approve)" in page.text
    assert "Not yet, Ann" in page.text


def test_a_change_that_is_applied_while_its_page_is_made_shows_the_release(
    house: House, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = house.release()

    def approve_first(context: Context, promotion: str) -> PromotionDetailView:
        if house.bench.get("/promotions", environment="prod", phase="waiting")["promotions"]:
            house.approve(change)
        return get_promotion.function(context, promotion)

    monkeypatch.setattr(environments, "get_promotion", replace(get_promotion, function=approve_first))
    page = browse("approver").get("/console/environments/prod/announcement")
    assert page.text.count(f"{house.version}.0.0")
    assert not page.having("data-keep")


def test_a_decision_needs_a_choice_and_a_rejection_a_reason(house: House, browse: Browse) -> None:
    change = house.release()
    browser = browse("approver")
    page = decided(browser, change, expect=422, reason="half a thought")
    assert isinstance(page, HtmlPage)
    assert "half a thought" in page.text
    page = decided(browser, change, expect=422, decision="rejected", reason=" ")
    assert isinstance(page, HtmlPage)
    assert "A rejection needs a reason" in page.text
    form = review(browser, change).form(change["id"])
    moved = browser.post(form.action, form.values(decision="approved", policy_digest="sha256:other"), expect=409)
    assert "changed since this change was reviewed" in moved.text
    where = decided(browser, change, decision="rejected", reason="Too long")
    assert isinstance(where, str)
    assert "Rejected" in browser.get(where).text
    assert "Too long" in review(browser, change).text


def test_who_may_not_decide_reads_why(house: House, browse: Browse) -> None:
    change = house.release()
    page = review(browse("viewer"), change)
    assert not [form for form in page.forms if form.action.endswith(change["id"])]
    assert "You cannot decide this change" in page.text
    assert "admin or approver can" in page.text
    refused = browse("viewer").post(f"/console/promotions/{change['id']}", {"decision": "approved"}, expect=403)
    assert "releases:decide" in refused.text


def test_an_operator_holds_with_a_reason_and_an_approver_lifts(house: House, browse: Browse) -> None:
    operator = browse("operator")
    path = "/console/environments/prod/hold?bundle=announcement"
    page = operator.get(path)
    assert "What will happen" in page.text
    assert "kneo hold prod/announcement --reason TEXT" in page.text
    form = page.form("/hold")
    refused = operator.post(form.action, form.values(reason="  ", until="2099-01-01T10:00"), expect=422)
    assert "A reason is required" in refused.text
    assert 'value="2099-01-01T10:00"' in refused.text
    done = operator.post(form.action, form.values(reason=f"Board meeting {HOSTILE}"[:300]))
    assert "The release is held." in operator.get(done.headers["location"]).text
    admin = browse("admin")
    matrix = admin.get("/console/environments")
    assert "Board meeting" in matrix.text
    assert "<img" not in matrix.html
    page = admin.get("/console/environments/prod/unhold?bundle=announcement")
    assert "Board meeting" in page.text
    assert "operator holds announcement" in page.text
    assert "<img" not in page.html
    assert "Board meeting" not in admin.get("/console/environments/prod/unhold?bundle=other").text
    lift = page.form("/unhold")
    refused = operator.post(lift.action, lift.values(), expect=403)
    assert "not an approver" in refused.text, "the environment names its approvers; an operator is not one of them"
    admin.post(lift.action, lift.values())
    assert "Board meeting" not in admin.get("/console/environments").text


def test_an_environment_is_suspended_and_resumed(house: House, browse: Browse) -> None:
    admin = browse("admin")
    form = admin.get("/console/environments/prod/suspend").form("/suspend")
    admin.post(form.action, form.values(reason="Release freeze"))
    page = admin.get("/console/environments/prod")
    assert "Release freeze" in page.text
    assert [link for link in page.links if link.endswith("/unsuspend")]
    assert not [link for link in page.links if link.endswith("/suspend")]
    assert "is suspended by admin" in admin.get("/console/environments/prod/reconcile").text
    page = admin.get("/console/environments/prod/unsuspend")
    assert "Release freeze" in page.text
    form = page.form("/unsuspend")
    admin.post(form.action, form.values())
    assert "Release freeze" not in admin.get("/console/environments/prod").text


def test_a_rollback_offers_earlier_versions(house: House, browse: Browse) -> None:
    admin = browse("admin")
    page = admin.get("/console/environments/prod/rollback?bundle=announcement")
    assert "1.0.0" in page.text
    form = page.form("/rollback")
    refused = admin.post(form.action, form.values(reason="It fails", to="9.9.9"), expect=404)
    assert "It fails" in refused.text


def test_a_rollback_releases_an_earlier_version_and_holds_it(house: House, browse: Browse) -> None:
    house.enforce()
    house.enforce()
    admin = browse("admin")
    earlier = f"{house.version - 1}.0.0"
    form = admin.get("/console/environments/prod/rollback?bundle=announcement").form("/rollback")
    done = admin.post(form.action, form.values(reason="It forgets names", to=earlier))
    page = admin.get(done.headers["location"])
    assert "The controller rolled back and holds the release." in page.text
    served = house.bench.get("/environments/prod")
    assert [one["version"] for one in served["releases"]] == [earlier]
    assert "It forgets names" in admin.get("/console/environments").text
    lift = admin.get("/console/environments/prod/unhold?bundle=announcement").form("/unhold")
    admin.post(lift.action, lift.values())


def test_a_plan_shows_what_another_branch_would_change(
    house: House, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.enforce()
    repo = house.repo
    repo.git("checkout", "-q", "-b", "next")
    version = house.sign(f"Say less. {HOSTILE}")
    repo.environment(
        "prod", {"announcement": version}, **{**RULES, "approvals": {"required": 0, "roles": ["approver"]}}
    )
    repo.person("mallory", "release")
    repo.commit("Plan a release")
    repo.git("checkout", "-q", "main")
    page = browse("viewer").get("/console/plan?ref=next&environment=prod")
    assert f"Release announcement {version}" in page.text
    assert "loosened" in page.text
    assert "mallory gains the role release (its signatures of bundles count in dev, prod)" in page.text
    assert "@@" not in page.text
    assert "system_prompt" in page.text
    assert "<img" not in page.html
    assert "kneo plan --ref next --env prod" in page.text
    missing = browse("viewer").get("/console/plan?ref=never-was&environment=prod", expect=404)
    assert "never-was" in missing.text
    assert "Release announcement" not in missing.text
    asked: list[object] = []
    ask = requests.ask
    monkeypatch.setattr(
        requests, "ask", lambda store, kind, payload, **more: asked.append(payload) or ask(store, kind, payload, **more)
    )
    whole = browse("viewer").get("/console/plan?ref=next&environment=")
    assert [name for name in ("dev", "prod") if f'">{name}</h2>' in whole.html] == ["dev", "prod"]
    assert f"Release announcement {version}" in whole.text
    assert asked == [{"environment": None, "ref": "next"}], "one request for all environments"
    assert house.bench.get("/plan", role="viewer", ref="next")["environments"][1]["name"] == "prod"


def test_a_change_of_rules_is_reviewed_and_approved(house: House, browse: Browse) -> None:
    house.enforce()
    repo = house.repo
    weaker = {**RULES, "approvals": {"required": 0, "roles": ["approver"]}}
    served = house.bench.get("/environments/prod")["releases"]
    repo.environment("prod", {one["bundle"]: one["version"] for one in served}, **weaker)
    repo.commit("Require no approval")
    change = house.reconciled()
    assert change["kind"] == "policy"
    browser = browse("approver")
    page = review(browser, change)
    assert "approvals.required" in page.text
    assert "loosened" in page.text
    assert "The new rules of prod come into force" in page.text
    where = decided(browser, change, decision="approved", reason="We are two")
    assert isinstance(where, str)
    assert browser.get(where).having("data-receipt")
    house.bench.post("/environments/prod/reconcile", role="operator")
    assert house.bench.get("/environments/prod")["approvals"]["required"] == 0


@pytest.mark.parametrize("role", ["viewer", "auditor", "approver", "operator"])
def test_every_page_of_releases_opens_for_whoever_may_read_them(house: House, browse: Browse, role: str) -> None:
    browser = browse(role)
    for path in ("environments", "environments/prod", "environments/prod/announcement", "bundles", "me", "plan"):
        browser.get(f"/console/{path}")
    browser.get("/console/bundles/announcement")
    browser.get("/console/bundles/announcement/diff")
    browser.get("/console/plan?ref=&environment=prod")
    assert "No" in browser.get("/console/promotions/prom_none", expect=404).text
    browser.get("/console/environments/none", expect=404)
    browser.get("/console/bundles/none", expect=404)


def test_acts_are_refused_to_viewers(browse: Browse) -> None:
    for name in ("hold", "unhold", "rollback", "suspend", "unsuspend", "reconcile"):
        browse("viewer").get(f"/console/environments/prod/{name}", expect=403)
        browse("viewer").post(f"/console/environments/prod/{name}", {"reason": "x"}, expect=403)


def test_a_failed_reconciliation_is_shown(house: House, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = browse("approver")
    with monkeypatch.context() as defect:

        def defective(*_: object) -> None:
            raise TypeError(HOSTILE)

        defect.setattr(environment, "make_plan", defective)
        house.bench.post("/environments/prod/reconcile", role="operator")
        shown = browser.get("/console/environments/prod").text
        assert "reconciliation failed" in browser.get("/console/environments").text
    assert "The reconciliation of prod failed with an unexpected TypeError." in shown
    assert "reconciliation failed" in shown
    house.bench.post("/environments/prod/reconcile", role="operator")
    assert "reconciliation failed" not in browser.get("/console/environments").text
