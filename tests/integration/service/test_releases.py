"""What the service tells and lets run once a controller has brought a commit into force."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from config_repo import ConfigRepo, announcement
from console_pages import Browser, signed_in
from service_bench import Bench, serving

from kneo.cli.serve.controller import Repository, make_controller


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A service over a registry that serves one bundle, which declares a skill."""
    folder = tmp_path_factory.mktemp("releases")
    repo = ConfigRepo(folder / "repo")
    spec = announcement()
    spec["skills"] = {"briefing": {"content": "Be brief.", "description": "How to be brief."}}
    spec["agent"] = {**spec["agent"], "skills": ["briefing"]}
    repo.release("prod", "skilled", "1.0.0", spec)
    repo.release("dev", "both", "1.0.0", {**spec, "targets": ["workflow", "agent"]})
    repo.environment("strict", {}, inlineSpecs=True, tools={"mcp": {"pinned": True}})
    repo.commit("Insist on pins")
    with serving(folder / "house", f"sqlite:///{folder / 'house' / 'kneo.sqlite'}", workers=0) as made:
        source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
        outcome = make_controller(made.settings, made.store, source).run_once()
        assert outcome.outcomes["prod"].state == "Ready", outcome
        yield made


def test_skills_of_served_bundles_are_listed_with_the_agents_that_have_them(house: Bench) -> None:
    (skill,) = house.get("/skills", role="viewer")["skills"]
    assert (skill["name"], skill["description"]) == ("briefing", "How to be brief.")
    (where,) = [one for one in skill["bundles"] if one["bundle"] == "skilled"]
    assert (where["bundle"], where["version"], where["environment"]) == ("skilled", "1.0.0", "prod")
    assert where["agents"]


def test_once_an_environment_is_declared_a_spec_in_a_request_is_refused_there(house: Bench) -> None:
    refused = house.start(environment="prod", expect=403)
    assert (refused["error"], refused["approved"]) == ("bundle_not_approved", ["skilled@1.0.0"])


def test_a_policy_set_here_holds_for_what_git_has_released(house: Bench) -> None:
    order = {"input": "x", "bundle": "skilled", "environment": "prod", "async_mode": True}
    assert house.post("/runs", order, role="operator", expect=202)["metadata"]["release"]["bundle"] == "skilled"
    path = "/policies/environment/prod"
    effective = house.ask("PUT", path, {"require_guardrails": True}, role="operator").json()["effective"]
    assert effective["require_guardrails"]
    refused = house.post("/runs", order, role="operator", expect=403)
    assert refused["error"] == "environment_policy_blocked"
    house.ask("PUT", path, {"enabled": False}, role="operator")
    house.post("/runs", order, role="operator", expect=202)


def test_a_released_workflow_is_not_passed_by_with_its_root_agent(house: Bench) -> None:
    order = {"input": "x", "bundle": "skilled", "environment": "prod", "async_mode": True, "target": "agent"}
    refused = house.post("/runs", order, role="operator", expect=403)
    assert refused["error"] == "target_not_allowed"
    assert "skilled@1.0.0" in refused["message"]
    allowed = {**order, "bundle": "both", "environment": "dev"}
    assert house.post("/runs", allowed, role="operator", expect=202)["run_id"]
    house.post("/runs", {**allowed, "target": "workflow"}, role="operator", expect=202)
    house.ask("PUT", "/policies/environment/dev", {"require_human_review": True}, role="operator")
    refused = house.post("/runs", allowed, role="operator", expect=403)
    assert refused["error"] == "environment_policy_blocked"
    own = {"input": "x", "spec": announcement(), "environment": "dev", "async_mode": True}
    assert house.post("/runs", {**own, "target": "agent"}, role="operator", expect=403)["error"] == refused["error"]
    house.post("/runs", own, role="operator", expect=202)


def test_an_environment_that_insists_on_pins_starts_nothing_without(house: Bench) -> None:
    servers = {"crm": {"transport": "stdio", "command": "/usr/bin/crm-mcp"}}
    pinned = {"server": "crm", "pin": {"description": "Finds.", "schema_digest": f"sha256:{'0' * 64}"}}
    for reference, expect in (({"server": "crm"}, 403), (pinned, 202)):
        tools = {"find": {"description": "Finds people.", "mcp": reference}}
        spec = {**announcement(), "tools": tools, "mcp_servers": servers}
        order = {"input": "x", "spec": spec, "environment": "strict", "async_mode": True}
        answer = house.post("/runs", order, role="operator", expect=expect)
        assert expect == 202 or (answer["error"], "--pin-tools" in answer["hint"]) == (
            "environment_policy_blocked",
            True,
        )


def test_the_console_leads_from_a_run_to_the_commit_and_the_signers(house: Bench) -> None:
    order = {"input": "x", "bundle": "both", "environment": "dev", "async_mode": True, "target": "workflow"}
    run = house.post("/runs", order, role="admin", expect=202)["run_id"]
    browser = signed_in(house.url, "auditor")
    try:
        page = browser.get(f"/console/runs/{run}")
        assert "both 1.0.0" in page.text
        assert f"/console/trace/{run}" in page.links
        digest = house.get(f"/trace/{run}")["digest"]
        for reference in (run, digest):
            traced = browser.get(f"/console/trace/{reference}")
            assert "Signed by ann" in traced.text
            assert "kneo spec bundle verify bundles/both/1.0.0.dsse.json --trust environments/trust.json" in traced.text
            assert "git verify-commit" in traced.text
        found = browser.client.get(f"/console/find?q={digest}")
        assert found.headers["location"] == f"/console/trace/{digest}"
        found = browser.client.get("/console/find?q=both")
        assert found.headers["location"] == f"/console/trace/{digest}"
        listed = browser.get("/console/runs?environment=dev&bundle=both")
        assert run in [one["data-run"] for one in listed.having("data-run")]
        assert "release.promoted" in browser.get("/console/audit?environment=dev").text
    finally:
        Browser.close_all()
