"""Operations on promotions: list pending and past changes, approve and reject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from kneo import registry
from kneo.api.environments import change_result, decided_before, require_controller
from kneo.api.may_answer import MayAnswerView, check_may_decide, check_root, may_decide_change
from kneo.api.operation import Body, Context, Json, operation
from kneo.api.page import Limit, view_of
from kneo.api.release_views import (
    ApprovalView,
    DecidedView,
    DonePromotionView,
    PendingPromotionView,
    PromotionDetailView,
    PromotionListView,
    PromotionPlanView,
    ReleaseView,
    SpecChangeView,
)
from kneo.api.subjects import PROMOTION
from kneo.errors import Conflict, Invalid, KneoError, NotFound, Usage
from kneo.records.release import ApprovalRecord, Pending, Promotion
from kneo.settings import Settings
from kneo.spec.diff import bounded_changes, compare_specs, shortened, whole_command
from kneo.spec.diff.rules import shown_rule
from kneo.spec.models.environment import Approvals
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.store.service_key import service_key
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import ApprovalDecision, parse_approval


class DecisionRequest(Body):
    """A person's own signed decision; without an envelope the service signs for the authenticated caller."""

    envelope: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    reason: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="The reason, in one line; a signed decision carries its own."
    )
    expect_policy_digest: Annotated[str, Field(max_length=100)] | None = Field(
        default=None, description="The `policy_digest` of the reviewed change; another one refuses the decision."
    )
    full: bool = Field(
        default=False,
        description="Decide about the bundle itself, where the change is a canary: its promotion needs no canary then.",
    )
    unread: bool = Field(
        default=False,
        description="Whether the person confirmed without reading the change; the audit event records it.",
    )


@operation("GET", "/promotions", scope="releases:read", about=PROMOTION)
def list_promotions(
    context: Context,
    environment: str | None = None,
    phase: Literal["waiting", "done"] | None = None,
    limit: Limit = 100,
) -> PromotionListView:
    """List pending changes, then past promotions, newest first."""
    items: list[PendingPromotionView | DonePromotionView] = []
    with context.store.read() as tx:
        if phase != "done":
            names = [environment] if environment else releases.environment_names(tx)
            items += [view for name in names for view in _pending_views(tx, name, releases.pending(tx, name))]
        if phase != "waiting":
            items += [
                DonePromotionView(**vars(item)) for item in releases.list_promotions(tx, environment, limit=limit)
            ]
    return PromotionListView(promotions=items[:limit], count=len(items[:limit]))


@operation("GET", "/promotions/{promotion_id}", scope="releases:read", about=PROMOTION)
def get_promotion(
    context: Context,
    promotion_id: str,
    whole: Annotated[bool, Field(description="Leave out no line of a long text.")] = False,
) -> PromotionDetailView:
    """Read one pending change or past promotion: what it changes, who decided, and whether the caller may decide.

    The plan of a pending change is the controller's, from the reconciliation that found the change.
    """
    with context.store.read() as tx:
        found = releases.find_pending(tx, promotion_id)
        if found is not None:
            return _pending_detail(context, tx, *found, whole=whole)
        done = releases.promotion(tx, promotion_id)
        if done is None:
            raise promotion_not_found(promotion_id)
        return _done_detail(tx, done, whole=whole)


def promotion_not_found(promotion_id: str) -> NotFound:
    """Return the error of an id that no pending change and no past promotion has."""
    msg = f"No promotion has the id {promotion_id[:60]!r}."
    hint = "A pending change gets another id when it changes. List them: GET /v1/promotions."
    return NotFound(msg, code="promotion_not_found", hint=hint)


def _pending_detail(context: Context, tx: Tx, environment: str, item: Pending, *, whole: bool) -> PromotionDetailView:
    serving = registry.find_served(tx, environment, item.bundle)
    kept = releases.pending_plan(tx, item.id)
    plan = None
    if kept is not None:
        from_version = kept.content["from_version"]
        command = whole_command(item.bundle, str(from_version) if from_version is not None else None, item.version)
        plan = kept_plan(kept.base, kept.content, command, whole=whole)
    return PromotionDetailView(
        promotion=_pending_views(tx, environment, [item])[0],
        serving=view_of(ReleaseView, serving) if serving is not None else None,
        plan=plan,
        decisions=[ApprovalView.of(record) for record in registry.decisions_about(tx, environment, item)],
        may_answer=may_decide_change(tx, context.settings, environment, item, context.principal),
    )


def kept_plan(base: str | None, content: Mapping[str, object], command: str, *, whole: bool) -> PromotionPlanView:
    """Return the view of a plan that the controller kept, which has all lines: shortened or whole."""
    changes, rules = content["changes"], content["rules"]
    assert isinstance(changes, list)
    assert isinstance(rules, list)
    shown = [SpecChangeView(**(change if whole else shortened(change, command))) for change in changes]
    short = rules if whole else [each | {"lines": shown_rule(each.get("lines", ()))} for each in rules]
    values = {**content, "changes": shown, "rules": short, "from_digest": base}
    return PromotionPlanView(**values)  # type: ignore[arg-type]  # the controller's


def _done_detail(tx: Tx, item: Promotion, *, whole: bool) -> PromotionDetailView:
    serving = registry.find_served(tx, item.environment, item.bundle)
    reason = f"This change was applied at {item.at}."
    return PromotionDetailView(
        promotion=DonePromotionView(**vars(item)),
        serving=view_of(ReleaseView, serving) if serving is not None else None,
        plan=_applied_plan(tx, item, whole=whole),
        decisions=[ApprovalView.of(record) for record in releases.approvals_by_id(tx, item.approvals)],
        may_answer=MayAnswerView(ok=False, reason=reason, code="nothing_waits"),
    )


def _applied_plan(tx: Tx, item: Promotion, *, whole: bool) -> PromotionPlanView | None:
    """Compare the bundles of a past promotion; ``None`` where one of them cannot be read any more."""
    old = releases.bundle(tx, item.from_digest) if item.from_digest is not None else None
    new = releases.bundle(tx, item.to_digest) if item.to_digest is not None else None
    if new is None:
        return None
    try:
        command = whole_command(item.bundle, old.version if old is not None else None, new.version)
        found = compare_specs(
            registry.spec_in(old) if old is not None else None,
            registry.spec_in(new),
            command=command,
            code=(registry.code_in(old), registry.code_in(new)),
        )
    except KneoError:
        return None
    shown, more = bounded_changes(found)
    return PromotionPlanView(
        from_version=old.version if old is not None else None,
        from_digest=item.from_digest,
        signers=list(new.signers),
        summary=found.summary,
        changes=[SpecChangeView(**item) for item in found.items(shown, whole=whole)],  # type: ignore[arg-type]  # the same fields
        more=more,
        rules=[],
        weakened=[],
    )


def _pending_views(tx: Tx, environment: str, items: Sequence[Pending]) -> list[PendingPromotionView]:
    """Return the views of pending changes, each with the subject of its approval where that is no bundle."""
    subjects: dict[str | None, Json | None] = {}
    for item in items:
        if item.subject not in subjects:
            try:
                about = registry.pending_subject(tx, environment, item)
            except Conflict:
                about = None  # the next reconciliation reports the change again
            subjects[item.subject] = about.as_json() if about is not None else None
    return [PendingPromotionView(**vars(item), environment=environment, about=subjects[item.subject]) for item in items]


@operation("POST", "/promotions/{promotion_id}/approve", scope="releases:decide", about=PROMOTION)
def approve_promotion(context: Context, promotion_id: str, body: DecisionRequest | None = None) -> DecidedView:
    """Approve a pending change."""
    return _decide(context, promotion_id, ApprovalDecision.APPROVE, body or DecisionRequest())


@operation("POST", "/promotions/{promotion_id}/reject", scope="releases:decide", about=PROMOTION)
def reject_promotion(context: Context, promotion_id: str, body: DecisionRequest | None = None) -> DecidedView:
    """Reject a pending change. The rejection counts until the same person approves the change."""
    return _decide(context, promotion_id, ApprovalDecision.REJECT, body or DecisionRequest())


def _decide(context: Context, promotion_id: str, decision: ApprovalDecision, body: DecisionRequest) -> DecidedView:
    """Record a decision about a pending change.

    Raises:
        NotFound: no change with this id is pending.
        Forbidden: ``not_an_approver``, or ``signature_required``.
        Untrusted, Invalid: the envelope is not a decision about this change by a known person.
        Usage: without a service, a decision needs a signature.
    """
    if body.envelope is None and not context.over_http:
        msg = "The local database does not authenticate people, so a decision needs a signature."
        raise Usage(msg, hint="Add --key FILE, or --service-url URL.")
    if (done := decided_before(context)) is not None:
        return done
    with context.store.read() as tx:
        _find_pending(tx, promotion_id)
    require_controller(context)
    settings = context.settings
    with context.store.write() as tx:
        environment, pending = _find_pending(tx, promotion_id)
        if body.expect_policy_digest not in {None, pending.policy_digest}:
            msg = f"The rules of {environment} changed since this change was reviewed."
            raise Conflict(msg, code="subject_changed", hint="Read the change again, then decide.")
        if body.envelope is None:
            record = _record_for(tx, settings, environment, pending, decision, actor=context.actor, body=body)
        else:
            envelope = body.envelope.encode()
            record = _record_signed(tx, settings, environment, pending, decision, envelope=envelope, body=body)
    return DecidedView(approval=ApprovalView.of(record), **change_result(context, environment))


def _find_pending(tx: Tx, promotion_id: str) -> tuple[str, Pending]:
    found = releases.find_pending(tx, promotion_id)
    if found is None:
        msg = f"No pending change has the id {promotion_id[:60]!r}."
        raise NotFound(msg, code="promotion_not_found", hint="List pending changes: GET /v1/promotions.")
    return found


def _record_for(
    tx: Tx,
    settings: Settings,
    environment: str,
    pending: Pending,
    decision: ApprovalDecision,
    *,
    actor: str,
    body: DecisionRequest,
) -> ApprovalRecord:
    """Record the decision of an authenticated person, signed by the service."""
    check_may_decide(tx, environment, pending, actor)
    check_root(tx, settings)
    decided = registry.prepare_decision(
        tx, environment, pending, decision, _expiry(tx, environment), body.reason, full=body.full
    )
    return registry.record_decision(tx, decided, approver=actor, service_key=service_key(settings), unread=body.unread)


def _record_signed(
    tx: Tx,
    settings: Settings,
    environment: str,
    pending: Pending,
    decision: ApprovalDecision,
    *,
    envelope: bytes,
    body: DecisionRequest,
) -> ApprovalRecord:
    """Record a decision that a person signed.

    Raises:
        Invalid: ``SubjectMismatch``: the signed decision is about another change.
    """
    predicate = parse_approval(parse_envelope(envelope, file="approval").payload).predicate
    signed = (
        predicate.environment,
        predicate.bundle_digest,
        predicate.policy_digest,
        predicate.decision,
        predicate.about,
    )
    about = registry.pending_subject(tx, environment, pending)
    subjects = [(pending.subject, about), *([(pending.digest, None)] if pending.digest is not None else [])]
    expected = [(environment, subject, pending.policy_digest, decision, each) for subject, each in subjects]
    if signed not in expected:
        msg = (
            f"The signed decision is not about the pending change: {pending.bundle} {pending.version} in {environment}."
        )
        hint = f"Sign it for {pending.subject} under the policy {pending.policy_digest}."
        raise Invalid(msg, code="SubjectMismatch", hint=hint)
    if body.reason not in {None, predicate.reason}:
        msg = "The reason of the request differs from the signed one."
        raise Invalid(msg, code="SubjectMismatch", hint="Send it inside the signed decision only.")
    return registry.record_signed_decision(tx, envelope, check_root(tx, settings).keys, unread=body.unread)


def _expiry(tx: Tx, environment: str) -> datetime:
    record = releases.environment(tx, environment)
    rule = registry.declared(tx, environment).spec.approvals if record is not None else None
    return tx.now + (rule or Approvals()).expires
