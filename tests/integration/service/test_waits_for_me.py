"""The inbox of a person: human tasks and pending changes together, and whether the person may decide each of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from config_repo import ConfigRepo
from service_bench import DRAFT, PUBLISH, Bench, Json, serving, spec_of

from kneo.cli.serve.controller import Repository, make_controller

PEOPLE = {"approver": {"groups": ["editors"], "roles": ["approver"]}, "viewer": {"roles": ["approver"]}}


@pytest.fixture(scope="module")
def bench(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A service with two open tasks, and a change of prod that waits for an approval."""
    folder = tmp_path_factory.mktemp("inbox")
    repo = ConfigRepo(folder / "repo")
    repo.release("dev", "announcement", "1.0.0")
    repo.environment("prod", {"announcement": "1.0.0"}, people=PEOPLE, approvals={"required": 1, "roles": ["approver"]})
    repo.commit("Release to prod")
    with serving(folder / "house", database_of_module) as made:
        source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
        make_controller(made.settings, made.store, source).run_once()
        for name, more in (("late", {"timeout_seconds": 7200}), ("soon", {"timeout_seconds": 3600}), ("never", {})):
            human = {"prompt": f"Publish {name}?", "candidates": {"exclude": ["operator"]}, **more}
            flow = spec_of(
                DRAFT, {"id": "ask", "kind": "human", "ref": "editor"}, PUBLISH, name=name, humans={"editor": human}
            )
            made.start(flow, environment="dev")
        yield made


def inbox(bench: Bench, role: str, **query: object) -> Json:
    return bench.get("/inbox", role=role, **query)


def test_what_waits_for_a_person_is_one_list_with_its_number(bench: Bench) -> None:
    mine = inbox(bench, "approver")
    change, *asked = mine["items"]
    assert (change["kind"], change["environment"], change["bundle"]) == ("promotion", "prod", "announcement")
    assert change["who"] == ["approver", "viewer"]
    # On PostgreSQL the operator sets the key with which the service signs decisions; here it is missing.
    assert change["may_answer"]["code"] == (None if bench.store.is_sqlite else "no_service_key")
    assert [item["prompt"] for item in asked] == ["Publish soon?", "Publish late?", "Publish never?"]
    assert (mine["count"], bench.get("/inbox/count", role="approver")["count"]) == (4, 4)
    assert all(item["may_answer"] == {"ok": True, "reason": None, "code": None, "signature": False} for item in asked)


def test_a_list_goes_on_after_its_last_task(bench: Bench) -> None:
    first = inbox(bench, "approver", limit=2)
    rest = inbox(bench, "approver", limit=2, after=first["next_after"])
    assert [item["kind"] for item in first["items"]] == ["promotion", "task", "task"]
    assert [item["prompt"] for item in rest["items"]] == ["Publish never?"]
    assert (rest["count"], rest["next_after"]) == (4, None)


def test_nothing_waits_for_a_person_who_may_not_decide(bench: Bench) -> None:
    """The environment names ``viewer`` as an approver, but the key has no right to decide."""
    found = inbox(bench, "viewer")
    assert (found["items"], found["count"], found["next_after"]) == ([], 0, None)
    assert str(found["note"]).startswith("viewer decides neither tasks nor releases")
    change, *asked = inbox(bench, "viewer", show="all")["items"]
    assert change["may_answer"]["code"] == "forbidden"
    assert {item["may_answer"]["code"] for item in asked} == {"forbidden"}
    assert inbox(bench, "service")["count"] == 3


def test_an_excluded_person_reads_why(bench: Bench) -> None:
    assert inbox(bench, "operator")["items"] == []
    task = inbox(bench, "approver")["items"][1]["id"]
    found = bench.get(f"/human-tasks/{task}", role="service")["may_answer"]
    assert found["ok"]
    refused = bench.get(f"/human-tasks/{task}", role="operator")["may_answer"]
    assert (refused["ok"], refused["code"]) == (False, "forbidden")
    admin = bench.get(f"/human-tasks/{task}", role="admin")["may_answer"]
    assert admin["ok"]


def test_a_claimed_and_a_decided_task_say_so(bench: Bench) -> None:
    task = inbox(bench, "approver")["items"][-1]["id"]
    bench.post(f"/human-tasks/{task}/claim", role="reviewer")
    found = bench.get(f"/human-tasks/{task}", role="approver")["may_answer"]
    assert (found["ok"], found["code"], found["reason"]) == (
        False,
        "claimed_by_other",
        f"reviewer is working on {task}.",
    )
    bench.post(f"/human-tasks/{task}/resume", {"decision": "approved"}, role="reviewer")
    assert bench.get(f"/human-tasks/{task}", role="reviewer")["may_answer"]["code"] == "human_task_decided"
    assert task not in {item["id"] for item in inbox(bench, "approver", show="all")["items"]}
    decided = inbox(bench, "viewer", show="decided")["items"]
    assert [(item["id"], item["decision"], item["decided_by"]) for item in decided] == [(task, "approved", "reviewer")]


def test_a_person_reads_who_they_are_in_each_environment(bench: Bench) -> None:
    me = bench.get("/me", role="approver")
    assert (me["name"], "releases:decide" in me["scopes"]) == ("approver", True)
    assert me["environments"] == [
        {"environment": "dev", "groups": [], "roles": [], "approver": False},
        {"environment": "prod", "groups": ["editors"], "roles": ["approver"], "approver": True},
    ]
    assert bench.ask("GET", "/me", headers={"Authorization": "Bearer nobody"}).status_code == 401
