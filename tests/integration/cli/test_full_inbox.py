"""The inbox at a terminal, when there is more in it than fits on a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import build_run, build_task

from kneo.cli.people.decisions import PAGE_TASKS
from kneo.clock import ManualClock
from kneo.records.task import HumanTask, TaskStatus
from kneo.store import runs, tasks
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from tests.integration.cli.conftest import Kneo

MANY = PAGE_TASKS + 3


@pytest.fixture
def inbox(clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The local database, with more questions than are reviewed at once."""
    url = f"sqlite:///{tmp_path / 'kneo.sqlite'}"
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", url)
    store = open_store(url, clock)
    with store.write() as tx:
        for number in range(MANY):
            run = build_run()
            runs.insert_run(tx, run)
            environment = "prod" if number % 2 else "dev"
            prompt = f"Publish number {number}? " + "It is about this and that. " * 20
            tasks.insert_task(
                tx,
                build_task(
                    run_id=run.id, priority=number, environment=environment, prompt=prompt, title=f"no. {number}"
                ),
            )
    yield store
    store.close()


class Typed(io.StringIO):
    """What somebody types at a terminal; something may happen before each line of it."""

    def __init__(self, *lines: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__("".join(f"{line}\n" for line in lines))
        self.meanwhile = meanwhile

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:
        self.meanwhile()
        return super().readline(-1 if size is None else size)


def waiting(store: Store) -> tuple[HumanTask, ...]:
    with store.read() as tx:
        return tasks.list_tasks(tx)


def test_a_list_says_how_much_there_is_and_how_to_go_on(inbox: Store, kneo: Kneo) -> None:
    first = kneo("human", "list", "--limit", 10).out
    assert f"10 of {MANY}" in first
    assert "about this and that." in first
    assert "…" in first
    after = re.findall(r"--after (\S+)", first)[0]
    ids = [task.id for task in waiting(inbox)]
    second = kneo("human", "list", "--limit", MANY, "--after", after).out
    assert all((one in first) == (place < 10) and (one in second) == (place >= 10) for place, one in enumerate(ids))
    assert "--after" not in second


def test_a_list_is_filtered_and_sorted(inbox: Store, kneo: Kneo) -> None:
    answer = kneo("human", "list", "--env", "prod", "--sort", "priority", "--json").json
    ids = {task.id: task for task in waiting(inbox)}
    listed = [ids[item["continuation_id"]] for item in answer["tasks"]]
    assert [task.priority for task in listed] == [number for number in reversed(range(MANY)) if number % 2]
    assert kneo("human", "list", "--search", "no. 7", "--json").json["total"] == 1


def test_a_list_of_runs_says_how_to_go_on(inbox: Store, kneo: Kneo) -> None:
    assert f"20 of {MANY}. Next page: --offset 20" in kneo("runs", "list").out
    assert "--offset" not in kneo("runs", "list", "--offset", 20).out


def test_a_review_goes_through_everything(inbox: Store, kneo: Kneo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Typed(*["later"] * MANY))
    out = kneo("human", "review").out
    assert re.findall(r"(\d+) of (\d+)", out) == [(str(number + 1), str(MANY)) for number in range(MANY)]
    assert "No more open tasks." in out


def test_a_review_ends_when_told_to(inbox: Store, kneo: Kneo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Typed("later", "stop"))
    done = kneo("human", "review")
    assert (done.status, f"2 of {MANY}" in done.out, f"3 of {MANY}" in done.out) == (0, True, False)


def test_a_review_goes_on_when_somebody_else_was_quicker(
    inbox: Store, kneo: Kneo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decided_elsewhere() -> None:
        first = max(waiting(inbox), key=lambda task: task.priority)
        if first.priority == MANY - 1:
            with inbox.write() as tx:
                tasks.change(tx, first, status=TaskStatus.CANCELLED)

    monkeypatch.setattr("sys.stdin", Typed("approved", "stop", meanwhile=decided_elsewhere))
    done = kneo("human", "review")
    assert (done.status, f"2 of {MANY}" in done.out, "Taken" in done.out) == (0, True, False)
    assert "⚠" in done.err
