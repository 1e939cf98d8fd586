"""What is told about a bundle: its facts, and the account of its verification."""

from __future__ import annotations

from dataclasses import asdict

from cli import render
from cli.specs.bundle_check import Account
from kneo.clock import SystemClock, isoformat
from kneo.trust.statement import BundleStatement
from kneo.trust.verify import VerificationStep


def facts_of(statement: BundleStatement) -> dict[str, object]:
    """What a bundle says, as JSON."""
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
    """Print what a bundle says, a line for each fact."""
    for name, value in facts_of(statement).items():
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {said}" for key, said in value.items())
        else:
            shown = ", ".join(value) if isinstance(value, list) else str(value)
        if value is not None:
            render.text(f"  {name.replace('_', ' '):<13} {shown}")


def trust_facts(account: Account) -> dict[str, object]:
    """What it was judged by, as JSON."""
    believed = account.believed
    return {
        "path": account.path,
        "trust_root": {
            "file": str(believed.file),
            "version": believed.root.version,
            "digest": believed.root.digest,
            "first": believed.pin,
            "pinned": believed.pinned_by is not None,
            "pinned_by": believed.pinned_by,
            "expired": believed.root.expired_at(SystemClock().now()),
        },
    }


def step_facts(step: VerificationStep) -> dict[str, object]:
    """One step, as JSON."""
    return asdict(step)


def print_account(account: Account) -> None:
    """Print how the verification went, step by step."""
    believed = account.believed
    if believed.pinned_by:
        render.success(f"Trust root version {believed.root.version} follows from {believed.pin}")
        render.text(f"  pinned by {believed.pinned_by}")
    else:
        render.warning(
            f"THE TRUST ROOT ITSELF WAS NOT PINNED: {believed.file} vouches for itself, which proves nothing.",
            "Get the first root's digest from its keeper and pass --trust-root sha256:…",
        )
    if believed.root.expired_at(SystemClock().now()):
        render.warning(f"The trust root expired at {isoformat(believed.root.expires)}: nothing new is admitted.")
    render.text(f"For {account.told.environment}:")
    marks = {True: render.DONE, False: render.FAILED, None: render.OPEN}
    for step in account.told.steps:
        code = f"{step.code}: " if step.code else ""
        render.line(marks[step.passed], f"{step.number:>2} {step.title}: {code}{step.detail}")
    for each in account.environments:
        if each is not account.told:
            render.line(marks[each.valid], f"   For {each.environment}")
