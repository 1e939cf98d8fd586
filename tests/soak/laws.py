"""The laws of a soak, decided from its evidence: nothing acknowledged is lost, nothing is done twice, nothing grows."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from soak.evidence import Effect, Evidence, RunRow
from soak.growth import growths
from soak.program import POISONOUS

ENDED_WELL = frozenset({"succeeded", "cancelled"})
WAITING = "paused"

TAKEOVER_SECONDS = 30.0
"""Time after a fault in which a step that it interrupted may be executed again."""

DEATHS = 3
"""Workers that a run may kill before it ends."""

LOST = "worker_lost"
"""The error of a run that has killed as many."""

LAST_STEP = "publish"
"""The step behind the gate of every run."""

START_SECONDS = 180.0
"""Time in which a process starts, also on a busy machine. One that meets a fault meanwhile ends, and a supervisor starts it again."""

TRY_AGAIN = 75
"""Exit status of a process that could not start because something did not respond."""


def may_end(status: int, age: float, *, is_stopped: bool) -> bool:
    """Return whether a process of this age may end with this status.

    A process that starts may meet a fault, and SIGTERM ends it before it handles signals. Later it obeys SIGTERM in order.
    """
    is_starting = age < START_SECONDS
    if is_stopped and (status == 0 or (is_starting and status == -signal.SIGTERM)):
        return True
    return is_starting and status == TRY_AGAIN


@dataclass(frozen=True)
class Violation:
    """A broken law, and its facts."""

    law: str
    facts: str


def violations(evidence: Evidence) -> list[Violation]:
    """Return every broken law of a soak."""
    return [
        *_of_runs(evidence),
        *_of_gates(evidence),
        *_of_effects(evidence),
        *_of_poisonous(evidence),
        *_of_decisions(evidence),
        *_of_releases(evidence),
        *_of_processes(evidence),
    ]


def _of_runs(evidence: Evidence) -> Iterator[Violation]:
    rows = {run.id: run for run in evidence.runs}
    for request in evidence.started:
        if len(set(request.run_ids)) > 1:
            yield Violation("one request, one run", f"{request.input} was answered with {sorted(set(request.run_ids))}")
        for run_id in set(request.run_ids):
            if run_id not in rows:
                yield Violation("no acknowledged run is lost", f"{run_id} ({request.input}) is not in the database")
            elif rows[run_id].input != request.input:
                yield Violation("one request, one run", f"{run_id} has {rows[run_id].input}, not {request.input}")
    for text, times in Counter(run.input for run in evidence.runs).items():
        if times > 1:
            yield Violation("one request, one run", f"{times} runs have {text}")
    if evidence.jobs:
        yield Violation("the queue is empty when nothing is due", f"{evidence.jobs} jobs")
    asking = {task.run_id for task in evidence.tasks if task.is_open}
    for run in honest(evidence):
        if run.status == WAITING and run.id not in asking:
            yield Violation("a run ends or waits", f"{run.id} is paused without an open task")
        elif run.status != WAITING and run.status not in ENDED_WELL:
            yield Violation("a run ends or waits", f"{run.id} is {run.status}: {run.error}")
        if run.status in ENDED_WELL and run.id in asking:
            yield Violation("an ended run asks nothing", f"{run.id} is {run.status} and has an open task")


def honest(evidence: Evidence) -> list[RunRow]:
    """Return the runs that kill no worker."""
    return [run for run in evidence.runs if not run.input.startswith(POISONOUS)]


def _of_poisonous(evidence: Evidence) -> Iterator[Violation]:
    poisonous = [run for run in evidence.runs if run.input.startswith(POISONOUS)]
    for run in poisonous:
        if run.status != "failed" or LOST not in (run.error or ""):
            yield Violation("a run that kills its workers ends", f"{run.id} is {run.status}: {run.error}")
    if evidence.poisoned_deaths > DEATHS * len(poisonous):
        facts = f"{evidence.poisoned_deaths} workers died of {len(poisonous)} runs"
        yield Violation("a run that kills its workers ends", facts)


def _of_gates(evidence: Evidence) -> Iterator[Violation]:
    decisions = {task.run_id: task.decision for task in evidence.tasks}
    committed = {step.run_id for step in evidence.steps if step.step == LAST_STEP}
    for run in honest(evidence):
        decision = decisions.get(run.id)
        wanted = {"approved": "succeeded", "rejected": "cancelled", None: WAITING}.get(decision)
        if run.status in ENDED_WELL | {WAITING} and run.status != wanted:
            yield Violation("a decision is followed", f"{run.id} is {run.status}, its decision is {decision}")
        if (run.id in committed) != (run.status == "succeeded"):
            yield Violation(
                "a decision is followed", f"{run.id} is {run.status}; {LAST_STEP} committed: {run.id in committed}"
            )
    for effect in evidence.effects:
        if effect.step == LAST_STEP and decisions.get(effect.run_id) != "approved":
            yield Violation(
                "no effect without its approval", f"{effect.step} of {effect.run_id}: {decisions.get(effect.run_id)}"
            )


def _of_effects(evidence: Evidence) -> Iterator[Violation]:
    executions: dict[tuple[str, str], list[Effect]] = defaultdict(list)
    for effect in evidence.effects:
        executions[effect.run_id, effect.step].append(effect)
    for step in evidence.steps:
        if step.key not in {effect.key for effect in executions[step.run_id, step.step]}:
            yield Violation(
                "no effect is lost", f"{step.step} of {step.run_id} is committed; {step.key} is not in the log"
            )
    for name, times in Counter((step.run_id, step.step) for step in evidence.steps).items():
        if times > 1:
            yield Violation("no effect is doubled", f"{name[1]} of {name[0]} is committed {times} times")
    for (run_id, step), found in executions.items():
        keys = sorted({effect.key for effect in found})
        if len(keys) > 1:
            yield Violation("no effect is doubled", f"{step} of {run_id} was executed with {', '.join(keys)}")
    for run_id, step in unexplained_repeats(evidence):
        yield Violation(
            "only a fault repeats a step", f"{step} of {run_id} was executed again with its key and no fault"
        )


def repeats(evidence: Evidence) -> list[tuple[Effect, Effect]]:
    """Return each execution that another one with the same key precedes, with that one."""
    last: dict[str, Effect] = {}
    found = []
    for effect in sorted(evidence.effects, key=lambda effect: effect.at):
        if effect.key in last:
            found.append((last[effect.key], effect))
        last[effect.key] = effect
    return found


def unexplained_repeats(evidence: Evidence) -> list[tuple[str, str]]:
    """Return the steps that were executed again although no fault had interrupted them."""
    faults = [fault for fault in evidence.faults if fault.interrupts]
    return [
        (second.run_id, second.step)
        for first, second in repeats(evidence)
        if not any(fault.begun <= second.at and first.at <= fault.ended + TAKEOVER_SECONDS for fault in faults)
    ]


def _of_decisions(evidence: Evidence) -> Iterator[Violation]:
    tasks = {task.id: task for task in evidence.tasks}
    accepted = Counter(sent.task_id for sent in evidence.sent if sent.status == 200)
    for sent in evidence.sent:
        task = tasks.get(sent.task_id)
        if task is None:
            yield Violation("no decision is lost", f"task {sent.task_id} of {sent.person} is not in the database")
        elif sent.status == 200 and (task.person, task.decision) != (sent.person, sent.decision):
            facts = f"{sent.person} {sent.decision} {task.id}; it has {task.decision} by {task.person}"
            yield Violation("no decision is lost", facts)
        elif sent.status not in {0, 200} and task.person == sent.person:
            facts = f"{sent.person} decided {task.id}, and was answered {sent.status}"
            yield Violation("a decision is acknowledged", facts)
    for task in evidence.tasks:
        if accepted[task.id] > 1:
            yield Violation("a task is decided once", f"{accepted[task.id]} people read that they decided {task.id}")
        expected = 0 if task.decision is None else 1
        if task.events != expected or task.receipts != expected:
            facts = f"{task.id} ({task.decision}) has {task.events} audit events and {task.receipts} receipts"
            yield Violation("a task is decided once", facts)
    if evidence.audit_problem is not None:
        yield Violation("the audit log is whole", evidence.audit_problem)


def _of_releases(evidence: Evidence) -> Iterator[Violation]:
    for promotion in evidence.promotions:
        if promotion.times != 1:
            facts = f"{promotion.version} to {promotion.environment}: {promotion.times} times"
            yield Violation("a version is promoted once", facts)
    for environment, version in evidence.released.items():
        if evidence.served.get(environment) != version:
            facts = f"{environment} serves {evidence.served.get(environment)}, and Git declares {version}"
            yield Violation("environments serve what Git declares", facts)


def _of_processes(evidence: Evidence) -> Iterator[Violation]:
    yield from (Violation("no process ends alone", text) for text in evidence.ended_alone)
    yield from (Violation("no request fails without a fault", text) for text in evidence.failures)
    for growth in growths(evidence.samples, evidence.warm_up):
        if growth.is_leak:
            yield Violation("memory and descriptors stay flat", str(growth))
