"""What rules of access and quotas mean for requests that are under way, and what the audit log has of refused ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from config_repo import ConfigRepo, announcement
from console_pages import signed_in
from kneo_process import eventually
from service_bench import APPROVE, DRAFT, Bench, serving, spec_of
from sqlalchemy import select

from kneo.cli.serve.controller import Repository, make_controller
from kneo.clock import monotonic
from kneo.errors import Transient
from kneo.runtime.engine.assemble import make_driver
from kneo.service import hidden_reads
from kneo.service.hidden_reads import HiddenReads
from kneo.store import audit, runs
from kneo.store.engine import Store
from kneo.store.tables import task_events

NARROWED_SECONDS = 2.0


class Team:
    """A service without a worker, whose runs do not end, and the config repository of its environment."""

    def __init__(self, bench: Bench, repo: ConfigRepo) -> None:
        self.bench = bench
        self.repo = repo

    def declare(self, *rules: object, accept: bool = True, **more: object) -> None:
        """Write the environment's file with rules of access, and let the controller accept it."""
        self.repo.environment("prod", {"mail": "1.0.0"}, inlineSpecs=True, access=list(rules), **more)
        self.repo.commit("Declare")
        source = Repository(str(self.repo.folder), "main", self.repo.pin, timedelta(seconds=60))
        if accept:
            make_controller(self.bench.settings, self.bench.store, source).run_once()

    def start(self, **body: object) -> str:
        body = {"environment": "prod", "async_mode": True, **body}
        return str(self.bench.start(spec_of(DRAFT, APPROVE), role="admin", expect=202, **body)["run_id"])

    def drive(self, run_id: str) -> None:
        asyncio.run(make_driver(self.bench.settings, self.bench.store).drive(run_id))


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def team(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Team]:
    repo = ConfigRepo(tmp_path / "repo", environments=())
    repo.bundle("mail", "1.0.0", announcement(targets=["workflow", "agent"]), environments=("prod", "hidden-one"))
    with serving(tmp_path / "service", request.getfixturevalue(request.param), workers=0) as bench:
        yield Team(bench, repo)


def rule(may: str, **who: object) -> dict[str, object]:
    return {"who": who, "may": [may]}


def test_who_reads_without_a_scope_is_forbidden_and_who_does_not_read_finds_nothing(team: Team) -> None:
    team.declare(rule("viewer", roles=["operator"]))
    cancel = f"/runs/{team.start()}/cancel"
    refused = team.bench.post(cancel, role="operator", expect=403)
    assert (refused["required_scope"], refused["environment"]) == ("runs:write", "prod")
    assert team.bench.post(cancel, role="service", expect=404)["error"] == "not_found"
    assert team.bench.post(cancel, role="admin")["status"] == "cancelled", "admin is implied"


def test_an_administrator_is_limited_like_everyone_where_the_file_says_so(team: Team) -> None:
    approvals = {"required": 1, "roles": ["approver"]}
    team.declare()
    run = team.start()
    team.declare(approvals=approvals)
    team.declare(admins=False, approvals=approvals)
    assert team.bench.get(f"/runs/{run}", expect=404)["error"] == "not_found"
    assert team.bench.get("/environments/prod", expect=404)["error"] == "environment_not_found"
    assert team.bench.get("/environments")["environments"] == []
    for more in ({"rules": [rule("admin", users=["admin"])], "admins": False}, {"rules": [], "admins": True}):
        team.declare(*more["rules"], admins=more["admins"], approvals=approvals)
        assert team.bench.get("/environments")["environments"] == [], "break-glass waits for approval"


def test_because_names_the_line_of_the_rule_that_gives_a_scope_by_group_role_or_name(team: Team) -> None:
    rules = (
        rule("viewer", groups=["readers"]),
        rule("operator", roles=["service"]),
        rule("runs:read", users=["auditor"]),
    )
    team.declare(*rules, people={"viewer": {"groups": ["readers"]}})
    lines = (team.repo.folder / "environments/prod.yaml").read_text().splitlines()
    places = [number for number, line in enumerate(lines, 1) if line.strip().startswith("- who")]
    for who, place, given in zip(
        ("viewer", "service", "auditor"), places, ("viewer", "operator", "runs:read"), strict=True
    ):
        (found,) = team.bench.get("/environments/prod/access", who=who, scope="runs:read")["scopes"]
        assert found["because"] == f"environments/prod.yaml:{place} gives {given}, and the role {who} has runs:read."
    (refused,) = team.bench.get("/environments/prod/access", who="auditor", scope="audit:read")["scopes"]
    assert (refused["allowed"], refused["because"]) == (
        False,
        "No rule of access in environments/prod.yaml gives audit:read to auditor.",
    )


def test_a_run_stream_a_stream_of_a_protocol_and_a_signed_in_person_lose_access_within_two_seconds(team: Team) -> None:
    mine = rule("admin", users=["operator"])
    team.declare(mine, protocols={"a2a": ["*"]})
    run = team.start()
    browser = signed_in(team.bench.url, "operator").client
    assert browser.get(f"/console/runs/{run}").status_code == 200
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "x"}]}
    ask = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": {"message": message}}
    client = team.bench.client("operator")
    with (
        team.bench.stream(f"/runs/{run}/events", role="operator") as events,
        client.stream("POST", "/a2a/prod/mail", json=ask, headers={"A2A-Version": "1.0"}) as calls,
    ):
        assert calls.status_code == 200, calls.read()
        lines = calls.iter_lines()
        next(events), next(lines)
        team.declare(protocols={"a2a": ["*"]})
        begun = monotonic()
        rest = list(events)
        assert (rest[-1].name, rest[-1].data) == ("end", {"error": "environment_not_found"})
        assert "error" in "".join(lines)
        assert browser.get(f"/console/runs/{run}").status_code == 404
        assert browser.get("/console/environments/prod").status_code == 404
        assert monotonic() - begun < NARROWED_SECONDS


def test_a_stream_of_tasks_names_no_event_of_an_environment_without_access(team: Team) -> None:
    team.declare(rule("admin", users=["operator"]))

    def first_id(role: str) -> str:
        with team.bench.client(role).stream("GET", "/human-tasks/stream") as answer:
            return next(line.removeprefix("id: ") for line in answer.iter_lines() if line.startswith("id:"))

    assert (first_id("operator"), first_id("viewer")) == ("0", "0")
    team.drive(team.start())
    with team.bench.store.read() as tx:
        newest = str(
            tx.connection.execute(select(task_events.c.id).order_by(task_events.c.id.desc())).scalars().first()
        )
    assert (first_id("operator"), first_id("viewer")) == (newest, "0")
    headers = {"Last-Event-ID": newest}
    hidden = team.bench.client("viewer").get("/human-tasks/stream", headers=headers)
    made_up = team.bench.client("viewer").get("/human-tasks/stream", headers={"Last-Event-ID": "evt_made_up"})
    assert (hidden.status_code, hidden.json()["error"]) == (409, "unknown_event")
    assert hidden.text.replace(newest, "evt_made_up") == made_up.text


def test_a_run_beyond_the_queue_is_refused_and_running_ones_do_not_count(team: Team) -> None:
    team.declare(quotas={"queued": 1})
    first = team.start()
    with team.bench.store.write() as tx:
        assert runs.acquire(tx, first, "claim_1") is not None
    team.start()
    body = {"input": "hi", "spec": spec_of(DRAFT), "environment": "prod", "async_mode": True}
    refused = team.bench.ask("POST", "/runs", body)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    answer = refused.json()
    assert (answer["error"], answer["quota"], answer["limit"], answer["environment"]) == (
        "quota_exceeded",
        "queued",
        1,
        "prod",
    )


def test_a_refusal_for_a_missing_scope_counts_as_a_request_about_the_environment(team: Team) -> None:
    team.declare(rule("viewer", roles=["operator"]), quotas={"requests_per_minute": 2})
    cancel = f"/runs/{team.start()}/cancel"
    codes = [team.bench.ask("POST", cancel, {}, role="operator").status_code for _ in range(3)]
    # The start counts too, by the administrator; a minute may end between two requests.
    assert codes in ([403, 429, 429], [403, 403, 429], [403, 429, 403])


def refusals(store: Store) -> list[tuple[str | None, object]]:
    with store.read() as tx:
        found = audit.events(tx, event_type="access.refused", limit=50)
    return [(each.event.actor, each.event.metadata["count"]) for each in found]


def test_refused_reads_are_one_event_after_a_minute(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hidden_reads.WINDOW_SECONDS <= 60, "the log has the count within 75 s"
    monkeypatch.setattr(hidden_reads, "WINDOW_SECONDS", 1.0)
    team.declare()
    for _ in range(30):
        team.bench.get("/environments/prod", role="viewer", expect=404)
        team.bench.get("/environments/no-such-one", role="viewer", expect=404)
    counted = eventually(lambda: sum(int(str(count)) for _, count in refusals(team.bench.store)) == 30)
    assert counted
    assert len(refusals(team.bench.store)) <= 10


def test_refused_reads_are_recorded_at_the_end_of_the_service(tmp_path: Path, sqlite_url: str) -> None:
    repo = ConfigRepo(tmp_path / "repo", environments=())
    repo.bundle("mail", "1.0.0", announcement(), environments=("prod",))
    with serving(tmp_path / "service", sqlite_url, workers=0) as bench:
        team = Team(bench, repo)
        team.declare()
        bench.get("/environments/prod", role="viewer", expect=404)
        assert refusals(bench.store) == []
        settings = bench.settings
    with serving(tmp_path / "service", sqlite_url, workers=0) as bench:
        assert bench.settings.database_url == settings.database_url
        assert refusals(bench.store) == [("viewer", 1)]


def test_counts_of_refused_reads_outlast_a_database_that_is_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = HiddenReads(store)
    reads.count("viewer", "prod")

    def away(*_: object, **__: object) -> None:
        raise Transient("The database is away.")

    with monkeypatch.context() as patched:
        patched.setattr(audit, "record", away)
        reads.record()
    reads.count("viewer", "prod")
    reads.record()
    assert refusals(store) == [("viewer", 2)]


def test_a_bundle_of_two_environments_names_only_the_one_that_the_caller_reads(team: Team) -> None:
    team.declare(rule("viewer", users=["viewer"]))
    team.repo.environment("hidden-one", {"mail": "1.0.0"}, access=[])
    team.declare(rule("viewer", users=["viewer"]))
    whole = team.bench.get("/bundles/mail")
    assert "hidden-one" in json.dumps(whole)
    assert "hidden-one" not in json.dumps(team.bench.get("/bundles/mail", role="viewer"))
    assert team.bench.get("/bundles/mail", role="auditor", expect=404)["error"] == "bundle_not_found"
