"""Scripted trials of an agent with one tool call and one question."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kneo.clock import monotonic
from kneo.runtime.trials.evaluation import Evaluator
from kneo.runtime.trials.trial import TrialBench, TrialSubject, open_bench
from kneo.settings import from_env
from kneo.spec.compiler import SpecCompiler
from kneo.spec.reading.suite import parse_suite

SPEC: dict[str, Any] = {
    "version": "v1",
    "agent": {
        "name": "clerk",
        "system_prompt": "Pay.",
        "model": {"provider": "openai", "name": "gpt-5-mini"},
        "strategy": {"type": "react", "max_iterations": 5},
        "tools": {"include": ["pay"]},
    },
    "tools": {
        "pay": {
            "description": "Pay.",
            "parameters": {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]},
            "implementation": "pay_tools.pay",
            "capabilities": ["privileged"],
            "review": {"before": {"human": "finance"}},
        }
    },
    "components": {"humans": {"finance": {"description": "Right?"}}},
}
CASE: dict[str, Any] = {
    "input": "Pay invoice 7",
    "replies": [{"call": {"tool": "pay", "arguments": {"amount": 120}}}, {"text": "Paid."}],
    "tools": [{"tool": "pay", "returns": "ok"}],
    "answers": {"clerk.pay:1": {"decision": "approved"}},
    "expect": [{"status": "succeeded"}, {"called": "pay", "times": 1}],
}


def trials_a_second(folder: Path, count: int) -> float:
    """Return the trials in a second, after one evaluation in which libraries are imported."""

    def evaluate(number: int) -> float:
        suite = {
            "apiVersion": "kneo/v1",
            "kind": "Suite",
            "metadata": {"name": "pay"},
            "spec": {"cases": [{**CASE, "id": f"case-{each}"} for each in range(number)]},
        }
        loaded, settings = parse_suite(json.dumps(suite).encode(), file="suite.json"), from_env({}, folder)

        def opened(stack: ExitStack, subject: TrialSubject) -> TrialBench:
            check = SpecCompiler().compile
            return stack.enter_context(
                open_bench(settings, subject, "scripted", check_spec=check, project=None, runs_code=False)
            )

        began = monotonic()
        result = asyncio.run(Evaluator(loaded, TrialSubject(spec=SPEC), "scripted", 1, opened).evaluate())
        assert result.passed, [case.failures for case in result.cases]
        return monotonic() - began

    evaluate(1)
    return count / evaluate(count)
