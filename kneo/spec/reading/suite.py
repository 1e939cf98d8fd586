"""Reading of suites: the model, and the rules for ids, judges and patterns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kneo.digest import Digest, digest_of
from kneo.errors import Invalid
from kneo.spec.base import suggest
from kneo.spec.documents import Diagnostic, Path, ReadLimits, error, locate
from kneo.spec.models.suite import CODE, Case, Suite, SuiteSpec
from kneo.spec.patterns import find_flaw
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import InvalidDeclaration, check_model

SUITE_LIMITS = ReadLimits(max_bytes=8 * 1_048_576, max_nodes=500_000)


@dataclass(frozen=True)
class LoadedSuite:
    """A suite and the digest of its file, which environments pin."""

    name: str
    spec: SuiteSpec
    digest: Digest


def parse_suite(data: bytes, *, file: str) -> LoadedSuite:
    """Read a suite, YAML or JSON by its name.

    Raises:
        Unreadable: the bytes are not a document.
        InvalidDeclaration: ``E_SUITE``: the document is not a suite; the findings carry file and line.
    """
    document = read(data, file=file, limits=SUITE_LIMITS)
    checked = check_model(Suite, document.value, [document])
    if isinstance(checked, tuple):
        raise InvalidDeclaration([replace(finding, code=CODE) for finding in checked])
    findings = list(_findings(checked.spec))
    if findings:
        raise InvalidDeclaration([locate(finding, [document]) for finding in findings])
    return LoadedSuite(checked.metadata.name, checked.spec, digest_of(data))


def _findings(spec: SuiteSpec) -> Iterator[Diagnostic]:
    if spec.judges and spec.models == "scripted":
        yield error(CODE, "Judges are models, and this suite has scripted models.", ("spec", "judges"))
    ids: set[str] = set()
    for index, case in enumerate(spec.cases):
        path: Path = ("spec", "cases", index)
        if case.id in ids:
            yield error(CODE, f"Two cases have the id {case.id}.", (*path, "id"))
        ids.add(case.id)
        yield from _expectations(spec, case, path)


def _expectations(spec: SuiteSpec, case: Case, path: Path) -> Iterator[Diagnostic]:
    for number, expected in enumerate(case.expect):
        here = (*path, "expect", number)
        if expected.judge is not None and expected.judge not in spec.judges:
            hint = suggest(expected.judge, tuple(spec.judges)) or "Declare it under judges."
            yield error(CODE, f"There is no judge {expected.judge}.", (*here, "judge"), suggestion=hint)
        if expected.output_matches is not None:
            flaw = find_flaw(expected.output_matches)
            if flaw is not None:
                yield error(CODE, f"The expression cannot be used: {flaw}", (*here, "outputMatches"))


def suite_digest(data: bytes, *, file: str) -> Digest:
    """Return the digest of a suite that can be read.

    Raises:
        Invalid: it cannot be read.
    """
    try:
        return parse_suite(data, file=file).digest
    except InvalidDeclaration as refusal:
        raise Invalid(refusal.message, code=CODE, hint=refusal.hint) from refusal
