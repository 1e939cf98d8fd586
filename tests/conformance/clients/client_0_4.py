"""kneo-client 0.4.0, of the time of the documents: every operation with the published words. It has no models of its own
to import, no error codes, and stops waiting on three statuses only. Runs in that package's own environment."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

from kneo_client import KneoClient
from kneo_client.core import Profile, RetryPolicy, errors

sys.path.insert(0, str(Path(__file__).parent))
from checks import raises, run_checks


def connect(scene, role="admin"):
    profile = Profile(name=role, url=scene.old_url, api_key=scene.keys.get(role, role))
    return KneoClient(profile, retry_policy=RetryPolicy(max_attempts=1))


async def start(client, scene, name, text="hello", **fields):
    return await client.platform.runs.create({"input": text, "spec": scene.specs[name], **fields})


async def pause(client, scene):
    run = await start(client, scene, "reviewed")
    assert run.status == "blocked", run
    assert run.human_intervention_required is True
    return run, run.metadata["request"]["id"]


async def check_health(scene):
    async with connect(scene) as client:
        for probe in (client.platform.health.livez, client.platform.health.healthz, client.platform.health.readyz):
            assert (await probe()).ok is True


async def check_a_run_to_its_end(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "plain")
        assert (run.status, run.output_text) == ("completed", "Published: DRAFT<hello>")
        again = await client.platform.runs.wait_for_completion(run.run_id, timeout=240)
        assert (again.status, again.visited_steps) == ("completed", ["draft", "publish"])


async def check_an_asynchronous_run_is_waited_for(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "slow", async_mode=True)
        ended = await client.platform.runs.wait_for_completion(run.run_id, timeout=240, poll_interval=0.2)
    assert ended.status == "completed"


async def check_waiting_ends_for_a_rejected_run(scene):
    async with connect(scene) as client:
        run, request = await pause(client, scene)
        body = {"request_id": request, "decision": "rejected"}
        await client.platform.human_tasks.resume(run.continuation_id, body)
        ended = await client.platform.runs.wait_for_completion(run.run_id, timeout=240, poll_interval=0.2)
    assert ended.status == "cancelled"


async def check_a_task_is_listed_and_approved(scene):
    async with connect(scene) as client:
        run, request = await pause(client, scene)
        page = await client.platform.human_tasks.list(run_id=run.run_id)
        assert [item["continuation_id"] for item in page.items] == [run.continuation_id]
        task = await client.platform.human_tasks.get(run.continuation_id)
        assert task.request["id"] == request
        body = {"request_id": request, "decision": "approved"}
        ended = await client.platform.human_tasks.resume_by_id(run.continuation_id, body)
    assert (ended.status, ended.output_text) == ("completed", "Published: DRAFT<hello>")


async def check_the_first_pending_task_is_resumed(scene):
    async with connect(scene) as client:
        run, request = await pause(client, scene)
        body = {"request_id": request, "decision": "approved"}
        assert (await client.platform.human_tasks.resume_first_pending(body, run_id=run.run_id)).status == "completed"


async def check_runs_are_listed_by_the_published_words(scene):
    async with connect(scene) as client:
        run, _ = await pause(client, scene)
        page = await client.platform.runs.list(status="blocked", limit=50)
        mine = [item for item in page.items if item["id"] == run.run_id]
        assert [item["status"] for item in mine] == ["blocked"]
        assert (await client.platform.runs.cancel(run.run_id)).status == "cancelled"


async def check_the_past_of_a_run(scene):
    async with connect(scene) as client:
        runs = client.platform.runs
        run = await start(client, scene, "plain")
        events = [item async for item in runs.tail_trace(run.run_id, timeout=240)]
        assert len(events) == (await runs.trace(run.run_id)).total
        page = await runs.checkpoints(run.run_id)
        assert [item["sequence"] for item in page.items] == sorted(item["sequence"] for item in page.items)
        assert (await runs.checkpoints_diff(run.run_id)).change_count >= 0
        assert (await runs.replay(run.run_id)).status == "completed"
        assert (await runs.recovery(run.run_id)).status == "completed"
        assert (await runs.policy_report(run.run_id))["valid"] is True


async def check_a_failed_run_is_continued(scene):
    async with connect(scene) as client:
        run = await start(client, scene, "fails_once", text=str(uuid.uuid4()))
        assert run.status == "failed"
        assert (await client.platform.runs.continue_(run.run_id)).status == "completed"


async def check_specs(scene):
    async with connect(scene) as client:
        specs = client.agent.specs
        assert (await specs.validate({"spec": scene.specs["plain"]})).valid is True
        assert (await specs.validate({"spec": scene.specs["invalid"]})).valid is False
        assert (await specs.compile({"spec": scene.specs["plain"]})).ok is True
        assert (await specs.explain({"spec": scene.specs["plain"]})).summary["root_workflow"] == "plain"
        assert (await specs.policy_report({"spec": scene.specs["plain"]})).report["version"] == "v1"
        assert (await specs.validate_then_compile({"spec": scene.specs["plain"]})).ok
        assert (await specs.dry_run({"spec": scene.specs["plain"]})).ok
        assert (await specs.run({"input": "x", "spec": scene.specs["plain"]})).status == "completed"


async def check_governance(scene):
    async with connect(scene) as client:
        run, _ = await pause(client, scene)
        events = await client.platform.audit.list(run_id=run.run_id)
        assert "run.created" in {item["event_type"] for item in events.items}
        credentials = await client.platform.credentials.list()
        assert credentials["providers"]["openai"]["value"] is None
        policies = client.platform.policies
        put = await policies.environment_put("old-client", {"require_guardrails": True})
        assert put.environment == "old-client"
        assert (await policies.environment_get("old-client")).policy["require_guardrails"] is True
        assert "old-client" in (await policies.environment_list()).items


async def check_errors(scene):
    async with connect(scene, "nobody") as client:
        assert (await raises(errors.KneoAuthError, client.platform.runs.list())).status == 401
    async with connect(scene, "viewer") as client:
        assert (await raises(errors.KneoPermissionError, start(client, scene, "plain"))).status == 403
    async with connect(scene) as client:
        error = await raises(errors.KneoNotFoundError, client.platform.runs.get("run_nope"))
        assert "run_nope" in str(error)
        assert error.request_id
        run = await start(client, scene, "plain")
        assert (
            await raises(errors.KneoIdempotencyMismatchError, client.platform.runs.continue_(run.run_id))
        ).status == 409


async def check_idempotency_keys(scene):
    key = str(uuid.uuid4())
    body = {"input": "once", "spec": scene.specs["plain"]}
    async with connect(scene) as client:
        first, second = [await client.platform.runs.create(body, idempotency_key=key) for _ in range(2)]
        assert first.run_id == second.run_id
        other = {**body, "input": "twice"}
        await raises(errors.KneoIdempotencyMismatchError, client.platform.runs.create(other, idempotency_key=key))


if __name__ == "__main__":
    run_checks(globals())
