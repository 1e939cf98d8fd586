"""The files of ``fixtures/``: for each diagnostic code a file that fires it, and a good twin.

``fixtures/specs`` holds specs, which the rules alone judge; ``fixtures/files`` what needs another reader or the files
beside a spec: its ``kind`` says which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from kneo.agents.providers import OperatorConnections, check_models
from kneo.errors import Invalid
from kneo.spec.coverage.policy import check_policy
from kneo.spec.documents import Diagnostic
from kneo.spec.environment import parse_environment
from kneo.spec.lint import check
from kneo.spec.models.agent import Agent
from kneo.spec.models.answers import AnswersFile
from kneo.spec.models.environment import EnvironmentSpec
from kneo.spec.modules import ModelCheck, Module, RuleContext
from kneo.spec.policy import PolicyFlags
from kneo.spec.reading.load import load_tree, resolve
from kneo.spec.reading.reader import read
from kneo.spec.reading.suite import parse_suite
from kneo.spec.reading.validate import InvalidDeclaration, parse_model
from kneo.spec.tool_kinds import TOOL_KINDS

FIXTURES = Path(__file__).parents[1] / "fixtures"
SPEC_SOURCE = Path(__file__).parents[2] / "kneo" / "spec"

NOT_FINDINGS = {
    "E_UNKNOWN_TOOL",
    "I_HUMAN_REVIEW_CONFIGURED",
    "E_CODE_BINARY",
    "E_CODE_OUTSIDE",
    "E_CODE_SECRET",
    "E_CODE_SIZE",
}
"""An alias, a word of the policy report, and what signing says about the code of a bundle."""

COMPOSED = {"E_GUARDRAIL_REGEX_UNSAFE", "E_HUMAN_FIELD_REGEX_UNSAFE"}
"""Codes that the source makes of a shorter one."""

_CODE = re.compile(r"\"([EWI]_[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)\"")


@dataclass(frozen=True)
class Beside:
    """Files beside a spec, by path."""

    files: dict[str, str | None]

    def text(self, path: str) -> str | None:
        return self.files.get(path)

    def names(self, path: str) -> tuple[str, ...] | None:
        inside = [name.removeprefix(f"{path}/") for name in self.files if name.startswith(f"{path}/")]
        return tuple(inside) or None


def fixture_files() -> list[Path]:
    return sorted([*FIXTURES.glob("specs/*.yaml"), *FIXTURES.glob("files/*.yaml")], key=lambda file: file.stem)


def codes_in_source() -> set[str]:
    """Return every code that the spec language can say."""
    found = {code for file in SPEC_SOURCE.rglob("*.py") for code in _CODE.findall(file.read_text("utf-8"))}
    return found - NOT_FINDINGS | COMPOSED


def findings(case: dict, twin: str) -> tuple[Diagnostic, ...]:
    kind = case.get("kind", "spec")
    if kind == "spec":
        return _of_spec(case, case[twin])
    data = yaml.safe_dump(case[twin], sort_keys=False).encode()
    try:
        if kind == "environment":
            parse_environment(data, file="prod.yaml")
        elif kind == "suite":
            parse_suite(data, file="suite.yaml")
        else:
            parse_model(AnswersFile, read(data, file="answers.yaml"))
    except InvalidDeclaration as refusal:
        return tuple(refusal.findings)
    return ()


def _of_spec(case: dict, tree: object) -> tuple[Diagnostic, ...]:
    files = Beside(case["files"]) if "files" in case else None
    loaded = load_tree(tree, context=_context(case.get("context", {})), files=files, rules=check)
    if files is not None and loaded.spec is not None:
        loaded = resolve(loaded, files)
    if "policy" not in case or loaded.spec is None:
        return loaded.diagnostics
    flags = PolicyFlags.model_validate(case["policy"])
    return (*loaded.diagnostics, *check_policy(loaded.spec, loaded.diagnostics, flags))


def _context(given: dict) -> RuleContext:
    modules = given.get("modules")
    if modules is not None:
        modules = {
            name: Module(
                frozenset(about["names"]),
                imported=about.get("imported", {}),
                parameters={each: frozenset(names) for each, names in about.get("parameters", {}).items()},
            )
            for name, about in modules.items()
        }
    allow, commands = given.get("import_allow"), given.get("mcp_commands")
    return RuleContext(
        modules=modules,
        import_allow=None if allow is None else tuple(allow),
        rules=EnvironmentSpec.model_validate({**REQUIRED, **given["rules"]}) if "rules" in given else None,
        models=_model_check(given["machine"]) if "machine" in given else None,
        environment=given.get("environment"),
        mcp_commands=None if commands is None else tuple(commands),
        missing_libraries=frozenset(
            kind.library
            for kind in TOOL_KINDS.values()
            if kind.library and kind.name in given.get("missing_libraries", ())
        ),
        middleware=frozenset(given["middleware"]) if "middleware" in given else None,
    )


REQUIRED = {"policy": {}, "signatures": {"roles": ["release"], "threshold": 1}}
"""The fields that every environment file has."""


def _model_check(machine: dict) -> ModelCheck:
    """Return the check of a machine with some libraries and secrets."""
    operator = OperatorConnections(secret=machine.get("secrets", {}).get)

    def check(name: str, agent: Agent, rules: EnvironmentSpec | None) -> Invalid | None:
        try:
            installed = machine.get("installed", [])
            check_models(
                name, agent, operator, rules.models if rules else None, installed=lambda each: each.extra in installed
            )
        except Invalid as refusal:
            return refusal
        return None

    return check
