"""kneo-client 1.2.0: every operation, typed, and every class of error. Runs in that package's own environment."""

from __future__ import annotations

import asyncio
import sys
import uuid
from datetime import datetime, timedelta
from pathlib import Path

from kneo_client import KneoClient, core, types
from kneo_client.core import Profile, RetryPolicy, iterate_all

sys.path.insert(0, str(Path(__file__).parent))
from checks import raises, run_checks

ONCE = RetryPolicy(max_attempts=1)


def connect(scene, role="admin", **profile):
    values = {"name": role, "url": scene.url, "api_key": scene.keys.get(role, role), **profile}
    return KneoClient(Profile(**values), retry_policy=ONCE)


async def start(client, scene, name, text="hello", **fields):
    return await client.platform.runs.create({"input": text, "spec": scene.specs[name], **fields})


async def pause(client, scene, name="reviewed", **fields):
    """Start a run that waits for a person; return it and the request it waits for."""
    run = await start(client, scene, name, **fields)
    assert run.status == "blocked", run
    return run, run.metadata["pending_human_request"]["request_id"]


# ---- health ---------------------------------------------------------------------------------------------------------


async def check_livez_and_healthz(scene):
    async with connect(scene) as client:
        for probe in (client.platform.health.livez, client.platform.health.healthz):
            answer = await probe()
            assert isinstance(answer, types.HealthResponse)
            assert answer.ok is True
        assert answer.version == "1.2.0"


async def check_readyz_names_its_checks(scene):
    async with connect(scene) as client:
        answer = await client.platform.health.readyz()
    assert answer.ok is True
    checks = answer.metadata["checks"]
    assert {"api", "run_state_store", "continuation_store", "queue"} <= set(checks), checks
    assert all(item["ok"] is True for item in checks.values()), checks


async def check_probes_work_with_the_other_header(scene):
    async with connect(scene, auth_scheme=core.AuthScheme.KNEO_API_KEY) as client:
        assert (await client.platform.runs.list(limit=1)).limit == 1


# ---- runs -----------------------------------------------------------------------------------------------------------


async def check_a_run_to_its_end(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "plain", metadata={"ticket": "T-1"}, session_id="s-end")
        assert isinstance(run, types.RunCreateResponse)
        assert (run.status, run.output_text) == ("completed", "Published: DRAFT<hello>")
        assert run.human_intervention_required is False
        assert run.continuation_id is None
        again = await client.platform.runs.get(run.run_id)
    assert isinstance(again, types.RunStatusResponse)
    assert again.status == "completed"
    assert again.workflow_name == "plain"
    assert again.visited_steps == ["draft", "publish"]
    assert again.session_id == "s-end"
    assert again.input_text == "hello"
    assert again.error is None
    assert again.metadata["caller_metadata"] == {"ticket": "T-1"}
    assert isinstance(again.trace_event_count, int)
    assert again.trace_event_count > 0


async def check_typed_requests_work_like_dictionaries(scene):
    body = types.RunCreateRequest(
        input_="typed",
        spec=types.RunCreateRequestSpecType0.from_dict(scene.specs["plain"]),
        target=types.RunCreateRequestTarget.WORKFLOW,
        session_id="s-typed",
    )
    async with connect(scene) as client:
        run = await client.platform.runs.create(body)
    assert run.status == "completed"


async def check_an_asynchronous_run_is_waited_for(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "slow", async_mode=True)
        assert run.status in {"queued", "running"}, run.status
        ended = await client.platform.runs.wait_for_completion(run.run_id, timeout=240, poll_interval=0.2)
    assert ended.status == "completed"


async def check_an_asynchronous_run_answers_202(scene):
    async with connect(scene) as client:
        body = {"input": "x", "spec": scene.specs["slow"], "async_mode": True}
        answer = await client.request("POST", "/v1/runs", json=body)
        assert answer.status_code == 202
        await client.platform.runs.cancel(answer.json()["run_id"])


async def check_a_failed_run_is_an_answer_with_its_id(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "broken")
        assert run.status == "failed"
        got = await client.platform.runs.get(run.run_id)
        assert got.error["type"] == "ValueError"
        assert "it broke" in got.error["message"]
        assert await client.platform.runs.wait_for_completion(run.run_id, timeout=240)


async def check_runs_are_listed_and_filtered(scene):
    session = f"s-{uuid.uuid4()}"
    async with connect(scene) as client:
        runs = client.platform.runs
        good = await start(client, scene, "plain", text=f"needle-{session}", session_id=session)
        bad = await start(client, scene, "broken", session_id=session)
        page = await runs.list(session_id=session, sort_by="created_at", sort_order="asc")
        assert isinstance(page, core.Page)
        assert [item["run_id"] for item in page] == [item["id"] for item in page] == [good.run_id, bad.run_id]
        assert (page.total, page.limit, page.offset, page.window) == (2, 100, 0, 10_000)
        assert page[0]["session_id"] == session
        assert {"status", "workflow_name", "workflow_kind", "agent_name", "created_at", "updated_at"} <= set(
            page[0].to_dict()
        )

        async def ids(**filters):
            return [item["id"] for item in await runs.list(session_id=session, **filters)]

        assert await ids(status="completed") == [good.run_id]
        assert await ids(status="failed") == [bad.run_id]
        assert await ids(has_error=True) == [bad.run_id]
        assert await ids(has_error=False) == [good.run_id]
        assert await ids(workflow_name="broken") == [bad.run_id]
        assert set(await ids(workflow_kind="workflow")) == {good.run_id, bad.run_id}
        assert await ids(q="NEEDLE") == [good.run_id]
        begun = datetime.fromisoformat(page[0]["created_at"]) - timedelta(seconds=1)
        assert set(await ids(created_after=begun.isoformat())) == {good.run_id, bad.run_id}
        assert await ids(created_before=begun.isoformat()) == []
        error = await raises(core.KneoValidationError, ids(status="no-such-status"))
        assert "no-such-status" in str(error)


async def check_pages_are_walked(scene):
    session = f"s-{uuid.uuid4()}"
    async with connect(scene) as client:
        made = {(await start(client, scene, "plain", session_id=session)).run_id for _ in range(3)}

        def fetch(limit, offset):
            return client.platform.runs.list(session_id=session, limit=limit, offset=offset)

        assert {item["id"] async for item in iterate_all(fetch, page_size=2)} == made


async def check_a_run_is_cancelled_once(scene):
    async with connect(scene) as client:
        run, _ = await pause(client, scene)
        for _ in range(2):
            assert (await client.platform.runs.cancel(run.run_id)).status == "cancelled"
        assert (await client.platform.human_tasks.list(run_id=run.run_id)).total == 0


async def check_a_failed_run_is_continued(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "fails_once", text=str(uuid.uuid4()))
        assert run.status == "failed"
        recovery = await client.platform.runs.recovery(run.run_id)
        assert isinstance(recovery, types.RunRecoveryResponse)
        assert recovery.replay_context["can_continue"] is True
        assert recovery.replay_context["failed_step"] == "risky"
        ended = await client.platform.runs.continue_(run.run_id)
    assert isinstance(ended, types.RunCreateResponse)
    assert ended.status == "completed"
    assert ended.run_id == run.run_id


async def check_a_trace_is_read_and_tailed(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "plain")
        page = await client.platform.runs.trace(run.run_id, limit=2)
        assert (page.complete, page.dropped, page.limit) == (True, 0, 2)
        tailed = [
            item["event_id"] async for item in client.platform.runs.tail_trace(run.run_id, page_size=2, timeout=240)
        ]
        assert len(tailed) == len(set(tailed)) == page.total
        one = await client.platform.runs.trace(run.run_id, event_type=page[0]["type"])
        assert {item["type"] for item in one} == {page[0]["type"]}
        assert all(item["timestamp"] for item in page)


async def check_checkpoints_and_their_difference(scene):
    async with connect(scene) as client:
        run, _ = await pause(client, scene)
        page = await client.platform.runs.checkpoints(run.run_id)
        numbers = [item["sequence"] for item in page]
        assert numbers == sorted(numbers)
        assert all(type(number) is int for number in numbers)
        assert {"type", "step_id", "node_id", "created_at", "id"} <= set(page[0].to_dict())
        kind = page[0]["type"]
        filtered = await client.platform.runs.checkpoints(run.run_id, type=kind, sort_order="desc")
        assert {item["type"] for item in filtered} == {kind}
        diff = await client.platform.runs.checkpoints_diff(
            run.run_id, from_sequence=numbers[0], to_sequence=numbers[-1]
        )
        assert isinstance(diff, types.CheckpointDiffResponse)
        assert type(diff.change_count) is int
        assert diff.change_count == len(diff.added) + len(diff.removed) + len(diff.changed) > 0
        assert diff.from_checkpoint["sequence"] == numbers[0]
        latest = await client.platform.runs.checkpoints_diff(run.run_id)
        assert latest.to_checkpoint["sequence"] == numbers[-1]


async def check_replay_tells_the_timeline(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "plain")
        replay = await client.platform.runs.replay(run.run_id)
    assert isinstance(replay, types.RunReplayResponse)
    assert replay.status == "completed"
    assert len(replay.timeline) == replay.checkpoint_count > 0
    assert replay.replay_context["completed_steps"] == ["draft", "publish"]


async def check_the_graph_of_a_run_marks_the_waiting_node(scene):
    async with connect(scene) as client:
        run, _ = await pause(client, scene, "graph")
        graph = await client.platform.runs.graph(run.run_id)
    assert isinstance(graph, types.RunGraphResponse)
    assert [node["id"] for node in graph.nodes] == ["a", "b", "c"]
    assert [(edge["source"], edge["target"], edge["conditional"]) for edge in graph.edges] == [
        ("a", "b", True),
        ("b", "c", False),
    ]
    assert (graph.start, graph.current) == ("a", "b")
    assert graph.visited == ["a"]


async def check_the_graph_of_a_sequence_has_kinds(scene):
    async with connect(scene) as client:
        run, _ = await pause(client, scene)
        graph = await client.platform.runs.graph(run.run_id)
    assert [(node["id"], node["kind"]) for node in graph.nodes] == [
        ("draft", "function"),
        ("approve", "human"),
        ("publish", "function"),
    ]
    assert graph.current == "approve"


async def check_the_policy_report_of_a_run(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "plain")
        answer = await client.platform.runs.policy_report(run.run_id)
    assert isinstance(answer, types.SpecPolicyReportResponse)
    assert answer.valid is True
    assert answer.report["human_review"]["required"] in {True, False}


# ---- people ---------------------------------------------------------------------------------------------------------


async def check_a_task_is_listed_read_and_approved(scene):
    async with connect(scene) as client:
        run, request = await pause(client, scene)
        tasks = client.platform.human_tasks
        page = await tasks.list(run_id=run.run_id)
        assert page.total == 1
        item = page[0]
        assert item["id"] == item["continuation_id"] == run.continuation_id
        assert item["pending_human_request"]["id"] == item["pending_human_request_id"] == request
        assert isinstance(item["expires_at"], float)
        assert item["created_at"]
        task = await tasks.get(run.continuation_id)
        assert isinstance(task, types.HumanTaskResponse)
        assert task.continuation_id == run.continuation_id
        assert (task.request["id"], task.request["prompt"]) == (request, "Approve the draft?")
        assert task.request["assignee"] == "ann@example.com"
        assert any("DRAFT<hello>" in message["content"] for message in task.messages)
        ended = await tasks.resume(run.continuation_id, {"request_id": request, "decision": "approved"})
    assert isinstance(ended, types.HumanResumeResponse)
    assert (ended.status, ended.output_text) == ("completed", "Published: DRAFT<hello>")


async def check_tasks_are_filtered_and_sorted(scene):
    async with connect(scene) as client:
        run, _ = await pause(client, scene)
        tasks = client.platform.human_tasks
        for filters in ({"status": "pending"}, {"workflow_kind": "sequential"}, {"sort_by": "expires_at"}):
            page = await tasks.list(run_id=run.run_id, **filters)
            assert [item["id"] for item in page] == [run.continuation_id], filters
        endless, _ = await pause(client, scene, "graph")
        page = await tasks.list(run_id=endless.run_id, sort_by="expires_at", sort_order="asc")
        assert [item["id"] for item in page] == [endless.continuation_id], "no deadline comes last, not never"
        for filters in ({"status": "escalated"}, {"workflow_kind": "graph"}):
            assert (await tasks.list(run_id=run.run_id, **filters)).total == 0, filters


async def check_every_decision(scene):
    async with connect(scene) as client:

        async def answer(decision, spec="reviewed", **fields):
            run, request = await pause(client, scene, spec)
            body = {"request_id": request, "decision": decision, **fields}
            return await client.platform.human_tasks.resume_by_id(run.continuation_id, body)

        rejected = await answer("rejected", content="no")
        assert rejected.status == "cancelled"
        assert "LegacyClient" not in str(rejected.output_text)
        assert (await answer("edited", content="better")).output_text == "Published: better"
        chosen = await answer("selected", spec="choosing", selected_option="long")
        assert chosen.output_text == "Published: long"


async def check_the_first_pending_task_is_resumed(scene):
    async with connect(scene) as client:
        run, request = await pause(client, scene)
        body = types.HumanResumeRequest(request_id=request, decision=types.HumanResumeRequestDecision.APPROVED)
        ended = await client.platform.human_tasks.resume_first_pending(body, run_id=run.run_id)
        assert ended.status == "completed"
        assert await client.platform.human_tasks.resume_first_pending(body, run_id=run.run_id) is None


# ---- specs ----------------------------------------------------------------------------------------------------------


async def check_specs_are_validated(scene):
    async with connect(scene) as client:
        specs = client.agent.specs
        good = await specs.validate({"spec": scene.specs["plain"]})
        assert isinstance(good, types.SpecValidateResponse)
        assert good.valid is True
        bad = await specs.validate({"spec": scene.specs["invalid"]})
        assert bad.valid is False
        assert "E_STEP_FUNCTION_REF" in {item["code"] for item in bad.diagnostics}
        by_path = await specs.validate({"spec_path": "invalid.json", "environment": "dev"})
        assert by_path.valid is False


async def check_specs_are_compiled(scene):
    async with connect(scene) as client:
        specs = client.agent.specs
        good = await specs.compile({"spec": scene.specs["reviewed"]})
        assert isinstance(good, types.SpecCompileResponse)
        assert good.ok is True
        assert good.summary["has_root_workflow"] is True
        error = await raises(core.KneoBadRequestError, specs.compile({"spec": scene.specs["invalid"]}))
        assert error.code == "spec_invalid"
        loose = await specs.compile({"spec": scene.specs["invalid"], "strict": False})
        assert loose.ok is False
        assert loose.diagnostics


async def check_specs_are_explained(scene):
    async with connect(scene) as client:
        answer = await client.agent.specs.explain({"spec": scene.specs["reviewed"]})
    assert isinstance(answer, types.SpecExplainResponse)
    assert answer.summary["root_workflow"] == "reviewed"


async def check_the_graph_of_a_spec(scene):
    async with connect(scene) as client:
        graph = await client.agent.specs.graph({"spec": scene.specs["graph"]})
    assert isinstance(graph, types.SpecGraphResponse)
    assert graph.start == "a"
    assert [node["kind"] for node in graph.nodes] == ["function", "human", "function"]
    assert [edge["conditional"] for edge in graph.edges] == [True, False]
    assert graph.edges[0]["label"] == "drafted"


async def check_the_policy_report_of_a_spec(scene):
    async with connect(scene) as client:
        answer = await client.agent.specs.policy_report({"spec": scene.specs["reviewed"]})
    assert isinstance(answer, types.SpecPolicyReportResponse)
    assert answer.valid is True
    assert answer.report["summary"]["human_review_step_count"] == 1
    assert answer.report["human_review"]["missing"] is False


async def check_validate_then_compile_and_dry_run(scene):
    async with connect(scene) as client:
        specs = client.agent.specs
        both = await specs.validate_then_compile({"spec": scene.specs["plain"], "strict": True})
        assert both.ok
        assert both.compile is not None
        assert not (await specs.validate_then_compile({"spec": scene.specs["invalid"]})).ok
        assert (await specs.dry_run({"spec": scene.specs["plain"], "environment": "dev"})).ok
        assert not (await specs.dry_run({"spec": scene.specs["invalid"]})).ok


async def check_a_spec_is_run(scene):
    async with connect(scene) as client:
        run = await client.agent.specs.run({"input": "x", "spec": scene.specs["plain"], "session_id": "s-spec-run"})
        assert isinstance(run, types.RunCreateResponse)
        assert run.status == "completed"
        later = await client.agent.specs.run({"input": "x", "spec": scene.specs["slow"], "async_mode": True})
        assert later.status in {"queued", "running"}
        await client.platform.runs.cancel(later.run_id)
        assert (await client.platform.runs.get(run.run_id)).session_id == "s-spec-run"


async def check_skills_are_listed(scene):
    async with connect(scene) as client:
        await start(client, scene, "skilled", target="agent")
        page = await client.agent.skills.list(limit=10)
    assert isinstance(page, core.Page)
    assert (page.limit, page.offset) == (10, 0)
    assert all({"name", "description"} <= set(item.to_dict()) for item in page)


# ---- governance -----------------------------------------------------------------------------------------------------


async def check_audit_events_are_listed(scene):
    async with connect(scene) as client:
        run, request = await pause(client, scene)
        body = {"request_id": request, "decision": "approved", "content": "Looks good."}
        await client.platform.human_tasks.resume(run.continuation_id, body)
        page = await client.platform.audit.list(run_id=run.run_id, event_type="human.decision")
        assert page.total == 1
        event = page[0]
        assert {"id", "actor", "created_at", "continuation_id", "metadata"} <= set(event.to_dict())
        assert event["actor"] == "admin"
        assert (event["metadata"]["decision"], event["metadata"]["has_content"]) == ("approved", True)
        assert "Looks good" not in str(event.to_dict())
        first = await client.platform.audit.list(limit=1, offset=0, sort_by="created_at", sort_order="asc")
        second = await client.platform.audit.list(limit=1, offset=1, sort_by="created_at", sort_order="asc")
        assert first[0]["id"] != second[0]["id"]
        assert first[0]["created_at"] <= second[0]["created_at"]


async def check_credentials_are_named_and_never_shown(scene):
    async with connect(scene) as client:
        inventory = await client.platform.credentials.list(providers=["openai"], extras=["MCP_API_KEY"])
        assert set(inventory.keys()) == {"providers", "extra", "service_tokens"}
        assert inventory["providers"]["openai"]["present"] is False
        assert inventory["service_tokens"]["KNEO_SERV_API_KEYS"]["value"] == "[REDACTED]"
        entry = types.CredentialEntry.from_dict(inventory["service_tokens"]["KNEO_SERV_API_KEYS"])
        assert entry.present is True
        assert types.CredentialInventory.from_dict(dict(inventory.items))
        assert not any(key in str(inventory.items) for key in scene.keys.values())
        fewer = await client.platform.credentials.list(include_service_tokens=False)
        assert not fewer.get("service_tokens")


async def check_policies_are_put_read_previewed_and_enforced(scene):
    strict = {"require_human_review": True, "fail_on_warnings": False}
    async with connect(scene) as client:
        policies = client.platform.policies
        preview = await policies.environment_preview("strictly", strict)
        assert isinstance(preview, types.EnvironmentPolicyPreviewResponse)
        assert preview.environment == "strictly"
        assert type(preview.runs_evaluated) is int
        assert (await policies.environment_get("strictly")).policy is None
        put = await policies.environment_put("strictly", types.EnvironmentPolicyRequest(require_human_review=True))
        assert isinstance(put, types.EnvironmentPolicyResponse)
        assert put.previous_policy is None
        again = await policies.environment_put("strictly", strict)
        assert again.previous_policy["require_human_review"] is True
        assert (await policies.environment_get("strictly")).policy["require_human_review"] is True
        listed = await policies.environment_list()
        assert isinstance(listed, core.Map)
        assert listed["strictly"]["require_human_review"] is True
        error = await raises(core.KneoPermissionError, start(client, scene, "plain", environment="strictly"))
        assert error.code == "environment_policy_blocked"
        changes = await client.platform.audit.list(event_type="policy.changed", limit=2)
        assert changes[0]["metadata"]["environment"] == "strictly"


# ---- errors ---------------------------------------------------------------------------------------------------------


async def check_an_unknown_key_is_401(scene):
    async with connect(scene, "nobody") as client:
        error = await raises(core.KneoAuthError, client.platform.runs.list())
    assert (error.status, error.code) == (401, "unauthorized")
    assert error.request_id


async def check_a_missing_scope_is_403(scene):
    async with connect(scene, "viewer") as client:
        error = await raises(core.KneoPermissionError, start(client, scene, "plain"))
    assert (error.status, error.code) == (403, "forbidden")
    assert error.body["detail"]["required_scope"] == error.body["required_scope"] == "runs:write"


async def check_unknown_things_are_404(scene):
    async with connect(scene) as client:
        runs, tasks = client.platform.runs, client.platform.human_tasks
        for call in (
            runs.get("run_nope"),
            runs.cancel("run_nope"),
            runs.continue_("run_nope"),
            runs.trace("run_nope"),
            runs.replay("run_nope"),
            runs.recovery("run_nope"),
            runs.graph("run_nope"),
            runs.checkpoints("run_nope"),
            runs.checkpoints_diff("run_nope"),
            runs.policy_report("run_nope"),
            tasks.get("cont_nope"),
            tasks.resume("cont_nope", {"request_id": "req_nope", "decision": "approved"}),
        ):
            error = await raises(core.KneoNotFoundError, call)
            assert error.code == "not_found", error.code


async def check_nothing_to_run_is_400(scene):
    async with connect(scene) as client:
        error = await raises(core.KneoBadRequestError, client.platform.runs.create({"input": "x"}))
    assert (error.status, error.code) == (400, "invalid_request")


async def check_an_invalid_spec_is_400_with_its_findings(scene):
    async with connect(scene) as client:
        error = await raises(core.KneoBadRequestError, start(client, scene, "invalid"))
    assert error.code == "spec_invalid"
    assert "E_STEP_FUNCTION_REF" in {item["code"] for item in error.body["detail"]["diagnostics"]}


async def check_conflicts_are_409(scene):
    async with connect(scene) as client:
        done = await start(client, scene, "plain")
        error = await raises(core.KneoConflictError, client.platform.runs.continue_(done.run_id))
        assert error.code == "run_state_conflict"
        assert error.body["detail"]["run_id"] == done.run_id
        assert error.body["detail"]["status"] == "completed"
        paused, _ = await pause(client, scene)
        error = await raises(core.KneoConflictError, client.platform.runs.continue_(paused.run_id))
        assert error.code == "run_state_conflict"
        wrong = {"request_id": "req_wrong", "decision": "approved"}
        error = await raises(core.KneoConflictError, client.platform.human_tasks.resume(paused.continuation_id, wrong))
        assert error.code == "request_mismatch"
        assert (await client.platform.runs.get(paused.run_id)).status == "blocked"


async def check_idempotency_keys(scene):
    key = str(uuid.uuid4())
    body = {"input": "once", "spec": scene.specs["plain"]}
    async with connect(scene) as client:
        runs = client.platform.runs
        first, second = [await runs.create(body, idempotency_key=key) for _ in range(2)]
        assert first.run_id == second.run_id
        other = {**body, "input": "twice"}
        error = await raises(core.KneoIdempotencyMismatchError, runs.create(other, idempotency_key=key))
        assert error.code == "idempotency_key_conflict"
        assert error.idempotency_key == key


async def check_the_same_key_at_once_makes_one_run(scene):
    key = str(uuid.uuid4())
    body = {"input": "at once", "spec": scene.specs["plain"]}
    profile = Profile(name="admin", url=scene.url, api_key=scene.keys["admin"])
    async with KneoClient(profile) as client:
        made = await asyncio.gather(*(client.platform.runs.create(body, idempotency_key=key) for _ in range(5)))
    assert len({run.run_id for run in made}) == 1


async def check_an_expired_task_is_409_of_its_own_class(scene):
    async with connect(scene) as client:
        run, request = await pause(client, scene, "expiring")
        ended = await client.platform.runs.wait_for_completion(run.run_id, timeout=240, poll_interval=0.2)
        assert ended.status == "expired"
        body = {"request_id": request, "decision": "approved"}
        error = await raises(
            core.KneoHumanTaskExpiredError, client.platform.human_tasks.resume(run.continuation_id, body)
        )
    assert error.continuation_id == run.continuation_id
    assert isinstance(error.expires_at, float)


async def check_a_body_that_is_too_large_is_413(scene):
    async with connect(scene) as client:
        call = client.platform.runs.create({"input": "x" * 1_100_000, "spec": {}})
        error = await raises(core.KneoPayloadTooLargeError, call)
    assert (error.code, error.max_body_bytes) == ("payload_too_large", 1_048_576)


async def check_fields_that_are_wrong_are_422(scene):
    async with connect(scene) as client:
        error = await raises(core.KneoValidationError, client.platform.runs.create({"spec": scene.specs["plain"]}))
        assert "input" in str(error)
        assert error.body["detail"][0]["loc"] == ["body", "input"]
        error = await raises(core.KneoValidationError, client.platform.runs.create({"input": "x", "bogus": 1}))
        assert error.body["detail"][0]["loc"] == ["body", "bogus"]


async def check_other_reasons_for_422(scene):
    async with connect(scene) as client:
        error = await raises(core.KneoValidationError, client.request("GET", "/v1/runs", params={"bogus": "1"}))
        assert error.code == "unknown_query_parameters"
        assert error.body["detail"]["unknown"] == ["bogus"]
        error = await raises(core.KneoValidationError, client.platform.runs.list(created_after="yesterday"))
        assert error.code == "invalid_timestamp"
        outside = {"input": "x", "spec_path": "../outside.yaml"}
        error = await raises(core.KneoValidationError, client.platform.runs.create(outside))
        assert error.code == "spec_path_confined"


async def check_too_many_requests_are_429(scene):
    async with connect(scene, "viewer", url=scene.strict_url) as client:

        async def ask():
            for _ in range(20):
                await client.platform.runs.list()

        error = await raises(core.KneoRateLimitedError, ask())
    assert error.retry_after is not None
    assert error.code == "rate_limited"


async def check_a_full_queue_is_503(scene):
    async with connect(scene, url=scene.strict_url) as client:
        await start(client, scene, "plain", async_mode=True)
        error = await raises(core.KneoServiceUnavailableError, start(client, scene, "plain", async_mode=True))
    assert error.code == "queue_full"
    assert error.retry_after is not None


async def check_not_ready_is_503(scene):
    async with connect(scene, url=scene.strict_url) as client:
        error = await raises(core.KneoServiceUnavailableError, client.platform.health.readyz())
    assert error.code == "not_ready"
    assert error.body["detail"]["metadata"]["checks"]["providers"]["ok"] is False


async def check_nothing_listening_is_a_network_error(scene):
    async with connect(scene, url="http://127.0.0.1:9") as client:
        await raises(core.KneoNetworkError, client.platform.runs.list())


async def check_request_ids_come_back(scene):
    async with connect(scene) as client:
        answer = await client.request("GET", "/v1/runs", params={"limit": 1}, request_id="my-request")
        assert answer.headers["x-request-id"] == "my-request"
        error = await raises(core.KneoNotFoundError, client.request("GET", "/v1/runs/run_nope", request_id="my-other"))
        assert error.request_id == "my-other"


async def check_the_blocking_transport(scene):
    with core.SyncTransport(Profile(name="s", url=scene.url, api_key=scene.keys["admin"])) as transport:
        assert transport.request("GET", "/v1/runs", params={"limit": 1}).json()["limit"] == 1


if __name__ == "__main__":
    run_checks(globals())
