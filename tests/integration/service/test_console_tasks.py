"""The inbox and the page of a task, as a browser without script uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from console_pages import Browser, HtmlPage, checked, signed_in
from kneo_process import eventually
from service_bench import DRAFT, PUBLISH, Bench, Json, spec_of

from kneo.service.console import task

FIELDS = [
    {"name": "tone", "type": "str", "allowed_values": ["dry", "warm"], "description": "How it sounds."},
    {"name": "copies", "type": "int", "min": 1, "max": 9},
    {"name": "urgent", "type": "bool"},
    {"name": "send_on", "type": "date", "required": False},
    {"name": "labels", "type": "list", "required": False},
    {"name": "note", "type": "str", "required": False},
]

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><h1>h1</h1> {{ 7919*7907 }} {% raw %} "
    "\x1b[31mred\x1b[0m \u202egnp.exe\u202c zero\u200bwidth \u2066isolated\u2069 javascript:alert(1)"
)


@pytest.fixture
def browse(bench: Bench) -> Iterator[Callable[[str], Browser]]:
    """Opens a browser that is signed in with the key of a role."""
    yield lambda role: signed_in(bench.url, role)
    Browser.close_all()


def asked(bench: Bench, text: str = "hi", *, role: str = "operator", **human: object) -> Json:
    """Start a run that asks people before it publishes; return the run."""
    board = {"prompt": "Publish this?", **human}
    gate = {"before": {"human": "board"}}
    release = {**PUBLISH, "id": "release"}
    ask = {"id": "ask", "kind": "human", "ref": "board"}
    steps = (ask, release) if "decisions" in human else ({**release, "review": gate},)
    spec = spec_of(DRAFT, *steps, humans={"board": board})
    run = bench.start(spec, role=role, input=text)
    assert run["status"] == "paused", run
    return run


def page_of(browser: Browser, run: Json) -> HtmlPage:
    return browser.get(f"/console/inbox/{run['continuation_id']}")


def decide(browser: Browser, run: Json, expect: int = 303, **changes: object) -> HtmlPage:
    """Send the form of a task as it is shown, with these changes; return the page that follows."""
    form = page_of(browser, run).form(str(run["continuation_id"]))
    response = browser.post(form.action, {**form.values(), **changes}, expect=expect)
    return checked(response) if expect != 303 else browser.get(response.headers["location"])


def test_a_task_is_listed_and_approved_with_a_receipt(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = asked(bench, "The office closes")
    ann = browse("reviewer")
    inbox = ann.get("/console/inbox")
    rows = {each["data-task"] for each in inbox.having("data-task")}
    assert run["continuation_id"] in rows
    assert "The office closes" in inbox.text
    page = page_of(ann, run)
    assert "The office closes" in page.text
    assert "release runs" in page.text, "the consequence of an approval"
    assert "release does not run" in page.text, "the consequence of a rejection"
    receipt = decide(ann, run, decision="approved", reason="It reads well")
    assert len(receipt.having("data-receipt")) == 1
    assert "reviewer approved" in receipt.text
    assert "It reads well" in receipt.text
    assert not any(form.action.endswith(str(run["continuation_id"])) for form in receipt.forms)
    link = next(link for link in receipt.links if link.endswith("/receipt"))
    proof = ann.client.get(link)
    assert proof.headers["content-disposition"].startswith("attachment")
    assert bench.post("/receipts/verify", proof.json())["valid"]
    assert run["continuation_id"] in {
        each["data-task"] for each in ann.get("/console/inbox?show=decided").having("data-task")
    }
    task = bench.get(f"/human-tasks/{run['continuation_id']}")
    assert (task["decision"]["actor"], task["decision"]["comment"]) == ("reviewer", "It reads well")


def test_a_rejection_needs_a_reason_and_keeps_what_was_typed(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run, ann = asked(bench), browse("reviewer")
    refused = decide(ann, run, 422, decision="rejected", reason="  ")
    assert "needs a reason" in refused.text
    assert any(each.get("value") == "rejected" and "checked" in each for each in refused.attributes)
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["status"] == "open"
    refused = decide(ann, run, 422, reason="half a reason")
    assert dict(refused.form(str(run["continuation_id"])).fields)["reason"] == "half a reason"
    receipt = decide(ann, run, decision="rejected", reason="Not on a Friday")
    assert "reviewer rejected" in receipt.text
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]["feedback"] == "Not on a Friday"
    events = bench.get("/audit-events", event_type="request.refused", limit=5)["events"]
    assert any(event["metadata"]["operation"] == "console/inbox/{task}" for event in events)


def test_an_edit_starts_from_the_exact_text(bench: Bench, browse: Callable[[str], Browser]) -> None:
    text = "\n<b>first</b> line\u200b\n\n  last &amp; line"
    run = asked(bench, text, decisions=["approved", "edited", "rejected"])
    ann = browse("reviewer")
    subject = str(bench.get(f"/human-tasks/{run['continuation_id']}")["current_input"])
    assert dict(page_of(ann, run).form(str(run["continuation_id"])).fields)["content"] == subject
    assert "⟨U+200B⟩" in page_of(ann, run).text
    decide(ann, run, decision="edited", content="Shorter.\r\nTwo lines")
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]["content"] == "Shorter.\nTwo lines"


def test_a_long_text_is_edited_in_a_file(
    bench: Bench, browse: Callable[[str], Browser], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "SHOWN_CHARS", 20)
    decisions = ["approved", "edited", "rejected"]
    run, ann = asked(bench, "The office closes on Friday", decisions=decisions), browse("reviewer")
    name, page = run["continuation_id"], page_of(ann, run)
    assert dict(page.form(str(name)).fields)["content"] == ""
    assert f"kneo task decide {name} --edit-file subject.txt" in page.text
    (link,) = [each["href"] for each in page.having("download")]
    assert ann.client.get(link).text == bench.get(f"/human-tasks/{name}")["current_input"]
    longer = page_of(ann, asked(bench, "long " * 40, decisions=decisions))
    assert "accepts an edit of at most 100 characters" in longer.text
    assert "--edit-file" not in longer.text


def test_a_text_above_the_limit_of_an_edit_is_edited_with_a_hint(
    bench: Bench, browse: Callable[[str], Browser]
) -> None:
    run, ann = asked(bench, "long " * 40, decisions=["approved", "edited", "rejected"]), browse("reviewer")
    page = page_of(ann, run)
    form = page.form(str(run["continuation_id"]))
    assert len(dict(form.fields)["content"]) > 100
    assert "accepts an edit of at most 100 characters, here and from kneo task decide . Shorten it" in " ".join(
        page.text.split()
    )
    refused = HtmlPage(ann.post(form.action, form.values(decision="edited"), expect=422).text)
    assert "at most 100 are accepted" in refused.text
    decide(ann, run, decision="edited", content="short")


def test_a_decision_that_comes_second_is_a_conflict_and_keeps_what_was_typed(
    bench: Bench, browse: Callable[[str], Browser]
) -> None:
    run, ann = asked(bench), browse("reviewer")
    form = page_of(ann, run).form(str(run["continuation_id"]))
    bench.answer(run, role="approver")
    late = checked(ann.post(form.action, form.values(decision="rejected", reason="my careful words"), expect=409))
    assert "my careful words" in late.text
    assert "approver approved" in late.text
    again = browse("approver").post(form.action, form.values(decision="approved"), expect=303)
    assert again.headers["location"] == form.action, "the same person pressed the button twice"
    run = asked(bench)
    form = page_of(ann, run).form(str(run["continuation_id"]))
    stale = checked(
        ann.post(form.action, form.values(decision="approved", expect_digest="sha256:" + "0" * 64), expect=409)
    )
    digest = dict(stale.form(str(run["continuation_id"])).fields)["expect_digest"]
    assert digest == dict(form.fields)["expect_digest"], "the page asks again about the present text"


def test_a_form_with_two_decisions_decides_nothing(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run, ann = asked(bench), browse("reviewer")
    form = page_of(ann, run).form(str(run["continuation_id"]))
    ann.post(form.action, {**form.values(), "decision": ["rejected", "approved"], "reason": "Not today"}, expect=400)
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["status"] == "open"


def test_two_approvals_are_two_receipts(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = asked(bench, quorum={"approvals": 2})
    first = decide(browse("reviewer"), run, decision="approved")
    assert len(first.having("data-receipt")) == 1
    assert "1 of 2" in first.text
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["status"] == "open"
    second = decide(browse("approver"), run, decision="approved")
    assert "reviewer approved" in second.text
    assert "approver approved" in second.text
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]["voters"] == ["reviewer", "approver"]


def test_a_person_who_may_not_decide_reads_why(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = asked(bench, role="admin", candidates={"exclude": ["requester"]})
    page = page_of(browse("admin"), run)
    assert "is the requester" in page.text
    assert not any(form.action.endswith(str(run["continuation_id"])) for form in page.forms)
    values = {"decision": "approved"}
    browse("admin").post(f"/console/inbox/{run['continuation_id']}", values, expect=403)
    page = page_of(browse("viewer"), run)
    assert not any("/console/inbox/" in form.action for form in page.forms), "a viewer cannot even comment"
    browse("viewer").post(f"/console/inbox/{run['continuation_id']}", values, expect=403)
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["status"] == "open"


def test_a_form_has_a_control_for_each_field(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run, ann = asked(bench, fields=FIELDS), browse("reviewer")
    page = page_of(ann, run)
    assert "How it sounds." in page.text
    wrong = decide(ann, run, 422, decision="approved", **{"values.copies": "12", "values.note": "kept"})
    fields = dict(wrong.form(str(run["continuation_id"])).fields)
    assert (fields["values.copies"], fields["values.note"]) == ("12", "kept")
    assert "tone is required" in wrong.text
    filled = {"tone": "warm", "copies": "2", "urgent": "true", "send_on": "2026-12-24", "labels": '["a"]'}
    receipt = decide(ann, run, decision="approved", **{f"values.{name}": text for name, text in filled.items()})
    values = bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]["values"]
    assert values == {"tone": "warm", "copies": 2, "urgent": True, "send_on": "2026-12-24", "labels": ["a"]}
    assert "warm" in receipt.text


@pytest.mark.parametrize("multiple", [False, True])
def test_options_are_chosen(bench: Bench, browse: Callable[[str], Browser], multiple: bool) -> None:
    run = asked(bench, options=["red & <b>", "blue"], multiple=multiple, decisions=["selected", "rejected"])
    ann = browse("reviewer")
    kinds = {each.get("type") for each in page_of(ann, run).attributes if each.get("name") == "option"}
    assert kinds == {"checkbox" if multiple else "radio"}
    decide(ann, run, 422, decision="selected")
    chosen = ["red & <b>", "blue"] if multiple else ["blue"]
    decide(ann, run, decision="selected", option=chosen)
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]["selected_options"] == chosen


def test_a_text_that_was_sent_back_is_compared_with_the_next_one(
    bench: Bench, browse: Callable[[str], Browser]
) -> None:
    gate = {"after": {"human": "board", "on_reject": "retry"}}
    spec = spec_of({**DRAFT, "review": gate}, humans={"board": {"prompt": "Right?"}})
    run = bench.start(spec, role="operator", input="Dear Mara")
    ann = browse("reviewer")
    assert "Send back" in page_of(ann, run).text
    assert "runs again with your reason" in page_of(ann, run).text
    decide(ann, run, decision="rejected", reason="Thank her for the photos")
    [task] = eventually(lambda: bench.get("/human-tasks", run_id=run["run_id"], status="open")["tasks"])
    page = ann.get(f"/console/inbox/{task['id']}")
    assert "Changes since the last version" in page.text
    assert "Thank her for the photos" in page.text
    assert 'class="new"' in page.html
    assert 'class="new"' not in ann.get(f"/console/inbox/{task['id']}?view=text").html


def test_a_task_is_claimed_delegated_snoozed_and_discussed(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run, ann = asked(bench), browse("reviewer")
    task = f"/console/inbox/{run['continuation_id']}"

    def act(action: str, **values: str) -> HtmlPage:
        form = ann.get(task).form(f"/{action}")
        return ann.get(ann.post(form.action, {**form.values(), **values}).headers["location"])

    assert "Claimed by" in act("claim").text
    assert "Claimed by" not in act("unclaim").text
    assert "<b>bold</b>" in act("comment", text="Looks <b>bold</b>").html.replace("&lt;", "<").replace("&gt;", ">")
    assert "Snoozed until" in act("snooze", **{"for": "4h"}).text
    assert "delegated the task to approver" in act("delegate", to="approver").text
    refused = checked(ann.post(f"{task}/delegate", {"to": "nobody-known"}, expect=422))
    assert "nobody-known is not known here" in refused.text
    ann.post(f"{task}/snooze", {"for": "100y"}, expect=400)
    ann.post(f"{task}/burn", {}, expect=404)
    ann.get("/console/inbox/cont_unknown", expect=404)
    ann.get("/console/inbox?show=everything", expect=422)


def test_texts_of_people_and_agents_are_text(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = asked(bench, HOSTILE, prompt=f"Send? {HOSTILE}", title=HOSTILE, decisions=["approved", "edited", "rejected"])
    ann = browse("reviewer")
    ann.post(f"/console/inbox/{run['continuation_id']}/comment", {"text": HOSTILE})
    for path in (
        "/console/inbox",
        f"/console/inbox/{run['continuation_id']}",
        f"/console/inbox/{run['continuation_id']}?view=text",
    ):
        page = ann.get(path)
        assert "<script>alert" not in page.html
        assert "<img" not in page.html
        assert "62615533" not in page.text
        assert "⟨U+202E⟩" in page.text
        assert "⟨U+001B⟩" in page.text
        outside = page.html.replace('name="content" rows="12">\n', "")
        assert outside.count("\u202e") <= page.html.count("<textarea"), (
            "only fields that are sent back have the character"
        )
    receipt = decide(ann, run, decision="rejected", reason=HOSTILE[-90:])
    assert "<script>alert" not in receipt.html
    assert "⟨U+202E⟩" in receipt.text


def test_an_empty_inbox_of_a_person_who_decides_nothing_says_why(
    bench: Bench, browse: Callable[[str], Browser]
) -> None:
    run = asked(bench)
    viewer = browse("viewer")
    page = viewer.get("/console/inbox")
    assert "viewer decides neither tasks nor releases" in page.text
    assert "See what waits for others" in page.text
    assert str(run["continuation_id"]) in viewer.get("/console/inbox?show=all").html
    assert "decides neither" not in browse("reviewer").get("/console/inbox").text
