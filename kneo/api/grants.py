"""Operations on standing grants: recorded approvals of future calls of a tool, within limits."""

from __future__ import annotations

import base64
import shlex
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from kneo.api.operation import ANY_KEY, Body, Context, Json, operation
from kneo.api.page import Limit, Word, parse_period
from kneo.api.subjects import ENVIRONMENT, GRANT
from kneo.clock import isoformat, parse_duration
from kneo.errors import Forbidden, InvalidValue
from kneo.records.grant import Grant, GrantLimits, GrantStatus, GrantUse
from kneo.roles import may
from kneo.spec.expression import MAX_CHARS
from kneo.spec.policy import MAX_GRANT, MAX_USES, Money
from kneo.store import grants as rows
from kneo.store.engine import Tx
from kneo.tasks import grants
from kneo.tasks.grant_proposal import GrantProposal, propose
from kneo.tasks.grants import GrantRequest
from kneo.trust.statement import PAYLOAD_TYPE

Count = Annotated[int, Field(ge=1, le=MAX_USES)]

MAX_REASON_CHARS = 2_000


class GrantToSign(Body):
    """A grant to create: the calls of one tool of the released bundle, and the limits."""

    model_config = ConfigDict(strict=True)  # the terms are signed: true is no number of uses

    bundle: str = Field(min_length=1, max_length=200)
    tool: str = Field(min_length=1, max_length=200)
    when: str | None = Field(
        default=None, min_length=1, max_length=MAX_CHARS, description="An expression. Left out: each call."
    )
    uses: Count
    uses_per_day: Count | None = None
    uses_per_run: Count | None = None
    total: dict[str, Money] = Field(
        default_factory=dict, max_length=20, description="The largest sum of each argument."
    )
    expires_in: str | Annotated[int, Field(gt=0, le=MAX_GRANT // timedelta(seconds=1))] = Field(
        description="A duration, or seconds.", examples=["14d"]
    )
    reason: str = Field(default="", max_length=MAX_REASON_CHARS)

    def request(self, environment: str) -> GrantRequest:
        """Return the request for an environment.

        Raises:
            InvalidValue: ``expires_in`` is no duration up to 90 days.
        """
        lasts = (
            timedelta(seconds=self.expires_in) if isinstance(self.expires_in, int) else parse_duration(self.expires_in)
        )
        if not timedelta(0) < lasts <= MAX_GRANT:
            msg = "A grant lasts for up to 90 days."
            raise InvalidValue(msg, field="expires_in")
        values = self.model_dump(include={"bundle", "tool", "when", "reason"})
        limits = GrantLimits(**self.model_dump(include={"uses", "uses_per_day", "uses_per_run", "total"}))
        return GrantRequest(environment=environment, limits=limits, expires_in=lasts, **values)


class GrantCreate(GrantToSign):
    """A grant to create, with the vote of the caller."""

    statement: dict[str, object] | None = Field(
        default=None,
        description="A DSSE envelope of the terms, signed with a key of your own; `…/statement` has the bytes.",
    )


class GrantApprove(Body):
    """The vote of a person for a grant."""

    statement: dict[str, object] | None = Field(
        default=None, description="A DSSE envelope of `terms` of the grant, signed with a key of your own."
    )


class GrantRevoke(Body):
    """The end of a grant."""

    reason: str | None = Field(default=None, max_length=MAX_REASON_CHARS)


@dataclass(frozen=True, kw_only=True)
class GrantView:
    """A standing grant."""

    id: str
    environment: str
    bundle: str
    digest: str
    tool: str
    when: str | None
    uses: int
    uses_left: int
    uses_per_day: int | None
    uses_per_run: int | None
    total: dict[str, float]
    total_left: dict[str, float]
    expires_at: str
    status: Literal["pending", "active", "ended"]
    reason: Annotated[
        str,
        Field(
            description="Why it ended: `revoked`, `expired`, `used_up`, `replaced`, `rejected`, `unread`. Before: why it was created."
        ),
    ]
    voters: list[str]
    covers: Annotated[list[str], Field(description="The gates that its votes decide.")]
    lacks: Annotated[list[str], Field(description="The gates that need more approvals.")]
    needs: Annotated[dict[str, int], Field(description="The approvals that each of these gates needs.")]
    terms: Annotated[Json, Field(description="The content of the statement that voters sign.")]
    payload: Annotated[str, Field(description="Base64 of that statement.")]
    terms_digest: str
    created_by: str
    created_at: str
    ended_at: str | None
    ended_by: str | None

    @classmethod
    def of(cls, tx: Tx, grant: Grant) -> GrantView:
        """Build the view of a grant at a time."""
        has_expired = grant.status is not GrantStatus.ENDED and grant.expires_at <= tx.at
        ended, limits, statement = ("expired" if has_expired else grant.ended), grant.limits, grants.terms_of(grant)
        covers, needs = grants.gates_now(tx, grant) if ended is None else ((), {})
        left = {name: Decimal(str(most)) - Decimal(grant.totals.get(name, "0")) for name, most in limits.total.items()}
        return cls(
            id=grant.id,
            environment=grant.environment,
            bundle=grant.bundle,
            digest=grant.digest,
            tool=grant.tool,
            when=grant.expression,
            **vars(limits),
            uses_left=grant.uses_left,
            total_left={name: float(amount) for name, amount in left.items()},
            expires_at=grant.expires_at,
            status="ended" if ended is not None else grant.status.value,
            reason=ended or grant.reason,
            voters=[vote.actor for vote in grant.votes],
            covers=list(covers),
            lacks=list(needs),
            needs=dict(needs),
            terms=statement.terms.model_dump(mode="json", by_alias=True),
            payload=base64.b64encode(statement.payload).decode("ascii"),
            terms_digest=grant.terms_digest,
            created_by=grant.created_by,
            created_at=grant.created_at,
            ended_at=grant.ended_at or (grant.expires_at if has_expired else None),
            ended_by=grant.ended_by,
        )


@dataclass(frozen=True, kw_only=True)
class GrantListView:
    """Standing grants, the newest first."""

    grants: list[GrantView]
    count: int


@dataclass(frozen=True, kw_only=True)
class GrantUseView:
    """A call that a grant covered."""

    number: int
    task_id: str
    run_id: str
    amounts: dict[str, float]
    at: str

    @classmethod
    def of(cls, use: GrantUse) -> GrantUseView:
        """Build the view of a use."""
        amounts = {name: float(amount) for name, amount in use.amounts.items()}
        return cls(number=use.number, task_id=use.task_id, run_id=use.run_id, amounts=amounts, at=use.at)


@dataclass(frozen=True, kw_only=True)
class GrantUsesView:
    """The calls that a grant covered, the first one first."""

    uses: list[GrantUseView]


@dataclass(frozen=True, kw_only=True)
class GrantStatementView:
    """The bytes to sign for a grant; see the reference of receipts."""

    payloadType: str  # noqa: N815 - the spelling of DSSE
    payload: Annotated[str, Field(description="Base64 of the bytes that DSSE signs, in its encoding.")]
    terms: Annotated[Json, Field(description="The content of the payload.")]
    terms_digest: str
    expires_at: str


@operation("POST", "/environments/{name}/grants", scope="human:write", about=ENVIRONMENT)
def create_grant(context: Context, name: str, body: GrantCreate) -> GrantView:
    """Create a standing grant with the vote of the caller. It is active once its votes meet the quorum of a gate."""
    with context.store.write() as tx:
        grant = grants.create(
            tx,
            body.request(name),
            actor=context.actor,
            statement=body.statement,
            pin=context.settings.trust_root,
        )
        return GrantView.of(tx, grant)


@operation("POST", "/environments/{name}/grants/statement", scope="human:write", about=ENVIRONMENT)
def get_grant_to_sign(context: Context, name: str, body: GrantToSign) -> GrantStatementView:
    """Return the terms of a grant to sign. Changes nothing. Create the same grant with the envelope."""
    with context.store.read() as tx:
        grant = grants.draft(tx, body.request(name))
    statement = grants.terms_of(grant)
    return GrantStatementView(
        payloadType=PAYLOAD_TYPE,
        payload=base64.b64encode(statement.payload).decode("ascii"),
        terms=statement.terms.model_dump(mode="json", by_alias=True),
        terms_digest=statement.digest,
        expires_at=isoformat(statement.terms.expires),
    )


@dataclass(frozen=True, kw_only=True)
class GrantProposalView(GrantProposal):
    """A draft of a grant from the answers of people for the present release, and the figures behind it. A person always ratifies."""

    bundle: str
    tool: str
    uses: int | None = None
    expires_in: str | None = None
    command: str | None = None


DRAFTED = timedelta(days=14)
"""The longest time for which a draft counts."""


@operation("GET", "/environments/{name}/grants/proposal", scope="human:read", about=ENVIRONMENT)
def propose_grant(
    context: Context, name: str, bundle: Word, tool: Word, since: Annotated[str, Field(max_length=20)] = "30d"
) -> GrantProposalView:
    """Draft a grant from the answers of people for the present release since a time. Changes nothing."""
    with context.store.read() as tx:
        found = grants.find_tool(tx, name, bundle, tool)
        _, rule = grants.check_allowed(found)[0]
        begin = isoformat(tx.now - parse_period(since))
        draft = propose(grants.answered_calls(tx, found, since=begin))
    view = GrantProposalView(**{**vars(draft), "total": {}}, bundle=bundle, tool=tool)
    if draft.when is None:
        return view
    uses = min(rule.uses, draft.covered)
    total = {argument: min(most, draft.total.get(argument, most)) for argument, most in rule.total.items()}
    lasts = min(rule.expires, DRAFTED)
    expires = f"{lasts.days}d" if lasts == timedelta(days=lasts.days) else f"{int(lasts.total_seconds())}s"
    words = ["kneo", "grant", "create", f"{name}/{bundle}", "--tool", tool, "--when", draft.when, "--uses", str(uses)]
    words += [word for argument, most in total.items() for word in ("--total", f"{argument}={most:g}")]
    words += ["--expires", expires, "--reason", f"{draft.approvals} approvals, {draft.edited_share:.0%} edited"]
    return replace(view, uses=uses, total=total, expires_in=expires, command=shlex.join(words))


@operation("GET", "/grants", scope="human:read", about=GRANT)
def list_grants(
    context: Context,
    environment: Word | None = None,
    bundle: Word | None = None,
    tool: Word | None = None,
    status: Literal["pending", "active", "ended"] | None = None,
    limit: Limit = 100,
    after: Word | None = None,
) -> GrantListView:
    """List standing grants, the newest first."""
    with context.store.read() as tx:
        found = rows.list_grants(
            tx, environment=environment, bundle=bundle, tool=tool, status=status, limit=limit, after=after
        )
        views = [GrantView.of(tx, grant) for grant in found]
    return GrantListView(grants=views, count=len(views))


@operation("GET", "/grants/{grant_id}", scope="human:read", about=GRANT)
def get_grant(context: Context, grant_id: str) -> GrantView:
    """Read a standing grant."""
    with context.store.read() as tx:
        return GrantView.of(tx, grants.find(tx, grant_id))


@operation("GET", "/grants/{grant_id}/uses", scope="human:read", about=GRANT)
def list_grant_uses(context: Context, grant_id: str) -> GrantUsesView:
    """List the calls that a grant covered."""
    with context.store.read() as tx:
        grants.find(tx, grant_id)
        return GrantUsesView(uses=[GrantUseView.of(use) for use in rows.list_uses(tx, grant_id)])


@operation("POST", "/grants/{grant_id}/approve", scope="human:write", about=GRANT)
def approve_grant(context: Context, grant_id: str, body: GrantApprove) -> GrantView:
    """Vote for a standing grant."""
    with context.store.write() as tx:
        grant = grants.approve(
            tx, grant_id, actor=context.actor, statement=body.statement, pin=context.settings.trust_root
        )
        return GrantView.of(tx, grant)


REVOKING = ("human:write", "releases:operate")
"""The scopes of which one is enough to revoke a grant."""


@operation("POST", "/grants/{grant_id}/revoke", scope=ANY_KEY, about=GRANT)
def revoke_grant(context: Context, grant_id: str, body: GrantRevoke) -> GrantView:
    """Revoke a standing grant. Needs `human:write` or `releases:operate`. No decision of it counts afterwards."""
    _check_may_revoke(context.principal.scopes)
    with context.store.write() as tx:
        _check_may_revoke(context.scopes_in(tx, grants.find(tx, grant_id).environment))
        return GrantView.of(tx, grants.revoke(tx, grant_id, actor=context.actor, reason=body.reason))


def _check_may_revoke(scopes: frozenset[str]) -> None:
    if not any(may(scopes, scope) for scope in REVOKING):
        msg = f"Missing required scope: {' or '.join(REVOKING)}"
        raise Forbidden(msg, required_scope=REVOKING[0])
