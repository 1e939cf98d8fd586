"""Text of an evaluation as a part of a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kneo.names import visible
from kneo.spec.diff import escaped
from kneo.spec.diff.texts import count

if TYPE_CHECKING:
    from kneo.runtime.trials.evaluation import Evaluation

MAX_FAILURES = 20
"""Failures that a comment has for one suite; the others are counted."""

MAX_CHARS = 500
"""Characters of one failure."""


def evaluated(suite: Path, evaluation: Evaluation) -> Iterator[str]:
    """Yield the figures of a suite, and why cases failed, as lines of Markdown.

    Args:
        suite: The file of the suite.
        evaluation: Its results.
    """
    passed = sum(case.passed for case in evaluation.cases)
    mark, models = ("✓" if evaluation.passed else "✗"), ("scripted" if evaluation.scripted else "live")
    yield f"#### {mark} Suite {_shown(str(suite))}\n"
    yield f"{passed} of {count(len(evaluation.cases), 'case')} passed with {models} models.\n"
    yield "| metric | value | cases |\n|---|---|---|"
    for name, metric in evaluation.metrics().items():
        yield f"| {_shown(name)} | {metric.value} | {metric.samples} |"
    failures = [(case.id, failure) for case in evaluation.cases for failure in case.failures]
    yield from ([""] if failures else [])
    yield from (f"- ✗ **{_shown(case)}** {_shown(failure)}" for case, failure in failures[:MAX_FAILURES])
    if failures[MAX_FAILURES:]:
        yield f"- ‼ … {count(len(failures) - MAX_FAILURES, 'more failure')}"
    yield ""


def unevaluated(suite: Path, reason: str) -> Iterator[str]:
    """Yield why a suite was not evaluated, as lines of Markdown."""
    yield f"#### Suite {_shown(str(suite))}\n"
    yield f"Not evaluated here. {_shown(reason)}.\n"


def _shown(text: str) -> str:
    return escaped(visible(text[:MAX_CHARS]))
