"""What environments ask of every spec, as far as it is set here. Git's policy and this one hold together."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path
from pydantic import Field

from kneo import registry
from kneo.service import answers
from kneo.service.auth import Principal, require
from kneo.service.bodies import MAX_NAMES, Body, Name
from kneo.service.context import Here, Service
from kneo.service.router import Router, shows
from kneo.service.wire import Json
from kneo.spec.context import NOTHING_KNOWN
from kneo.spec.flags import PolicyFlags
from kneo.spec.models import Spec
from kneo.spec.policy import check_policy, strictest
from kneo.spec.rules import check
from kneo.store import policies, runs
from kneo.store.engine import Tx
from kneo.store.run_filter import RunFilter

router = Router(tags=["policies"])

Reader = Annotated[Principal, Depends(require("policies:read"))]
Writer = Annotated[Principal, Depends(require("policies:write"))]
Environment = Annotated[str, Path(min_length=1, max_length=128)]

PREVIEWED = 100
"""Latest runs of an environment that a preview looks at."""


class PolicyRequest(Body):
    """The whole policy: what is left out goes back to its default."""

    enabled: bool = True
    fail_on_warnings: bool = False
    blocked_diagnostic_codes: list[Name] = Field(default_factory=list, max_length=MAX_NAMES)
    require_human_review: bool = False
    require_tool_permissions: bool = False
    deny_unrestricted_tools: bool = False
    require_guardrails: bool = False

    def flags(self) -> PolicyFlags:
        return PolicyFlags.model_validate(self.model_dump())


@router.get("/policies/environment", operation_id="list_environment_policies", responses=shows(answers.PolicyList))
def list_environment_policies(service: Here, _principal: Reader) -> Json:
    """List the policies that were set here."""
    with service.store.read() as tx:
        found = {name: _shown(flags) for name, flags in policies.listed(tx).items()}
    return {"policies": found, "count": len(found)}


@router.get(
    "/policies/environment/{environment}", operation_id="get_environment_policy", responses=shows(answers.Policy)
)
def get_environment_policy(environment: Environment, service: Here, _principal: Reader) -> Json:
    """Read what was set here for an environment, and what it asks for in all."""
    with service.store.read() as tx:
        return _answer(service, tx, environment, policies.find(tx, environment), None)


@router.put(
    "/policies/environment/{environment}", operation_id="set_environment_policy", responses=shows(answers.Policy)
)
def set_environment_policy(environment: Environment, body: PolicyRequest, service: Here, principal: Writer) -> Json:
    """Set an environment's policy. It can ask for more than Git does, and takes nothing of that back."""
    flags = body.flags()
    with service.store.write() as tx:
        before = registry.change_policy(tx, environment, flags, actor=principal.name)
        return _answer(service, tx, environment, flags, before)


@router.post(
    "/policies/environment/{environment}/preview",
    operation_id="preview_environment_policy",
    responses=shows(answers.PolicyPreview),
)
def preview_environment_policy(
    environment: Environment, body: PolicyRequest, service: Here, _principal: Reader
) -> Json:
    """Say what a policy would change, and which of the latest runs here could not be started under it."""
    flags = body.flags()
    with service.store.read() as tx:
        before = policies.find(tx, environment)
        others = registry.policy_in_force(tx, environment, service.starter.project)
        found = runs.list_runs(tx, RunFilter(environment=environment), limit=PREVIEWED)
        bodies = {digest: runs.load_spec(tx, digest) for digest in {run.spec_digest for run in found}}
    now, then = _shown(flags), _shown(before or PolicyFlags())
    judged = {
        digest: (_accepted(body, others), _accepted(body, strictest(flags))) for digest, body in bodies.items() if body
    }
    blocked = [run for run in found if run.spec_digest in judged and not judged[run.spec_digest][1]]
    return {
        "environment": environment,
        "diff": {name: {"from": then[name], "to": now[name]} for name in now if then[name] != now[name]},
        "affected_run_ids": [run.id for run in blocked],
        "newly_blocking": [run.id for run in blocked if judged[run.spec_digest][0]],
        "runs_evaluated": len(found),
    }


def _accepted(body: bytes, flags: PolicyFlags) -> bool:
    spec = Spec.model_validate_json(body)
    return not (flags.enabled and check_policy(spec, check(spec, NOTHING_KNOWN), flags))


def _shown(flags: PolicyFlags) -> Json:
    return flags.model_dump(mode="json")


def _answer(service: Service, tx: Tx, environment: str, flags: PolicyFlags | None, before: PolicyFlags | None) -> Json:
    effective = registry.policy_in_force(tx, environment, service.starter.project)
    return {
        "environment": environment,
        "policy": _shown(flags) if flags is not None else None,
        "previous_policy": _shown(before) if before is not None else None,
        "effective": _shown(effective),
    }
