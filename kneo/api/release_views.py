"""Views of environments, promotions, approvals and of the provenance of a release."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from kneo import registry
from kneo.api.audit import AuditEventView
from kneo.api.may_answer import MayAnswerView
from kneo.api.operation import Json
from kneo.api.page import view_of
from kneo.clock import isoformat
from kneo.digest import Digest
from kneo.records.grant import use_words
from kneo.records.release import ApprovalRecord, Condition, Hold, Pending, Promotion, SourceRecord, Suspension
from kneo.records.task import ReceiptRecord
from kneo.registry import EnvironmentStatus
from kneo.registry.explain import ClosedGate, Explanation, Trace
from kneo.spec.policy import next_opening, windows_open
from kneo.trust.dsse import parse_envelope

if TYPE_CHECKING:
    from kneo.spec.models.environment import Environment


@dataclass(frozen=True, kw_only=True)
class ReleaseView:
    """A released bundle version."""

    bundle: str
    version: str
    digest: str
    since: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class ApprovalRuleView:
    """The approvals that a promotion needs."""

    required: int
    roles: list[str]
    exclude: list[str]
    expires_seconds: int
    signed: bool


@dataclass(frozen=True, kw_only=True)
class WindowView:
    """A window in which changes are allowed or denied."""

    effect: Literal["allow", "deny"]
    expression: str
    timezone: str


@dataclass(frozen=True, kw_only=True)
class EnvironmentRulesView:
    """The rules of an environment for its changes, from the file in force.

    ``stage`` is 0 for an environment that follows Git directly, else one more than that of the environment it promotes from.
    """

    team: Annotated[str | None, Field(description="The owner; null where the file names none.")] = None
    stage: int = 0
    promote_from: str | None = None
    approvals: ApprovalRuleView | None = None
    approvers: list[str] = field(default_factory=list)
    soak_seconds: int = 0
    windows: list[WindowView] = field(default_factory=list)
    windows_open: bool = True
    next_opening: str | None = None
    signatures: list[str] = field(default_factory=list)
    atomic: bool = False
    retired: bool = False
    inline_specs: bool = False

    @classmethod
    def of(cls, environment: Environment, stage: int, now: datetime) -> EnvironmentRulesView:
        spec, rule = environment.spec, environment.spec.approvals
        opened = windows_open(environment.windows, now)
        opening = None if opened else next_opening(environment.windows, now)
        needed = set(rule.roles) if rule is not None else set()
        return EnvironmentRulesView(
            team=spec.team,
            stage=stage,
            promote_from=spec.promote_from,
            approvals=ApprovalRuleView(
                required=rule.required,
                roles=list(rule.roles),
                exclude=list(rule.exclude),
                expires_seconds=int(rule.expires.total_seconds()),
                signed=rule.signed,
            )
            if rule is not None
            else None,
            approvers=sorted(name for name, person in spec.people.items() if needed & set(person.roles)),
            soak_seconds=int(spec.soak.total_seconds()),
            windows=[
                WindowView(effect=w.effect, expression=w.expression, timezone=w.timezone) for w in environment.windows
            ],
            windows_open=opened,
            next_opening=isoformat(opening) if opening is not None else None,
            signatures=[f"{spec.signatures.threshold} of the role {role}" for role in spec.signatures.roles],
            atomic=spec.atomic,
            retired=spec.retired,
            inline_specs=spec.inline_specs,
        )


@dataclass(frozen=True, kw_only=True)
class EnvironmentView(EnvironmentRulesView):
    """One environment: its conditions, releases, pending changes and rules. The id of a pending change names its promotion."""

    name: str
    revision: str | None
    policy_digest: str | None
    conditions: tuple[Condition, ...]
    releases: list[ReleaseView]
    pending: tuple[Pending, ...]
    holds: tuple[Hold, ...]
    suspension: Suspension | None
    grants: Annotated[int, Field(description="Active standing grants.")]
    waiting_calls: Annotated[int, Field(description="Calls of other programs that wait for people.")] = 0
    calls_wait_since: str | None = None

    @classmethod
    def of_status(cls, status: EnvironmentStatus, rules: EnvironmentRulesView) -> Self:
        return view_of(
            cls,
            status,
            **vars(rules),
            revision=status.record.revision if status.record else None,
            policy_digest=status.record.policy_digest if status.record else None,
            releases=[view_of(ReleaseView, item) for item in status.releases],
        )


@dataclass(frozen=True, kw_only=True)
class EnvironmentListView:
    """Every environment, by name."""

    environments: list[EnvironmentView]


@dataclass(frozen=True, kw_only=True)
class DecisionView:
    """The decision of one person about a release, and its reason."""

    id: str
    principal: str
    decision: str
    signed: bool
    at: str
    reason: str | None

    @classmethod
    def of(cls, item: ApprovalRecord) -> Self:
        return view_of(cls, item, at=item.first_seen_at, reason=registry.decision_reason(item))


@dataclass(frozen=True, kw_only=True)
class PromotionView(Promotion):
    """A change of an environment, with its decisions."""

    decisions: list[DecisionView]


@dataclass(frozen=True, kw_only=True)
class HistoryView:
    """The changes of an environment, newest first."""

    environment: str
    promotions: list[PromotionView]


@dataclass(frozen=True, kw_only=True)
class PendingPromotionView(Pending):
    """A change that is pending. ``about`` is the subject of its approval, where that is no bundle."""

    phase: Literal["waiting"] = "waiting"
    environment: str
    about: Json | None = None


@dataclass(frozen=True, kw_only=True)
class DonePromotionView(Promotion):
    """A past promotion."""

    phase: Literal["done"] = "done"


@dataclass(frozen=True, kw_only=True)
class SpecChangeView:
    """One change of a spec, or one fact of a first version, in a sentence. ``lines`` are those of a changed text, with ``-``
    and ``+``; the last one counts what is left out, and names the command that shows it.
    """

    danger: str
    area: str
    message: str
    path: str
    lines: list[str]


@dataclass(frozen=True, kw_only=True)
class PromotionPlanView:
    """What a promotion changes: the difference of the specs, or of the environment's rules.

    ``more`` counts further changes, which the view leaves out. ``weakened`` are the protection rules that the change weakens.
    """

    from_version: str | None
    from_digest: str | None
    signers: list[str]
    summary: str
    changes: list[SpecChangeView]
    more: int
    rules: list[Json]
    weakened: list[str]
    facts: Annotated[
        list[Json],
        Field(
            description="Each evidence rule with what it requires, and what the newest statement that counts states."
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PromotionDetailView:
    """One promotion, pending or done: its plan, the decisions about it, and whether the caller may decide.

    ``plan`` is null where the change was refused before it was compared. ``serving`` is the present release.
    """

    promotion: Annotated[PendingPromotionView | DonePromotionView, Field(discriminator="phase")]
    serving: ReleaseView | None
    plan: PromotionPlanView | None
    decisions: list[ApprovalView]
    may_answer: MayAnswerView


@dataclass(frozen=True, kw_only=True)
class PromotionListView:
    """Pending changes, then past promotions, newest first."""

    promotions: list[Annotated[PendingPromotionView | DonePromotionView, Field(discriminator="phase")]]
    count: int


@dataclass(frozen=True, kw_only=True)
class ApprovalView:
    """A recorded decision, without the bytes of its proof."""

    id: str
    environment: str
    subject: str
    subject_name: str
    policy_digest: str
    principal: str
    keyid: str
    decision: str
    signed: bool
    origin: str
    payload_digest: str
    expires_at: str
    first_seen_at: str
    reason: str | None
    overruled_by: Annotated[
        str | None, Field(description="For a rejection that approved rules ended, their policy digest.")
    ] = None

    @classmethod
    def of(cls, record: ApprovalRecord) -> Self:
        return view_of(cls, record, reason=registry.decision_reason(record))


@dataclass(frozen=True, kw_only=True)
class DecisionListView:
    """The decisions of people about the changes of an environment, newest first."""

    environment: str
    decisions: list[ApprovalView]


@dataclass(frozen=True, kw_only=True)
class ChangedView:
    """The result of the controller, null where none is running, and the environment afterwards."""

    result: Json | None
    environment: EnvironmentView | None


@dataclass(frozen=True, kw_only=True)
class HeldView(ChangedView):
    """A new hold, and the environment afterwards."""

    hold: Hold


@dataclass(frozen=True, kw_only=True)
class SuspendedView(ChangedView):
    """A new suspension, and the environment afterwards."""

    suspension: Suspension


@dataclass(frozen=True, kw_only=True)
class DecidedView(ChangedView):
    """A recorded decision, and the environment afterwards."""

    approval: ApprovalView


@dataclass(frozen=True, kw_only=True)
class ActiveGrantView:
    """An active standing grant, abridged."""

    id: str
    tool: str
    uses_left: int
    expires_at: str


@dataclass(frozen=True, kw_only=True)
class WhyView:
    """The gates that block a bundle from following Git, and the people who can unblock them."""

    environment: str
    bundle: str
    blocked: bool
    gate: str | None
    reason: str | None
    message: str
    since: str | None
    who: tuple[str, ...]
    command: str | None
    gates: tuple[ClosedGate, ...]
    way_back: str | None
    waiting: Pending | None
    serving: ReleaseView | None
    hold: Hold | None
    suspension: Suspension | None
    conditions: tuple[Condition, ...]
    unpinned: Annotated[
        tuple[str, ...], Field(description="Served tools of MCP servers that have no pin: the server may change them.")
    ]
    grants: list[ActiveGrantView]

    @classmethod
    def of(cls, found: Explanation) -> Self:
        gates = found.gates
        first = gates[0] if gates else None
        up_to_date = f"Up to date: {found.environment} is at the version that Git declares."
        return view_of(
            cls,
            found,
            blocked=first is not None,
            gate=first.gate if first else None,
            reason=first.reason if first else None,
            message=first.message if first else up_to_date,
            since=first.since if first else None,
            who=first.who if first else (),
            command=found.command,
            gates=gates,
            way_back=found.way_back,
            waiting=found.pending,
            serving=view_of(ReleaseView, found.serving) if found.serving else None,
            grants=[view_of(ActiveGrantView, grant, uses_left=grant.uses_left) for grant in found.grants],
        )


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """The changes that a commit would make, per environment."""

    ref: str | None = None
    revision: str | None = None
    commits: Json | None = None
    trust: Json | None = None
    problem: Json | None = None
    environments: list[Json]


@dataclass(frozen=True, kw_only=True)
class SourceView(SourceRecord):
    """The config repository: its accepted commit, and the reason for the refusal of a later one."""

    trust_root: Digest | None


@dataclass(frozen=True, kw_only=True)
class TracedRunView:
    """The run of a provenance."""

    id: str
    status: str
    requester: str | None


@dataclass(frozen=True, kw_only=True)
class TracedBundleView:
    """The bundle that ran or is released, and its signers."""

    name: str
    version: str
    seq: int
    signers: tuple[str, ...]
    first_seen_at: str
    spec_digest: str
    code: Annotated[str | None, Field(description="The digest of the code that the bundle carries.")] = None


@dataclass(frozen=True, kw_only=True)
class TracedPromotionView:
    """A promotion with its approvals, commit and audit event."""

    id: str
    environment: str
    bundle: str
    kind: str
    from_digest: str | None
    to_digest: str | None
    version: str | None
    actor: str
    revision: str
    audit_event_id: str
    at: str
    reason: str | None
    approvals: list[ApprovalView]
    commit: str
    audit: AuditEventView | None

    @classmethod
    def of(cls, item: Promotion, found: Trace) -> Self:
        event = found.events.get(item.id)
        return view_of(
            cls,
            item,
            kind=item.kind,
            approvals=[ApprovalView.of(record) for record in found.approvals.get(item.id, ())],
            commit=item.revision.rpartition(":")[2],
            audit=AuditEventView.of(event) if event is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class TracedReceiptView:
    """A decision of a person in a run, abridged; the names are those of the receipt."""

    id: str
    task: str
    gate: str | None
    decision: str
    by: object
    actor: str | None
    decidedAt: str  # noqa: N815 - the name in a receipt
    sequence: int | None
    digest: str
    grant: Json | None
    """The standing grant that decided, with the number of the use, of how many (null where it is gone), and its voters."""

    @classmethod
    def of(cls, record: ReceiptRecord, uses: Mapping[str, int]) -> Self:
        """Build the view of a receipt; ``uses`` has those that the grant of a task allows."""
        predicate = json.loads(parse_envelope(record.envelope).payload)["predicate"]
        grant = predicate.get("grant")
        if grant is not None:
            grant = {
                "id": grant["id"],
                "number": grant["number"],
                "of": uses.get(record.task_id),
                "voters": [each["actor"] for each in predicate["voters"]],
            }
        return cls(
            **{one.name: predicate[one.name] for one in fields(cls) if one.name not in {"digest", "grant"}},
            digest=record.digest,
            grant=grant,
        )

    @property
    def who(self) -> str:
        """Who decided, in words."""
        voters = self.grant["voters"] if self.grant is not None else None
        return use_words(self.grant, voters) if isinstance(voters, list) and self.grant else str(self.actor or self.by)


@dataclass(frozen=True, kw_only=True)
class ProvenanceView:
    """The provenance of a run or a digest: bundle, signers, promotions, approvals, commits and receipts."""

    digest: str
    run: TracedRunView | None
    bundle: TracedBundleView | None
    promotions: list[TracedPromotionView]
    receipts: list[TracedReceiptView]

    @classmethod
    def of(cls, found: Trace) -> Self:
        run, bundle = found.run, found.bundle
        code = registry.code_in(bundle)
        return cls(
            digest=found.digest,
            run=view_of(TracedRunView, run, status=run.status.value) if run else None,
            bundle=view_of(TracedBundleView, bundle, code=code.digest if code else None) if bundle else None,
            promotions=[TracedPromotionView.of(item, found) for item in found.promotions],
            receipts=[TracedReceiptView.of(record, found.granted) for record in found.receipts],
        )
