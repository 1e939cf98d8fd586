"""Following runs as they happen, and waiting for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from kneo_process import eventually
from service_bench import APPROVE, DRAFT, PUBLISH, Bench, Json, Told, serving, spec_of

from kneo.cli.compose import make_store
from kneo.runtime.engine.recover import cancel_run
from kneo.service.events import Event, Streams
from kneo.settings import HttpSettings

QUICK = replace(HttpSettings(), stream_heartbeat_seconds=0.05)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A service whose runs nobody drives."""
    folder = tmp_path_factory.mktemp("idle")
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}", http=QUICK, workers=0) as made:
        yield made


def begun(bench: Bench, *steps: Json) -> str:
    return str(bench.start(spec_of(*steps), expect=202, async_mode=True)["run_id"])


def named(events: Iterator[Told]) -> Iterator[Told]:
    """Events without the heartbeats, which may come before each of them."""
    return (event for event in events if event.name)


def test_a_run_is_followed_from_its_beginning_through_a_person_to_its_end(bench: Bench) -> None:
    run = bench.paused()
    with bench.stream(f"/runs/{run['run_id']}/events", role="viewer") as events:
        seen = []
        for event in events:
            seen.append(event)
            if event.data.get("status") == "paused":
                bench.answer(run)
    traced = [event for event in seen if event.id is not None]
    everything = bench.get(f"/runs/{run['run_id']}/trace")["events"]
    assert [event.data for event in traced] == everything
    assert [event.name for event in traced] == [item["type"] for item in everything]
    assert [int(event.id or 0) for event in traced] == list(range(1, len(traced) + 1))
    assert (seen[-1].name, seen[-1].data["status"]) == ("end", "succeeded")


def test_a_reader_that_was_cut_off_goes_on_where_it_was(bench: Bench) -> None:
    run = bench.start()
    path = f"/runs/{run['run_id']}/events"
    with bench.stream(path) as events:
        everything = list(named(events))
    for cut in range(len(everything) - 1):
        with bench.stream(path, **{"Last-Event-ID": str(cut)}) as events:
            assert list(named(events)) == everything[cut:]
        with bench.stream(f"{path}?after={cut}") as events:
            assert list(named(events)) == everything[cut:]


def test_published_clients_hear_their_own_words_on_a_stream(bench: Bench) -> None:
    run = bench.start()
    with bench.stream(f"/runs/{run['run_id']}/events", **{"User-Agent": "kneo-client/1.2.0"}) as events:
        assert list(events)[-1].data["status"] == "completed"


def test_what_another_process_does_is_heard_too(idle: Bench) -> None:
    run_id = begun(idle, DRAFT)
    with idle.stream(f"/runs/{run_id}/events") as events:
        assert next(named(events)).name == "workflow_started"
        # Its commits are not heard; the rows it has written are.
        other = make_store(idle.settings)
        cancel_run(other, run_id, actor="somebody")
        other.close()
        assert [event.data["status"] for event in events if event.name == "end"] == ["cancelled"]


def test_a_stream_says_that_it_is_still_there(idle: Bench) -> None:
    with idle.stream(f"/runs/{begun(idle, DRAFT)}/events") as events:
        assert [next(named(events)).name for _ in range(2)] == ["workflow_started", "status"]
        assert [next(events).name for _ in range(2)] == ["", ""]


def test_there_is_room_for_so_many_streams_and_a_reader_that_leaves_makes_room(tmp_path: Path) -> None:
    few = replace(QUICK, max_streams=2)
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", http=few, workers=0) as bench:
        path = f"/runs/{begun(bench, DRAFT)}/events"
        with ExitStack() as open_ones:
            readers = [open_ones.enter_context(bench.stream(path)) for _ in range(2)]
            assert [next(named(reader)).name for reader in readers] == ["workflow_started"] * 2
            refused = bench.ask("GET", path)
            assert (refused.status_code, refused.json()["error"]) == (503, "too_many_streams")
            assert refused.headers["retry-after"]

        def fits() -> bool:
            with bench.client().stream("GET", path) as answer:
                return answer.status_code == 200

        eventually(fits)


def test_one_person_does_not_take_the_streams_of_others(tmp_path: Path) -> None:
    few = replace(QUICK, max_streams=10, max_streams_per_person=2)
    with (
        serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", http=few, workers=0) as bench,
        ExitStack() as open_ones,
    ):
        paths = [f"/runs/{begun(bench, DRAFT)}/events", "/human-tasks/stream"]
        run, inbox = [open_ones.enter_context(bench.stream(path, role="viewer")) for path in paths]
        assert (next(named(run)).name, next(inbox).name) == ("workflow_started", "")
        for path in paths:
            refused = bench.ask("GET", path, role="viewer")
            assert (refused.status_code, refused.json()["error"]) == (429, "too_many_streams")
            assert refused.json()["detail"]["limit"] == 2
        for role in ("operator", "reviewer", "admin"):
            reader = open_ones.enter_context(bench.stream(paths[0], role=role))
            assert next(named(reader)).name == "workflow_started"


def test_streams_that_begin_at_once_are_counted_before_they_are_sent() -> None:
    async def forever() -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield Event(name="never", data={})

    async def scene() -> list[int]:
        streams = Streams(10, 2, 30)
        never, all_begun, statuses = asyncio.Event(), asyncio.Event(), []

        async def send(message: Json) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            if len(statuses) == len(made):
                all_begun.set()

        async def receive() -> Json:
            await never.wait()
            return {"type": "http.disconnect"}

        made = [streams.answer(forever(), name) for name in ("ann", "ANN", "ann ", "ben")]
        tasks = [asyncio.create_task(stream({"type": "http"}, receive, send)) for stream in made]
        await all_begun.wait()
        assert streams.open == 3
        never.set()
        await asyncio.gather(*tasks)
        assert streams.open == 0
        return sorted(statuses)

    assert asyncio.run(asyncio.wait_for(scene(), 240)) == [200, 200, 200, 429]


def test_streams_need_the_scope_and_a_run(idle: Bench) -> None:
    assert idle.get("/runs/nope/events", expect=404)["error"] == "not_found"
    assert idle.get("/runs/nope/events", after="-1", expect=422)["error"] == "validation_error"


def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    sent = []

    async def forever() -> AsyncIterator[Event]:
        while True:
            yield Event(name="more", data={})

    async def scene() -> None:
        streams = Streams(1, 1, 0.05)
        never = asyncio.Event()

        async def send(message: Json) -> None:
            sent.append(message)
            if len(sent) == 4:
                await never.wait()

        async def receive() -> Json:
            await never.wait()
            return {"type": "http.disconnect"}

        await streams.answer(forever(), "ann")({"type": "http"}, receive, send)
        assert streams.open == 0

    asyncio.run(asyncio.wait_for(scene(), 240))
    assert len(sent) == 4
    assert all(message.get("more_body", True) for message in sent)


# ---- waiting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wait", "status", "told"), [("0s", 202, "running"), ("600s", 200, "paused")])
def test_a_request_waits_for_its_run_as_long_as_it_says(bench: Bench, wait: str, status: int, told: str) -> None:
    body = {"input": "hi", "spec": spec_of(DRAFT, APPROVE, PUBLISH)}
    assert bench.post(f"/runs?wait={wait}", body, expect=status)["status"] == told


@pytest.mark.parametrize(("wait", "code"), [("11m", "wait_too_long"), ("soon", "validation_error"), ("9d", None)])
def test_a_wait_that_makes_no_sense_starts_nothing(bench: Bench, wait: str, code: str | None) -> None:
    before = bench.get("/runs")["total"]
    refused = bench.post(f"/runs?wait={wait}", {"input": "hi", "spec": spec_of(DRAFT)}, expect=422)
    assert refused["error"] == (code or "validation_error")
    assert bench.get("/runs")["total"] == before


def test_those_who_wait_hold_no_thread_and_are_answered_when_the_process_stops(tmp_path: Path) -> None:
    many = 60  # more than there are threads
    body = {"input": "hi", "spec": spec_of(DRAFT)}
    with (
        serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0, shutdown_seconds=240) as bench,
        ThreadPoolExecutor(many) as pool,
    ):
        bench.client()
        waiting = [pool.submit(bench.ask, "POST", "/runs?wait=600s", body) for _ in range(many)]
        eventually(lambda: bench.get("/runs", limit=1)["total"] == many)
        run_id = bench.get("/runs", limit=1)["runs"][0]["run_id"]
        with bench.stream(f"/runs/{run_id}/events") as events:
            assert next(named(events)).name == "workflow_started"
            assert not any(each.done() for each in waiting)
            bench.stop()
            assert "end" not in [event.name for event in events]
        assert {each.result(timeout=240).status_code for each in waiting} == {202}


def test_runs_are_followed_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, postgres_url) as bench:
        run = bench.paused()
        with bench.stream(f"/runs/{run['run_id']}/events") as events:
            for event in events:
                if event.data.get("status") == "paused":
                    bench.answer(run)
            assert event.name == "end"
