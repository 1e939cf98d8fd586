"""The output of bundle commands: content and verification."""

from __future__ import annotations

from dataclasses import asdict

from kneo.cli import render
from kneo.cli.specs.bundle_check import Account
from kneo.clock import SystemClock, isoformat
from kneo.trust.statement import BundleStatement
from kneo.trust.verify import VerificationStep


def facts_of(statement: BundleStatement) -> dict[str, object]:
    """Return the content of a bundle as JSON."""
    predicate = statement.predicate
    source = predicate.source.model_dump(mode="json", exclude_none=True) if predicate.source else None
    return {
        "name": predicate.name,
        "version": predicate.version,
        "seq": predicate.seq,
        "prev": predicate.prev,
        "environments": list(predicate.environments),
        "approved_by": predicate.approved_by,
        "issued_at": isoformat(predicate.issued_at),
        "expires_at": isoformat(predicate.expires_at) if predicate.expires_at else None,
        "spec_digest": predicate.spec_digest,
        "source": source,
    }


def print_facts(statement: BundleStatement) -> None:
    """Print the content of a bundle, one line for each field."""
    for name, value in facts_of(statement).items():
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {item}" for key, item in value.items())
        else:
            shown = ", ".join(value) if isinstance(value, list) else str(value)
        if value is not None:
            render.text(f"  {name.replace('_', ' '):<13} {shown}")


def trust_facts(account: Account) -> dict[str, object]:
    """Return the trust root of a verification as JSON."""
    trust = account.trust
    return {
        "path": account.path,
        "trust_root": {
            "file": str(trust.file),
            "version": trust.root.version,
            "digest": trust.root.digest,
            "first": trust.pin,
            "pinned": trust.pinned_by is not None,
            "pinned_by": trust.pinned_by,
            "expired": trust.root.expired_at(SystemClock().now()),
        },
    }


def step_facts(step: VerificationStep) -> dict[str, object]:
    """Return a step as JSON."""
    return asdict(step)


def print_account(account: Account) -> None:
    """Print a verification, step by step."""
    trust = account.trust
    if trust.pinned_by:
        render.success(f"Trust root version {trust.root.version} follows from {trust.pin}")
        render.text(f"  pinned by {trust.pinned_by}")
    else:
        render.warning(
            f"THE TRUST ROOT ITSELF WAS NOT PINNED: {trust.file} is signed only by its own keys, which proves nothing.",
            "Ask the owner of the repository for the digest, then pass --trust-root sha256:…",
        )
    if trust.root.expired_at(SystemClock().now()):
        render.warning(f"The trust root expired at {isoformat(trust.root.expires)}: new bundles are refused.")
    render.text(f"For {account.shown.environment}:")
    marks = {True: render.DONE, False: render.FAILED, None: render.OPEN}
    for step in account.shown.steps:
        code = f"{step.code}: " if step.code else ""
        render.line(marks[step.passed], f"{step.number:>2} {step.title}: {code}{step.detail}")
    for each in account.environments:
        if each is not account.shown:
            render.line(marks[each.valid], f"   For {each.environment}")
