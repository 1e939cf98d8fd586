"""The corpus: specs, what the published contract says of each, and a folder to check one in.

A case is one file of ``cases/``:

- ``contract``: the section of the contract it is about;
- ``spec``, or ``text`` (``json: true`` names it .json): what is checked, with an ``overlay`` and a ``policy`` if given;
- ``expect``: the findings of the newest published tool; of a policy only the codes are known;
- ``refused: true``: that tool answers with an error instead of findings.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
VERSIONS = ("0.4.0", "1.2.0")

COMMANDS = {
    "migrate": ("version_missing", "version_v0"),
    "compile": ("families_good", "tool_human_somewhere"),
    "explain": ("families_good", "tool_human_somewhere"),
    "lint": ("families_good", "many_findings"),
    "policy-report": (
        "families_good",
        "graph_fallback_human",
        "guardrails_good",
        "many_findings",
        "mcp_good",
        "memory_good",
        "tool_human_somewhere",
        "tool_network",
        "tool_policy_unrestricted",
        "unsafe_tool_import",
    ),
}
"""Cases whose whole answer is compared, by command."""

SENTENCES = {"message", "suggestion", "reason"}
"""Keys whose values are words for people."""

Finding = tuple[str, str | None, str | None]
"""Code, severity, path."""

_VIOLATION = re.compile(r"^(?:✗ )?ERROR (E_[A-Z_]+):", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    name: str
    contract: str
    content: str
    suffix: str
    overlay: str | None
    policy: dict[str, object] | None
    expect: list[Finding]
    refused: bool

    @property
    def digest(self) -> str:
        """What a recording is of."""
        asked = json.dumps([self.content, self.suffix, self.overlay, self.policy], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        return f"spec.{self.suffix}"


@dataclass(frozen=True)
class Answer:
    """What a tool says of a case.

    Attributes:
        refused: It said that it cannot go on, and printed no findings; those of a policy are in its words.
        aliases: Further codes of the findings.
    """

    findings: list[Finding]
    refused: bool = False
    aliases: frozenset[str] = frozenset()

    def as_json(self) -> dict[str, object]:
        return {"refused": self.refused, "findings": [list(found) for found in self.findings]}


def read_case(path: Path) -> Case:
    given = yaml.load(path.read_text(), yaml.CSafeLoader)  # the quick one: the corpus is read while tests are collected
    text = given.get("text")
    overlay = given.get("overlay")
    return Case(
        name=path.stem,
        contract=given["contract"],
        content=text if text is not None else yaml.safe_dump(given["spec"], sort_keys=False),
        suffix="json" if given.get("json") else "yaml",
        overlay=None if overlay is None else yaml.safe_dump(overlay, sort_keys=False),
        policy=given.get("policy"),
        expect=[(each["code"], each.get("severity"), each.get("path")) for each in given.get("expect", [])],
        refused=given.get("refused", False),
    )


def cases() -> list[Case]:
    return [read_case(path) for path in sorted((HERE / "cases").glob("*.yaml"))]


def lay_out(case: Case, folder: Path) -> None:
    """Write what a tool needs to check a case: the spec, and the code and the skill that specs of the corpus name."""
    (folder / case.file).write_text(case.content)
    (folder / "app").mkdir()
    functions = "".join(f"def {name}(text):\n    return text\n\n\n" for name in "ftu")
    (folder / "app" / "__init__.py").write_text(functions)
    (folder / "app" / "mod.py").write_text(functions)
    (folder / "skills" / "s").mkdir(parents=True)
    (folder / "skills" / "s" / "SKILL.md").write_text("---\nname: s\ndescription: A skill.\n---\nBe brief.\n")
    if case.overlay is None and case.policy is None:
        return
    config: dict[str, object] = {"project": {"name": "corpus", "default_environment": "dev"}}
    if case.overlay is not None:
        (folder / "overlay.yaml").write_text(case.overlay)
        config["specs"] = {"overlays": {"dev": ["overlay.yaml"]}}
    if case.policy is not None:
        config["environments"] = {"dev": {"policy_enforcement": case.policy}}
    (folder / ".kneo").mkdir()
    (folder / ".kneo" / "config.yaml").write_text(yaml.safe_dump(config))


def answer_of(case: Case, printed: str) -> Answer:
    """Read what ``spec validate --json`` printed."""
    try:
        findings = json.loads(printed)["diagnostics"]
    except (ValueError, KeyError):
        return Answer([(code, None, None) for code in _VIOLATION.findall(printed)], refused=True)
    aliases = frozenset(alias for found in findings for alias in found.get("aliases", ()))
    return Answer([(found["code"], found["severity"], found["path"]) for found in findings], aliases=aliases)


def without_sentences(value: object) -> object:
    """Return an answer without the words for people, which every tool says in its own way."""
    if isinstance(value, dict):
        return {key: without_sentences(inner) for key, inner in value.items() if key not in SENTENCES}
    return [without_sentences(inner) for inner in value] if isinstance(value, list) else value


def recording(version: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((HERE / "recorded" / f"{version}.json").read_text())["answers"]
    return found


def recorded(version: str, case: Case) -> Answer:
    """Return what a published version answered.

    Raises:
        AssertionError: it was asked something else, or never.
    """
    kept = recording(version).get(case.name)
    assert kept is not None, f"{case.name} was never recorded: record.py says how."
    assert kept["digest"] == case.digest, f"{case.name} has changed since {version} was asked: record it again."
    findings = kept["findings"]
    assert isinstance(findings, list)
    return Answer([(code, severity, path) for code, severity, path in findings], bool(kept["refused"]))
