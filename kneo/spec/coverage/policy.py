"""Environment policies: violations of a spec, the policy report for approvers, and the questions and guardrails a run reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kneo.errors import Untrusted
from kneo.spec.code import INPROCESS
from kneo.spec.coverage.calls import call_coverage
from kneo.spec.coverage.environment_gates import gates_around, gates_around_agent, gates_at_call
from kneo.spec.coverage.exposure import callable_tools, declared_tools, is_unrestricted, reached_parts, reached_steps
from kneo.spec.coverage.gates import all_gates, step_gates
from kneo.spec.documents import Diagnostic, Severity, error, format_path
from kneo.spec.index import ROOT, ROOT_WORKFLOW, LocatedAgent, Part, SpecIndex
from kneo.spec.models.agent import MATCHED_BY, Agent, Guardrail
from kneo.spec.models.environment import Environment
from kneo.spec.models.human import CALLER
from kneo.spec.models.providers import DUMMY
from kneo.spec.models.spec import Spec, Tool
from kneo.spec.models.workflow import LeafStep, Step
from kneo.spec.policy import NO_TOOL_RULES, PolicyFlags, ToolRules
from kneo.spec.tool_kinds import CALL_TARGET


def check_policy(
    spec: Spec, diagnostics: Sequence[Diagnostic], flags: PolicyFlags, *, target: str | None = None
) -> tuple[Diagnostic, ...]:
    """Return the violations of a policy by a spec.

    Args:
        spec: The spec, in normal form.
        diagnostics: The findings of the rules.
        flags: The policy.
        target: The target of the run: ``workflow``, ``agent`` or ``call``; None for every target of a released bundle.

    Returns:
        The violations, in the published order; all of them are errors.
    """
    if not flags.enabled:
        return ()
    return (*_findings(diagnostics, flags), *_demands(SpecIndex.of(spec), flags, target))


def _findings(diagnostics: Sequence[Diagnostic], flags: PolicyFlags) -> Iterator[Diagnostic]:
    blocked = frozenset(flags.blocked_diagnostic_codes)
    for found in diagnostics:
        if blocked & {found.code, *found.aliases}:
            yield _violation("E_ENV_POLICY_DIAGNOSTIC", f"{found.code} is not accepted here: {found.message}", found)
        if flags.fail_on_warnings and found.severity is Severity.WARNING:
            yield _violation("E_ENV_POLICY_WARNING", f"Warnings are not accepted here: {found.message}", found)


def _violation(code: str, message: str, found: Diagnostic) -> Diagnostic:
    """Turn a finding into a violation at the same location."""
    return replace(found, code=code, severity=Severity.ERROR, message=message, aliases=())


def _demands(index: SpecIndex, flags: PolicyFlags, target: str | None) -> Iterator[Diagnostic]:
    workflow = index.spec.workflow is not None
    alone = _starts_at_agent(index, target)
    if flags.require_human_review and workflow and alone and not agent_asks_person(index):
        by = target or ("agent" if "agent" in index.spec.targets else CALL_TARGET)
        message = f"This environment requires human review, and a run with target {by} asks no person."
        hint = "Run the workflow, or write review.before at the tools of the root agent."
        yield error("E_ENV_POLICY_HUMAN_REVIEW", message, ("agent",), suggestion=hint)
    elif flags.require_human_review and not ((workflow and target in _OF_AGENT) or asks_person(index)):
        message = "This environment requires human review, and no workflow asks a person."
        hint = "Add a step of kind human, or a review at the step or tool that needs one."
        yield error("E_ENV_POLICY_HUMAN_REVIEW", message, ("workflow",), suggestion=hint)
    if flags.require_tool_permissions:
        yield from _unstated(index)
    if flags.deny_unrestricted_tools:
        yield from _unrestricted(index)
    if flags.require_guardrails and not is_guarded(index, target):
        message = "This environment requires guardrails, and none runs."
        hint = "Add a guardrail to an agent that runs, or a step of kind guardrail."
        yield error("E_ENV_POLICY_GUARDRAILS", message, ("agent", "guardrails"), suggestion=hint)


_OF_AGENT = frozenset({"agent", CALL_TARGET})
"""The targets of runs that begin at the root agent where the spec has a workflow too."""


def _starts_at_agent(index: SpecIndex, target: str | None) -> bool:
    """Tell whether a run begins at the root agent: one with the target or, without a target, any run of a released bundle."""
    return index.spec.workflow is None or target in _OF_AGENT or (target is None and index.spec.runs_root_agent)


def _unstated(index: SpecIndex) -> Iterator[Diagnostic]:
    for at in index.agents:
        if at.agent.tools is not None and at.agent.tools.include and at.agent.tools.permissions is None:
            message = f"This environment requires tool permissions, and {at.agent.name} states none."
            hint = "Write tools.permissions: what is not needed is false."
            yield error("E_ENV_POLICY_TOOL_PERMISSIONS", message, (*at.path, "tools", "permissions"), suggestion=hint)


def _unrestricted(index: SpecIndex) -> Iterator[Diagnostic]:
    for at in index.agents:
        if is_unrestricted(at.agent):
            message = f"This environment requires restricted tools, and those of {at.agent.name} are unrestricted."
            hint = "State permissions without shell and file access, and name the hosts in allowed_domains."
            yield error("E_ENV_POLICY_UNRESTRICTED_TOOLS", message, (*at.path, "tools"), suggestion=hint)


REVIEW_CODES = frozenset(
    {
        "E_UNSAFE_TOOL_IMPORT",
        "E_UNSAFE_FUNCTION_IMPORT",
        "E_PRIVILEGED_UNGATED",
        "W_TOOL_NETWORK_UNRESTRICTED",
        "W_TOOL_SHELL_ALLOWED",
        "W_TOOL_FILESYSTEM_WRITE_ALLOWED",
        "W_TOOL_FILESYSTEM_READ_ALLOWED",
        "W_TOOL_POLICY_UNRESTRICTED",
    }
)
"""Findings that are a reason for human review."""

Map = dict[str, object]


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """A policy report, in its two published forms.

    Attributes:
        valid: Whether the spec has the right shape; errors of meaning are among its diagnostics.
        body: Everything but ``valid``.
    """

    valid: bool
    body: Map

    def flat(self) -> Map:
        """Return the form of the command line."""
        return {"valid": self.valid, **self.body}

    def nested(self) -> Map:
        """Return the form of the service."""
        return {"valid": self.valid, "report": self.flat()}


def policy_report(
    spec: Spec | None, diagnostics: Sequence[Diagnostic], rules: ToolRules = NO_TOOL_RULES
) -> PolicyReport:
    """Report on a spec.

    Args:
        spec: The spec in normal form; None where its shape is wrong, and the report holds the diagnostics only.
        diagnostics: Its findings.
        rules: The rules for tools of the environment.
    """
    listed = [found.as_json() for found in diagnostics]
    if spec is None:
        return PolicyReport(valid=False, body={"diagnostics": listed})
    index = SpecIndex.of(spec)
    people = _human_review(index, diagnostics)
    steps = people["workflow_steps"]
    body: Map = {
        "version": spec.version,
        "summary": {
            "agent_count": len(index.agents),
            "workflow_count": len(index.workflows),
            "tool_count": len(spec.tools),
            "mcp_tool_count": sum(tool.mcp is not None for tool in spec.tools.values()),
            "human_reviewer_count": len(spec.components.humans),
            "human_review_step_count": len(steps) if isinstance(steps, list) else 0,
            "diagnostic_count": len(diagnostics),
        },
        "memory": {"agents": [_memory(at) for at in index.agents]},
        "tools": {
            "declared": sorted(spec.tools),
            "mcp_imports": [
                {"name": name, "config": tool.mcp.model_dump(exclude_none=True)}
                for name, tool in spec.tools.items()
                if tool.mcp is not None
            ],
            "agent_policies": [_tools(at) for at in index.agents],
        },
        "guardrails": {"agents": [_guardrails(at) for at in index.agents]},
        "human_review": people,
        "calls": [each.as_json() for each in call_coverage(index, rules)],
        "diagnostics": listed,
    }
    return PolicyReport(valid=True, body=body)


def _memory(at: LocatedAgent) -> Map:
    memory = at.agent.memory
    config = memory.model_dump(exclude_none=True) if memory else {}
    policy = memory.policy if memory else None
    return {"agent": format_path(at.path), "configured": memory is not None, "policy": policy, "config": config}


def _tools(at: LocatedAgent) -> Map:
    selected = at.agent.tools
    stated = selected.permissions if selected else None
    return {
        "agent": format_path(at.path),
        "include": list(selected.include) if selected else [],
        "exclude": list(selected.exclude) if selected else [],
        "permissions": None if stated is None else stated.model_dump(mode="json"),
        "unrestricted": is_unrestricted(at.agent),
    }


def _guardrails(at: LocatedAgent) -> Map:
    stated = at.agent.guardrails.stages() if at.agent.guardrails else {}
    stages = {stage: len(items) for stage, items in stated.items() if items}
    return {"agent": format_path(at.path), "configured": bool(stages), "stages": stages}


def _human_review(index: SpecIndex, diagnostics: Sequence[Diagnostic]) -> Map:
    requirements: list[Map] = [
        {"code": found.code, "path": found.path_text, "reason": found.message}
        for found in diagnostics
        if found.code in REVIEW_CODES
    ]
    if not requirements and index.spec.components.humans:
        reason = "People are declared who can be asked."
        requirements.append({"code": "I_HUMAN_REVIEW_CONFIGURED", "path": "components.humans", "reason": reason})
    steps: list[Map] = [
        {"workflow": format_path(at.workflow.path), "step_id": at.step.id, "ref": at.step.ref}
        for at in index.steps
        if isinstance(at.step, LeafStep) and at.step.kind == "human"
    ]
    gates: list[Map] = [
        {"path": format_path(at.path), "human": at.gate.human if isinstance(at.gate.human, str) else None}
        for at in all_gates(index)
    ]
    around = gates_around(index)
    gates += [
        {"path": format_path(at.path), "human": None, "added": one.name}
        for at in index.steps
        for one in around.get(id(at.step), ())
    ]
    gates += [
        {"path": format_path((*at.path, "tools", tool)), "human": None, "added": one.name}
        for at in index.agents
        for tool in callable_tools(at.agent)
        for one in gates_at_call(index, at.name or index.spec.agent.name, tool)
    ]
    return {
        "reviewers": sorted(index.spec.components.humans),
        "workflow_steps": steps,
        "gates": gates,
        "required": bool(requirements),
        "requirements": requirements,
        "missing": any(found.code.startswith("W_HUMAN_APPROVAL_") for found in diagnostics),
    }


_BY_AGENT = frozenset({"agent", "guardrail"})
"""The kinds of steps that an agent executes."""


def is_guarded(index: SpecIndex, target: str | None = None) -> bool:
    """Tell whether a run meets a guardrail, of an agent or as a step.

    Args:
        index: The spec.
        target: What runs: ``workflow``, ``agent`` or ``call``; None for everything that can run.
    """
    if target == CALL_TARGET or (target is None and CALL_TARGET in index.spec.targets):
        stated = index.spec.agent.guardrails
        if stated is None or not any(map(_checks, stated.stages().get("tool", ()))):
            return False  # no other guardrail checks a call
        if target == CALL_TARGET or index.spec.targets == (CALL_TARGET,):
            return True
    has_workflow = index.spec.workflow is not None
    roots = []
    if has_workflow and target not in _OF_AGENT:
        roots.append(ROOT_WORKFLOW)
    if _starts_at_agent(index, target):
        roots.append(ROOT)
    return all(any(_guards(index, part) for part in reached_parts(index, root)) for root in roots)


def _guards(index: SpecIndex, part: Part) -> bool:
    if part[0] == "workflow":
        return any(at.step.kind == "guardrail" for at in reached_steps(index).get(part[1], ()))
    agent = index.agent_of(part)
    return agent is not None and any(running_guardrails(agent))


def running_guardrails(agent: Agent) -> Iterator[tuple[str, Guardrail]]:
    """Yield the guardrails that an agent runs, with their stages; one that never matches anything does not run."""
    for stage, items in agent.guardrails.stages().items() if agent.guardrails is not None else ():
        if stage == "tool" and not calls_tools(agent):
            continue
        yield from ((stage, item) for item in items if _checks(item))


def _checks(item: Guardrail) -> bool:
    """Tell whether a guardrail can match anything."""
    key = MATCHED_BY.get(item.type)
    return bool(item.config.get(key) if key is not None else item.ref)


def calls_tools(agent: Agent) -> bool:
    """Tell whether an agent can call tools: it is offered some, and its strategy and provider call them."""
    offered = agent.tools is not None and set(agent.tools.include) - set(agent.tools.exclude)
    is_dummy = agent.model is not None and agent.model.provider == DUMMY
    in_rounds = agent.strategy is not None and agent.strategy.type != "simple"
    return bool(offered) and not is_dummy and in_rounds


@dataclass(frozen=True, slots=True)
class GuardrailPlace:
    """A guardrail that runs, and where: the steps that execute its agent, and the tools that call it."""

    agent: str
    stage: str
    guardrail: Guardrail
    steps: tuple[str, ...]
    tools: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "agent": self.agent,
            "stage": self.stage,
            "id": self.guardrail.id,
            "type": self.guardrail.type,
            "action": self.guardrail.action,
            "target": self.guardrail.target,
            "steps": list(self.steps),
            "tools": list(self.tools),
        }


def guardrail_places(index: SpecIndex) -> Iterator[GuardrailPlace]:
    """Yield the guardrails that a run can meet, each with the steps and the tools of its agent."""
    root = ROOT_WORKFLOW if index.spec.workflow is not None else ROOT
    parts = list(reached_parts(index, root))
    steps = reached_steps(index)
    own = [at for part in parts if part[0] == "workflow" for at in steps.get(part[1], ())]
    agents = [agent for part in parts if (agent := index.agent_of(part)) is not None]
    called = {name for agent in agents for name in callable_tools(agent)}
    for part in parts:
        agent = index.agent_of(part)
        if agent is None:
            continue
        names = {part[1]} if part != ROOT else {agent.name}
        at_steps = tuple(
            at.id_path for at in own if at.step.kind in _BY_AGENT and getattr(at.step, "ref", None) in names
        )
        tools = tuple(name for name, tool in index.spec.tools.items() if name in called and tool.agent in names)
        for stage, guardrail in running_guardrails(agent):
            if stage != "workflow" or at_steps or part == root:
                yield GuardrailPlace(agent.name, stage, guardrail, at_steps, tools)


def asks_person(index: SpecIndex) -> bool:
    """Tell whether a run of the spec's workflow, or of its agent where it has no workflow, can ask a person."""
    return _asks(index, ROOT_WORKFLOW) if index.spec.workflow is not None else agent_asks_person(index)


def agent_asks_person(index: SpecIndex) -> bool:
    """Tell whether a run of the root agent alone can ask a person: around it, at its tools, in its workflow."""
    return bool(gates_around_agent(index)) or _asks(index, ROOT)


def _asks(index: SpecIndex, root: Part) -> bool:
    around, steps = gates_around(index), reached_steps(index)

    def asks(part: Part) -> bool:
        if part[0] == "workflow":
            return any(
                at.step.kind == "human" or id(at.step) in around or _ask(at.step) for at in steps.get(part[1], ())
            )
        agent = index.agent_of(part)
        if agent is None:
            return False
        name = part[1] or index.spec.agent.name
        return any(_ask(tool) for _, tool in declared_tools(index, agent)) or any(
            gates_at_call(index, name, tool) for tool in callable_tools(agent)
        )

    return any(map(asks, reached_parts(index, root)))


def _ask(part: Step | Tool) -> bool:
    """Tell whether any gate of a step or tool ever asks: not where its condition never holds and its share is zero."""
    return any(
        (gate.when is None and gate.sample is None) or (gate.when and gate.when.type != "never") or gate.sample
        for gate in step_gates(part).values()
        if gate.human != CALLER
    )


def check_code(spec: Spec, has_code: bool, environment: Environment, bundle: str) -> None:
    """Check that an environment accepts where the functions of a bundle come from.

    Functions of the program that starts a run are the program's, and need no code.

    Raises:
        Untrusted: ``CodeMissing``.
    """
    rules = environment.spec
    modules = {each.rpartition(".")[0] for each in spec.implementations() if not each.startswith(INPROCESS)}
    modules -= rules.implementations.keys() if rules.code == "pinned" else set()
    missing = sorted(modules) or sorted(script.path for script in spec.scripts())
    if has_code or not missing or rules.code == "any":
        return
    pinned = ", and implementations does not pin it" if rules.code == "pinned" else ""
    names = "functions of " if modules else ""
    msg = f"{bundle} names {names}{missing[0]}, and carries no code{pinned}; {environment.name} accepts no other code."
    hint = "Sign it again as a new version, with its code: kneo spec bundle sign SPEC --key KEY --approved-by NAME -o bundles/NAME/VERSION.dsse.json"
    raise Untrusted(msg, code="CodeMissing", hint=hint)
