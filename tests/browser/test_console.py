"""The console in a browser: accessibility of every kind of page, live pages, keys, phones, several tabs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kneo_process import eventually
from model_server import Call, Reply, model_server
from offline_receipts import Verifier
from service_bench import DRAFT, PUBLISH, Bench, Json, spec_of

from kneo.trust.receipt import content_digest

if TYPE_CHECKING:
    from playwright.sync_api import Page

Visit = Callable[..., "Page"]

PHONE = {"viewport": {"width": 320, "height": 740}, "is_mobile": True, "has_touch": True}

BOOM = {"id": "explode", "kind": "function", "ref": "boom"}
LARGE = {"id": "large", "kind": "function", "ref": "large"}

FIELDS = [
    {"name": "tone", "allowed_values": ["dry", "warm"]},
    {"name": "copies", "type": "int", "description": "One to nine."},
]


def asked(bench: Bench, text: str = "Hello Mara", **human: object) -> str:
    """Start a run that asks people; return the address of the task."""
    step = {"id": "ask", "kind": "human", "ref": "board"}
    spec = spec_of(DRAFT, step, {**PUBLISH, "id": "release"}, humans={"board": {"prompt": "Publish this?", **human}})
    run: Json = bench.start(spec, input=text)
    assert run["status"] == "paused", run
    return f"/console/inbox/{run['continuation_id']}"


def sent_back(bench: Bench) -> str:
    spec = spec_of(
        {**DRAFT, "review": {"after": {"human": "board", "on_reject": "retry"}}}, humans={"board": {"prompt": "Right?"}}
    )
    run = bench.start(spec, input="Dear Mara")
    bench.answer(run, decision="rejected", feedback="Thank her for the photos")
    tasks = bench.get("/human-tasks", run_id=run["run_id"])["tasks"]
    return f"/console/inbox/{tasks[0]['id']}"


def decided(bench: Bench) -> str:
    path = asked(bench)
    task = bench.get(f"/human-tasks/{path.rpartition('/')[2]}")
    body = {"request_id": task["request"]["request_id"], "decision": "approved", "comment": "Fine"}
    bench.post(f"/human-tasks/{task['id']}/resume", body, role="approver")
    return path


def link_to(bench: Bench, task: str) -> str:
    """Make a one-time link to a task; return the address of its page."""
    made = bench.post(f"/human-tasks/{task.rpartition('/')[2]}/links", {"person": "reviewer"}, role="service")
    return str(made["path"])


@pytest.fixture(scope="module")
def pages(bench: Bench) -> list[str]:
    """One page of each kind."""
    run = f"/console/runs/{bench.paused(input='a lamp')['run_id']}"
    failed = f"/console/runs/{bench.start(spec_of(DRAFT, BOOM))['run_id']}"
    return [
        "/console/inbox",
        "/console/inbox?show=decided",
        "/console/help",
        "/console/me",
        asked(bench, decisions=["approved", "edited", "rejected"]),
        asked(bench, fields=FIELDS),
        asked(bench, options=["finance", "support"], decisions=["selected", "rejected"], multiple=True),
        sent_back(bench),
        decided(bench),
        "/console/runs",
        "/console/runs?status=paused",
        "/console/usage",
        "/console/access",
        run,
        f"{run}/steps/1",
        f"{run}/fork?step=draft",
        f"{run}/conversation",
        f"{run}/cancel",
        failed,
        f"{failed}/continue",
        f"/console/trace/{run.rpartition('/')[2]}",
        f"/console/runs/{bench.paused(input='A' * 450)['run_id']}",
        asked(bench, "B" * 450, prompt="C" * 400),
        "/console/find?q=Hello",
        "/console/audit",
        "/console/login",
        link_to(bench, asked(bench, fields=FIELDS)),
        link_to(bench, asked(bench, options=["finance", "support"], decisions=["selected", "rejected"])),
    ]


def test_every_page_is_accessible_and_as_wide_as_the_screen(
    problems_of: Callable[[list[str]], list[object]], pages: list[str]
) -> None:
    assert problems_of(pages) == []


def test_the_inbox_shows_a_new_task_by_itself(bench: Bench, visit: Visit) -> None:
    from playwright.sync_api import expect

    page = visit("reviewer", "/console/inbox")
    task = asked(bench, "A new one").rpartition("/")[2]
    expect(page.locator(f"[data-task={task}]")).to_be_visible(timeout=120_000)
    expect(page.locator("#live-status")).to_have_text("Updated.", timeout=120_000)


def test_a_task_is_decided_with_the_keyboard(bench: Bench, visit: Visit) -> None:
    page = visit("reviewer", asked(bench))
    page.keyboard.press("a")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("[data-receipt]")
    assert "reviewer approved" in page.inner_text("[data-receipt]")


def test_a_task_is_decided_on_a_phone_without_javascript(bench: Bench, visit: Visit) -> None:
    task = asked(bench, decisions=["approved", "edited", "rejected"])
    page = visit("reviewer", task, java_script_enabled=False, **PHONE)
    page.tap(".todecide")
    page.check("input[value=edited]")
    page.fill("textarea[name=content]", "Shorter.")
    page.tap("#decide form[data-keep] button[type=submit]")
    page.wait_for_selector("[data-receipt]")
    assert bench.get(f"/human-tasks/{task.rpartition('/')[2]}")["decision"]["content"] == "Shorter."


def test_what_was_typed_stays_when_another_person_decides(bench: Bench, visit: Visit) -> None:
    from playwright.sync_api import expect

    path = asked(bench)
    page = visit("reviewer", path)
    page.fill("textarea[name=reason]", "half a reason")
    task = bench.get(f"/human-tasks/{path.rpartition('/')[2]}")
    body = {"request_id": task["request"]["request_id"], "decision": "approved"}
    bench.post(f"/human-tasks/{task['id']}/resume", body, role="approver")
    # What screen readers announce keeps it, whatever else of the page is updated then and later.
    announced = page.get_by_role("status").filter(has_text="decided meanwhile")
    expect(announced).to_have_count(1, timeout=120_000)
    expect(announced).to_have_id("notice")
    asked(bench, "Another one")
    expect(page.locator("#live-status")).to_have_text("Updated.", timeout=120_000)
    expect(announced).to_be_visible()
    assert page.input_value("textarea[name=reason]") == "half a reason"
    untouched = visit("admin", path)
    expect(untouched.locator("[data-receipt]")).to_contain_text("approver approved", timeout=120_000)


def test_a_refused_answer_stays_as_it_was_typed_when_another_person_decides(bench: Bench, visit: Visit) -> None:
    from playwright.sync_api import expect

    path = asked(bench, fields=FIELDS)
    page = visit("reviewer", path, refused=True)
    page.check("input[value=approved]")
    page.fill("input[name='values.copies']", "3")
    page.fill("textarea[name=reason]", "half a reason")
    page.evaluate("document.querySelector('#decide form').noValidate = true")
    page.click("#decide form[data-keep] button[type=submit]")
    expect(page.locator("[role=alert]")).to_contain_text("tone is required")
    task = bench.get(f"/human-tasks/{path.rpartition('/')[2]}")
    body = {"request_id": task["request"]["request_id"], "decision": "rejected", "feedback": "No"}
    bench.post(f"/human-tasks/{task['id']}/resume", body, role="approver")
    expect(page.locator("#notice")).to_contain_text("decided meanwhile")
    assert page.input_value("textarea[name=reason]") == "half a reason"


def test_eight_tabs_share_one_stream(bench: Bench, visit: Visit) -> None:
    from playwright.sync_api import expect

    first = visit("reviewer", "/console/inbox")
    tabs = [first, *(first.context.new_page() for _ in range(7))]
    for tab in tabs[1:]:
        tab.goto("/console/inbox")
    task = asked(bench, "In every tab").rpartition("/")[2]
    for tab in tabs:
        expect(tab.locator(f"[data-task={task}]")).to_be_visible(timeout=120_000)


def test_a_run_is_forked_from_a_step_and_the_fork_is_cancelled(bench: Bench, visit: Visit) -> None:
    run = bench.paused(input="fork me")
    page = visit("operator", f"/console/runs/{run['run_id']}")
    page.click("a.button[href$='/fork']")
    page.wait_for_url("**/fork")
    page.goto(f"/console/runs/{run['run_id']}/fork?step=draft")
    page.check("input[name=change_input]")
    page.fill("textarea[name=input]", "another lamp")
    page.click("text=Start the fork")
    page.wait_for_url(lambda url: "/fork" not in url)
    fork = page.url.rpartition("/")[2]
    assert fork != run["run_id"]
    eventually(lambda: bench.get(f"/runs/{fork}")["status"] == "paused")
    assert "another lamp" in page.reload().text()
    page.goto(f"/console/runs/{fork}/cancel")
    page.click("form button.danger, form button.first")
    page.wait_for_url(f"**/console/runs/{fork}")
    assert bench.get(f"/runs/{fork}")["status"] == "cancelled"
    assert bench.get(f"/runs/{run['run_id']}")["status"] == "paused", "only the fork is cancelled"


def test_a_tool_call_runs_with_the_arguments_that_a_person_edited(
    bench: Bench, visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = {"provider": "openai", "name": "m", "extra": {"api": "chat"}}
    pay = {
        "description": "Pay.",
        "implementation": "lab_functions.pay",
        "parameters": {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]},
        "capabilities": ["privileged"],
        "review": {"before": {"human": "boss"}},
    }
    spec = {
        "version": "v1",
        "agent": {"name": "teller", "model": model, "strategy": "react", "tools": ["pay"]},
        "workflow": {"type": "sequential", "name": "pay", "steps": [{"id": "work", "kind": "agent", "ref": "teller"}]},
        "tools": {"pay": pay},
        "components": {"humans": {"boss": {"prompt": "Pay this?", "decisions": ["approved", "edited", "rejected"]}}},
    }
    with model_server([Reply(calls=[Call("pay", {"amount": 500})]), Reply("Paid.")]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        run = bench.start(spec)
        assert run["status"] == "paused", run
        page = visit("reviewer", f"/console/inbox/{run['continuation_id']}")
        assert "500" in page.inner_text(".arguments")
        page.keyboard.press("e")
        assert page.input_value(":focus") == "500", "the first argument is ready to be changed"
        page.fill("[name='arguments.amount']", "5")
        page.fill("textarea[name=reason]", "A typing error")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("[data-receipt]")
        assert "reviewer" in page.inner_text("[data-receipt]")
        receipt = Verifier(tmp_path / "offline", bench.url).download(page)["said"]
        decision = bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]
        assert json.loads(decision["content"]) == {"amount": 5}
        content = {"content": decision["content"], "comment": "A typing error"}
        assert (receipt["position"], receipt["contentDigest"]) == ("tool", content_digest(content))
        eventually(lambda: bench.get(f"/runs/{run['run_id']}")["status"] == "succeeded")
        assert re.search(r"paid\W+5\b", server.requests[-1].text), "the model reads what was paid"


def test_a_subject_of_a_megabyte_is_shortened_with_a_link_to_the_whole(bench: Bench, visit: Visit) -> None:
    human = {"prompt": "Publish this?", "decisions": ["approved", "edited", "rejected"]}
    run = bench.start(spec_of(LARGE, {"id": "ask", "kind": "human", "ref": "board"}, PUBLISH, humans={"board": human}))
    assert run["status"] == "paused", run
    page = visit("reviewer", f"/console/inbox/{run['continuation_id']}")
    assert len(page.content()) < 250_000
    page.keyboard.press("e")
    assert page.input_value("textarea[name=content]") == ""
    assert "too long" in page.inner_text("#decide")
    whole = page.request.get(page.get_attribute("article a:text-is('Whole text')", "href") or "")
    assert len(whole.body()) == 1_000_000
    page.check("input[value=approved]")
    page.click("#decide form[data-keep] button[type=submit]")
    page.wait_for_selector("[data-receipt]")


def test_a_receipt_is_printed_on_one_page_without_navigation(bench: Bench, visit: Visit) -> None:
    page = visit("reviewer", decided(bench))
    page.emulate_media(media="print")
    shown = {each: page.is_visible(each) for each in (".top", ".tabs", ".rail", "[data-receipt]", ".subject")}
    assert shown == {".top": False, ".tabs": False, ".rail": False, "[data-receipt]": True, ".subject": True}
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) == 1


def test_a_phone_can_install_the_console(visit: Visit) -> None:
    page = visit("reviewer", "/console/inbox", **PHONE)
    browser = page.context.new_cdp_session(page)
    manifest = browser.send("Page.getAppManifest")
    assert manifest["errors"] == []
    assert manifest["url"].partition("?")[0].endswith("/console/static/manifest.webmanifest")
    problems = [each["errorId"] for each in browser.send("Page.getInstallabilityErrors")["installabilityErrors"]]
    # A private window installs nothing, whatever the page says.
    assert set(problems) <= {"in-incognito"}
