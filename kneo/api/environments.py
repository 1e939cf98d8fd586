"""Operations on environments: state, history, explanations, plans, holds, suspensions, rollbacks and the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypedDict

from pydantic import Field

from kneo import registry
from kneo.api.may_answer import check_approver, check_root
from kneo.api.operation import Body, Context, Json, operation
from kneo.api.page import Limit
from kneo.api.release_views import (
    ApprovalView,
    ChangedView,
    DecidedView,
    DecisionListView,
    DecisionView,
    EnvironmentListView,
    EnvironmentRulesView,
    EnvironmentView,
    HeldView,
    HistoryView,
    PlanView,
    PromotionView,
    ProvenanceView,
    SourceView,
    SuspendedView,
    WhyView,
)
from kneo.api.subjects import ENVIRONMENT, RUN, SERVICE
from kneo.clock import isoformat, parse_time
from kneo.digest import Digest
from kneo.errors import Conflict, Forbidden, Invalid, InvalidValue, KneoError, NotFound, Transient, Untrusted
from kneo.records.release import Hold, Promotion, Suspension
from kneo.registry import EnvironmentStatus, explain
from kneo.settings import Settings
from kneo.store import idempotency, metrics, releases, requests
from kneo.store.engine import Tx
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import parse_approval, rewrite_subject

if TYPE_CHECKING:
    from kneo.spec.models.environment import Environment

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
TimeText = Annotated[str, Field(max_length=60)]
MAX_DURATION = timedelta(days=3_650)
"""The latest end of a hold or suspension."""


class SuspendRequest(Body):
    reason: Text
    until: TimeText | None = None


class HoldRequest(Body):
    bundle: Text
    reason: Text
    until: TimeText | None = None


class UnholdRequest(Body):
    bundle: Text


class RollbackRequest(Body):
    bundle: Text
    reason: Text
    to: Text | None = None


class RewriteRequest(Body):
    envelope: Annotated[str, Field(min_length=1, max_length=65_536, description="A decision signed by the role root.")]


# ---- state --------------------------------------------------------------------------------------------------------


@operation("GET", "/environments", scope="releases:read", about=ENVIRONMENT)
def list_environments(context: Context) -> EnvironmentListView:
    """List every environment with its conditions, releases and pending gates."""
    with context.store.read() as tx:
        return EnvironmentListView(environments=[_view(tx, item) for item in registry.statuses(tx)])


@operation("GET", "/environments/{name}", scope="releases:read", about=ENVIRONMENT)
def get_environment(context: Context, name: str) -> EnvironmentView:
    """Read one environment."""
    with context.store.read() as tx:
        return _view(tx, registry.find_status(tx, name))


MAX_STAGES = 100
"""The longest chain of promotions; a cycle ends there."""


def _view(tx: Tx, status: EnvironmentStatus) -> EnvironmentView:
    """Return an environment with its rules; without a file in force that can be read, with none."""
    environment = _rules(tx, status.name)
    if environment is None:
        return EnvironmentView.of_status(status, EnvironmentRulesView())
    stage, origin = 0, environment.spec.promote_from
    while origin is not None and stage < MAX_STAGES and (before := _rules(tx, origin)) is not None:
        stage, origin = stage + 1, before.spec.promote_from
    rules = EnvironmentRulesView.of(environment, stage, tx.now)
    if rules.promote_from is not None and not tx.sees(rules.promote_from):
        rules = replace(rules, promote_from=None)
    view = EnvironmentView.of_status(status, rules)
    if not environment.spec.protocols.calls:
        return view
    count, since = metrics.waiting_calls(tx, status.name)
    return replace(view, waiting_calls=count, calls_wait_since=since)


def _rules(tx: Tx, name: str) -> Environment | None:
    """Return the file in force; ``None`` where there is none, or one of another version that this one cannot read."""
    try:
        return registry.find_declared(tx, name)
    except KneoError:
        return None


@operation("GET", "/environments/{name}/history", scope="releases:read", about=ENVIRONMENT)
def get_environment_history(context: Context, name: str, bundle: str | None = None, limit: Limit = 100) -> HistoryView:
    """List an environment's promotions, newest first."""
    with context.store.read() as tx:
        registry.check_declared(tx, name)
        promotions = releases.list_promotions(tx, name, bundle, limit)
        return HistoryView(environment=name, promotions=_with_decisions(tx, promotions))


@operation("GET", "/environments/{name}/decisions", scope="releases:read", about=ENVIRONMENT)
def list_environment_decisions(context: Context, name: str, limit: Limit = 100) -> DecisionListView:
    """List the approvals and rejections of people about an environment's changes, newest first."""
    with context.store.read() as tx:
        registry.check_declared(tx, name)
        records = releases.newest_approvals(tx, name, limit)
        return DecisionListView(environment=name, decisions=[ApprovalView.of(record) for record in records])


def _with_decisions(tx: Tx, items: Sequence[Promotion]) -> list[PromotionView]:
    """Return the views of promotions with the decisions that allowed them, which one statement reads."""
    ids = sorted({each for item in items for each in item.approvals})
    records = releases.approvals_by_id(tx, ids)
    views = {record.id: DecisionView.of(record) for record in records}
    number = {record.id: index for index, record in enumerate(records)}
    return [
        PromotionView(
            **vars(item),
            decisions=[
                views[each] for each in sorted(number.keys() & set(item.approvals), key=lambda one: number[one])
            ],
        )
        for item in items
    ]


@operation("GET", "/environments/{name}/why/{bundle}", scope="releases:read", about=ENVIRONMENT)
def explain_release(context: Context, name: str, bundle: str) -> WhyView:
    """Explain which gate blocks a release, since when, and who can unblock it."""
    with context.store.read() as tx:
        return WhyView.of(explain.why(tx, name, bundle))


Ref = Annotated[str | None, Field(max_length=250, description="A branch, tag or commit; left out: the followed one.")]


@operation("GET", "/plan", scope="releases:read", about=ENVIRONMENT)
def plan_environments(context: Context, ref: Ref = None) -> PlanView:
    """Preview what a commit would change in every environment. The controller makes the plan."""
    return _plan(context, None, ref)


@operation("GET", "/environments/{name}/plan", scope="releases:read", about=ENVIRONMENT)
def plan_environment(context: Context, name: str, ref: Ref = None) -> PlanView:
    """Preview what a commit would change here. The controller makes the plan."""
    return _plan(context, name, ref)


def _plan(context: Context, environment: str | None, ref: str | None) -> PlanView:
    """Return the plan of the controller for one environment, or for all of them."""
    plan = _ask(context, "plan", {"environment": environment, "ref": ref})
    with context.store.read() as tx:
        if tx.reach is not None:
            plan = _visible_plan(tx, plan)
    names = ("ref", "revision", "commits", "trust", "problem", "environments")
    return PlanView(**{name: plan[name] for name in names if name in plan})  # type: ignore[arg-type]  # the controller's


def _visible_plan(tx: Tx, plan: Json) -> Json:
    """Return a plan with the environments that a transaction reads alone; the problem of a commit may name others."""
    items = plan.get("environments")
    assert isinstance(items, list)
    return {**plan, "problem": None, "environments": [item for item in items if tx.sees(item.get("name"))]}


@operation("GET", "/trace/{reference}", scope=("releases:read", "runs:read"), about=RUN)
def trace(context: Context, reference: str) -> ProvenanceView:
    """Trace a run or the digest of a bundle back to its commit, signers and approvers."""
    with context.store.read() as tx:
        return ProvenanceView.of(explain.trace(tx, reference))


# ---- changes ------------------------------------------------------------------------------------------------------


@operation("POST", "/environments/{name}/reconcile", scope="releases:operate", about=ENVIRONMENT)
def reconcile_environment(context: Context, name: str) -> ChangedView:
    """Ask the controller to reconcile with Git now, and wait for its result."""
    result = requests.ask(context.store, "reconcile", {"environment": name}, actor=context.actor)
    return ChangedView(result=result, environment=_environment(context, name))


@operation("POST", "/environments/{name}/suspend", scope="releases:operate", about=ENVIRONMENT)
def suspend_environment(context: Context, name: str, body: SuspendRequest) -> SuspendedView:
    """Pause all changes to an environment, until a time or until it is resumed; runs continue.

    To let a pause end earlier than it would, the caller has to be an approver of the environment.
    """
    require_controller(context)
    with context.store.write() as tx:
        until = _until(tx, body.until)
        item = Suspension(environment=name, actor=context.actor, reason=body.reason, since=tx.at, until=until)
        registry.suspend(tx, item, lambda: check_forward(context, tx, name))
    return SuspendedView(suspension=item, **change_result(context, name))


@operation("POST", "/environments/{name}/unsuspend", scope="releases:operate", about=ENVIRONMENT)
def unsuspend_environment(context: Context, name: str) -> ChangedView:
    """Resume changes to an environment; the caller has to be an approver of it."""
    require_controller(context)
    with context.store.write() as tx:
        check_forward(context, tx, name)
        registry.unsuspend(tx, name, actor=context.actor)
    return ChangedView(**change_result(context, name))


@operation("POST", "/environments/{name}/rollback", scope="releases:operate", about=ENVIRONMENT)
def rollback_release(context: Context, name: str, body: RollbackRequest) -> ChangedView:
    """Roll back to a previous release and hold it. For a later version the caller has to be an approver."""
    with context.store.read() as tx:
        registry.check_declared(tx, name)
        found = registry.rollback_target(tx, name, body.bundle, body.to)
        if not found.goes_back:
            check_forward(context, tx, name)
    payload = {
        "environment": name,
        "bundle": body.bundle,
        "to": found.target.digest,
        "replaces": found.current.digest,
        "reason": body.reason,
    }
    return ChangedView(result=_ask(context, "rollback", payload), environment=_environment(context, name))


@operation("POST", "/environments/{name}/hold", scope="releases:operate", about=ENVIRONMENT)
def hold_release(context: Context, name: str, body: HoldRequest) -> HeldView:
    """Keep the current release of a bundle, ignoring Git.

    To let a hold end earlier than it would, the caller has to be an approver of the environment.
    """
    require_controller(context)
    with context.store.write() as tx:
        release = registry.find_served(tx, name, body.bundle)
        item = Hold(
            environment=name,
            bundle=body.bundle,
            digest=release.digest if release else None,
            actor=context.actor,
            reason=body.reason,
            since=tx.at,
            until=_until(tx, body.until),
        )
        registry.hold(tx, item, lambda: check_forward(context, tx, name))
    return HeldView(hold=item, **change_result(context, name))


@operation("POST", "/environments/{name}/unhold", scope="releases:operate", about=ENVIRONMENT)
def unhold_release(context: Context, name: str, body: UnholdRequest) -> ChangedView:
    """Remove the hold of a bundle; its release follows Git again. The caller has to be an approver."""
    require_controller(context)
    with context.store.write() as tx:
        check_forward(context, tx, name)
        registry.unhold(tx, name, body.bundle, actor=context.actor)
    return ChangedView(**change_result(context, name))


# ---- the config repository ----------------------------------------------------------------------------------------


@operation("GET", "/source", scope="releases:read", errors=(404,), about=SERVICE)
def get_source(context: Context) -> SourceView:
    """Read the accepted commit of the config repository, and why a later one was refused."""
    with context.store.read() as tx:
        record = requests.source(tx)
        root = _root_digest(tx, context.settings)
    if record is None:
        msg = "No config repository was reconciled with this database yet."
        raise NotFound(msg, code="source_not_found", hint="kneo up --repo DIR")
    return SourceView(**vars(record), trust_root=root)


@operation("POST", "/source/accept-rewrite", scope="releases:decide", about=SERVICE)
def accept_rewrite(context: Context, body: RewriteRequest) -> DecidedView:
    """Accept a rewritten history by a decision that is signed with a key of the role root."""
    if (done := decided_before(context)) is not None:
        return done
    envelope = body.envelope.encode()
    with context.store.write() as tx:
        root = check_root(tx, context.settings)
        predicate = parse_approval(parse_envelope(envelope, file="approval").payload).predicate
        found = requests.source(tx)
        if found is None or found.refused_code != "HistoryRewritten":
            msg = "History was not rewritten; there is nothing to accept."
            raise NotFound(msg, code="nothing_waits", hint="kneo source show prints the refused commit.")
        about = rewrite_subject(str(found.accepted_commit), str(found.refused_commit))
        if (predicate.environment, predicate.about, predicate.policy_digest) != ("source", about, root.digest):
            msg = "This decision is not about the refused rewrite of history."
            hint = f"Sign it for {found.accepted_commit} becoming {found.refused_commit}."
            raise Invalid(msg, code="SubjectMismatch", hint=hint)
        record = registry.record_signed_decision(tx, envelope, root.keys)
    return DecidedView(approval=ApprovalView.of(record), **change_result(context, "-"))


def _root_digest(tx: Tx, settings: Settings) -> Digest | None:
    try:
        return registry.trust_root(tx, settings.trust_root).digest
    except KneoError:
        return None


# ---- what changes share -------------------------------------------------------------------------------------------


class ChangeResult(TypedDict):
    """The fields of ``ChangedView``."""

    result: Json | None
    environment: EnvironmentView | None


def change_result(context: Context, environment: str) -> ChangeResult:
    """Let the controller act on a change now; in the command line a controller is optional."""
    try:
        payload = {"environment": environment}
        result: Json | None = requests.ask(context.store, "reconcile", payload, actor=context.actor)
    except Transient:
        if context.over_http:
            raise
        result = None
    return ChangeResult(result=result, environment=_environment(context, environment))


def decided_before(context: Context) -> DecidedView | None:
    """Return the decision that an earlier execution of this request recorded under its idempotency key."""
    decision_id = idempotency.made()
    if decision_id is None:
        return None
    with context.store.read() as tx:
        (record,) = releases.approvals_by_id(tx, (decision_id,))
    environment = _environment(context, record.environment)
    return DecidedView(approval=ApprovalView.of(record), result=None, environment=environment)


def require_controller(context: Context) -> None:
    """Check that a controller runs which can act on a change; in the command line a controller is optional.

    Raises:
        Transient: ``no_controller``.
    """
    if not context.over_http:
        return
    with context.store.read() as tx:
        if requests.lease_holder(tx, requests.CONTROLLER_LEASE) is None:
            msg = "No controller is running on this database."
            raise Transient(msg, code="no_controller", hint="Start one: kneo controller run, or kneo up.")


def _environment(context: Context, name: str) -> EnvironmentView | None:
    with context.store.read() as tx:
        status = registry.status(tx, name)
        return _view(tx, status) if status else None


def check_forward(context: Context, tx: Tx, environment: str) -> None:
    """Check that an authenticated caller is an approver of the environment.

    Only what lets changes go forward again needs this: an emergency stop must not wait for an approver.
    """
    if context.over_http and releases.environment(tx, environment) is not None:
        check_approver(tx, environment, context.actor)


def _until(tx: Tx, text: str | None) -> str | None:
    if text is None:
        return None
    until = parse_time(text)
    if not tx.now < until <= tx.now + MAX_DURATION:
        msg = f"{text[:60]} is not a time in the future."
        raise InvalidValue(msg, code="invalid_time")
    return isoformat(until)


_ERRORS: Mapping[str, type[KneoError]] = {
    kind.__name__: kind for kind in (NotFound, Conflict, Untrusted, Invalid, Forbidden)
}


def _ask(context: Context, kind: str, payload: Mapping[str, object]) -> Json:
    """Return the result of a request to the controller.

    Raises:
        KneoError: the controller's refusal.
    """
    result = requests.ask(context.store, kind, payload, actor=context.actor)
    if "error" in result:
        error = _ERRORS.get(str(result.get("kind")), Transient)
        raise error(str(result.get("message")), code=str(result.get("error")))
    return result
