"""People, timers and drivers write to the same run and tasks; none may end in a deadlock."""

from __future__ import annotations

from builders import build_run, build_task
from processes import at_once

from kneo.errors import Conflict
from kneo.records.run import Run, RunStatus
from kneo.records.task import DecisionKind, HumanTask
from kneo.runtime.engine.recover import cancel_run
from kneo.store import runs, tasks
from kneo.store.engine import Store
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide

ROUNDS = 12


def waiting_run(store: Store) -> tuple[Run, list[HumanTask]]:
    run = build_run(status=RunStatus.PAUSED)
    asked = [build_task(run_id=run.id) for _ in range(3)]
    with store.write() as tx:
        runs.insert_run(tx, run)
        for task in asked:
            tasks.insert_task(tx, task)
    return run, asked


def test_answers_and_a_cancellation_at_once_all_get_an_answer(store: Store) -> None:
    for _ in range(ROUNDS):
        run, asked = waiting_run(store)

        def work(number: int, run: Run = run, asked: list[HumanTask] = asked) -> str:
            if number == len(asked):
                return cancel_run(store, run.id, actor="ann").status
            answer = DecisionRequest(request_id=asked[number].request_id, decision=DecisionKind.APPROVED)
            try:
                decide(store, asked[number].id, answer, actor="ben")
            except Conflict:
                return "refused"
            return "decided"

        *answers, ended = at_once(len(asked) + 1, work)
        assert ended == RunStatus.CANCELLED
        assert set(answers) <= {"decided", "refused"}
