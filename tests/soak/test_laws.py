"""Every law of a soak can be broken: evidence that keeps them all, and what each wrong in it is reported as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from soak.evidence import Effect, Evidence, Fault, Promotion, RunRow, Sample, SentDecision, StartedRun, StepRow, TaskRow
from soak.growth import growths, slope
from soak.laws import START_SECONDS, TRY_AGAIN, may_end, violations

MIB = 2**20


def effect(run: str, step: str, *, at: float = 100.0, attempt: int = 0) -> Effect:
    return Effect(run, step, f"{run}:{step}:{attempt}", at, 1)


def samples(growth: int = 0, descriptors: int = 0) -> tuple[Sample, ...]:
    return tuple(Sample("worker 1", float(at), 100 * MIB + growth * at, 30 + descriptors * at) for at in range(200))


POISONED = RunRow("p1", "poisonous 1", "failed", '{"type": "worker_lost"}')

GOOD = Evidence(
    started=(StartedRun("soak 1", ("r1", "r1")), StartedRun("soak 2", ("r2",)), StartedRun("soak 3", ("r3",))),
    sent=(
        SentDecision("t1", "ann", "approved", 200),
        SentDecision("t1", "bob", "rejected", 409),
        SentDecision("t2", "bob", "rejected", 200),
    ),
    runs=(
        RunRow("r1", "soak 1", "succeeded"),
        RunRow("r2", "soak 2", "cancelled"),
        RunRow("r3", "soak 3", "paused"),
        POISONED,
    ),
    tasks=(
        TaskRow("t1", "r1", False, "approved", "ann", 1, 1),
        TaskRow("t2", "r2", False, "rejected", "bob", 1, 1),
        TaskRow("t3", "r3", True, None, None, 0, 0),
    ),
    steps=(
        StepRow("r1", "prepare", "r1:prepare:0"),
        StepRow("r1", "publish", "r1:publish:0"),
        StepRow("r2", "prepare", "r2:prepare:0"),
        StepRow("r3", "prepare", "r3:prepare:0"),
    ),
    effects=(effect("r1", "prepare"), effect("r2", "prepare"), effect("r3", "prepare"), effect("r1", "publish")),
    faults=(Fault("worker killed", 50.0, 51.0, True), Fault("service killed", 150.0, 151.0, False)),
    poisoned_deaths=3,
    promotions=(Promotion("prod", "1.1.0", 1),),
    released={"prod": "1.1.0"},
    served={"prod": "1.1.0"},
    samples=samples(),
)


def without_run(evidence: Evidence) -> Evidence:
    return replace(evidence, runs=evidence.runs[1:])


def with_effect(found: Effect) -> Callable[[Evidence], Evidence]:
    return lambda evidence: replace(evidence, effects=(*evidence.effects, found))


def with_run(number: int, **changes: str) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        rows = list(evidence.runs)
        rows[number] = replace(rows[number], **changes)
        return replace(evidence, runs=tuple(rows))

    return change


def with_task(number: int, **changes: object) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        rows = list(evidence.tasks)
        rows[number] = replace(rows[number], **changes)
        return replace(evidence, tasks=tuple(rows))

    return change


def with_sent(sent: SentDecision) -> Callable[[Evidence], Evidence]:
    return lambda evidence: replace(evidence, sent=(*evidence.sent, sent))


def having(**changes: object) -> Callable[[Evidence], Evidence]:
    return lambda evidence: replace(evidence, **changes)


WRONGS: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "a run is lost": ("no acknowledged run is lost", without_run),
    "a request made two runs": ("one request, one run", having(started=(StartedRun("soak 1", ("r1", "r2")),))),
    "two runs have one input": ("one request, one run", with_run(1, input="soak 1")),
    "a run is stuck": ("a run ends or waits", with_run(0, status="running")),
    "a run failed": ("a run ends or waits", with_run(0, status="failed")),
    "a paused run asks nothing": ("a run ends or waits", with_task(2, is_open=False)),
    "a job is left": ("the queue is empty when nothing is due", having(jobs=1)),
    "an ended run asks": ("an ended run asks nothing", with_task(0, is_open=True)),
    "an approved run did not go on": ("a decision is followed", with_run(0, status="cancelled")),
    "a rejected run went on": ("no effect without its approval", with_effect(effect("r2", "publish"))),
    "a run that waits went on": ("no effect without its approval", with_effect(effect("r3", "publish"))),
    "an effect was done twice": ("no effect is doubled", with_effect(effect("r1", "publish", attempt=1))),
    "a step was committed twice": ("no effect is doubled", having(steps=(*GOOD.steps, GOOD.steps[0]))),
    "an effect is lost": ("no effect is lost", having(effects=GOOD.effects[1:])),
    "a step was repeated without a fault": (
        "only a fault repeats a step",
        with_effect(effect("r1", "publish", at=101)),
    ),
    "a decision is lost": ("no decision is lost", with_task(0, decision=None, person=None, events=0, receipts=0)),
    "another person's decision": ("no decision is lost", with_task(0, person="bob")),
    "an unknown task": ("no decision is lost", with_sent(SentDecision("t9", "ann", "approved", 200))),
    "a decision that counted was refused": (
        "a decision is acknowledged",
        having(sent=(SentDecision("t1", "ann", "approved", 409),)),
    ),
    "a decision was accepted twice": ("a task is decided once", with_sent(SentDecision("t1", "bob", "approved", 200))),
    "two events of one decision": ("a task is decided once", with_task(0, events=2)),
    "no receipt": ("a task is decided once", with_task(0, receipts=0)),
    "the log is broken": ("the audit log is whole", having(audit_problem="event 7 was changed")),
    "a version was promoted twice": ("a version is promoted once", having(promotions=(Promotion("prod", "1.1.0", 2),))),
    "another version is served": ("environments serve what Git declares", having(served={"prod": "1.0.0"})),
    "a run kills workers for ever": ("a run that kills its workers ends", having(poisoned_deaths=4)),
    "a poisonous run goes on": (
        "a run that kills its workers ends",
        lambda evidence: replace(evidence, runs=(*evidence.runs[:-1], replace(POISONED, status="running", error=None))),
    ),
    "an honest run is lost": (
        "a run ends or waits",
        lambda evidence: replace(evidence, runs=(*evidence.runs, replace(POISONED, id="r4", input="soak 4"))),
    ),
    "a process ended": ("no process ends alone", having(ended_alone=("worker 1 ended with 1",))),
    "a request failed": ("no request fails without a fault", having(failures=("GET /runs: 500",))),
    "memory grows": ("memory and descriptors stay flat", having(samples=samples(growth=MIB))),
    "descriptors leak": ("memory and descriptors stay flat", having(samples=samples(descriptors=1))),
}


def test_evidence_without_a_wrong_breaks_no_law() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize("name", WRONGS)
def test_a_wrong_is_reported(name: str) -> None:
    law, change = WRONGS[name]
    assert law in {violation.law for violation in violations(change(GOOD))}


@pytest.mark.parametrize(
    ("at", "fault", "explained"), [(60.0, 50.0, True), (150.0, 150.0, False), (200.0, 50.0, False)]
)
def test_a_step_that_a_fault_interrupted_may_be_repeated_with_its_key(at: float, fault: float, explained: bool) -> None:
    first, second = effect("r1", "publish", at=at - 10), effect("r1", "publish", at=at)
    found = violations(replace(GOOD, effects=(*GOOD.effects[:3], first, second)))
    assert (found == []) is explained, fault


def test_growth_is_the_slope_of_the_second_half() -> None:
    warm = tuple(Sample("service 1", float(at), min(at, 60) * MIB, 30) for at in range(200))
    (growth,) = growths(warm, 30)
    assert (growth.process, growth.seconds, growth.bytes_per_hour, growth.is_leak) == ("service 1", 99.0, 0.0, False)
    assert slope([0.0, 1.0, 2.0], [5, 7, 9]) == 2.0


def test_a_step_is_no_leak() -> None:
    """A controller became the leader 310 s after its start, as a soak of an hour found."""
    stepped = tuple(Sample("controller 2", 9.0 * at, (97 if at < 34 else 111) * MIB, 30) for at in range(65))
    (growth,) = growths((Sample("service 1", -600.0, MIB, 1), *stepped), 30)
    assert not growth.is_leak
    assert slope([each.at for each in stepped], [each.bytes for each in stepped]) * 540 > 16 * MIB


def test_the_start_of_a_process_is_no_growth() -> None:
    starting = tuple(Sample("worker 2", 100.0 + at, min(at, 60) * MIB, 30) for at in range(100))
    found = {growth.process: growth.is_leak for growth in growths((*samples(), *starting), 60)}
    assert found == {"worker 1": False, "worker 2": False}


def test_processes_that_lived_too_short_have_no_growth() -> None:
    assert growths(samples()[:5], 30) == []


@pytest.mark.parametrize(
    ("status", "age", "is_stopped", "may"),
    [
        (0, 900.0, True, True),
        (-15, 2.0, True, True),
        (-15, START_SECONDS, True, False),
        (TRY_AGAIN, 2.0, True, True),
        (TRY_AGAIN, 2.0, False, True),
        (TRY_AGAIN, START_SECONDS, False, False),
        (0, 2.0, False, False),
        (-15, 2.0, False, False),
        (-9, 2.0, True, False),
        (1, 2.0, True, False),
        (1, 2.0, False, False),
    ],
)
def test_a_process_ends_in_order_when_it_is_stopped_and_tries_again_only_while_it_starts(
    status: int, age: float, is_stopped: bool, may: bool
) -> None:
    assert may_end(status, age, is_stopped=is_stopped) is may
