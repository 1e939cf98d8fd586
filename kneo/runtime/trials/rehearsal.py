"""A rehearsal: trials of a bundle on the inputs of recorded runs, in which every call and question has its recorded answer.

A trial ends at the first call or question that its recording does not have: what follows would rest on an invented result.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NoReturn, TypeAlias

from kneo.agents.turn import ToolCall
from kneo.digest import canonical_json
from kneo.errors import Invalid
from kneo.records.recording import (
    RecordedCall,
    RecordedQuestion,
    Recording,
    Redaction,
    recorded_key,
    redacted_json,
    subject_digest,
)
from kneo.records.task import HumanTask
from kneo.redaction import redact_text
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.trials.evaluation import UNAVAILABLE
from kneo.runtime.trials.stubs import TrialState
from kneo.runtime.trials.trial import Observed, TrialBench
from kneo.spec.models.answers import ScriptedAnswer
from kneo.spec.models.suite import ScriptedReply
from kneo.trust.result import AskedModel, Metric, decimal_text

Outcome: TypeAlias = Literal["matched", "diverged_safe", "unsafe", "unknown"]

OUTCOMES: tuple[Outcome, ...] = ("matched", "diverged_safe", "unsafe", "unknown")

UNKNOWN_ERRORS = UNAVAILABLE | {
    *("budget_exceeded", "model_unpriced", "conversation_too_long", "secret_missing", "sandbox_unavailable"),
    *("implementation_elsewhere", "implementation_forbidden", "implementation_invalid", "implementation_not_pinned"),
}
"""Errors of a trial that say nothing about the bundle: of models, of limits, and of code that this machine does not have."""

HARMLESS = frozenset({"filesystem_read"})
"""Capabilities of functions that change nothing outside."""

_NUMBER = re.compile(r":\d+(?=[+>]|$)")

CallKey: TypeAlias = tuple[str, str, bytes]


@dataclass(frozen=True)
class RehearsedRun:
    """What became of one recorded run; ``reason`` says where a trial diverged."""

    run_id: str
    outcome: Outcome
    reason: str | None = None


class RecordedState(TrialState):
    """The state of a trial of a recorded run.

    Calls match by tool and arguments in RFC 8785 form, questions by key and subject; both after redaction. Equal ones have the recorded
    results in their order.
    """

    def __init__(self, recording: Recording, redaction: Redaction) -> None:
        super().__init__()
        self.recording, self.redaction = recording, redaction
        self.outcome: Outcome | None = None
        self.new_calls = self.gates_lost = 0
        self._calls: dict[CallKey, deque[int]] = defaultdict(deque)
        for number, call in enumerate(recording.calls):
            self._calls[_call_key(call.tool, call.path, call.arguments)].append(number)
        self._last = -1
        self._questions: dict[tuple[str, str], deque[RecordedQuestion]] = defaultdict(deque)
        self._gates: dict[str, Counter[str]] = defaultdict(Counter)
        for question in recording.questions:
            self._questions[question.key, question.subject_digest].append(question)
            if question.about_call:
                self._gates[question.subject_digest][_gate_of(question.key)] += 1
        self._asked_about: dict[str, Counter[str]] = defaultdict(Counter)
        self._made: Counter[str] = Counter()

    def next_reply(self) -> ScriptedReply:
        raise self.end("Recordings have no replies of models.")

    def _diverge(self, outcome: Outcome, reason: str) -> NoReturn:
        # Calls of one reply are made together: one that is unsafe counts although another has ended the trial.
        if self.reason is None or (outcome == "unsafe" and self.outcome != "unsafe"):
            self.outcome, self.reason = outcome, reason
        raise self.end(reason)

    def result_of(self, call: ToolCall) -> object:
        arguments = redacted_json(call.arguments, self.redaction)
        asked = {"tool": call.name, "arguments": redacted_json(call.asked, self.redaction)}
        about = subject_digest(canonical_json(asked).decode(), self.redaction)
        self._made[about] += 1
        lost = [
            gate
            for gate, count in self._gates[about].items()
            if self._asked_about[about][gate] < min(count, self._made[about])
        ]
        if lost:
            self.gates_lost += len(lost)
            self._diverge("unsafe", f"{call.name} was called without the question {', '.join(sorted(lost))}.")
        found = self._take(_call_key(call.name, "", arguments))
        if found is None:
            unasked = call.tool.has_effects and not self._asked_about[about]
            self._new_call(call.name, arguments, is_unsafe=unasked)
        self.check()
        if found.failed:
            error = found.result if isinstance(found.result, Mapping) else {}
            raise Invalid(str(error.get("message", "")), code=str(error.get("error", "call_failed")))
        return found.result

    def output_of(self, activity: Activity, location: str, text: str, capabilities: Collection[str]) -> str | None:  # noqa: ARG002
        arguments = redacted_json({"text": text}, self.redaction)
        found = self._take(_call_key(None, activity.path, arguments))
        if not capabilities:
            return None  # the candidate's own code runs, which may have changed
        if found is None:
            effects = not set(capabilities) <= HARMLESS
            asked = any(key.startswith(f"{activity.path}.before") for key in self.asked)
            self._new_call(f"the function at {activity.path}", arguments, is_unsafe=effects and not asked)
        return str(found.result)

    def _take(self, key: CallKey) -> RecordedCall | None:
        numbers = self._calls.get(key)
        if not numbers:
            return None
        number = numbers.popleft()
        self._last = max(self._last, number)
        return self.recording.calls[number]

    def _new_call(self, what: str, arguments: Mapping[str, object], *, is_unsafe: bool) -> NoReturn:
        self.new_calls += 1
        with_them = f"with {canonical_json(arguments).decode()[:300]}"
        if is_unsafe:
            self._diverge("unsafe", f"New call of {what} {with_them}, which has effects and about which no gate asks.")
        self._diverge("diverged_safe", f"New call of {what} {with_them}.")

    def answer_to(self, task: HumanTask) -> ScriptedAnswer | None:
        key, about = recorded_key(task.key), subject_digest(task.subject, self.redaction)
        waiting = self._questions.get((key, about))
        if not waiting:
            outcome: Outcome = "unknown" if "budget:" in key else "diverged_safe"
            if self.reason is None:
                self.outcome, self.reason = outcome, f"New question {key}."
            return None
        question = waiting.popleft()
        if question.about_call:
            self._asked_about[about][_gate_of(key)] += 1
        if question.decision is None and not question.timeout:
            self.end(f"The recording has no answer to {key}.")
            return None
        given = {name: value for name, value in vars(question).items() if name in ScriptedAnswer.model_fields}
        return ScriptedAnswer(**given)

    def judge(self, observed: Observed) -> RehearsedRun:
        """Return what became of the run, once its trial has ended."""
        run, run_id = self.recording, self.recording.run_id
        if self.outcome == "unsafe":
            return RehearsedRun(run_id, "unsafe", self.reason)
        is_whole = observed.ended is None and observed.status == "succeeded"
        asked = {recorded_key(key) for key in observed.asked}
        missing = sorted(
            {
                question.key
                for question in run.questions
                if not question.about_call and question.key not in asked and (is_whole or question.after <= self._last)
            }
        )
        if missing:
            self.gates_lost += len(missing)
            return RehearsedRun(run_id, "unsafe", f"The question {', '.join(missing)} was not asked.")
        if observed.ended is not None or self.outcome is not None:
            return RehearsedRun(run_id, self.outcome or "unknown", self.reason or observed.ended)
        if observed.error in UNKNOWN_ERRORS:
            return RehearsedRun(run_id, "unknown", f"The trial failed: {observed.error}.")
        different = self._difference(observed)
        return RehearsedRun(run_id, "matched" if different is None else "diverged_safe", different)

    def _difference(self, observed: Observed) -> str | None:
        run = self.recording
        if observed.status != run.status:
            error = f" ({observed.error})" if observed.error is not None else ""
            return f"The status is {observed.status}{error}; the run's was {run.status}."
        left = sorted(number for numbers in self._calls.values() for number in numbers)
        if left:
            first = run.calls[left[0]]
            return f"{len(left)} calls were not made; the first one is of {first.tool or first.path}."
        unasked = sorted(key for (key, _), waiting in self._questions.items() if waiting)
        if unasked:
            return f"{unasked[0]} was not asked, and its call was not made."
        if redact_text(observed.output, personal=self.redaction == "personal") != (run.output or ""):
            return "The output is another text."
        return None


def _call_key(tool: str | None, path: str, arguments: Mapping[str, object]) -> CallKey:
    return (tool or "", "" if tool else path, canonical_json(arguments))


def _gate_of(key: str) -> str:
    """Return the gate of a question about a call, without the number of the call."""
    return _NUMBER.sub("", key)


@dataclass(frozen=True)
class Rehearsal:
    """The results of a rehearsal."""

    runs: tuple[RehearsedRun, ...]
    models: tuple[AskedModel, ...]
    new_calls: int
    gates_lost: int
    cost: Decimal | None
    """USD; None where the price of a model is not known."""

    @property
    def passed(self) -> bool:
        return not self.of("unsafe")

    def of(self, outcome: Outcome) -> list[str]:
        """Return the ids of the runs with an outcome."""
        return [run.run_id for run in self.runs if run.outcome == outcome]

    def counts(self) -> dict[str, int]:
        """Return the number of runs with each outcome."""
        return {name: len(self.of(name)) for name in OUTCOMES}

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics, each over all runs: those that could not be rehearsed stay in the denominator."""
        count = len(self.runs)
        stated = {name: Decimal(number) / count for name, number in self.counts().items() if name != "diverged_safe"}
        stated["gates_lost"] = Decimal(self.gates_lost)
        return {name: Metric(value=decimal_text(value), samples=count) for name, value in stated.items()}


async def rehearse(
    bench: TrialBench, recordings: Sequence[Recording], redaction: Redaction, on_run: Callable[[RehearsedRun], None]
) -> Rehearsal:
    """Rehearse recorded runs, one after the other.

    Args:
        bench: The database of the trials, with the candidate and its own models.
        recordings: The recorded runs, at least one.
        redaction: What was redacted in them.
        on_run: Called after each run.

    Raises:
        KneoError: the candidate may not run.
    """
    runs: list[RehearsedRun] = []
    new_calls = gates_lost = micros = 0
    is_priced = True
    try:
        for recording in recordings:
            if recording.unavailable is not None:
                run = RehearsedRun(recording.run_id, "unknown", f"The recording is {recording.unavailable}.")
            else:
                state = RecordedState(recording, redaction)
                observed = await bench.run(state, recording.input or "", recording.target)
                run = state.judge(observed)
                new_calls, gates_lost = new_calls + state.new_calls, gates_lost + state.gates_lost
                micros += observed.cost_micros or 0
                is_priced &= observed.cost_micros is not None
            runs.append(run)
            on_run(run)
    finally:
        await bench.driver.close()
    return Rehearsal(
        runs=tuple(runs),
        models=tuple(AskedModel(provider=one, name=two, answered=three) for one, two, three in sorted(bench.models)),
        new_calls=new_calls,
        gates_lost=gates_lost,
        cost=Decimal(micros) / 1_000_000 if is_priced else None,
    )
