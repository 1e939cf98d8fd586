"""Results of other tools: JUnit XML, as pytest, promptfoo and DeepEval write it, and the JSON log of Inspect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NoReturn
from xml.parsers import expat

from kneo.errors import Invalid
from kneo.trust.dsse import NAME
from kneo.trust.result import MAX_CASES, AskedModel, Metric, decimal_text

MAX_BYTES = 8 * 1_048_576

PASSED_SCORES = ("C", True, 1, 1.0)
"""Scores of a sample that has passed."""


ResultFormat = Literal["junit", "inspect"]


class ResultsInvalid(Invalid):
    """A file of results cannot be used; nothing is signed."""

    default_code = "results_invalid"


@dataclass(frozen=True)
class ForeignResults:
    """The results of a file: whether each case has passed in every repetition, and what it states besides."""

    cases: Mapping[str, bool]
    models: tuple[AskedModel, ...] = ()
    stated: Mapping[str, Decimal] = field(default_factory=dict)

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics over the cases; a sample is a case."""
        count = len(self.cases)
        values = {**self.stated, "pass_rate": Decimal(sum(self.cases.values())) / count}
        return {name: Metric(value=decimal_text(value), samples=count) for name, value in values.items()}


def read_results(data: bytes, kind: ResultFormat) -> ForeignResults:
    """Read a file of results.

    Raises:
        ResultsInvalid: it is too large, has a document type, is not finished, or is no such file.
    """
    if len(data) > MAX_BYTES:
        msg = f"A file of results has at most {MAX_BYTES} bytes; this one has {len(data)}."
        raise ResultsInvalid(msg)
    results = _read_junit(data) if kind == "junit" else _read_inspect(data)
    if not 0 < len(results.cases) <= MAX_CASES:
        msg = f"The file has {len(results.cases)} cases; from 1 to {MAX_CASES} can be signed."
        raise ResultsInvalid(msg)
    return results


@dataclass
class _JUnit:
    """The handler of a JUnit file."""

    cases: dict[str, bool] = field(default_factory=dict)
    name: str | None = None
    outcome: bool | None = None

    def refuse(self, *_: object) -> None:
        msg = "The file has a document type, which JUnit files do not need and which can be harmful."
        raise ResultsInvalid(msg)

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        tag = tag.rpartition("}")[2]
        if tag == "testcase":
            self.name = f"{attributes.get('classname', '')}.{attributes.get('name', '')}".strip(".")[:500]
            self.outcome = True
        elif tag in {"failure", "error"} and self.name is not None:
            self.outcome = False
        elif tag == "skipped" and self.name is not None and self.outcome:
            self.outcome = None

    def end(self, tag: str) -> None:
        if tag.rpartition("}")[2] != "testcase" or self.name is None:
            return
        if self.outcome is not None and self.name:
            self.cases[self.name] = self.cases.get(self.name, True) and self.outcome
        self.name = None


def _read_junit(data: bytes) -> ForeignResults:
    handler, parser = _JUnit(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = handler.refuse
    parser.StartElementHandler = handler.start
    parser.EndElementHandler = handler.end
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        msg = f"The file is not whole XML: {error}."
        raise ResultsInvalid(msg) from error
    return ForeignResults(handler.cases)


def _unfinished(status: str) -> NoReturn:
    msg = f"The evaluation has the status {status[:40]}; only a finished one can be signed."
    raise ResultsInvalid(msg)


def _read_inspect(data: bytes) -> ForeignResults:
    try:
        log = json.loads(data)
        if log["status"] != "success":
            _unfinished(str(log["status"]))
        cases: dict[str, bool] = {}
        for sample in log["samples"]:
            passed = all(score["value"] in PASSED_SCORES for score in sample["scores"].values())
            name = str(sample["id"])[:500]
            cases[name] = cases.get(name, True) and passed
        stated = {
            name: Decimal(str(metric["value"]))
            for score in log["results"]["scores"]
            for name, metric in score["metrics"].items()
            if re.fullmatch(NAME, name) and isinstance(metric["value"], int | float)
        }
        provider, _, model = str(log["eval"]["model"]).partition("/")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        msg = f"The file is not a log of Inspect: {type(error).__name__}."
        raise ResultsInvalid(msg, hint="Write it as JSON: inspect eval --log-format json.") from error
    named = AskedModel(provider=provider or "unknown", name=model or "unknown", answered=model or "unknown")
    return ForeignResults(cases, (named,), stated)
