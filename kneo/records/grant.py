"""A standing grant: a recorded approval of future calls of one tool of one bundle, within limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from kneo.records.task import Vote


class GrantStatus(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    ENDED = "ended"


GrantEnd: TypeAlias = Literal["revoked", "expired", "used_up", "replaced", "rejected", "unread"]

NotCovered: TypeAlias = Literal[
    "no_rule",
    "condition",
    "limits",
    "used_up",
    "total",
    "expired",
    "not_a_candidate",
    "separation_of_duties",
    "quorum",
    "signature",
    "never",
    "spot_check",
]
"""Why a grant does not cover a call."""


@dataclass(frozen=True, kw_only=True)
class GrantLimits:
    """The limits of a grant. ``total`` has the largest sum of each argument over all calls, as it was written in JSON."""

    uses: int
    uses_per_day: int | None = None
    uses_per_run: int | None = None
    total: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One row of ``grants``. Times are ISO-8601 texts.

    Attributes:
        digest: The digest of the bundle.
        expression: The condition of a call; ``None`` covers every call.
        reason: Why it was created, in the words of its first voter.
        ended: Why it ended.
        uses: The number of calls that it covered.
        totals: The sum of each argument with a limit, as a decimal.
        checks: Of the last spot checks, whether each was approved sooner than the call could be read.
        votes: The approvals of people.
        terms_digest: The digest of the statement that voters sign.
    """

    id: str
    environment: str
    bundle: str
    digest: str
    tool: str
    expression: str | None
    limits: GrantLimits
    status: GrantStatus
    reason: str
    ended: GrantEnd | None = None
    uses: int = 0
    totals: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[bool, ...] = ()
    votes: tuple[Vote, ...] = ()
    terms_digest: str
    created_by: str
    created_at: str
    expires_at: str
    ended_at: str | None = None
    ended_by: str | None = None
    mac: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def uses_left(self) -> int:
        return self.limits.uses - self.uses


def use_words(use: Mapping[str, object], voters: Iterable[str]) -> str:
    """Return the use of a grant in words: its ``id``, its ``number``, of how many uses (``of``), and those who approved the grant."""
    return f"grant {use['id']} ({use['number']} of {use['of']}) of {', '.join(voters)}"


@dataclass(frozen=True, kw_only=True)
class GrantUse:
    """One row of ``grant_uses``: the call that a grant covered."""

    task_id: str
    grant_id: str
    number: int
    """1 for the first use."""
    run_id: str
    amounts: Mapping[str, str]
    """The arguments that count for totals, as decimals."""
    at: str
