"""A policy report as a page for people."""

from __future__ import annotations

from collections.abc import Iterable

from cli import render
from cli.specs.check import Checked, Format, print_findings
from kneo.spec.coverage.policy import PolicyReport


def print_report(checked: Checked, report: PolicyReport) -> None:
    """Print what whoever approves a spec wants to know, and then what was found."""
    if report.valid:
        for heading, lines in _sections(report.body):
            render.text(heading)
            for each in lines:
                render.text(f"  {each}")
    print_findings(checked, checked.findings, Format.TEXT, None)


def _sections(body: dict[str, object]) -> Iterable[tuple[str, list[str]]]:
    tools, people = _map(body["tools"]), _map(body["human_review"])
    yield "Tools", [_tools(_map(each)) for each in _list(tools["agent_policies"])]
    memory = [_map(each) for each in _list(_map(body["memory"])["agents"])]
    yield "Memory", [f"{each['agent']}: {each['policy'] or 'everything'}" for each in memory]
    guarded = [_map(each) for each in _list(_map(body["guardrails"])["agents"])]
    yield "Guardrails", [f"{each['agent']}: {_stages(_map(each['stages']))}" for each in guarded]
    asked = [f"{_map(step)['step_id']} asks {_map(step)['ref']}" for step in _list(people["workflow_steps"])]
    asked += [
        f"{_map(gate)['path']} asks {_map(gate)['human'] or 'the default reviewer'}" for gate in _list(people["gates"])
    ]
    yield "People", asked or ["nobody is asked"]
    yield "Reasons to ask", [f"{_map(each)['code']}: {_map(each)['reason']}" for each in _list(people["requirements"])]


def _tools(policy: dict[str, object]) -> str:
    included = [str(name) for name in _list(policy["include"])]
    if not included:
        return f"{policy['agent']}: none"
    limits = "unrestricted" if policy["unrestricted"] else "restricted"
    return f"{policy['agent']}: {', '.join(included)} ({limits})"


def _stages(stages: dict[str, object]) -> str:
    return ", ".join(f"{count} at {stage}" for stage, count in stages.items()) or "none"


def _map(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
