"""Checks of who may decide about the changes of an environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kneo import registry
from kneo.clock import isoformat
from kneo.errors import Forbidden, KneoError, Untrusted
from kneo.names import person_key
from kneo.store import releases
from kneo.trust.root import TrustRoot

if TYPE_CHECKING:
    from kneo.settings import Settings
    from kneo.store.engine import Tx


def check_root(tx: Tx, settings: Settings) -> TrustRoot:
    """Read the trust root, which must not be expired: an expired root admits no decision.

    Raises:
        Untrusted: ``Expired``, or there is no trust root.
    """
    root = registry.trust_root(tx, settings.trust_root)
    if root.expired_at(tx.now):
        msg = f"The trust root expired on {isoformat(root.expires)}. Decisions are refused until it is renewed."
        raise Untrusted(msg, code="Expired", hint="kneo trust sign --expires 365d --key FILE, then commit.")
    return root


def check_approver(tx: Tx, environment: str, actor: str) -> None:
    """Check that a person has one of the environment's approver roles.

    Raises:
        Forbidden: ``not_an_approver``.
    """
    spec = registry.declared(tx, environment).spec
    rule = spec.approvals
    if rule is None:
        return
    person = {person_key(name): person for name, person in spec.people.items()}.get(person_key(actor))
    if person is None or not set(person.roles) & set(rule.roles):
        roles = " or ".join(rule.roles)
        msg = f"You are not an approver for {environment} (signed in as: {actor}; required role: {roles})."
        file = f"environments/{environment}.yaml"
        hint = f"Set KNEO_SERV_API_KEY or pass --profile NAME; approvers are listed under people in {file}."
        raise Forbidden(msg, code="not_an_approver", hint=hint)


def check_may_decide(tx: Tx, environment: str, actor: str) -> None:
    """Check that an authenticated person may decide about releases without an own signature.

    Raises:
        Forbidden: ``not_an_approver``, or ``signature_required``.
    """
    rule = registry.declared(tx, environment).spec.approvals
    if rule is not None and rule.signed:
        msg = f"{environment} counts only decisions that people sign with their own keys."
        raise Forbidden(msg, code="signature_required", hint="kneo approve --key FILE")
    check_approver(tx, environment, actor)


def check_may_decide_rules(tx: Tx, environment: str, actor: str) -> None:
    """Check that an authenticated person may decide about a pending environment file.

    The first file of an environment, and a file with ``inlineSpecs: true``, need the approvers of every environment that
    requires approvals; the controller reports which of them are missing.

    Raises:
        Forbidden: ``not_an_approver``, or ``signature_required``.
    """
    refused: list[KneoError] = []
    names = [record.name for record in releases.list_environments(tx)]
    for name in sorted(names, key=lambda one: one != environment):
        rule = registry.declared(tx, name).spec.approvals
        if rule is None or rule.required == 0:
            continue
        try:
            check_may_decide(tx, name, actor)
        except Forbidden as error:
            refused.append(error)
        else:
            return
    if refused:
        raise refused[0]
    msg = f"No rules are in force yet that say who may approve the first file of {environment}."
    hint = f"Sign with a key of the trust root: kneo approve {environment} --policy --key FILE"
    raise Forbidden(msg, code="signature_required", hint=hint)
