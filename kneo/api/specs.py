"""Operations on specs: validate, compile, explain, compare. No operation imports the code that a spec names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, TypeAdapter

from kneo import registry
from kneo.api.operation import Body, Context, Flag, Json, operation
from kneo.api.page import Limit, Offset, Order, PageView, page_fields
from kneo.api.spec_loader import SpecLoader, SpecRequest, refused, shaped, usable
from kneo.api.subjects import BUNDLE, ENVIRONMENT
from kneo.digest import digest_of_json
from kneo.errors import KneoError
from kneo.records.release import Release
from kneo.runtime.engine.start import find_rules, require_policy
from kneo.spec.coverage.policy import policy_report
from kneo.spec.diff import diff
from kneo.spec.documents import Diagnostic
from kneo.spec.graph import compiled, explained, linted, names_of, spec_graph
from kneo.spec.models.environment import with_gates
from kneo.spec.models.spec import Spec
from kneo.spec.policy import NO_TOOL_RULES
from kneo.spec.reading.load import load_tree
from kneo.spec.reading.migrate import migrate
from kneo.store import audit, releases
from kneo.store.engine import Tx


class SpecCompileRequest(SpecRequest):
    strict: Flag = Field(default=True, description="Refuse a spec with errors; else report them.")


class SpecMigrateRequest(Body):
    spec: dict[str, object]


class SpecDiffRequest(Body):
    """Two specs to compare."""

    before: SpecRequest
    after: SpecRequest


@dataclass(frozen=True, kw_only=True)
class SpecValidationView:
    """Whether a spec is valid, and its diagnostics."""

    valid: bool
    diagnostics: list[Json]
    report: Json


@dataclass(frozen=True, kw_only=True)
class SpecLintView:
    """The errors and warnings of a spec."""

    clean: bool
    warning_count: int
    error_count: int
    diagnostics: list[Json]


@dataclass(frozen=True, kw_only=True)
class SpecCompilationView:
    """Whether a spec could run, and a summary of it."""

    ok: bool
    diagnostics: list[Json]
    summary: Json


@dataclass(frozen=True, kw_only=True)
class SpecExplanationView:
    """The steps of a spec, and the gates that ask people."""

    summary: Json
    steps: list[Json]


@dataclass(frozen=True, kw_only=True)
class GraphNodeView:
    """A step in a graph; ``parent`` is its container, ``gates`` its positions that ask people."""

    id: str
    kind: str
    name: str
    on_error: str | None
    fallback_node: str | None
    max_retries: int | None
    timeout_seconds: float | None
    ref: str | None
    parent: str | None
    gates: list[str]


@dataclass(frozen=True, kw_only=True)
class GraphEdgeView:
    """A transition between two steps."""

    source: str
    target: str
    label: str | None
    conditional: bool
    priority: int


@dataclass(frozen=True, kw_only=True)
class SpecGraphView:
    """A workflow as nodes and edges."""

    workflow_name: str
    workflow_kind: str
    start: str | None
    max_steps: int | None
    nodes: list[GraphNodeView]
    edges: list[GraphEdgeView]


@dataclass(frozen=True, kw_only=True)
class PolicyReportView:
    """Permissions, tools, memory, guardrails and human gates of a spec, for a reviewer."""

    valid: bool
    report: Json


@dataclass(frozen=True, kw_only=True)
class ResolvedSpecView:
    """A spec with its overlays applied and its files inlined, and its digest."""

    spec: Json
    digest: str


@dataclass(frozen=True, kw_only=True)
class SpecMigrationView:
    """A spec migrated to v1, and the changes."""

    source_version: str | None
    target_version: str
    changed: bool
    applied: list[str]
    spec: Json


@dataclass(frozen=True, kw_only=True)
class SpecDiffView:
    """The changes between two specs, the most dangerous first."""

    new: bool
    summary: str
    changes: list[Json]


@operation("POST", "/specs/validate", scope="specs:read", about=ENVIRONMENT)
def validate_spec(context: Context, body: SpecRequest) -> SpecValidationView:
    """Validate a spec and list its diagnostics."""
    loaded = _loader(context).load(body)
    _record(context, "spec.validated", body, valid=loaded.valid)
    return SpecValidationView(
        valid=loaded.valid, diagnostics=_as_json(loaded.diagnostics), report=names_of(loaded.spec)
    )


@operation("POST", "/specs/lint", scope="specs:read", about=ENVIRONMENT)
def lint_spec(context: Context, body: SpecRequest) -> SpecLintView:
    """Check a spec for errors and warnings."""
    return SpecLintView(**linted(_loader(context).load(body).diagnostics))  # type: ignore[arg-type]


@operation("POST", "/specs/compile", scope="specs:read", about=ENVIRONMENT)
def compile_spec(context: Context, body: SpecCompileRequest) -> SpecCompilationView:
    """Check that a spec could run here, under the policy of its environment, without running it."""
    loaded = _loader(context).whole(body)
    _record(context, "spec.compiled", body, valid=loaded.valid)
    if not loaded.valid and body.strict:
        raise refused(loaded)
    spec = loaded.spec
    if spec is not None:
        with context.store.read() as tx:
            policy = registry.policy_in_force(tx, body.environment, context.project)
            rules = find_rules(tx, body.environment)
        require_policy(with_gates(spec, rules.gates if rules else ()), policy, body.environment)
    summary = compiled(spec) if spec is not None else {}
    return SpecCompilationView(ok=loaded.valid, diagnostics=_as_json(loaded.diagnostics), summary=summary)


@operation("POST", "/specs/explain", scope="specs:read", about=ENVIRONMENT)
def explain_spec(context: Context, body: SpecRequest) -> SpecExplanationView:
    """Explain the steps of a spec, and the gates that ask people."""
    spec = usable(_loader(context).load(body))
    _record(context, "spec.explained", body)
    return SpecExplanationView(**explained(spec))  # type: ignore[arg-type]  # its two fields


@operation("POST", "/specs/graph", scope="specs:read", about=ENVIRONMENT)
def graph_spec(context: Context, body: SpecRequest) -> SpecGraphView:
    """Return the workflow as nodes and edges."""
    spec = shaped(_loader(context).load(body))
    _record(context, "spec.graph", body)
    return TypeAdapter(SpecGraphView).validate_python(spec_graph(spec).as_json())


@operation("POST", "/specs/policy-report", scope="specs:read", about=ENVIRONMENT)
def report_spec_policy(context: Context, body: SpecRequest) -> PolicyReportView:
    """Summarize tools, memory, guardrails and human gates for a reviewer."""
    loaded = _loader(context).load(body)
    with context.store.read() as tx:
        rules = find_rules(tx, body.environment)
    spec = with_gates(loaded.spec, rules.gates) if loaded.spec is not None and rules is not None else loaded.spec
    report = policy_report(spec, loaded.diagnostics, rules.spec.tools if rules is not None else NO_TOOL_RULES)
    _record(context, "spec.policy_reported", body, valid=report.valid)
    return PolicyReportView(valid=report.valid, report=report.flat())


@operation("POST", "/specs/resolve", scope="specs:read", about=ENVIRONMENT)
def resolve_spec(context: Context, body: SpecRequest) -> ResolvedSpecView:
    """Return a spec with its overlays applied and its files inlined: the content of a signed bundle."""
    loaded = _loader(context).whole(body)
    usable(loaded)
    return ResolvedSpecView(spec=dict(loaded.tree), digest=digest_of_json(loaded.tree))


@operation("POST", "/specs/migrate", scope="specs:read", about=ENVIRONMENT)
def migrate_spec(context: Context, body: SpecMigrateRequest) -> SpecMigrationView:
    """Migrate an older spec to v1."""
    _loader(context).check_sizes(SpecRequest(spec=body.spec))
    result = migrate(body.spec)
    return SpecMigrationView(
        source_version=result.source_version,
        target_version="v1",
        changed=result.changed,
        applied=list(result.applied),
        spec=result.tree,
    )


@operation("POST", "/specs/diff", scope="specs:read", about=ENVIRONMENT)
def diff_specs(context: Context, body: SpecDiffRequest) -> SpecDiffView:
    """Compare two specs, the most dangerous changes first."""
    loader = _loader(context)
    before, after = shaped(loader.load(body.before)), shaped(loader.load(body.after))
    return SpecDiffView(**diff(before, after).as_json())  # type: ignore[arg-type]  # the same fields


def _loader(context: Context) -> SpecLoader:
    return SpecLoader(context.settings, context.tools)


def _as_json(diagnostics: tuple[Diagnostic, ...]) -> list[Json]:
    return [item.as_json() for item in diagnostics]


def _record(context: Context, event: str, body: SpecRequest, **facts: object) -> None:
    with context.store.write() as tx:
        audit.record(tx, event, actor=context.actor, environment=body.environment, metadata=body.origin() | facts)


# ---- skills -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SkillBundleView:
    """A released bundle that declares a skill, and its agents that have the skill."""

    bundle: str
    version: str
    environment: str
    agents: list[str]


@dataclass(frozen=True, kw_only=True)
class SkillView:
    """A skill of released bundles."""

    name: str
    description: str | None
    bundles: list[SkillBundleView]


@dataclass(frozen=True, kw_only=True)
class SkillPageView(PageView):
    """One page of skills."""

    skills: list[SkillView]


@operation("GET", "/skills", scope="specs:read", about=BUNDLE)
def list_skills(
    context: Context,
    limit: Limit = 100,
    offset: Offset = 0,
    sort_by: Literal["name"] = "name",
    sort_order: Order = "asc",
) -> SkillPageView:
    """List the skills that released bundles declare, and the agents that have each."""
    with context.store.read() as tx:
        skills = _skills(tx)
    ordered = [skills[name] for name in sorted(skills, reverse=sort_order == "desc")]
    shown = ordered[offset : offset + limit]
    page = page_fields(shown, len(ordered), limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)
    return SkillPageView(skills=shown, **page)


def _skills(tx: Tx) -> dict[str, SkillView]:
    skills: dict[str, SkillView] = {}
    for release in registry.list_served(tx):
        spec = _released_spec(tx, release)
        if spec is None:
            continue
        for name, skill in spec.skills.items():
            entry = skills.setdefault(name, SkillView(name=name, description=skill.description, bundles=[]))
            entry.bundles.append(
                SkillBundleView(
                    bundle=release.bundle,
                    version=release.version,
                    environment=release.environment,
                    agents=_agents_with(spec, name),
                )
            )
    return skills


def _released_spec(tx: Tx, release: Release) -> Spec | None:
    """Return the spec of a release; ``None`` for one that this version cannot read."""
    record = releases.bundle(tx, release.digest)
    try:
        return load_tree(dict(registry.spec_in(record))).spec if record is not None else None
    except KneoError:
        return None


def _agents_with(spec: Spec, skill: str) -> list[str]:
    agents = (spec.agent, *spec.components.agents.values())
    return [agent.name for agent in agents if skill in agent.skills]
