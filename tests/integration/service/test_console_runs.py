"""The console's pages of runs, usage, provenance and the audit log, as a browser without script sees them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from console_pages import Browser, HtmlPage, signed_in
from kneo_process import eventually
from service_bench import APPROVE, DRAFT, PUBLISH, Bench, spec_of

from kneo.clock import parse_time

BOOM = {"id": "explode", "kind": "function", "ref": "boom"}
FLAKY = {"id": "mend", "kind": "function", "ref": "flaky"}

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202egnp.exe\u200b\x1b[31mred {{ 7919*7907 }}"


@pytest.fixture
def browse(bench: Bench) -> Iterator[Callable[[str], Browser]]:
    """Opens a browser that is signed in with the key of a role."""
    yield lambda role: signed_in(bench.url, role)
    Browser.close_all()


def states(page: HtmlPage) -> dict[str, str]:
    """Return the states of the nodes of the graph."""
    assert page.having("data-graph")
    return {one["data-step"]: one["data-status"] for one in page.having("data-step") if one[""] in {"a", "g"}}


def at(time: str) -> str:
    """Return a time as pages have it."""
    return parse_time(time).isoformat(timespec="seconds")


def rows(page: HtmlPage) -> list[tuple[str, str]]:
    """Return the steps and gates of the list with their states."""
    return [(one["data-step"], one["data-status"]) for one in page.having("data-step") if one[""] == "li"]


def test_a_paused_run_shows_where_it_stands_and_what_it_waits_for(
    bench: Bench, browse: Callable[[str], Browser]
) -> None:
    run = bench.paused(input="Announce the new lamp")
    page = browse("admin").get(f"/console/runs/{run['run_id']}")
    assert states(page) == {"draft": "succeeded", "approve": "waiting", "publish": "pending"}
    assert rows(page) == [("draft", "succeeded"), ("approve", "waiting")]
    assert f"/console/inbox/{run['continuation_id']}" in page.links
    assert "Announce the new lamp" in page.text
    assert "waits for people" in page.text
    bench.answer(run)
    after = browse("viewer").get(f"/console/runs/{run['run_id']}")
    assert states(after) == {"draft": "succeeded", "approve": "succeeded", "publish": "succeeded"}
    assert rows(after) == [("draft", "succeeded"), ("approve", "succeeded"), ("publish", "succeeded")]
    assert "reviewer approved" in after.text
    assert not [link for link in after.links if "/fork" in link or "/cancel" in link], "a viewer changes nothing"
    step = browse("viewer").get(f"/console/runs/{run['run_id']}/steps/1")
    assert "Announce the new lamp" in step.text
    browse("viewer").get(f"/console/runs/{run['run_id']}/steps/9", expect=404)
    browse("viewer").get(f"/console/runs/{run['run_id']}?offset=x", expect=422)


def test_the_page_of_a_run_names_each_voter_with_decision_and_time(
    bench: Bench, browse: Callable[[str], Browser]
) -> None:
    board = {"prompt": "Publish this?", "quorum": {"approvals": 2}}
    gate = {**PUBLISH, "id": "release", "review": {"before": {"human": "board"}}}
    run = bench.start(spec_of(DRAFT, gate, humans={"board": board}))
    bench.answer(run)
    page = f"/console/runs/{run['run_id']}"
    assert "reviewer approved; waits for people" in browse("viewer").get(page).text
    bench.answer(run, role="approver", comment="Go ahead")
    [told] = bench.get(f"/runs/{run['run_id']}/steps", role="viewer")["gates"]
    assert [(vote["actor"], vote["decision"], vote["comment"]) for vote in told["votes"]] == [
        ("reviewer", "approved", None),
        ("approver", "approved", "Go ahead"),
    ]
    assert told["approvals"] == 2
    assert told["opened_at"] < told["votes"][0]["at"] < told["votes"][1]["at"] == told["resolved_at"]
    after = browse("viewer").get(page)
    assert "reviewer approved; approver approved: Go ahead" in after.text
    times = [one["datetime"] for one in after.having("datetime")]
    assert {at(vote["at"]) for vote in told["votes"]} <= set(times), "each vote has its time"


def test_runs_are_listed_with_filters_in_the_address(bench: Bench, browse: Callable[[str], Browser]) -> None:
    text = "list me with the filters"
    done, waits = bench.start(input=text), bench.paused(input=text)
    browser = browse("viewer")
    page = browser.get("/console/runs")
    form = page.form("/runs")
    assert {"status", "environment", "bundle", "q", "from", "to"} <= set(dict(form.fields))
    listed = browser.get(f"/console/runs?q={text}&status=paused")
    assert [one["data-run"] for one in listed.having("data-run")] == [waits["run_id"]]
    assert dict(listed.form("/runs").fields)["q"] == text
    listed = browser.get(f"/console/runs?q={text}&status=succeeded")
    assert [one["data-run"] for one in listed.having("data-run")] == [done["run_id"]]
    assert "Text is searched in runs created since" in listed.text
    since = browser.get(f"/console/runs?q={text}&from=2026-01-31")
    assert {one["data-run"] for one in since.having("data-run")} == {done["run_id"], waits["run_id"]}
    assert "Text is searched" not in since.text
    assert "No run fits" in browser.get(f"/console/runs?q={text}&to=2026-01-31").text
    assert "No run fits" in browser.get("/console/runs?environment=nowhere").text
    browser.get("/console/runs?status=nonsense", expect=422)
    browser.get("/console/runs?from=yesterday", expect=422)
    browser.get(f"/console/runs?q={'x' * 300}", expect=422)


def test_a_failed_run_is_tried_again_from_its_page(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = bench.start(spec_of(DRAFT, FLAKY), input="again")
    browser = browse("operator")
    page = browser.get(f"/console/runs/{run['run_id']}")
    assert f"/console/runs/{run['run_id']}/continue" in page.links
    assert f"/console/runs/{run['run_id']}/continue" not in browse("viewer").get(f"/console/runs/{run['run_id']}").links
    assert states(page) == {"draft": "succeeded", "mend": "failed"}
    assert "not yet mended" in page.text
    asked = browser.get(f"/console/runs/{run['run_id']}/continue")
    assert "draft" in asked.text
    (bench.folder / "mended").touch()
    answer = browser.post(asked.form("/continue").action, {})
    assert answer.headers["location"] == f"/console/runs/{run['run_id']}"
    with bench.stream(f"/runs/{run['run_id']}/events") as told:
        list(told)
    assert bench.get(f"/runs/{run['run_id']}")["status"] == "succeeded"
    refused = HtmlPage(browser.post(f"/console/runs/{run['run_id']}/continue", {}, expect=409).text)
    assert "cannot be continued" in refused.text


def test_a_failed_run_that_cannot_be_continued_says_why(bench: Bench, browse: Callable[[str], Browser]) -> None:
    boss = {"description": "Publish?", "on_reject": "fail"}
    asking = {"id": "ask", "kind": "human", "ref": "boss"}
    run = bench.start(spec_of(DRAFT, asking, PUBLISH, humans={"boss": boss}))
    assert bench.answer(run, decision="rejected", feedback="no")["status"] == "failed"
    assert not bench.get(f"/runs/{run['run_id']}/recovery")["replay_context"]["can_continue"]
    browser = browse("operator")
    address = f"/console/runs/{run['run_id']}"
    links = browser.get(address).links
    assert f"{address}/fork" in links
    assert f"{address}/continue" not in links
    page = browser.get(f"{address}/continue")
    assert "cannot be continued. Only a run that failed in a step can be continued." in page.text
    assert not [form for form in page.forms if form.action.endswith("/continue")]


def test_a_run_is_cancelled_after_its_page_said_what_will_happen(
    bench: Bench, browse: Callable[[str], Browser]
) -> None:
    run = bench.paused()
    browser = browse("operator")
    page = browser.get(f"/console/runs/{run['run_id']}/cancel")
    assert "Withdrawn: Publish this announcement?" in page.text
    assert f"kneo runs cancel {run['run_id']}" in page.text
    browser.post(page.form("/cancel").action, {})
    assert bench.get(f"/runs/{run['run_id']}")["status"] == "cancelled"
    assert "nothing to cancel" in browser.get(f"/console/runs/{run['run_id']}/cancel").text
    done = bench.start()
    browser.post(f"/console/runs/{done['run_id']}/cancel", {})
    assert bench.get(f"/runs/{done['run_id']}")["status"] == "succeeded"
    browse("viewer").get(f"/console/runs/{run['run_id']}/cancel", expect=403)
    browse("viewer").post(f"/console/runs/{run['run_id']}/cancel", {}, expect=403)
    browser.post(f"/console/runs/{run['run_id']}/cancel", {}, expect=403, **{"sec-fetch-site": "cross-site"})


def test_a_fork_shows_what_runs_again_and_starts_from_a_step(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = bench.paused(input="fork me")
    bench.answer(run)
    browser = browse("operator")
    assert "choose" in browser.get(f"/console/runs/{run['run_id']}/fork").text
    page = browser.get(f"/console/runs/{run['run_id']}/fork?step=publish")
    assert "These steps run again, where the fork reaches them: publish" in page.text
    assert "asked again" in page.text
    form = next(form for form in page.forms if form.method == "post" and form.action.endswith("/fork"))
    forked = browser.post(form.action, form.values()).headers["location"].rpartition("/")[2]
    assert forked != run["run_id"]
    with bench.stream(f"/runs/{forked}/events") as told:
        list(told)
    fork = bench.get(f"/runs/{forked}")
    assert fork["metadata"]["fork"]["run_id"] == run["run_id"]
    assert fork["status"] == "succeeded"
    assert f"/console/runs/{run['run_id']}" in browser.get(f"/console/runs/{forked}").links
    changed = browser.post(form.action, form.values(change_input="yes", input="another text"))
    other = changed.headers["location"].rpartition("/")[2]
    eventually(lambda: bench.get(f"/runs/{other}")["status"] != "running")
    assert bench.get(f"/runs/{other}")["status"] == "paused", "another input was published without a question"
    kept = HtmlPage(browser.post(form.action, {"step": "nowhere"}, expect=404).text)
    assert "choose" in kept.text


def test_conversations_without_their_scope_say_what_is_missing(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = bench.start(input="hello")
    assert "need the scope runs:content" in browse("viewer").get(f"/console/runs/{run['run_id']}/conversation").text
    page = browse("auditor").get(f"/console/runs/{run['run_id']}/conversation")
    assert "No agent of this run has asked a model" in page.text
    assert (
        f"/console/runs/{run['run_id']}/conversation" in browse("auditor").get(f"/console/runs/{run['run_id']}").links
    )


def test_runs_are_filtered_by_several_statuses_requester_and_the_person_they_wait_for(
    bench: Bench, browse: Callable[[str], Browser]
) -> None:
    mine, done = bench.paused(role="admin")["run_id"], bench.start(role="service")["run_id"]
    browser = browse("reviewer")

    def listed(query: str) -> set[str]:
        return {one["data-run"] for one in browser.get(f"/console/runs?{query}").having("data-run")}

    assert mine in listed("status=running,paused&requester=admin")
    assert listed("requester=admin&status=succeeded&status=failed").isdisjoint({mine, done})
    assert listed("requester=service&status=succeeded,failed") >= {done}
    assert mine in listed("waiting_for=me")
    assert done not in listed("waiting_for=me")
    found = bench.get("/runs", waiting_for="reviewer", requester="admin", role="viewer")["runs"]
    assert [run["id"] for run in found] == [mine]
    browser.get("/console/runs?status=moon", expect=422)


def test_usage_is_summed_up(browse: Callable[[str], Browser]) -> None:
    browser = browse("viewer")
    assert "Usage and cost" in browser.get("/console/usage?by=model").text
    browser.get("/console/usage?by=moon", expect=422)
    browser.get("/console/usage?since=never", expect=422)


def test_the_audit_log_is_filtered_exported_and_proven(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = bench.paused()
    bench.answer(run, comment="=cmd|calc")
    browser = browse("auditor")
    query = f"run={run['run_id']}&event=human.decision"
    page = browser.get(f"/console/audit?{query}")
    assert "reviewer" in page.text
    assert f"/console/runs/{run['run_id']}" in page.links
    assert "No event fits" in browser.get(f"/console/audit?{query}&actor=stranger").text
    assert "No event fits" in browser.get(f"/console/audit?{query}&to=2020-01-01T00:00:00Z").text
    [csv_link] = [link for link in page.links if "audit.csv" in link]
    exported = browser.client.get(csv_link)
    assert exported.headers["content-disposition"] == 'attachment; filename="audit.csv"'
    [event] = csv.DictReader(io.StringIO(exported.text))
    assert (event["event"], event["actor"], event["run"]) == ("human.decision", "reviewer", run["run_id"])
    [json_link] = [link for link in page.links if "audit.json" in link]
    [whole] = browser.client.get(json_link).json()["events"]
    assert whole["id"] == event["id"]
    browser.client.get("/console/audit/checkpoint").raise_for_status()
    proven = browser.get("/console/audit")
    [*proofs] = [link for link in proven.links if link.endswith("/proof")]
    proof = browser.client.get(proofs[0])
    assert proof.headers["content-type"] == "application/json"
    assert proof.json()["seq"] == int(proofs[0].split("/")[3])
    browser.get("/console/audit/999999/proof", expect=404)
    browser.get("/console/audit/x/proof", expect=404)
    browse("service").get("/console/audit", expect=200)


def test_the_provenance_of_a_run_without_a_bundle_says_so(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = bench.paused()
    bench.answer(run)
    page = browse("auditor").get(f"/console/trace/{run['run_id']}")
    assert "a spec of its own" in page.text
    assert f"kneo trace {run['run_id']}" in page.text
    assert "kneo task receipt verify" in page.text
    browse("auditor").get("/console/trace/run_nowhere", expect=404)
    browse("reviewer").get(f"/console/trace/{run['run_id']}", expect=403)


def test_search_leads_to_the_one_thing_or_lists_what_fits(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = bench.paused(input="the only zebra")
    browser = browse("viewer")
    found = browser.client.get(f"/console/find?q={run['run_id']}")
    assert (found.status_code, found.headers["location"]) == (303, f"/console/runs/{run['run_id']}")
    found = browser.client.get("/console/find?q=only zebra")
    assert found.headers["location"] == f"/console/runs/{run['run_id']}"
    found = browser.client.get(f"/console/find?q={run['continuation_id']}")
    assert found.headers["location"] == f"/console/inbox/{run['continuation_id']}"
    listed = browser.get("/console/find?q=run_nowhere")
    assert "Nothing fits" in listed.text
    assert "Texts are searched in runs created since" in listed.text
    assert "/console/runs?q=run_nowhere" in listed.links
    assert "Type the id" in browser.get("/console/find").text


def test_hostile_texts_are_text_on_every_page(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = bench.start(spec_of(DRAFT, APPROVE, name="lab"), input=HOSTILE)
    bench.answer(run, comment=HOSTILE[:60])
    browser = browse("admin")
    id_ = run["run_id"]
    paths = [
        f"/console/runs/{id_}",
        f"/console/runs/{id_}/steps/1",
        f"/console/runs/{id_}/fork?step=draft",
        f"/console/runs/{id_}/cancel",
        f"/console/runs/{id_}/conversation",
        f"/console/trace/{id_}",
        f"/console/audit?run={id_}&actor={quote(HOSTILE)}",
        f"/console/audit?run={id_}",
        "/console/runs",
        f"/console/find?q={quote(HOSTILE)}",
    ]
    for path in paths:
        page = browser.client.get(path, follow_redirects=True)
        assert page.status_code == 200, (path, page.text[:500])
        assert "<script>alert" not in page.text, path
        assert "<img" not in page.text, path
        visible = page.text.replace(f'value="{HOSTILE}"', "")
        # Only a form field that is sent back has the characters as they are.
        for hidden in ("\u202e", "\u200b", "\x1b"):
            around = visible.partition(hidden)[0][-200:]
            assert hidden not in visible or "value=" in around or "<textarea" in around, (path, around)


def test_pages_are_small(bench: Bench, browse: Callable[[str], Browser]) -> None:
    run = bench.paused()
    for _ in range(55):
        bench.start(input="one of many " * 30, async_mode=True, expect=202)
    browser = browse("admin")
    for path in ("/console/runs", f"/console/runs/{run['run_id']}", "/console/audit"):
        page = browser.client.get(path)
        assert len(gzip.compress(page.content, 5)) < 10_000, path
    first = browser.get("/console/runs")
    [more] = [link for link in first.links if "after=" in link]
    second = browser.get(f"/console/runs{more}")
    ids = [{one["data-run"] for one in page.having("data-run")} for page in (first, second)]
    assert len(ids[0]) == 50
    assert not ids[0] & ids[1]
