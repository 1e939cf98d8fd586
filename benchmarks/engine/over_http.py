"""The human flow over HTTP, for any service that speaks the published contract."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.engine import flows

TIMEOUT = 120.0


def human_flow(client: httpx.Client, spec: flows.Json, number: int) -> None:
    """Start a run, answer its question, and check how it ended."""
    started = client.post("/v1/runs", json={"input": f"text {number}", "spec": spec, "target": "workflow"})
    paused = started.raise_for_status().json()
    request = paused["metadata"].get("pending_human_request") or paused["metadata"]["request"]
    answer = {"request_id": request.get("request_id") or request["id"], "decision": "approved"}
    done = client.post(f"/v1/human-tasks/{paused['continuation_id']}/resume", json=answer).raise_for_status().json()
    assert done["output_text"] == f"text {number} (draft) (published)", done


def measure(url: str, headers: dict[str, str], spec: flows.Json, *, count: int, workers: int) -> dict[str, float]:
    """Run the human flow so many times with so many clients at once."""
    limits = httpx.Limits(max_connections=workers, max_keepalive_connections=workers)
    with (
        httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, limits=limits) as client,
        ThreadPoolExecutor(workers) as pool,
    ):
        list(pool.map(lambda number: human_flow(client, spec, number), range(workers)))
        started = time.perf_counter()
        list(pool.map(lambda number: human_flow(client, spec, number), range(count)))
        seconds = time.perf_counter() - started
    return {"per_second": count / seconds, "ms": seconds / count * 1000}
