"""``GET /v1/human-tasks/stream``: nothing is lost or sent twice, however often a reader is cut off, at whichever service."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

from builders import build_run, build_task
from processes import at_once
from service_bench import Bench, Told, serving

from kneo.store import runs, tasks

WRITERS, EACH = 3, 6


def next_event(bench: Bench, after: str) -> Told:
    with bench.stream("/human-tasks/stream", role="viewer", **{"Last-Event-ID": after}) as events:
        return next(event for event in events if event.name)


def test_a_reader_who_is_cut_off_at_each_event_reads_each_once(migrated_url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        benches = [stack.enter_context(serving(tmp_path / name, migrated_url, workers=0)) for name in ("one", "two")]
        with benches[0].store.write() as tx:
            runs.insert_run(tx, run := build_run())
            tasks.insert_task(tx, task := build_task(run_id=run.id))
        for bench in benches:
            # Clients are made on demand, which threads must not do at the same time.
            bench.client("viewer")
            bench.client("reviewer")
        seen: list[Told] = []

        def work(index: int) -> None:
            if index == WRITERS:
                for bench in itertools.islice(itertools.cycle(benches), WRITERS * EACH):
                    seen.append(next_event(bench, str(seen[-1].id) if seen else "0"))
                return
            for number in range(EACH):
                path = f"/human-tasks/{task.id}/comments"
                benches[number % 2].post(path, {"text": f"{index}-{number}"}, role="reviewer")

        at_once(WRITERS + 1, work)
        texts = [event.data["data"]["text"] for event in seen]
        assert sorted(texts) == [f"{index}-{number}" for index in range(WRITERS) for number in range(EACH)]
        # Whoever reads it all at once, elsewhere and later, reads the same.
        with benches[1].stream("/human-tasks/stream", role="viewer", **{"Last-Event-ID": "0"}) as events:
            again = list(itertools.islice((event for event in events if event.name), len(seen)))
        assert again == seen


def test_a_reader_knows_where_it_began_before_the_first_event(bench: Bench) -> None:
    run = bench.paused()
    newest = bench.get(f"/human-tasks/{run['continuation_id']}/history")["events"][-1]["id"]
    with bench.client("viewer").stream("GET", "/human-tasks/stream") as answer:
        lines = answer.iter_lines()
        first = [next(lines) for _ in range(3)]
    assert first == ["retry: 1000", "", f"id: {newest}"]


def test_an_event_that_does_not_exist_is_no_place_to_begin(bench: Bench) -> None:
    refused = bench.ask("GET", "/human-tasks/stream", headers={"Last-Event-ID": "tev_none"})
    assert (refused.status_code, refused.json()["error"]) == (409, "unknown_event")
