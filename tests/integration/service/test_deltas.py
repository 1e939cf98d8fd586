"""Replies of models while they arrive, over server-sent events: within one process, and from a worker in another one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kneo_process import eventually
from model_server import ModelServer, Reply, model_server
from service_bench import Bench, Json, serving

from kneo.background import background
from kneo.cli.compose import make_store
from kneo.records.conversation import ModelDelta
from kneo.runtime.engine.assemble import make_worker
from kneo.store.change_feed import list_read_runs

TEXT = "".join(f"Sentence number {number}. " for number in range(200)) + "The token=abcdefgh12345 is secret."
CLEANED = TEXT.replace("token=abcdefgh12345", "token=[REDACTED]")

MODEL: Json = {"provider": "openai", "name": "fake"}


def spec(**draft: object) -> Json:
    """A spec whose agent begins when a person has agreed, so that a reader is there before."""
    return {
        "version": "v1",
        "agent": {"name": "helper", "model": MODEL},
        "workflow": {
            "type": "sequential",
            "name": "lab",
            "steps": [
                {"id": "start", "kind": "human", "ref": "editor"},
                {"id": "draft", "kind": "agent", "ref": "writer", **draft},
            ],
        },
        "components": {
            "agents": {"writer": {"name": "writer", "model": MODEL}},
            "humans": {"editor": {"description": "Begin?"}},
        },
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """A server of models that the operator points to; it streams where it is asked to."""
    with model_server([Reply(TEXT)]) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        yield running


@pytest.fixture(params=["sqlite", "postgresql", "postgresql, worker apart"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A service with a worker, in the same process or with a connection of its own, as another process has it."""
    is_sqlite, apart = request.param == "sqlite", request.param.endswith("apart")
    url = request.getfixturevalue("sqlite_url" if is_sqlite else "postgres_url")
    with serving(tmp_path / "service", url, workers=0 if apart else 2) as made, contextlib.ExitStack() as more:
        if apart:
            other = make_store(made.settings)
            more.callback(other.close)
            worker = make_worker(made.settings, other, 2)
            more.enter_context(background("worker", worker.run, worker.stop))
        yield made


def followed(bench: Bench, run: Json, path: str, then: Callable[[], object]) -> list[tuple[str, Json, str | None]]:
    """Read a stream of a paused run from its pause on, and do something when the reader is there."""
    seen: list[tuple[str, Json, str | None]] = []
    with bench.stream(f"/runs/{run['run_id']}{path}") as events:
        for event in events:
            if event.data.get("status") == "paused":
                then()
            seen.append((event.name, event.data, event.id))
    return seen


def paused(bench: Bench, tree: Json) -> Json:
    run = bench.start(tree, stream=True)
    assert run["status"] == "paused", run
    return run


def test_replies_are_read_while_they_arrive(bench: Bench, server: ModelServer, request: pytest.FixtureRequest) -> None:
    run = paused(bench, spec())

    def begin() -> None:
        if bench.store.deltas.spans_processes:
            assert bench.store.deltas.listening.wait(240)
            with bench.store.read() as tx:
                assert list_read_runs(tx) == {run["run_id"]}
        bench.answer(run)

    seen = followed(bench, run, "/events?deltas=1", begin)
    assert [each.streamed for each in server.requests] == [True]
    deltas = [(data, key) for name, data, key in seen if name == "model_delta"]
    assert deltas
    text = ""
    for data, key in deltas:
        assert (data["step_id"], data["request"], key) == ("draft", 1, None)
        assert data["offset"] == len(text)
        text += str(data["text"])
    # The end of a run that another process executes may be read before the last pieces arrive.
    assert text == CLEANED or ("apart" in request.node.name and CLEANED.startswith(text))
    assert seen[-1][1]["status"] == "succeeded"
    traced = [key for _, _, key in seen if key is not None]
    assert traced == [str(number) for number in range(1, len(traced) + 1)]


def test_nothing_is_streamed_where_nobody_reads_deltas(bench: Bench, server: ModelServer) -> None:
    run = bench.start(spec())
    seen = followed(bench, run, "/events", lambda: bench.answer(run))
    assert [name for name, _, _ in seen if name == "model_delta"] == []
    assert [each.streamed for each in server.requests] == [False]


def test_what_a_person_reviews_is_withheld(bench: Bench, server: ModelServer) -> None:
    run = paused(bench, spec(review={"after": {"human": "editor"}}))
    received: list[ModelDelta] = []
    with bench.store.deltas.listen(run["run_id"], received.append):
        bench.answer(run)
        eventually(lambda: bench.get(f"/runs/{run['run_id']}")["current_step_id"] == "draft")
    assert received == []
    assert [each.streamed for each in server.requests] == [False]
