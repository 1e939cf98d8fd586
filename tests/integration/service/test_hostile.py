"""Bodies that are valid enough to be read and wrong all the same: refused clearly, on both databases, and never a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from service_bench import DRAFT, Bench, serving, spec_of

DEEP = "[" * 9_000 + "]" * 9_000
SPEC = json.dumps(spec_of(DRAFT))

BODIES = {
    "half a character": f'{{"input": "\\ud800", "spec": {SPEC}}}',
    "half a character in a key": f'{{"input": "x", "metadata": {{"\\udfff": 1}}, "spec": {SPEC}}}',
    "a null character": f'{{"input": "a\\u0000b", "spec": {SPEC}}}',
    "no number": f'{{"input": "x", "metadata": {{"x": NaN}}, "spec": {SPEC}}}',
    "no end": f'{{"input": "x", "metadata": {{"x": 1e999}}, "spec": {SPEC}}}',
    "a number of many digits": f'{{"input": "x", "metadata": {{"x": {"9" * 1_500}}}, "spec": {SPEC}}}',
    "deep metadata": f'{{"input": "x", "metadata": {{"x": {DEEP}}}, "spec": {SPEC}}}',
    "a deep spec": f'{{"input": "x", "spec": {{"x": {DEEP}}}}}',
    "deep overrides": f'{{"input": "x", "overrides": {{"x": {DEEP}}}, "spec": {SPEC}}}',
    "the same key twice": f'{{"input": "x", "input": "y", "spec": {SPEC}}}',
    "a list": "[]",
    "a long time": f'{{"input": "x", "timeout_seconds": {"9" * 30}, "spec": {SPEC}}}',
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    url = f"sqlite:///{folder / 'kneo.sqlite'}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        url = server.url(server.create())
    with serving(folder, url) as made:
        yield made


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/runs", "/specs/validate", "/specs/migrate"])
def test_it_is_answered_and_the_answer_is_json(house: Bench, name: str, path: str) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"{path} {name}"}
    answer = house.client().post(path, content=BODIES[name].encode(), headers=headers)
    assert answer.status_code < 500, answer.text

    def refuse(word: str) -> None:
        raise AssertionError(word)

    told = json.loads(answer.content.decode(), parse_constant=refuse)
    if answer.status_code < 300 and path == "/runs":
        run = house.get(f"/runs/{told['run_id']}")
        assert run["run_id"] == told["run_id"]
        assert house.get("/runs", limit=1)["count"] == 1


STRUCTURES: dict[str, dict[str, object]] = {
    "the kind of a step": {"workflow": {"type": "sequential", "steps": [{"id": "x", "kind": {"agent": 1}}]}},
    "the kind of a nested step": {"workflow": [{"id": "l", "kind": "loop", "steps": [{"id": "x", "kind": ["agent"]}]}]},
    "the name of a skill": {"agent": {"name": "helper", "skills": [{"a": 1}]}},
    "the type of a key": {
        "tools": {"paint": {"description": "Paints.", "a2a": {"url": "https://a.example", "keys": [{"kty": {}}]}}}
    },
}
"""Parts of specs that have another structure than their fields."""

WAYS = ("validate", "lint", "compile", "explain", "graph", "policy-report", "resolve", "migrate", "diff")


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_spec_of_another_structure_is_refused_with_a_finding(house: Bench, name: str) -> None:
    spec = {"agent": {"name": "helper"}, **STRUCTURES[name]}
    for way in WAYS:
        body: dict[str, object] = {"spec": spec}
        if way == "diff":
            body = {"before": {"spec": spec}, "after": {"spec": spec}}
        answer = house.client().post(f"/specs/{way}", json=body)
        assert answer.status_code in {200, 400}, (way, answer.text)
    findings = house.post("/specs/lint", {"spec": spec})
    assert findings["error_count"] >= 1
    assert all(item["code"].startswith(("E_", "W_", "I_")) for item in findings["diagnostics"])
    change = {"add": ["a"], "disable": ["b"]}
    started = house.client().post("/runs", json={"input": "x", "spec": spec, "skills": change})
    assert (started.status_code, started.json()["error"]) == (400, "spec_invalid")


NUL = {
    "an input": ("POST", "/runs", {"input": "a\0b", "spec": spec_of(DRAFT)}),
    "an environment": ("POST", "/runs", {"input": "x", "bundle": "b", "environment": "a\0b"}),
    "a comment": ("POST", "/human-tasks/{task}/comments", {"text": "a\0b"}),
    "an assignee": ("POST", "/human-tasks/{task}/delegate", {"to": "a\0b"}),
    "a run that is looked for": ("GET", "/runs/a%00b", None),
    "a filter": ("GET", "/runs?environment=a%00b", None),
    "a search": ("GET", "/runs?q=a%00b", None),
    "a filter of tasks": ("GET", "/human-tasks?assignee=a%00b", None),
    "an event type": ("GET", "/audit-events?event_type=a%00b", None),
}


LONG = {
    "the name of a workflow": ("POST", "/runs", {"input": "x", "spec": spec_of(DRAFT, name="n" * 300)}),
    "an environment": ("POST", "/runs", {"input": "x", "bundle": "b", "environment": "n" * 300}),
    "a session": ("POST", "/runs", {"input": "x", "spec": spec_of(DRAFT), "session_id": "n" * 300}),
    "a person": ("POST", "/human-tasks/{task}/delegate", {"to": "n" * 300}),
    "a policy's environment": ("PUT", f"/policies/environment/{'n' * 300}", {"require_guardrails": True}),
    "a run that is looked for": ("GET", f"/runs/{'n' * 300}", None),
    "a task that is looked for": ("GET", f"/human-tasks/{'n' * 300}", None),
    "a filter of tasks": ("GET", f"/human-tasks?assignee={'n' * 300}", None),
}


def test_a_long_name_is_answered_alike_on_both_databases(tmp_path: Path, postgres_url: str) -> None:
    told = []
    for folder, url in ((tmp_path / "lite", f"sqlite:///{tmp_path / 'kneo.sqlite'}"), (tmp_path / "pg", postgres_url)):
        with serving(folder, url) as house:
            task = house.paused()["continuation_id"]
            runs = house.get("/runs")["total"]
            answers = [
                house.ask(method, path.format(task=task), body, role="admin") for method, path, body in LONG.values()
            ]
            assert house.get("/runs")["total"] == runs
            told.append(
                {name: (one.status_code, one.json().get("error")) for name, one in zip(LONG, answers, strict=True)}
            )
    assert told[0] == told[1]
    assert told[0]["the name of a workflow"] == (400, "unstorable_value")
    assert told[0]["a run that is looked for"][0] == 404
    assert {name for name, (status, _) in told[0].items() if not 400 <= status < 500} <= {"a filter of tasks"}


def test_a_nul_is_answered_alike_on_both_databases(tmp_path: Path, postgres_url: str) -> None:
    told = []
    for folder, url in ((tmp_path / "lite", f"sqlite:///{tmp_path / 'kneo.sqlite'}"), (tmp_path / "pg", postgres_url)):
        with serving(folder, url) as house:
            task = house.paused()["continuation_id"]
            answers = [
                house.ask(method, path.format(task=task), body, role="admin") for method, path, body in NUL.values()
            ]
            told.append(
                {name: (one.status_code, one.json().get("error")) for name, one in zip(NUL, answers, strict=True)}
            )
            held = house.get(f"/human-tasks/{task}")["status"]
            assert held == "open"
    assert told[0] == told[1]
    assert told[0]["an input"] == (400, "unstorable_value")
    assert told[0]["a run that is looked for"] == (400, "unstorable_value")
    assert {name for name, (status, _) in told[0].items() if status not in {400, 404, 422}} <= {"a comment"}


ENVIRONMENTS = {
    "nothing": "",
    "too long": "a" * 129,
    "a line break": "pr\nod",
    "the other direction": "prod\u202e",
    "a space at the end": "prod ",
    "no width": "prod\u200b",
    "full width": "\uff50rod",
    "mixed scripts": "\u0440rod",
    "a command of terminals": "prod\x1b[2J",
}


@pytest.mark.parametrize("name", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_an_environment_has_one_spelling(house: Bench, name: str) -> None:
    """A name that looks like another one has no policy, and says ``prod`` in every list."""
    client = house.client()
    for path in ("/runs", "/specs/validate"):
        body = {"spec": spec_of(DRAFT), "environment": name} | ({"input": "x"} if path == "/runs" else {})
        assert client.post(path, json=body).status_code == 422
    if name:
        assert client.put(f"/policies/environment/{quote(name, safe='')}", json={}).status_code == 422
    assert client.post("/runs", json={"input": "x", "spec": spec_of(DRAFT), "environment": "Team 7"}).status_code == 200


@pytest.mark.parametrize("name", ["a\nb", "a\u202eb", "a\x1b[2J", " "])
def test_a_session_has_a_name_that_can_be_read(house: Bench, name: str) -> None:
    body = {"input": "x", "spec": spec_of(DRAFT), "session_id": name}
    answer = house.client().post("/runs", json=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_name")
    assert house.client().post("/runs", json=body | {"session_id": "chat 7/b"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"decision": "rejected", "request_id": null, "decision": "approved"}', "'decision' is written twice"),
        (b'{"decision": "provided", "content": [1e999]}', "too large"),
        (b'{"decision": "provided", "content": ' + b"9" * 400 + b".0}", "too large"),
    ],
)
def test_a_body_that_readers_understand_differently_decides_nothing(house: Bench, body: bytes, why: str) -> None:
    run = house.paused()
    task = run["continuation_id"]
    link = house.post(f"/human-tasks/{task}/links")["path"]
    for path in (f"/human-tasks/{task}/resume", f"{house.url}{link}"):
        answer = house.client().post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}, (path, answer.text)
        assert why in answer.json()["message"], (path, answer.text)
    assert house.get(f"/human-tasks/{task}")["status"] == "open"
