"""Signed decisions about releases, as the commands make them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kneo.digest import Digest
from kneo.trust.about import DecisionSubject
from kneo.trust.dsse import serialise, sign
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import ApprovalDecision, build_approval


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a decision is about.

    Args:
        environment: Its name.
        name: Name of the bundle, path of the environment file, or what else is decided about.
        digest: Digest of the bundle, of the rules, or of ``about``.
        policy_digest: The rules it is decided under.
        about: What is decided about where that is no bundle and no set of rules.
    """

    environment: str
    name: str
    digest: Digest
    policy_digest: Digest
    about: DecisionSubject | None = None


def sign_decision(
    subject: Subject,
    decision: ApprovalDecision,
    key: PrivateKey,
    now: datetime,
    life: timedelta,
    reason: str | None = None,
) -> bytes:
    """Sign a decision with a person's own key.

    Raises:
        Invalid: a field is out of its bounds.
    """
    statement = build_approval(
        bundle_name=subject.name,
        bundle_digest=subject.digest,
        environment=subject.environment,
        policy_digest=subject.policy_digest,
        decision=decision,
        issued_at=now,
        expires=now + life,
        reason=reason,
        about=subject.about,
    )
    return serialise(sign(PAYLOAD_TYPE, statement.payload, key))
