"""Checks of ``kneo doctor``: what one found, the report of all, and the checks that extensions add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kneo.errors import KneoError
from kneo.extension_points import Point
from kneo.redaction import redact_text


class Level(StrEnum):
    """How a check ended, from good to bad."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Result:
    """The result of a check.

    Attributes:
        check: The name of the check.
        level: Whether something is wrong.
        message: What was found, without secrets.
        hint: What to do; empty where nothing is wrong.
    """

    check: str
    level: Level
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What a check found; the check's name is added by ``run_checks``."""

    level: Level
    message: str
    hint: str = ""


def ok(message: str) -> Diagnosis:
    """Return the finding of a check that found nothing wrong."""
    return Diagnosis(Level.OK, message)


def warning(message: str, hint: str) -> Diagnosis:
    """Return a finding that an operator should look at."""
    return Diagnosis(Level.WARNING, message, hint)


def error(message: str, hint: str) -> Diagnosis:
    """Return a finding with which Kneo does not work, or not safely."""
    return Diagnosis(Level.ERROR, message, hint)


Checks = Mapping[str, Callable[[], Diagnosis]]
"""Checks by name, in the order of the report."""


def run_checks(checks: Checks) -> tuple[Result, ...]:
    """Run checks one after the other; a check that fails is an error of its own and stops no other."""
    return tuple(_run(name, check) for name, check in checks.items())


def _run(name: str, check: Callable[[], Diagnosis]) -> Result:
    try:
        found = check()
    except KneoError as failure:
        found = error(failure.message, failure.hint or "See the operations guide: Troubleshoot.")
    except OSError as failure:
        found = error(f"The check failed: {failure.strerror or type(failure).__name__}.", "See the log of the system.")
    except Exception as failure:  # noqa: BLE001 - the report is for installations that are broken; its text may hold a secret
        found = error(
            f"The check failed: {type(failure).__name__}.", "Report it, with the output of kneo doctor --json."
        )
    return Result(name, found.level, redact_text(found.message), redact_text(found.hint))


def worst(results: Iterable[Result]) -> Level:
    """Return the worst level of some results."""
    order = list(Level)
    return max((result.level for result in results), key=order.index, default=Level.OK)


def as_json(results: Sequence[Result]) -> dict[str, object]:
    """Return the report as ``kneo doctor --json`` prints it."""
    return {"status": str(worst(results)), "checks": [vars(result) for result in results]}


@dataclass(frozen=True)
class Check:
    """A check of settings that an extension adds.

    Attributes:
        function: ``module:attribute`` of a function from ``kneo.settings.Settings`` to a ``Diagnosis``.
    """

    function: str


_OWN = "settings variables process extras extensions authentication api-keys issuer model-keys disk database"

CHECKS = Point("checks", Check, own=_OWN.split())
