"""Every route of the published contract is there, under both of its paths, for those who may ask for it."""

from __future__ import annotations

from typing import NamedTuple

import httpx
import pytest
from service_bench import APPROVE, DRAFT, PUBLISH, Bench, spec_of

from kneo.errors import Transient
from kneo.service.app import routers
from kneo.service.routing import RouteTable
from kneo.store import audit
from kneo.store.engine import Tx

OPERATIONS = RouteTable(routers())


class Row(NamedTuple):
    method: str
    path: str
    scopes: tuple[str, ...]
    query: tuple[str, ...] = ()


PAGE = ("limit", "offset", "sort_by", "sort_order")

CONTRACT = (
    Row("GET", "/healthz", ()),
    Row("GET", "/livez", ()),
    Row("GET", "/readyz", ()),
    Row("POST", "/runs", ("runs:write",)),
    Row(
        "GET",
        "/runs",
        ("runs:read",),
        (
            *PAGE,
            "status",
            "workflow_kind",
            "workflow_name",
            "session_id",
            "has_error",
            "created_after",
            "created_before",
            "q",
        ),
    ),
    Row("GET", "/runs/{run_id}", ("runs:read",)),
    Row("GET", "/runs/{run_id}/policy-report", ("runs:read",)),
    Row("POST", "/runs/{run_id}/cancel", ("runs:write",)),
    Row("GET", "/runs/{run_id}/recovery", ("runs:read",)),
    Row("GET", "/runs/{run_id}/replay", ("runs:read",)),
    Row("POST", "/runs/{run_id}/continue", ("runs:write",)),
    Row("GET", "/runs/{run_id}/checkpoints", ("runs:read",), (*PAGE, "type")),
    Row("GET", "/runs/{run_id}/checkpoints/diff", ("runs:read",), ("from_sequence", "to_sequence")),
    Row("GET", "/runs/{run_id}/trace", ("runs:read",), (*PAGE, "event_type")),
    Row("GET", "/runs/{run_id}/graph", ("runs:read",)),
    Row("POST", "/specs/validate", ("specs:read",)),
    Row("POST", "/specs/compile", ("specs:read",)),
    Row("POST", "/specs/explain", ("specs:read",)),
    Row("POST", "/specs/policy-report", ("specs:read",)),
    Row("POST", "/specs/graph", ("specs:read",)),
    Row("POST", "/specs/run", ("runs:write",)),
    Row("GET", "/skills", ("specs:read",), PAGE),
    Row("GET", "/human-tasks", ("human:read",), ("run_id", "status", "limit", "offset", "sort_order")),
    Row("GET", "/human-tasks/{continuation_id}", ("human:read",)),
    Row("POST", "/human-tasks/{continuation_id}/resume", ("human:write",)),
    Row("POST", "/continuations/{continuation_id}/resume", ("human:write",)),
    Row("GET", "/audit-events", ("audit:read",), (*PAGE, "event_type", "run_id")),
    Row(
        "GET",
        "/security/credentials",
        ("credentials:read",),
        ("providers", "extras", "include_service_tokens"),
    ),
    Row("GET", "/policies/environment", ("policies:read",)),
    Row("GET", "/policies/environment/{environment}", ("policies:read",)),
    Row("PUT", "/policies/environment/{environment}", ("policies:write",)),
    Row("POST", "/policies/environment/{environment}/preview", ("policies:read",)),
    # Those of the config repository's interface.
    Row("GET", "/environments", ("releases:read",)),
    Row("GET", "/environments/{name}", ("releases:read",)),
    Row("GET", "/environments/{name}/plan", ("releases:read",), ("ref",)),
    Row("GET", "/plan", ("releases:read",), ("ref",)),
    Row("GET", "/environments/{name}/history", ("releases:read",)),
    Row("GET", "/environments/{name}/why/{bundle}", ("releases:read",)),
    Row("GET", "/trace/{reference}", ("releases:read", "runs:read")),
    Row("POST", "/environments/{name}/reconcile", ("releases:operate",)),
    Row("POST", "/environments/{name}/suspend", ("releases:operate",)),
    Row("POST", "/environments/{name}/unsuspend", ("releases:operate",)),
    Row("GET", "/bundles", ("specs:read",)),
    Row("GET", "/bundles/{name}", ("specs:read",)),
    Row("GET", "/bundles/{name}/{version}", ("specs:read",)),
    Row("GET", "/promotions", ("releases:read",)),
    Row("POST", "/promotions/{promotion_id}/approve", ("releases:decide",)),
    Row("POST", "/promotions/{promotion_id}/reject", ("releases:decide",)),
    Row("GET", "/promotions/{promotion_id}/receipts", ("releases:read", "receipts:read")),
    Row("GET", "/approvals/{approval_id}/receipt", ("releases:read", "receipts:read")),
    Row("POST", "/environments/{name}/rollback", ("releases:operate",)),
    Row("POST", "/environments/{name}/hold", ("releases:operate",)),
    Row("POST", "/environments/{name}/unhold", ("releases:operate",)),
    Row("POST", "/hooks/{provider}", ()),
    Row("GET", "/source", ("releases:read",)),
    Row("POST", "/source/accept-rewrite", ("releases:decide",)),
    Row("GET", "/human-tasks/{continuation_id}/receipt", ("receipts:read",)),
    Row("GET", "/runs/{run_id}/receipts", ("receipts:read",)),
    Row("GET", "/receipts/key", ("receipts:read",)),
    Row("POST", "/receipts/verify", ("receipts:read",)),
    Row("GET", "/audit/checkpoint", ("audit:read",)),
    Row("GET", "/audit/proof", ("audit:read",), ("seq",)),
)


def test_every_row_is_an_operation_with_its_scopes_and_parameters() -> None:
    wrong = []
    for row in CONTRACT:
        found = next((each for each in OPERATIONS if (each.method, each.template) == (row.method, row.path)), None)
        if found is None:
            wrong.append(f"{row.method} {row.path} is missing")
        elif {need.scope for need in found.required} != set(row.scopes):
            wrong.append(f"{row.method} {row.path} needs {[need.scope for need in found.required]}")
        elif not set(row.query) <= found.query:
            wrong.append(f"{row.method} {row.path} does not know {set(row.query) - found.query}")
    assert wrong == []


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_every_row_answers_under_both_paths(bench: Bench, prefix: str) -> None:
    for row in CONTRACT:
        path = row.path
        for name in ("run_id", "continuation_id", "environment", "name", "bundle", "reference", "version"):
            path = path.replace("{" + name + "}", "nope")
        path = path.replace("{provider}", "github").replace("{promotion_id}", "nope")
        answer = httpx.request(row.method, f"{bench.url}{prefix}{path}", timeout=240)
        wanted = {401} if row.scopes else {200} if row.method == "GET" else {404}
        assert answer.status_code in wanted, (row, answer.text)
        if answer.status_code == 404:
            assert answer.json()["error"] == "hook_not_found"


# ---- specs --------------------------------------------------------------------------------------------------------

BROKEN = spec_of({"id": "publish", "kind": "function", "ref": "nowhere"})


def test_a_spec_is_validated_with_its_findings(bench: Bench) -> None:
    good = bench.post("/specs/validate", {"spec": spec_of(DRAFT)}, role="viewer")
    assert (good["valid"], good["report"]) == (True, {"agent_name": "helper", "workflow_name": "lab"})
    bad = bench.post("/specs/validate", {"spec": BROKEN}, role="viewer")
    assert not bad["valid"]
    found = next(item for item in bad["diagnostics"] if item["code"] == "E_STEP_FUNCTION_REF")
    assert (found["path"], found["severity"]) == ("workflow.steps[0].ref", "error")


def test_validating_imports_nothing(bench: Bench) -> None:
    (bench.folder / "marked.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    functions = {"functions": {"publish": {"implementation": "marked.publish"}}}
    for verb in ("validate", "compile", "explain", "graph", "policy-report", "lint", "resolve"):
        bench.ask("POST", f"/specs/{verb}", {"spec": spec_of(PUBLISH, **functions)}, role="viewer")
    assert not (bench.folder / "ran").exists()


def test_compiling_refuses_what_cannot_be_used_unless_told_otherwise(bench: Bench) -> None:
    good = bench.post("/specs/compile", {"spec": spec_of(DRAFT)}, role="viewer")
    summary = {"has_root_agent": True, "has_root_workflow": True, "component_agents": ["writer"]}
    assert (good["ok"], good["summary"]) == (True, summary)
    bad = bench.post("/specs/compile", {"spec": BROKEN}, role="viewer", expect=400)
    assert (bad["error"], bad["diagnostics"][0]["severity"]) == ("spec_invalid", "error")
    lenient = bench.post("/specs/compile", {"spec": BROKEN, "strict": False}, role="viewer")
    assert not lenient["ok"]


def test_a_spec_is_explained_drawn_and_reported(bench: Bench) -> None:
    body = {"spec": spec_of(DRAFT, APPROVE, PUBLISH)}
    told = bench.post("/specs/explain", body, role="viewer")
    assert told["summary"] == {"root_agent": "helper", "root_workflow": "lab", "component_agents": ["writer"]}
    drawn = bench.post("/specs/graph", body, role="viewer")
    assert [node["id"] for node in drawn["nodes"]] == ["draft", "approve", "publish"]
    assert drawn["edges"][0] | {"conditional": False} == drawn["edges"][0]
    report = bench.post("/specs/policy-report", body, role="viewer")
    assert report["valid"] is report["report"]["valid"] is True
    assert report["report"]["human_review"]["reviewers"] == ["editor"]


def test_overlays_and_overrides_are_laid_over_a_spec_in_order(bench: Bench) -> None:
    (bench.folder / "over.yaml").write_text("agent: {name: overlaid}\nworkflow: {name: overlaid}\n")
    body = {"spec": spec_of(DRAFT), "overlays": ["over.yaml"], "overrides": {"workflow": {"name": "overridden"}}}
    names = bench.post("/specs/validate", body, role="viewer")["report"]
    assert names == {"agent_name": "overlaid", "workflow_name": "overridden"}
    run = bench.start(**{key: body[key] for key in ("overlays", "overrides")})
    assert bench.get(f"/runs/{run['run_id']}")["workflow_name"] == "overridden"
    told = bench.get("/audit-events", run_id=run["run_id"], event_type="run.created")["events"][0]
    assert told["metadata"]["overrides_digest"].startswith("sha256:")
    assert "overridden" not in str(told["metadata"]), "what was overridden is content"


@pytest.mark.parametrize("path", ["../outside.yaml", "/etc/passwd", "nowhere.yaml", "a\0b", "x" * 3000, "link.yaml"])
def test_no_path_leads_out_of_the_spec_root(bench: Bench, path: str) -> None:
    (bench.folder.parent / "outside.yaml").write_text("version: v1\n")
    link = bench.folder / "link.yaml"
    if not link.is_symlink():
        link.symlink_to(bench.folder.parent / "outside.yaml")
    for body in ({"spec_path": path}, {"spec": spec_of(DRAFT), "overlays": [path]}):
        refused = bench.post("/specs/validate", body, role="viewer", expect=422)
        assert refused["error"] == "spec_path_confined"
    assert bench.post("/runs", {"input": "x", "spec_path": path}, expect=422)["error"] == "spec_path_confined"


def test_files_beside_a_spec_are_taken_in_and_a_spec_in_a_request_has_none(bench: Bench) -> None:
    (bench.folder / "prompt.md").write_text("Be brief.")
    (bench.folder / "lab.yaml").write_text(
        "version: v1\nagent: {name: helper, model: {provider: dummy, name: dummy}, system_prompt: {file: prompt.md}}\n"
    )
    whole = bench.post("/specs/resolve", {"spec_path": "lab.yaml"}, role="viewer")
    assert whole["spec"]["agent"]["system_prompt"] == "Be brief."
    assert whole["digest"].startswith("sha256:")
    agent = {"name": "helper", "model": {"provider": "dummy", "name": "dummy"}, "system_prompt": {"file": "prompt.md"}}
    inline = bench.post("/specs/validate", {"spec": {"version": "v1", "agent": agent}}, role="viewer")
    assert [item["code"] for item in inline["diagnostics"] if item["severity"] == "error"] == ["E_FILE_REF"]


DUMMY = "{provider: dummy, name: dummy}"
KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHr0zUFBWNYqHYFGSbWqjnLJbmCjFCvCGGFKKnRhkcSD\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "path", [".env", ".git/config", ".kneo/notes.md", "x/../.env", "plain.md", "skills/.env", "./.env"]
)
def test_nothing_hidden_is_read_for_a_request(bench: Bench, path: str) -> None:
    for name in (".env", ".git/config", ".kneo/notes.md", "skills/.env"):
        (bench.folder / name).parent.mkdir(exist_ok=True)
        (bench.folder / name).write_text("version: v1\nDATABASE=hush-hush\n")
    if not (bench.folder / "plain.md").is_symlink():
        (bench.folder / "plain.md").symlink_to(".env")
    (bench.folder / "seen.yaml").write_text(f"version: v1\nagent: {{name: helper, model: {DUMMY}}}\n")
    laid = {"agent": {"system_prompt": {"file": path}}, "skills": {"s": {"source": path}}}
    for what in ("resolve", "validate", "compile", "explain"):
        answer = bench.ask("POST", f"/specs/{what}", {"spec_path": "seen.yaml", "overrides": laid}, role="viewer")
        assert "hush" not in answer.text
        for body in ({"spec_path": path}, {"spec": spec_of(DRAFT), "overlays": [path]}):
            refused = bench.post(f"/specs/{what}", body, role="viewer", expect=422)
            assert refused["error"] == "spec_path_confined"
            assert "hush" not in str(refused)


def test_a_skill_takes_in_no_hidden_file_of_its_folder(bench: Bench) -> None:
    (bench.folder / "able").mkdir(exist_ok=True)
    for name in ("SKILL.md", "more.md", ".env"):
        (bench.folder / "able" / name).write_text(f"This is {name}.")
    (bench.folder / "able.yaml").write_text(
        f"version: v1\nagent: {{name: helper, model: {DUMMY}}}\nskills: {{s: {{source: able}}}}\n"
    )
    skill = bench.post("/specs/resolve", {"spec_path": "able.yaml"}, role="viewer")["spec"]["skills"]["s"]
    assert (skill["content"], skill["resources"]) == ("This is SKILL.md.", {"more.md": "This is more.md."})


def test_a_key_beside_a_spec_is_not_taken_in(bench: Bench) -> None:
    (bench.folder / "service_key.pem").write_text(KEY)
    (bench.folder / "seen.yaml").write_text(f"version: v1\nagent: {{name: helper, model: {DUMMY}}}\n")
    laid = {"agent": {"system_prompt": {"file": "service_key.pem"}}}
    for what in ("resolve", "compile", "explain", "graph", "policy-report", "run"):
        body = (
            {"spec_path": "seen.yaml", "overrides": laid, "input": "x"}
            if what == "run"
            else {"spec_path": "seen.yaml", "overrides": laid}
        )
        answer = bench.ask("POST", f"/specs/{what}", body, role="admin")
        assert "MC4CAQ" not in answer.text
    resolved = bench.ask("POST", "/specs/resolve", {"spec_path": "seen.yaml", "overrides": laid}, role="viewer")
    assert "E_SECRET_INLINE" in resolved.text


def test_an_older_spec_is_migrated_and_two_are_compared(bench: Bench) -> None:
    old = {"root_agent": {"name": "old", "model": {"provider": "dummy", "name": "dummy"}}}
    new = bench.post("/specs/migrate", {"spec": old}, role="viewer")
    assert (new["changed"], new["spec"]["agent"]["name"]) == (True, "old")
    before, after = {"spec": spec_of(DRAFT, APPROVE)}, {"spec": spec_of(DRAFT)}
    changes = bench.post("/specs/diff", {"before": before, "after": after}, role="viewer")
    assert any("approve" in change["message"] or "approve" in change["path"] for change in changes["changes"])


def test_running_a_spec_under_its_other_name_answers_202_when_asked_not_to_wait(bench: Bench) -> None:
    body = {"input": "hi", "spec": spec_of(DRAFT), "async_mode": True, "session_id": "talk-1"}
    run = bench.post("/specs/run", body, role="operator", expect=202)
    assert run["status"] == "running"
    listed = bench.get("/runs", session_id="talk-1")["runs"]
    assert [(item["run_id"], item["session_id"]) for item in listed] == [(run["run_id"], "talk-1")]
    assert bench.get("/audit-events", event_type="spec.run")["events"][0]["run_id"] == run["run_id"]


def test_a_run_whose_audit_event_cannot_be_written_is_not_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = audit.record

    def fail(tx: Tx, event_type: str, **facts: object) -> int:
        if event_type == "spec.run":
            raise Transient("The disk is full.")
        return record(tx, event_type, **facts)

    before = bench.get("/runs")["total"]
    monkeypatch.setattr(audit, "record", fail)
    bench.post("/specs/run", {"input": "hi", "spec": spec_of(DRAFT)}, role="operator", expect=503)
    assert bench.get("/runs")["total"] == before


def test_a_bundle_takes_nothing_that_would_change_it(bench: Bench) -> None:
    for more in ({"overrides": {"agent": {"name": "x"}}}, {"skills": {"add": ["s"]}}, {"spec_path": "lab.yaml"}):
        refused = bench.post("/runs", {"input": "x", "bundle": "b", "environment": "prod", **more}, expect=400)
        assert refused["error"] == "invalid_request"


# ---- runs ---------------------------------------------------------------------------------------------------------


def test_a_waiting_run_is_drawn_with_the_step_that_waits(bench: Bench) -> None:
    run = bench.paused()
    drawn = bench.get(f"/runs/{run['run_id']}/graph")
    assert (drawn["current"], drawn["visited"], drawn["status"]) == ("approve", ["draft"], "paused")
    kinds = {node["id"]: node["kind"] for node in drawn["nodes"]}
    assert kinds == {"draft": "agent", "approve": "human", "publish": "function"}


def test_the_policy_report_of_a_run_is_that_of_its_frozen_spec(bench: Bench) -> None:
    run = bench.paused()
    report = bench.get(f"/runs/{run['run_id']}/policy-report", role="reviewer")
    assert report["report"]["human_review"]["workflow_steps"][0]["step_id"] == "approve"


def test_runs_are_found_by_what_is_known_of_them(bench: Bench) -> None:
    bench.start(spec_of(DRAFT, name="findable"), input="a needle in it")
    assert bench.get("/runs", q="NEEDLE")["total"] == 1
    assert bench.get("/runs", workflow_name="findable")["total"] == 1
    assert bench.get("/runs", created_after="2999-01-01T00:00:00Z")["total"] == 0
    assert bench.get("/runs", created_before="soon", expect=422)["error"] == "invalid_timestamp"


def test_pages_of_runs_go_on_in_an_order_in_which_none_moves(bench: Bench):
    made = [bench.paused()["run_id"] for _ in range(3)]
    first = bench.get("/runs", sort_by="created_at", limit=2)
    assert [run["run_id"] for run in first["runs"]] == made[:0:-1]
    assert all(run["status"] == "paused" and run["pending_human_request"]["prompt"] for run in first["runs"])
    second = bench.get("/runs", sort_by="created_at", limit=2, after=first["next_after"])
    assert second["runs"][0]["run_id"] == made[0]
    assert bench.get("/runs", sort_by="updated_at", after=made[0], expect=422)["field"] == "after"


def test_checkpoints_are_paged_and_filtered(bench: Bench) -> None:
    run = bench.start()
    page = bench.get(f"/runs/{run['run_id']}/checkpoints", limit=1, sort_order="desc")
    assert (page["count"], page["checkpoints"][0]["type"]) == (1, "run_completed")
    assert page["total"] > 1
    assert bench.get(f"/runs/{run['run_id']}/checkpoints", type="run_started")["total"] == 1
    assert bench.get("/runs/nope/checkpoints", expect=404)["error"] == "not_found"


def test_a_task_is_resumed_under_its_older_name(bench: Bench) -> None:
    run = bench.paused()
    request = run["metadata"]["pending_human_request"]["request_id"]
    done = bench.post(
        f"/continuations/{run['continuation_id']}/resume",
        {"request_id": request, "decision": "approved"},
        role="reviewer",
    )
    assert done["status"] == "succeeded"


# ---- policies, credentials, skills --------------------------------------------------------------------------------


def test_a_policy_blocks_what_does_not_satisfy_it_and_is_replaced_whole(bench: Bench) -> None:
    path = "/policies/environment/strict"
    unset = bench.get(path, role="operator")
    assert (unset["policy"], unset["effective"]["enabled"]) == (None, False)
    put = bench.ask("PUT", path, {"require_human_review": True}, role="operator").json()
    assert (put["policy"]["require_human_review"], put["previous_policy"]) == (True, None)
    refused = bench.start(environment="strict", expect=403)
    assert (refused["error"], refused["diagnostics"][0]["code"]) == (
        "environment_policy_blocked",
        "E_ENV_POLICY_HUMAN_REVIEW",
    )
    compiled = bench.post("/specs/compile", {"spec": spec_of(DRAFT), "environment": "strict"}, expect=403)
    assert compiled["error"] == "environment_policy_blocked"
    assert bench.start(spec_of(DRAFT, APPROVE), environment="strict")["status"] == "paused"
    again = bench.ask("PUT", path, {"require_guardrails": True}, role="operator").json()
    assert (again["policy"]["require_human_review"], again["previous_policy"]["require_human_review"]) == (False, True)
    assert bench.get("/policies/environment", role="operator")["policies"]["strict"] == again["policy"]
    event = bench.get("/audit-events", event_type="policy.changed")["events"][0]
    assert event["metadata"]["changed_fields"] == ["require_guardrails", "require_human_review"]


def test_a_preview_names_the_runs_a_policy_would_have_kept_out(bench: Bench) -> None:
    run = bench.start(environment="looked-at")
    body = {"require_human_review": True}
    shown = bench.post("/policies/environment/looked-at/preview", body, role="operator")
    assert shown["diff"] == {"require_human_review": {"from": False, "to": True}}
    assert shown["affected_run_ids"] == shown["newly_blocking"] == [run["run_id"]]
    assert bench.get("/policies/environment/looked-at", role="operator")["policy"] is None


def test_credentials_are_maps_that_never_hold_a_value(bench: Bench) -> None:
    found = bench.get("/security/credentials", role="operator")["inventory"]
    assert found["providers"]["openai"]["env_var"] == "OPENAI_API_KEY"
    assert set(found["service_tokens"]) == {"KNEO_SERV_API_KEY", "KNEO_SERV_API_KEYS", "KNEO_SERV_ADMIN_API_KEY"}
    answer = bench.client().get(
        "/security/credentials?providers=acme&extras=PATH&include_service_tokens=false", headers={}
    )
    chosen = answer.json()["inventory"]
    assert set(chosen) == {"providers", "extra"}
    assert chosen["providers"]["acme"]["env_var"] == "ACME_API_KEY"
    assert (chosen["extra"]["PATH"]["value"], chosen["extra"]["PATH"]["status"]) == ("[REDACTED]", "present")
    assert bench.get("/security/credentials", role="viewer", expect=403)["required_scope"] == "credentials:read"


def test_skills_are_a_page_of_what_bundles_declare(bench: Bench) -> None:
    page = bench.get("/skills", role="viewer")
    assert (page["skills"], page["total"], page["window"], page["sort_by"]) == ([], 0, 10_000, "name")


# ---- values that are read and not accepted -----------------------------------------------------------------------------

REFUSED_VALUES = (
    ("GET", "/runs?sort_by=nope", None),
    ("GET", "/runs?sort_order=up", None),
    ("GET", "/runs?status=nope", None),
    ("GET", "/runs?limit=0", None),
    ("GET", "/runs?limit=1001", None),
    ("GET", "/runs?offset=-1", None),
    ("GET", "/runs?created_after=soon", None),
    ("GET", f"/runs?q={'x' * 201}", None),
    ("GET", "/runs/{run}/trace?sort_by=nope", None),
    ("GET", "/runs/{run}/checkpoints?sort_by=nope", None),
    ("GET", "/audit-events?sort_by=nope", None),
    ("GET", "/skills?sort_by=nope", None),
    ("GET", "/human-tasks?sort_by=nope", None),
    ("GET", "/human-tasks?status=nope", None),
    ("GET", "/human-tasks/stats?since=1000d", None),
    ("GET", "/human-tasks/stats?since=soon", None),
    ("GET", "/promotions?phase=nope", None),
    ("POST", "/runs?wait=11m", {"input": "x"}),
    ("POST", "/runs", {"input": "x" * 501, "spec": spec_of(DRAFT)}),
    ("POST", "/runs", {"input": "x", "spec": spec_of(DRAFT), "metadata": {"x": "y" * 3_000}}),
    ("POST", "/runs/{run}/fork", {"checkpoint": 1, "input": "x" * 501}),
    ("POST", "/human-tasks/{task}/resume", {"request_id": "{request}", "decision": "approved", "content": "x" * 101}),
    ("POST", "/human-tasks/{task}/resume", {"request_id": "{request}", "decision": "nope"}),
    ("POST", "/human-tasks/{task}/snooze", {"until": "2001-01-01T00:00:00Z"}),
    ("POST", "/human-tasks/{task}/snooze", {"until": "soon"}),
    ("POST", "/human-tasks/{task}/links", {"expires_in": "999d"}),
    ("POST", "/human-tasks/{task}/comments", {"text": "x" * 20_001}),
)


@pytest.mark.parametrize(
    ("method", "path", "body"), REFUSED_VALUES, ids=[f"{row[0]} {row[1][:40]}" for row in REFUSED_VALUES]
)
def test_a_value_that_is_not_accepted_is_422(
    bench: Bench, method: str, path: str, body: dict[str, object] | None
) -> None:
    run = bench.paused()
    path = path.format(run=run["run_id"], task=run["continuation_id"])
    if body and body.get("request_id"):
        body = {**body, "request_id": run["metadata"]["pending_human_request"]["request_id"]}
    refused = bench.ask(method, path, body)
    assert refused.status_code == 422, refused.text


def test_a_run_that_is_not_there_names_no_command(bench: Bench) -> None:
    missing = bench.get("/runs/run_nope", expect=404)
    assert (missing["error"], missing["message"]) == ("not_found", "There is no run run_nope.")
    assert "kneo" not in str(missing)
