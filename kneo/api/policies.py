"""Operations on server-side policies, which add to those in Git."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kneo import registry
from kneo.api.operation import MAX_NAMES, Body, Context, Flag, Name, operation
from kneo.api.subjects import NAMED_ENVIRONMENT
from kneo.spec.coverage.policy import check_policy
from kneo.spec.lint import check
from kneo.spec.models.environment import read_spec
from kneo.spec.modules import NOTHING_KNOWN
from kneo.spec.policy import PolicyFlags, strictest
from kneo.store import idempotency, project_metadata, runs
from kneo.store.engine import Tx
from kneo.store.run_filter import RunFilter

PREVIEWED = 100
"""The latest runs of an environment that a preview evaluates."""

Environment = Annotated[str, Field(min_length=1, max_length=128)]


class PolicyRequest(Body):
    """The whole policy: an omitted flag has its default."""

    enabled: Flag = True
    fail_on_warnings: Flag = False
    blocked_diagnostic_codes: list[Name] = Field(default_factory=list, max_length=MAX_NAMES)
    require_human_review: Flag = False
    require_tool_permissions: Flag = False
    deny_unrestricted_tools: Flag = False
    require_guardrails: Flag = False

    def flags(self) -> PolicyFlags:
        return PolicyFlags.model_validate(self.model_dump())


@dataclass(frozen=True, kw_only=True)
class PolicyListView:
    """The server-side policies, by environment."""

    policies: Mapping[str, PolicyFlags]
    count: int


@dataclass(frozen=True, kw_only=True)
class PolicyView:
    """The policy of an environment."""

    environment: str
    policy: Annotated[PolicyFlags | None, Field(description="The server-side policy; null where there is none.")]
    previous_policy: PolicyFlags | None
    effective: Annotated[PolicyFlags, Field(description="The strictest of this policy, Git's and the project's.")]


@dataclass(frozen=True, kw_only=True)
class PolicyPreviewView:
    """The changes of a policy, and the latest runs that it would refuse."""

    environment: str
    diff: dict[str, dict[str, object]]
    affected_run_ids: list[str]
    newly_blocking: list[str]
    runs_evaluated: int


@operation("GET", "/policies/environment", scope="policies:read", about=NAMED_ENVIRONMENT)
def list_environment_policies(context: Context) -> PolicyListView:
    """List the server-side policies."""
    with context.store.read() as tx:
        policies = project_metadata.list_policies(tx)
        stored = {name: flags for name, flags in policies.items() if tx.sees(name)}
    return PolicyListView(policies=stored, count=len(stored))


@operation("GET", "/policies/environment/{environment}", scope="policies:read", about=NAMED_ENVIRONMENT)
def get_environment_policy(context: Context, environment: Environment) -> PolicyView:
    """Read an environment's server-side policy, and the policy in force."""
    with context.store.read() as tx:
        return _view(context, tx, environment, project_metadata.find_policy(tx, environment), None)


@operation("PUT", "/policies/environment/{environment}", scope="policies:write", about=NAMED_ENVIRONMENT)
def set_environment_policy(context: Context, environment: Environment, body: PolicyRequest) -> PolicyView:
    """Set an environment's server-side policy. It adds to Git's policy and never weakens it."""
    flags = body.flags()

    def change(tx: Tx) -> PolicyView:
        if idempotency.made() is not None:
            return _view(context, tx, environment, project_metadata.find_policy(tx, environment), None)
        idempotency.bind(tx, environment)
        before = registry.change_policy(tx, environment, flags, actor=context.actor)
        return _view(context, tx, environment, flags, before)

    return context.store.transact(change)


@operation("POST", "/policies/environment/{environment}/preview", scope="policies:read", about=NAMED_ENVIRONMENT)
def preview_environment_policy(context: Context, environment: Environment, body: PolicyRequest) -> PolicyPreviewView:
    """Preview the changes of a policy, and the latest runs that it would refuse."""
    flags = body.flags()
    with context.store.read() as tx:
        before = project_metadata.find_policy(tx, environment)
        others = registry.policy_in_force(tx, environment, context.project)
        latest = runs.list_runs(tx, RunFilter(environment=environment), limit=PREVIEWED)
        specs = {digest: runs.load_spec(tx, digest) for digest in {run.spec_digest for run in latest}}
    old, new = (before or PolicyFlags()).model_dump(mode="json"), flags.model_dump(mode="json")
    accepted = {
        digest: (_accepts(others, spec), _accepts(strictest(flags), spec)) for digest, spec in specs.items() if spec
    }
    refused = [run for run in latest if run.spec_digest in accepted and not accepted[run.spec_digest][1]]
    return PolicyPreviewView(
        environment=environment,
        diff={name: {"from": old[name], "to": new[name]} for name in new if old[name] != new[name]},
        affected_run_ids=[run.id for run in refused],
        newly_blocking=[run.id for run in refused if accepted[run.spec_digest][0]],
        runs_evaluated=len(latest),
    )


def _accepts(flags: PolicyFlags, body: bytes) -> bool:
    spec = read_spec(body)
    return not (flags.enabled and check_policy(spec, check(spec, NOTHING_KNOWN), flags))


def _view(
    context: Context, tx: Tx, environment: str, flags: PolicyFlags | None, before: PolicyFlags | None
) -> PolicyView:
    effective = registry.policy_in_force(tx, environment, context.project)
    return PolicyView(environment=environment, policy=flags, previous_policy=before, effective=effective)
