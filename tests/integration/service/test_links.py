"""Links over HTTP: looking never changes a row, and answering works once, for one person, about one question."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from console_pages import HtmlPage
from kneo_process import eventually
from service_bench import APPROVE, DRAFT, PUBLISH, Bench, serving, spec_of
from sqlalchemy import func, select, update

from kneo.cli.main import run as kneo
from kneo.clock import isoformat
from kneo.service.console import links as routes
from kneo.store.adoption import Adoption, adopt
from kneo.store.tables import audit_events, idempotency_keys, metadata, task_links, tasks
from kneo.tasks.links import LINKS_OF_A_TASK

Json = dict[str, object]


@pytest.fixture
def browser(bench: Bench) -> Iterator[httpx.Client]:
    """Somebody without a key."""
    with httpx.Client(base_url=bench.url, timeout=240) as client:
        yield client


@pytest.fixture(autouse=True)
def fresh_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_of_link", routes.Rate(routes.PER_MINUTE))
    monkeypatch.setattr(routes, "_wrong", routes.Rate(routes.WRONG_PER_MINUTE))


def link_to(bench: Bench, run: Json, *, role: str = "reviewer", expect: int = 200, **order: object) -> Json:
    return bench.post(f"/human-tasks/{run['continuation_id']}/links", order, role=role, expect=expect)


def rows(bench: Bench) -> dict[str, list[object]]:
    """Everything in the database, but for what a worker touches by itself, once no run of an earlier test goes on."""
    tasks, runs = metadata.tables["tasks"], metadata.tables["runs"]

    def is_idle() -> bool:
        with bench.store.read() as tx:
            decided = tx.connection.scalar(select(func.count()).where(tasks.c.status == "decided"))
            return not decided + tx.connection.scalar(select(func.count()).where(runs.c.status == "running"))

    eventually(is_idle)
    with bench.store.read() as tx:
        return {
            name: sorted(map(repr, tx.connection.execute(select(table))))
            for name, table in metadata.tables.items()
            if name not in {"leases", "idempotency_keys", "audit_chain", "audit_pending", "audit_nodes"}
        }


def form(page: str, **said: str) -> dict[str, str]:
    """What a browser sends for a page."""
    hidden = dict(re.findall(r'<input type="hidden" name="([a-z_]+)" value="([^"]*)">', page))
    return {**hidden, **said}


def test_looking_changes_no_row(bench: Bench, browser: httpx.Client) -> None:
    path = str(link_to(bench, bench.paused())["path"])
    before = rows(bench)
    for method in ("GET", "HEAD", "GET", "HEAD"):
        assert browser.request(method, path).status_code == 200
    assert browser.request("HEAD", path).content == b""
    for method in ("OPTIONS", "PUT", "DELETE", "PATCH"):
        assert browser.request(method, path).status_code == 405
    assert rows(bench) == before


def test_the_page_shows_the_question_and_loads_its_icon_alone(bench: Bench, browser: httpx.Client) -> None:
    run = bench.start(spec_of(DRAFT, APPROVE, PUBLISH), input="<script>alert(1)</script> & more")
    answer = browser.get(str(link_to(bench, run)["path"]))
    page = answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "Publish this announcement?" in page
    assert "reviewer" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    [icon] = re.findall(r'(?:src=|href=|url\()"?([^"\s]+)', page)
    assert icon.startswith("/console/static/icon.svg")
    assert browser.get(icon).status_code == 200
    assert 'lang="en"' in page
    assert page.count('type="radio"') == page.count('name="decision"') >= 2
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_says_what_each_answer_leads_to(bench: Bench, browser: httpx.Client) -> None:
    page = browser.get(str(link_to(bench, bench.paused())["path"])).text
    approve, reject = (
        part for part in page.split("<label") if 'value="approved"' in part or 'value="rejected"' in part
    )
    assert "publish" in approve
    assert "cancelled" in reject


def test_answering_decides_as_the_person_it_was_made_for(bench: Bench, browser: httpx.Client) -> None:
    run = bench.paused()
    path = str(link_to(bench, run, role="service", person="reviewer")["path"])
    done = browser.post(path, data=form(browser.get(path).text, decision="approved", reason="from my phone"))
    assert done.status_code == 200, done.text
    task = bench.get(f"/human-tasks/{run['continuation_id']}")
    assert task["decision"]["actor"] == "reviewer"
    assert task["decision"]["comment"] == "from my phone"
    said = bench.get(f"/human-tasks/{run['continuation_id']}/receipt")["receipt"]
    assert [(voter["actor"], voter["via"]) for voter in said["voters"]] == [("reviewer", "link made by service")]


def test_a_link_works_once(bench: Bench, browser: httpx.Client) -> None:
    run = bench.paused()
    path = str(link_to(bench, run)["path"])
    sent = form(browser.get(path).text, decision="rejected", reason="Not today")
    assert browser.post(path, data=sent).status_code == 200
    # The page does not wait for the run, which takes its answer a little later.
    eventually(lambda: bench.get(f"/runs/{run['run_id']}")["status"] == "cancelled")
    before = rows(bench)["tasks"]
    again = browser.post(path, data=sent | {"decision": "approved"})
    assert again.status_code == 409
    assert "works once" in again.text
    assert browser.get(path).status_code == 409
    assert rows(bench)["tasks"] == before


def test_a_refused_answer_does_not_use_it_up(bench: Bench, browser: httpx.Client) -> None:
    run = bench.paused()
    path = str(link_to(bench, run)["path"])
    before = rows(bench)
    sent = form(browser.get(path).text)
    for said in ({"decision": "edited"}, {"decision": "nonsense"}, {}, {"decision": "approved", "surplus": "1"}):
        assert 400 <= browser.post(path, data=sent | said).status_code < 500
    assert browser.post(path, data=sent | {"decision": "edited", "content": "x" * 101}).status_code == 422
    assert browser.post(path, content=b"\xff=\xfe").status_code == 400
    assert rows(bench) == before
    assert browser.post(path, data=sent | {"decision": "edited", "content": "better"}).status_code == 200
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]["content"] == "better"


Spoil = Callable[[Bench, Json, dict[str, str]], object]


def _expire(bench: Bench, link: Json, _sent: dict[str, str]) -> None:
    with bench.store.write() as tx:
        tx.connection.execute(
            update(task_links)
            .where(task_links.c.id == link["id"])
            .values(expires_at=isoformat(tx.now - timedelta(seconds=1)))
        )
    adopt(bench.store, Adoption(changed=True))


def _ask_something_else(bench: Bench, link: Json, _sent: dict[str, str]) -> None:
    with bench.store.write() as tx:
        changed = update(tasks).where(tasks.c.id == link["continuation_id"])
        tx.connection.execute(changed.values(subject_digest="sha256:" + "0" * 64))
    adopt(bench.store, Adoption(changed=True))


def _answer_otherwise(bench: Bench, link: Json, sent: dict[str, str]) -> None:
    bench.post(
        f"/human-tasks/{link['continuation_id']}/resume",
        {"request_id": sent["request_id"], "decision": "approved"},
        role="reviewer",
    )


def _of_another_task(bench: Bench, _link: Json, sent: dict[str, str]) -> None:
    other = bench.paused()
    sent["request_id"] = other["metadata"]["pending_human_request"]["request_id"]


def _seen_otherwise(_bench: Bench, _link: Json, sent: dict[str, str]) -> None:
    sent["expect_digest"] = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_expire, "link_expired"),
        (_ask_something_else, "subject_changed"),
        (_answer_otherwise, "human_task_decided"),
        (_of_another_task, "request_mismatch"),
        (_seen_otherwise, "subject_changed"),
    ],
)
def test_what_it_was_not_made_for_is_refused(bench: Bench, browser: httpx.Client, spoil: Spoil, code: str) -> None:
    link = link_to(bench, bench.paused())
    path = str(link["path"])
    sent = form(browser.get(path).text, decision="approved")
    spoil(bench, link, sent)
    before = rows(bench)["tasks"], rows(bench)["task_links"]
    refused = browser.post(path, json=sent)
    assert (refused.status_code, refused.json()["error"]) == (409, code)
    assert (rows(bench)["tasks"], rows(bench)["task_links"]) == before


def test_a_token_nobody_made_opens_nothing(bench: Bench, browser: httpx.Client) -> None:
    for path in ("/h/none", "/h/" + "a" * 43, "/h/%00", "/h/" + "x" * 5000):
        assert browser.get(path).status_code == 404
        refused = browser.post(path, json={"decision": "approved", "request_id": "req_1"})
        assert refused.status_code == 404
    assert bench.get("/human-tasks/cont_none", expect=404)


@pytest.mark.parametrize("key", [None, "link-once"])
def test_only_the_hash_of_a_token_is_kept(bench: Bench, key: str | None) -> None:
    path = f"/human-tasks/{bench.paused()['continuation_id']}/links"
    token = str(bench.post(path, {}, key=key)["path"]).removeprefix("/h/")
    assert len(token) >= 43
    with bench.store.read() as tx:
        stored = [repr(row) for table in metadata.tables.values() for row in tx.connection.execute(select(table))]
    assert not [row for row in stored if token in row]


def test_a_link_that_is_created_again_under_its_key_is_not_shown_again(bench: Bench, browser: httpx.Client) -> None:
    key = {"Idempotency-Key": "four-times"}
    path = f"/human-tasks/{bench.paused()['continuation_id']}/links"
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: bench.ask("POST", path, {}, headers=key), range(4)))
    [shown] = [answer for answer in answers if answer.status_code == 200]
    answers.append(bench.ask("POST", path, {}, headers=key))
    for refused in (answer for answer in answers if answer is not shown):
        assert (refused.status_code, refused.json()["error"]) == (409, "secret_shown_once")
        assert "new key" in refused.json()["hint"]
        assert shown.json()["path"] not in refused.text
        assert "idempotency-replayed" not in refused.headers
    assert bench.get(path)["count"] == 1
    assert browser.get(shown.json()["path"]).status_code == 200
    other = bench.ask("POST", path, {"expires_in": "1h"}, headers=key)
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_key_conflict")


def test_the_command_that_makes_a_link_leaves_no_token_in_the_database(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEO_SERV_API_KEY", "reviewer-key")
    task = str(bench.paused()["continuation_id"])
    assert kneo(["task", "link", "create", task, "--service-url", bench.url, "--json"]) == 0
    token = str(json.loads(capsys.readouterr().out)["path"]).removeprefix("/h/")
    with bench.store.read() as tx:
        used = tx.connection.execute(select(idempotency_keys).where(idempotency_keys.c.subject == task)).all()
    assert used
    assert token not in repr(used)


def test_only_who_delivers_links_may_make_them_for_others(bench: Bench) -> None:
    run = bench.paused()
    refused = link_to(bench, run, person="approver", expect=403)
    assert refused["required_scope"] == "human:link"
    assert link_to(bench, run, role="service", person="Approver")["person"] == "approver"
    link_to(bench, run, role="viewer", expect=403)
    link_to(bench, {"continuation_id": "cont_none"}, expect=404)
    for lasts in ("0s", "31d", "-1h", "soon"):
        link_to(bench, run, expires_in=lasts, expect=422)


def test_the_address_of_a_link_is_the_one_that_was_configured(bench: Bench, tmp_path: Path) -> None:
    made = bench.ask(
        "POST", f"/human-tasks/{bench.paused()['continuation_id']}/links", {}, headers={"Host": "evil.test"}
    ).json()
    assert (made["url"], made["path"][:3]) == (None, "/h/")
    database = f"sqlite:///{tmp_path / 'kneo.sqlite'}"
    with serving(tmp_path, database, KNEO_SERV_PUBLIC_URL="https://kneo.example/") as public:
        path = f"/human-tasks/{public.paused()['continuation_id']}/links"
        made = public.ask("POST", path, {}, headers={"Host": "evil.test", "X-Forwarded-Host": "evil.test"}).json()
    assert made["url"] == f"https://kneo.example{made['path']}"


def test_an_answered_question_gets_no_link(bench: Bench) -> None:
    run = bench.paused()
    bench.answer(run)
    assert link_to(bench, run, expect=409)["error"] == "human_task_decided"


def test_there_is_an_end_to_links(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LINKS_OF_A_TASK >= 100
    monkeypatch.setattr("kneo.tasks.links.LINKS_OF_A_TASK", 2)
    run = bench.paused()
    link_to(bench, run)
    link_to(bench, run)
    assert link_to(bench, run, expect=409)["error"] == "too_many_links"


def test_somebody_who_looks_too_often_waits(
    bench: Bench, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_of_link", routes.Rate(3))
    run = bench.paused()
    path, other = str(link_to(bench, run)["path"]), str(link_to(bench, run)["path"])
    assert [browser.get(path).status_code for _ in range(4)] == [200, 200, 200, 429]
    late = browser.post(path, json={"decision": "approved", "request_id": "r"})
    assert late.status_code == 429
    assert int(late.headers["retry-after"]) >= 1
    # Other people come from the same address where a proxy stands before the service.
    assert browser.get(other).status_code == 200


def test_guessing_links_locks_nobody_out(bench: Bench, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_wrong", routes.Rate(3))
    path = str(link_to(bench, bench.paused())["path"])
    assert [browser.get(f"/h/guess-{number}").status_code for number in range(5)] == [404, 404, 404, 429, 429]
    body = {"decision": "approved", "request_id": "r"}
    assert browser.post("/h/guess", json=body).status_code == 429
    assert browser.get(path).status_code == 200


def test_making_and_using_a_link_are_in_the_audit_log(bench: Bench, browser: httpx.Client) -> None:
    run = bench.paused()
    path = str(link_to(bench, run)["path"])
    browser.post(path, data=form(browser.get(path).text, decision="approved"))
    with bench.store.read() as tx:
        wanted = select(audit_events.c.event_type).where(audit_events.c.continuation_id == run["continuation_id"])
        kinds = list(tx.connection.execute(wanted.order_by(audit_events.c.id)).scalars())
    assert [kind for kind in kinds if kind.startswith("human.link")] == ["human.link_made", "human.link_used"]


def test_the_command_makes_lists_and_takes_back(
    bench: Bench, browser: httpx.Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*words: str, role: str = "reviewer", expect: int = 0) -> Json:
        monkeypatch.setenv("KNEO_SERV_API_KEY", f"{role}-key")
        capsys.readouterr()
        assert kneo(["human", "link", *words, "--service-url", bench.url, "--json"]) == expect
        said = capsys.readouterr()
        found: Json = json.loads(said.out or said.err)
        return found

    run = bench.paused()
    task = str(run["continuation_id"])
    one, two = call("create", task, "--expires", "8h"), call("create", task, "--person", "approver", role="service")
    assert call("create", task, "--person", "approver", expect=1)["required_scope"] == "human:link"
    assert call("create", "cont_none", expect=4)["error"] == "not_found"
    before = rows(bench)
    for path in (one["path"], two["path"]):
        # A scanner of mail that looks at everything, more than once.
        for method in ("HEAD", "GET", "GET"):
            assert browser.request(method, str(path)).status_code == 200
    assert rows(bench) == before
    listed = call("list", task, role="viewer")
    assert [(link["person"], link["state"]) for link in listed["links"]] == [("reviewer", "open"), ("approver", "open")]
    assert not any(str(link["path"]).removeprefix("/h/") in json.dumps(listed) for link in (one, two))
    assert call("revoke", task, str(two["id"]), expect=1)["error"] == "forbidden"
    assert call("revoke", task, str(two["id"]), role="service")["state"] == "expired"
    assert call("revoke", task, str(two["id"]), role="service")["state"] == "expired"
    assert call("revoke", task, "lnk_none", expect=4)["error"] == "link_not_found"
    sent = form(browser.get(str(one["path"])).text, decision="approved")
    assert browser.post(str(two["path"]), json=sent).json()["error"] == "link_expired"
    assert browser.post(str(one["path"]), json=sent).json()["decision"] == "approved"
    assert [link["state"] for link in call("list", task)["links"]] == ["used", "expired"]
    assert call("revoke", task, str(one["id"]), expect=5)["error"] == "link_used"
    kinds = [event["type"] for event in bench.get(f"/human-tasks/{task}/history")["events"]]
    assert kinds.count("human.link_revoked") == 1


def test_the_page_and_the_task_say_what_follows_now(bench: Bench, browser: httpx.Client) -> None:
    """A question beside another one: once that is answered, an approval runs the next step."""
    asked = [{"id": name, "kind": "human", "ref": "editor"} for name in ("one", "two")]
    run = bench.start(spec_of({"id": "both", "kind": "parallel", "steps": asked}, PUBLISH))
    one, two = bench.get("/human-tasks", run_id=run["run_id"])["tasks"]
    path = str(bench.post(f"/human-tasks/{two['id']}/links", {}, role="reviewer")["path"])
    assert f"other questions stay open: {one['key']}" in browser.get(path).text
    said = {"request_id": one["request"]["request_id"], "decision": "approved"}
    bench.post(f"/human-tasks/{one['id']}/resume", said, role="reviewer")
    assert "publish runs" in browser.get(path).text
    assert bench.get(f"/human-tasks/{two['id']}")["consequences"]["approved"] == {"next": ["publish"]}


FIELDS = [
    {"name": "tone", "allowed_values": ["dry", "warm"]},
    {"name": "copies", "type": "int", "description": "One to nine."},
    {"name": "note", "required": False},
]


def test_a_link_answers_a_form_and_a_refused_one_stays_as_it_was_typed(bench: Bench, browser: httpx.Client) -> None:
    ask: Json = {"id": "ask", "kind": "human", "ref": "board"}
    run = bench.start(spec_of(DRAFT, ask, PUBLISH, humans={"board": {"prompt": "Publish this?", "fields": FIELDS}}))
    path = str(link_to(bench, run)["path"])
    page = HtmlPage(browser.get(path).text)
    assert page.problems == ["an inline style"]
    (shown,) = page.forms
    assert {"values.tone", "values.copies", "values.note"} <= dict(shown.fields).keys()
    typed = shown.values(decision="approved", reason="Half a reason", **{"values.copies": "3"})
    refused = browser.post(path, data=typed)
    assert refused.status_code == 422
    again = HtmlPage(refused.text)
    assert "tone is required" in again.text
    (form_again,) = again.forms
    kept = dict(form_again.fields)
    assert (kept["decision"], kept["values.copies"], kept["reason"]) == ("approved", "3", "Half a reason")
    assert browser.post(path, data=kept | {"values.tone": "warm"}).status_code == 200
    decision = bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]
    assert (decision["values"], decision["actor"]) == ({"tone": "warm", "copies": 3}, "reviewer")


def test_a_link_chooses_options(bench: Bench, browser: httpx.Client) -> None:
    human = {"prompt": "Who?", "options": ["finance", "support", "legal"], "decisions": ["selected"], "multiple": True}
    run = bench.start(spec_of(DRAFT, {"id": "ask", "kind": "human", "ref": "board"}, PUBLISH, humans={"board": human}))
    path = str(link_to(bench, run)["path"])
    page = HtmlPage(browser.get(path).text)
    assert [each["type"] for each in page.having("type") if each.get("name") == "option"] == ["checkbox"] * 3
    sent = page.forms[0].values(decision="selected")
    assert browser.post(path, data=sent).status_code == 422, "no option is chosen"
    assert browser.post(path, data=sent | {"option": ["legal", "finance"]}).status_code == 200
    decision = bench.get(f"/human-tasks/{run['continuation_id']}")["decision"]
    assert decision["selected_options"] == ["legal", "finance"]


@pytest.mark.parametrize("value", ['"\\ud800"', "NaN", "1e999"])
def test_json_that_cannot_be_stored_is_refused(bench: Bench, browser: httpx.Client, value: str) -> None:
    run = bench.paused()
    path = str(link_to(bench, run)["path"])
    request_id = bench.get(f"/human-tasks/{run['continuation_id']}")["pending_human_request_id"]
    body = f'{{"decision": "approved", "request_id": "{request_id}", "values": {{"a": {value}}}}}'
    before = rows(bench)["tasks"]
    refused = browser.post(path, content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 400
    assert refused.json()["message"].startswith("The body is not JSON: ")
    assert rows(bench)["tasks"] == before


def test_the_values_of_an_answer_are_bounded(bench: Bench, browser: httpx.Client) -> None:
    run = bench.paused()
    path = str(link_to(bench, run)["path"])
    request_id = bench.get(f"/human-tasks/{run['continuation_id']}")["pending_human_request_id"]
    long = "x" * (bench.settings.limits.human_content_chars + 1)
    refused = browser.post(path, json={"decision": "approved", "request_id": request_id, "values": {"a": long}})
    assert (refused.status_code, refused.json()["error"]) == (422, "input_too_large")
