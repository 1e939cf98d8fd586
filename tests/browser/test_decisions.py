"""Every kind of decision in a browser: who may decide, who decided first, and a signed receipt that verifies without the service."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from config_house import House, released
from config_repo import ConfigRepo
from kneo_process import eventually
from offline_receipts import Verifier
from service_bench import DRAFT, PUBLISH, Json, spec_of

from kneo.trust.receipt import content_digest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Visit = Callable[..., "Page"]

PEOPLE = {name: {"roles": ["reviewer"]} for name in ("reviewer", "approver", "admin")}
"""The people of the environment. The person ``service`` has a key with the right to decide, and is not among them."""

NO_SCRIPT = {"java_script_enabled": False}

DECIDE = "#decide form[data-keep] button[type=submit]"

FORM = "#decide form[data-keep]"

RELEASE: Json = {**PUBLISH, "id": "release"}


def prepare(repo: ConfigRepo) -> None:
    """Add an environment that runs specs of its callers, and a reviewer with a key in the trust root."""
    repo.environment("lab", {}, inlineSpecs=True, people=PEOPLE)
    repo.person("reviewer", "approver")


@pytest.fixture(scope="module")
def house(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with released(tmp_path_factory.mktemp("decisions"), prepare, workers=4) as house:
        yield house


@pytest.fixture(scope="module")
def address(house: House) -> str:
    return house.bench.url


@pytest.fixture(scope="module")
def offline(house: House, tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    """A machine without the service, whose owner pinned the trust root."""
    return Verifier(tmp_path_factory.mktemp("offline"), house.bench.url, house.repo.folder, house.repo.pin)


def waiting(house: House, *steps: Json, role: str = "operator", text: str = "Dear Mara", **human: object) -> str:
    """Start a run that opens a task before its effect; return the address of the task."""
    board = {"prompt": "Publish this?", "candidates": {"roles": ["reviewer"]}, **human}
    gate = {**RELEASE, "review": {"before": {"human": "board"}}}
    spec = spec_of(*(steps or (DRAFT, gate)), humans={"board": board})
    run = house.bench.start(spec, role=role, input=text, environment="lab")
    assert run["status"] == "paused", run
    return f"/console/inbox/{run['continuation_id']}"


def task_of(house: House, path: str) -> Json:
    return house.bench.get(f"/human-tasks/{path.rpartition('/')[2]}")


def result_of(house: House, path: str) -> Json:
    """Return the run of a decided task once it has ended."""
    run = task_of(house, path)["run_id"]
    return eventually(lambda: (found := house.bench.get(f"/runs/{run}"))["status"] == "succeeded" and found)


def choose(page: Page, decision: str, reason: str = "") -> None:
    """Fill the form of a task; nothing is sent."""
    page.check(f"{FORM} input[name=decision][value={decision}]")
    if reason:
        page.fill(f"{FORM} textarea[name=reason]", reason)


def send(page: Page, *, status: int = 200) -> None:
    """Send the form of a task and wait for the page that follows."""
    with page.expect_navigation() as shown:
        page.click(DECIDE)
    assert shown.value.status == status


def values_of(item: Json) -> Json:
    """Return the signed content of a verified receipt."""
    content = item["said"]
    assert isinstance(content, dict)
    return content


def test_one_of_two_people_decides_and_the_other_reads_who_was_first(
    house: House, visit: Visit, offline: Verifier
) -> None:
    path = waiting(house)
    pages = {role: visit(role, path, refused=True) for role in ("reviewer", "approver")}
    statuses: dict[str, int] = {}
    for role, page in pages.items():
        choose(page, "approved" if role == "reviewer" else "rejected", f"words of the {role}")

        def note(answer: object, role: str = role) -> None:
            if answer.request.method == "POST":  # type: ignore[attr-defined]
                statuses[role] = answer.status  # type: ignore[attr-defined]

        page.on("response", note)
    # Both forms are on their way before either is answered.
    for page in pages.values():
        page.evaluate(f"setTimeout(() => document.querySelector('{FORM}').requestSubmit())")
    for page in pages.values():
        page.wait_for_selector("[data-receipt]")
    assert sorted(statuses.values()) == [303, 409]
    winner = next(role for role, status in statuses.items() if status == 303)
    loser = next(role for role in pages if role != winner)
    decision = {"reviewer": "approved", "approver": "rejected"}[winner]
    late = pages[loser]
    assert f"{winner} {decision}" in late.inner_text("[data-receipt]")
    assert f"was {decision} by {winner}" in late.inner_text("[role=alert]")
    assert f"words of the {loser}" in late.inner_text("#decide"), "what was typed is kept"
    content = values_of(offline.download(pages[winner]))
    assert (content["actor"], content["decision"]) == (winner, decision)
    assert content["environment"] == "lab"
    assert [voter["actor"] for voter in content["voters"]] == [winner]
    reason = {"comment": f"words of the {winner}"}
    assert content["contentDigest"] == content_digest(
        reason | ({"feedback": reason["comment"]} if decision == "rejected" else {})
    )


def test_a_question_that_was_replaced_is_refused_and_leads_to_the_new_one(
    house: House, visit: Visit, offline: Verifier
) -> None:
    path = waiting(house, {**DRAFT, "review": {"after": {"human": "board", "on_reject": "retry"}}})
    late = visit("approver", path, refused=True, **NO_SCRIPT)
    choose(late, "approved", "It reads well")
    early = visit("reviewer", path)
    choose(early, "rejected", "Thank her for the photos")
    send(early)
    first = offline.download(early)
    assert (values_of(first)["decision"], values_of(first)["effect"]) == ("rejected", "retry")
    run = task_of(house, path)["run_id"]
    # The draft runs again, and opens a task with its new text.
    (task,) = eventually(lambda: house.bench.get("/human-tasks", run_id=run, status="open")["tasks"])
    send(late, status=409)
    assert "reviewer rejected" in late.inner_text("[data-receipt]")
    assert "It reads well" in late.inner_text("#decide")
    late.goto(f"/console/inbox/{task['id']}")
    assert "Thank her for the photos" in late.inner_text("article")
    choose(late, "approved")
    send(late)
    second = offline.download(late)
    assert (values_of(second)["sequence"], values_of(second)["previous"]) == (2, first["digest"])


def test_a_decision_about_another_text_is_refused_and_the_page_shows_the_present_one(
    house: House, visit: Visit, offline: Verifier
) -> None:
    path = waiting(house)
    page = visit("reviewer", path, refused=True)
    digest = page.input_value("input[name=expect_digest]")
    page.evaluate("document.querySelector('input[name=expect_digest]').value = 'sha256:' + '0'.repeat(64)")
    choose(page, "approved", "Read it")
    send(page, status=409)
    assert "is not what you saw" in page.inner_text("[role=alert]")
    assert page.input_value(f"{FORM} textarea[name=reason]") == "Read it"
    assert page.input_value("input[name=expect_digest]") == digest
    send(page)
    assert values_of(offline.download(page))["subjectDigest"] == digest


def test_an_excluded_and_an_unknown_person_read_why_and_are_refused(
    house: House, visit: Visit, offline: Verifier
) -> None:
    path = waiting(house, role="admin", candidates={"roles": ["reviewer"], "exclude": ["requester"]})
    reasons = {"admin": "requester", "service": "service"}
    for role, reason in reasons.items():
        page = visit(role, path)
        assert page.locator(FORM).count() == 0
        assert "You cannot decide this task" in page.inner_text("#decide")
        assert reason in page.inner_text("#decide p")
        form = {"decision": "approved", "request_id": str(task_of(house, path)["request"]["request_id"])}
        forged = page.request.post(path, form=form, headers={"origin": house.bench.url})
        assert forged.status == 403
        assert reason in forged.text()
    assert task_of(house, path)["status"] == "open"
    page = visit("reviewer", path)
    choose(page, "approved")
    send(page)
    content = values_of(offline.download(page))
    assert (content["actor"], content["allowSelf"]) == ("reviewer", False)


def test_two_people_approve_and_the_receipt_names_both(house: House, visit: Visit, offline: Verifier) -> None:
    path = waiting(house, quorum={"approvals": 2})
    first, second = visit("reviewer", path), visit("approver", path)
    choose(first, "approved")
    send(first)
    assert "1 of 2" in first.inner_text("[data-receipt]")
    assert first.locator("text=Signed receipt").count() == 0, "nothing is decided yet"
    choose(second, "approved")
    send(second)
    item = offline.download(second)
    assert [voter["actor"] for voter in values_of(item)["voters"]] == ["reviewer", "approver"]
    receipt = house.bench.get(f"/human-tasks/{path.rpartition('/')[2]}/receipt")
    assert offline.refuse({**receipt, "receipt": {**receipt["receipt"], "actor": "reviewer"}}) == {"actor"}
    assert result_of(house, path)["status"] == "succeeded"


def test_a_form_is_filled_in_and_the_receipt_is_bound_to_its_values(
    house: House, visit: Visit, offline: Verifier
) -> None:
    fields = [{"name": "tone", "allowed_values": ["dry", "warm"]}, {"name": "copies", "type": "int"}]
    path = waiting(house, fields=fields)
    page = visit("reviewer", path)
    choose(page, "approved")
    page.select_option("select[name='values.tone']", "warm")
    page.fill("input[name='values.copies']", "3")
    send(page)
    values = {"tone": "warm", "copies": 3}
    assert task_of(house, path)["decision"]["values"] == values
    assert values_of(offline.download(page))["contentDigest"] == content_digest({"values": values})


BRANCHES = {name: {"steps": [{**PUBLISH, "id": f"{name}-it"}]} for name in ("publish", "archive")}

ROUTER: Json = {"id": "way", "kind": "router", "choices": BRANCHES, "review": {"route": {"human": "board"}}}


def test_a_person_chooses_the_branch_of_a_router(house: House, visit: Visit, offline: Verifier) -> None:
    path = waiting(house, DRAFT, ROUTER)
    page = visit("reviewer", path)
    choose(page, "selected")
    page.check(f"{FORM} input[name=option][value=archive]")
    send(page)
    content = values_of(offline.download(page))
    assert (content["decision"], content["position"]) == ("selected", "route")
    assert content["contentDigest"] == content_digest({"selectedOption": "archive"})
    run = result_of(house, path)["run_id"]
    paths = [step["path"] for step in house.bench.get(f"/runs/{run}/steps")["steps"]]
    assert [path.rpartition("/")[2] for path in paths if "-it" in path] == ["archive-it"]


def test_a_person_without_a_key_decides_with_a_one_time_link(house: House, visit: Visit, offline: Verifier) -> None:
    path = waiting(house)
    task = path.rpartition("/")[2]
    link = house.bench.post(f"/human-tasks/{task}/links", {"person": "reviewer"}, role="service")
    page = visit(None, str(link["path"]))
    assert "Dear Mara" in page.inner_text(".subject")
    page.check("input[name=decision][value=approved]")
    page.click("button[type=submit]")
    page.wait_for_selector("[role=status]")
    assert "approved by reviewer" in page.inner_text("[role=status]")
    again = page.request.post(str(link["path"]), form={"decision": "approved", "request_id": "req_1"})
    assert again.status == 409
    shown = visit("reviewer", path)
    (voter,) = values_of(offline.download(shown))["voters"]
    assert (voter["actor"], voter["via"]) == ("reviewer", "link made by service")


def test_a_gate_that_needs_a_signature_names_the_command_and_its_receipt_proves_the_signer(
    house: House, visit: Visit, offline: Verifier
) -> None:
    path = waiting(house, receipt="signed_by_reviewer")
    task = path.rpartition("/")[2]
    page = visit("reviewer", path)
    command = f"kneo task decide {task} --approve --key FILE"
    assert command in page.inner_text("#decide")
    (offline.machine.folder / "me.pem").write_bytes(house.repo.people["reviewer"].dump())
    words = command.replace("FILE", "me.pem").split()[1:]
    offline.machine.env["KNEO_SERV_API_KEY"] = "reviewer-key"
    offline.machine.kneo(*words, "--service-url", house.bench.url)
    page.wait_for_selector("[data-receipt]")
    assert offline.download(page)["signed_by"] == ["reviewer"]


ANSWERS = [
    {"name": "tone", "allowed_values": ["dry", "warm"]},
    {"name": "copies", "type": "int", "description": "One to nine."},
]

PHONE = {"viewport": {"width": 320, "height": 740}}


def link_to(house: House, path: str) -> str:
    """Make a one-time link to a task; return the address of its page."""
    task = path.rpartition("/")[2]
    made = house.bench.post(f"/human-tasks/{task}/links", {"person": "reviewer"}, role="admin")
    return str(made["path"])


def receipt_of(house: House, path: str, offline: Verifier) -> Json:
    return values_of(offline.verify(house.bench.get(f"/human-tasks/{path.rpartition('/')[2]}/receipt")))


def test_a_person_without_a_session_fills_in_the_form_of_a_link(house: House, visit: Visit, offline: Verifier) -> None:
    from playwright.sync_api import expect

    path = waiting(house, DRAFT, {"id": "ask", "kind": "human", "ref": "board"}, RELEASE, fields=ANSWERS)
    link = link_to(house, path)
    page = visit(None, link, refused=True, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"]
    page.check("input[name=decision][value=approved]")
    page.fill("input[name='values.copies']", "3")
    page.fill("textarea[name=reason]", "From my phone")
    expect(page.get_by_role("button")).to_have_text(re.compile(r"^\s*Approve\s*$"), use_inner_text=True)
    page.get_by_role("button").click()
    expect(page.get_by_role("alert")).to_contain_text("tone is required")
    assert page.input_value("input[name='values.copies']") == "3"
    assert page.input_value("textarea[name=reason]") == "From my phone"
    page.select_option("select[name='values.tone']", "warm")
    page.get_by_role("button").click()
    expect(page.get_by_role("status")).to_contain_text("approved by reviewer")
    result_of(house, path)
    receipt = receipt_of(house, path, offline)
    assert [(each["actor"], each["via"]) for each in receipt["voters"]] == [("reviewer", "link made by admin")]
    content = {"values": {"tone": "warm", "copies": 3}, "comment": "From my phone"}
    assert receipt["contentDigest"] == content_digest(content)


def test_a_person_without_a_session_chooses_the_way_of_a_router(house: House, visit: Visit, offline: Verifier) -> None:
    from playwright.sync_api import expect

    path = waiting(house, DRAFT, ROUTER)
    page = visit(None, link_to(house, path))
    page.check("input[name=decision][value=selected]")
    page.check("input[name=option][value=archive]")
    page.get_by_role("button").click()
    expect(page.get_by_role("status")).to_contain_text("selected by reviewer")
    result_of(house, path)
    receipt = receipt_of(house, path, offline)
    assert (receipt["decision"], receipt["position"]) == ("selected", "route")
    assert receipt["contentDigest"] == content_digest({"selectedOption": "archive"})
