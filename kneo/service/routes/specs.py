"""Specs: is one right, what does it do, what would change. Nothing a spec names is imported to find out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from pydantic import Field

from kneo import registry
from kneo.api.context import Principal
from kneo.api.requests import Body, Flag, SpecRequest
from kneo.api.spec_loader import SpecSelection, refused, shaped, usable
from kneo.digest import digest_of_json
from kneo.runtime.engine.start import find_rules, require_policy
from kneo.service import responses
from kneo.service.auth import require
from kneo.service.context import Service, ServiceDep
from kneo.service.router import Router, responds
from kneo.service.wire import Json
from kneo.spec.coverage.policy import policy_report
from kneo.spec.diff import diff as compare
from kneo.spec.graph import spec_graph
from kneo.spec.models.environment import with_gates
from kneo.spec.reading.migrate import migrate
from kneo.spec.summary import compiled, explained, linted, names_of
from kneo.store import audit

router = Router(tags=["specs"])

Reader = Annotated[Principal, Depends(require("specs:read"))]


class SpecCompileRequest(SpecRequest):
    strict: Flag = Field(default=True, description="Refuse what cannot be used; else only say so.")


class SpecMigrateRequest(Body):
    spec: dict[str, object]


class SpecDiffRequest(Body):
    """Two specs; what changes from one to the other."""

    before: SpecRequest
    after: SpecRequest


def _note(service: Service, principal: Principal, event: str, order: SpecSelection, **facts: object) -> None:
    with service.store.write() as tx:
        audit.record(tx, event, actor=principal.name, environment=order.environment, metadata=order.origin() | facts)


@router.post("/specs/validate", operation_id="validate_spec", responses=responds(responses.SpecValidate))
def validate_spec(body: SpecRequest, service: ServiceDep, principal: Reader) -> Json:
    """Say whether a spec can be used, with everything that was found."""
    loaded = service.specs.load(body.selection())
    _note(service, principal, "spec.validated", body.selection(), valid=loaded.valid)
    return {
        "valid": loaded.valid,
        "diagnostics": [found.as_json() for found in loaded.diagnostics],
        "report": names_of(loaded.spec),
    }


@router.post("/specs/lint", operation_id="lint_spec", responses=responds(responses.SpecLint))
def lint_spec(body: SpecRequest, service: ServiceDep, _principal: Reader) -> Json:
    """List what should be looked at: errors and warnings."""
    return linted(service.specs.load(body.selection()).diagnostics)


@router.post("/specs/compile", operation_id="compile_spec", responses=responds(responses.SpecCompile))
def compile_spec(body: SpecCompileRequest, service: ServiceDep, principal: Reader) -> Json:
    """Check that a spec could be run here, by the policy of its environment too, without running it."""
    loaded = service.specs.whole(body.selection())
    _note(service, principal, "spec.compiled", body.selection(), valid=loaded.valid)
    if not loaded.valid and body.strict:
        raise refused(loaded)
    spec = loaded.spec
    if spec is not None:
        with service.store.read() as tx:
            policy = registry.policy_in_force(tx, body.environment, service.starter.project)
            rules = find_rules(tx, body.environment)
        require_policy(with_gates(spec, rules.gates if rules else ()), policy, body.environment)
    return {
        "ok": loaded.valid,
        "diagnostics": [found.as_json() for found in loaded.diagnostics],
        "summary": compiled(spec) if spec is not None else {},
    }


@router.post("/specs/explain", operation_id="explain_spec", responses=responds(responses.SpecExplain))
def explain_spec(body: SpecRequest, service: ServiceDep, principal: Reader) -> Json:
    """Say what a spec does, step by step, and where people are asked."""
    spec = usable(service.specs.load(body.selection()))
    _note(service, principal, "spec.explained", body.selection())
    return explained(spec)


@router.post("/specs/graph", operation_id="graph_spec", responses=responds(responses.SpecGraph))
def graph_spec(body: SpecRequest, service: ServiceDep, principal: Reader) -> Json:
    """Draw the workflow as nodes and edges."""
    spec = shaped(service.specs.load(body.selection()))
    _note(service, principal, "spec.graph", body.selection())
    return spec_graph(spec).as_json()


@router.post("/specs/policy-report", operation_id="report_spec_policy", responses=responds(responses.PolicyReport))
def report_spec_policy(body: SpecRequest, service: ServiceDep, principal: Reader) -> Json:
    """Say what whoever approves a spec wants to know: tools, memory, guardrails, people."""
    loaded = service.specs.load(body.selection())
    report = policy_report(loaded.spec, loaded.diagnostics)
    _note(service, principal, "spec.policy_reported", body.selection(), valid=report.valid)
    return report.nested()


@router.post("/specs/resolve", operation_id="resolve_spec", responses=responds(responses.SpecResolve))
def resolve_spec(body: SpecRequest, service: ServiceDep, _principal: Reader) -> Json:
    """Return a spec with everything laid over it and taken in: what would be signed."""
    loaded = service.specs.whole(body.selection())
    usable(loaded)
    return {"spec": loaded.tree, "digest": digest_of_json(loaded.tree)}


@router.post("/specs/migrate", operation_id="migrate_spec", responses=responds(responses.SpecMigrate))
def migrate_spec(body: SpecMigrateRequest, service: ServiceDep, _principal: Reader) -> Json:
    """Bring an older spec into the shape of v1."""
    service.specs.check_sizes(SpecSelection(spec=body.spec))
    result = migrate(body.spec)
    return {
        "source_version": result.source_version,
        "target_version": "v1",
        "changed": result.changed,
        "applied": list(result.applied),
        "spec": result.tree,
    }


@router.post("/specs/diff", operation_id="diff_specs", responses=responds(responses.SpecDiff))
def diff_specs(body: SpecDiffRequest, service: ServiceDep, _principal: Reader) -> Json:
    """Say what changes from one spec to another, the most dangerous first."""
    before = shaped(service.specs.load(body.before.selection()))
    after = shaped(service.specs.load(body.after.selection()))
    return compare(before, after).as_json()
