"""What environments ask of every spec, as far as it is set here. Git's policy and this one hold together."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path
from pydantic import Field

from kneo.api.context import Principal
from kneo.api.requests import MAX_NAMES, Body, Flag, Name
from kneo.service import responses
from kneo.service.auth import require
from kneo.service.context import ServiceDep
from kneo.service.router import Router, responds
from kneo.service.wire import Json
from kneo.spec.policy_flags import PolicyFlags

router = Router(tags=["policies"])

Reader = Annotated[Principal, Depends(require("policies:read"))]
Writer = Annotated[Principal, Depends(require("policies:write"))]
Environment = Annotated[str, Path(min_length=1, max_length=128)]

PREVIEWED = 100
"""Latest runs of an environment that a preview looks at."""


class PolicyRequest(Body):
    """The whole policy: what is left out goes back to its default."""

    enabled: Flag = True
    fail_on_warnings: Flag = False
    blocked_diagnostic_codes: list[Name] = Field(default_factory=list, max_length=MAX_NAMES)
    require_human_review: Flag = False
    require_tool_permissions: Flag = False
    deny_unrestricted_tools: Flag = False
    require_guardrails: Flag = False

    def flags(self) -> PolicyFlags:
        return PolicyFlags.model_validate(self.model_dump())


@router.get("/policies/environment", operation_id="list_environment_policies", responses=responds(responses.PolicyList))
def list_environment_policies(service: ServiceDep, _principal: Reader) -> Json:
    """List the policies that were set here."""
    return service.governance.policies()


@router.get(
    "/policies/environment/{environment}", operation_id="get_environment_policy", responses=responds(responses.Policy)
)
def get_environment_policy(environment: Environment, service: ServiceDep, _principal: Reader) -> Json:
    """Read what was set here for an environment, and what it asks for in all."""
    return service.governance.policy(environment)


@router.put(
    "/policies/environment/{environment}", operation_id="set_environment_policy", responses=responds(responses.Policy)
)
def set_environment_policy(
    environment: Environment, body: PolicyRequest, service: ServiceDep, principal: Writer
) -> Json:
    """Set an environment's policy. It can ask for more than Git does, and takes nothing of that back."""
    return service.governance.set_policy(environment, body.flags(), actor=principal.name)


@router.post(
    "/policies/environment/{environment}/preview",
    operation_id="preview_environment_policy",
    responses=responds(responses.PolicyPreview),
)
def preview_environment_policy(
    environment: Environment, body: PolicyRequest, service: ServiceDep, _principal: Reader
) -> Json:
    """Say what a policy would change, and which of the latest runs here could not be started under it."""
    return service.governance.preview_policy(environment, body.flags())
