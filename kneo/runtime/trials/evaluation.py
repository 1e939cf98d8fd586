"""An evaluation: trials of every case of a suite, their expectations, and the metrics over the cases."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Protocol

from kneo.agents.texts import marked_untrusted
from kneo.digest import canonical_json
from kneo.errors import Invalid
from kneo.runtime.trials.stubs import CaseState
from kneo.runtime.trials.trial import Observed, TrialBench, TrialSubject
from kneo.spec.models.suite import Case, Expected, ModelMode
from kneo.spec.patterns import compile_pattern
from kneo.spec.reading.suite import LoadedSuite
from kneo.trust.result import SALT_BYTES, AskedModel, Metric, commitment_of, decimal_text

UNAVAILABLE = frozenset(
    {"model_unreachable", "model_overloaded", "model_refused", "provider_not_configured", "model_not_allowed"}
)
"""Errors of a run that say nothing about its bundle."""

SCORE = re.compile(r"\s*([01](?:\.[0-9]{1,6})?)\b")

Json = dict[str, object]


class EvaluationIncomplete(Invalid):
    """Not every case could be evaluated, so that there is no result."""

    default_code = "evaluation_incomplete"


class EvaluationCostExceeded(Invalid):
    """The trials cost more than the suite allows, so that there is no result."""

    default_code = "evaluation_cost_exceeded"


class OpenBench(Protocol):
    """Opens a bench for trials of a subject, which is closed with the stack."""

    def __call__(self, stack: ExitStack, subject: TrialSubject) -> TrialBench: ...


@dataclass
class CaseResult:
    """The result of one case: it has passed where every repetition has."""

    id: str
    repeats: list[Json] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    scores: dict[str, list[Decimal]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_json(self) -> Json:
        return {"id": self.id, "passed": self.passed, "repeats": len(self.repeats), "failures": self.failures}

    def content(self) -> Json:
        """Return the result with its texts, as a report has it and a signed result commits to it."""
        return {"id": self.id, "passed": self.passed, "repeats": self.repeats, "failures": self.failures}


@dataclass(frozen=True)
class Evaluation:
    """The results of a suite."""

    suite: LoadedSuite
    scripted: bool
    cases: tuple[CaseResult, ...]
    models: tuple[AskedModel, ...]
    cost: Decimal | None
    """USD; None where the price of a model is not known."""

    salts: Mapping[str, str]

    @property
    def passed(self) -> bool:
        return all(case.passed for case in self.cases)

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics. A sample is a case, so that repetitions do not make a small suite look large."""
        count = len(self.cases)
        stated = {"pass_rate": (Decimal(sum(case.passed for case in self.cases)) / count, count)}
        if self.cost is not None:
            runs = sum(len(case.repeats) for case in self.cases)
            stated["cost_per_run"] = (self.cost / runs, count)
        for judge in self.suite.spec.judges:
            means = [sum(case.scores[judge]) / len(case.scores[judge]) for case in self.cases if judge in case.scores]
            if means:
                stated[f"judge.{judge}"] = (Decimal(sum(means)) / len(means), len(means))
        return {name: Metric(value=decimal_text(value), samples=samples) for name, (value, samples) in stated.items()}

    def commitments(self) -> dict[str, str]:
        """Return the commitment to each case."""
        return {case.id: commitment_of(self.salts[case.id], case.content()) for case in self.cases}

    def report(self) -> list[Json]:
        """Return each case with its texts and its salt."""
        return [{"id": case.id, "salt": self.salts[case.id], "result": case.content()} for case in self.cases]


class Evaluator:
    """Runs the trials of a suite, one after the other.

    Args:
        suite: The suite.
        subject: The spec, and its environment.
        models: Whether models are scripted or asked.
        repeats: Trials of each case.
        open_bench: Opens the database of the trials; a judge has one of its own, without the rules of the environment.
    """

    def __init__(
        self, suite: LoadedSuite, subject: TrialSubject, models: ModelMode, repeats: int, open_bench: OpenBench
    ) -> None:
        self.suite, self.subject, self.models, self.repeats = suite, subject, models, repeats
        self._open, self._micros, self._unpriced = open_bench, 0, False
        self._judges: dict[str, TrialBench] = {}

    async def evaluate(self) -> Evaluation:
        """Evaluate every case.

        Raises:
            EvaluationIncomplete: a model could not be asked, or a judge gave no score.
            EvaluationCostExceeded: the trials cost more than the suite allows.
            KneoError: the spec may not run.
        """
        target = "workflow" if self.subject.spec.get("workflow") else "agent"
        with ExitStack() as stack:
            bench = self._open(stack, self.subject)
            try:
                results = [await self._case(case, bench, target, stack) for case in self.suite.spec.cases]
            finally:
                for each in (bench, *self._judges.values()):
                    await each.driver.close()
            answered = sorted({model for each in (bench, *self._judges.values()) for model in each.models})
        return Evaluation(
            suite=self.suite,
            scripted=self.models == "scripted",
            cases=tuple(results),
            models=tuple(AskedModel(provider=one, name=two, answered=three) for one, two, three in answered),
            cost=None if self._unpriced else Decimal(self._micros) / 1_000_000,
            salts={case.id: secrets.token_hex(SALT_BYTES) for case in results},
        )

    async def _case(self, case: Case, bench: TrialBench, target: str, stack: ExitStack) -> CaseResult:
        result = CaseResult(case.id)
        for number in range(1, self.repeats + 1):
            observed = await bench.run(CaseState(case), case.input, target)
            self._count(case, observed)
            failures = [f"{observed.ended}"] if observed.ended is not None else []
            for expected in case.expect if observed.ended is None else ():
                if expected.judge is not None:
                    score = await self._judge(expected.judge, str(expected.question), case, observed, stack)
                    result.scores.setdefault(expected.judge, []).append(score)
                    least = Decimal(str(expected.at_least))
                    failure = f"{expected.judge} gives {score}; {least} is expected." if score < least else None
                else:
                    failure = find_failure(expected, observed)
                failures += [failure] if failure is not None else []
            prefix = f"repetition {number}: " if self.repeats > 1 else ""
            result.failures += [f"{prefix}{failure}" for failure in failures]
            result.repeats.append(json.loads(json.dumps({**asdict(observed), "failures": failures})))
        return result

    def _count(self, case: Case, observed: Observed) -> None:
        if observed.error in UNAVAILABLE and observed.ended is None:
            msg = f"The case {case.id} could not be evaluated: {observed.error}."
            raise EvaluationIncomplete(msg, hint="Evaluate again once the model can be asked.")
        self._unpriced |= observed.cost_micros is None
        self._micros += observed.cost_micros or 0
        if Decimal(self._micros) / 1_000_000 > Decimal(str(self.suite.spec.max_cost)):
            msg = f"The trials cost more than maxCost, {self.suite.spec.max_cost} USD; they were stopped at {case.id}."
            raise EvaluationCostExceeded(msg, hint="Raise maxCost in the suite, or evaluate fewer cases.")

    async def _judge(self, name: str, question: str, case: Case, observed: Observed, stack: ExitStack) -> Decimal:
        judge = self.suite.spec.judges[name]
        if name not in self._judges:
            model = judge.model.model_dump(mode="json", exclude_none=True)
            agent = {"name": name, "model": model, "system_prompt": judge.system_prompt}
            self._judges[name] = self._open(stack, TrialSubject(spec={"version": "v1", "agent": agent}))
        parts = [question, "Input:", marked_untrusted(case.input, "input")]
        text = "\n\n".join((*parts, "Output:", marked_untrusted(observed.output, "output")))
        asked = await self._judges[name].run(CaseState(case), text, "agent")
        self._count(case, asked)
        score = SCORE.match(asked.output) if asked.status == "succeeded" else None
        if score is None or Decimal(score[1]) > 1:
            msg = f"The judge {name} gave no score from 0 to 1 for the case {case.id}."
            raise EvaluationIncomplete(
                msg, hint="Let its system_prompt ask for one number from 0 to 1 and nothing else."
            )
        return Decimal(score[1])


def find_failure(expected: Expected, observed: Observed) -> str | None:
    """Return why an expectation does not hold; None where it does."""
    check = {
        "status": _status,
        "output_contains": _output,
        "output_matches": _output,
        "output_equals": _output,
        "called": _calls,
        "not_called": _calls,
        "asked": _questions,
        "not_asked": _questions,
        "max_cost": _cost,
    }[expected.kind]
    return check(expected, observed)


def _status(expected: Expected, observed: Observed) -> str | None:
    if observed.status == expected.status:
        return None
    why = f" ({observed.error})" if observed.error is not None else ""
    return f"the status is {observed.status}{why}; {expected.status} is expected."


def _output(expected: Expected, observed: Observed) -> str | None:
    output = observed.output
    if expected.output_contains is not None:
        holds, what = expected.output_contains in output, f"contain {expected.output_contains[:200]!r}"
    elif expected.output_matches is not None:
        holds, what = (
            compile_pattern(expected.output_matches).search(output),
            f"match {expected.output_matches[:200]!r}",
        )
    else:
        holds, what = output == expected.output_equals, f"equal {str(expected.output_equals)[:200]!r}"
    return None if holds else f"the output does not {what}."


def _calls(expected: Expected, observed: Observed) -> str | None:
    if expected.not_called is not None:
        made = any(call.tool == expected.not_called for call in observed.calls)
        return f"{expected.not_called} was called." if made else None
    calls = [call for call in observed.calls if call.tool == expected.called]
    wanted = canonical_json(expected.arguments) if expected.arguments is not None else None
    fitting = [call for call in calls if wanted in {None, canonical_json(dict(call.arguments))}]
    if expected.times == len(fitting) or (expected.times is None and fitting):
        return None
    times = "at least one" if expected.times is None else str(expected.times)
    with_them = " with these arguments" if expected.arguments is not None else ""
    seen = _shown([canonical_json(dict(call.arguments)).decode()[:200] for call in calls])
    return f"{expected.called} was called {len(fitting)} times{with_them}; {times} is expected. Calls: {seen}."


def _questions(expected: Expected, observed: Observed) -> str | None:
    if expected.not_asked is not None:
        return f"{expected.not_asked} was asked." if expected.not_asked in observed.asked else None
    return (
        None
        if expected.asked in observed.asked
        else f"{expected.asked} was not asked. Asked: {_shown(observed.asked)}."
    )


def _cost(expected: Expected, observed: Observed) -> str | None:
    if observed.cost_micros is None:
        return "the cost is not known: a model has no price."
    cost, most = Decimal(observed.cost_micros) / 1_000_000, Decimal(str(expected.max_cost))
    return f"it cost {decimal_text(cost)} USD; at most {decimal_text(most)} is expected." if cost > most else None


def _shown(items: Sequence[str]) -> str:
    return ", ".join(items) or "none"
