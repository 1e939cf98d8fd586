"""Weakenings of an environment: the requirements of the current file that a new file drops.

An environment file is not signed: every person who can merge can change it. A stricter file is accepted; a weaker one needs the
approvals that the current file requires.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kneo.spec.models.environment import Approvals, Environment, EnvironmentSpec, Person, QuestionPolicy, Signatures
from kneo.spec.models.human import strongest
from kneo.spec.policy_flags import SWITCHES, PolicyFlags
from kneo.spec.windows import Window

NO_APPROVALS = Approvals(required=0)


def weakenings(before: Environment, after: Environment) -> tuple[str, ...]:
    """Describe the requirements that a new file drops; none when it only adds requirements.

    Values that cannot be compared, such as moved windows, count as weaker.
    """
    old, new = before.spec, after.spec
    return (
        *flag_weakenings(old.policy, new.policy),
        *_signatures(old.signatures, new.signatures),
        *_approvals(old.approvals or NO_APPROVALS, new.approvals or NO_APPROVALS),
        *_people(old.people, new.people),
        *_windows(before.windows, after.windows),
        *_added(before, after),
        *_gates(old, new),
    )


def flag_weakenings(before: PolicyFlags, after: PolicyFlags) -> tuple[str, ...]:
    """Describe the requirements that a policy drops; none when it has at least those of before."""
    if not before.enabled:
        return ()
    if not after.enabled:
        return ("The policy is switched off.",) if before != PolicyFlags() else ()
    gone = [
        f"{name} is switched off: no longer, {words}."
        for name, words in SWITCHES.items()
        if getattr(before, name) and not getattr(after, name)
    ]
    missing = sorted(frozenset(before.blocked_diagnostic_codes) - frozenset(after.blocked_diagnostic_codes))
    return (*gone, *(f"{code} is no longer blocked." for code in missing))


def _signatures(old: Signatures, new: Signatures) -> Iterator[str]:
    if new.threshold < old.threshold:
        yield f"signatures.threshold falls from {old.threshold} to {new.threshold}"
    if more := set(new.roles) - set(old.roles):
        yield f"signatures of {', '.join(sorted(more))} would count"
    if formats := set(new.accept) - set(old.accept):
        yield f"bundles in the format {', '.join(sorted(formats))} would be accepted"


def _approvals(old: Approvals, new: Approvals) -> Iterator[str]:
    if old.required == 0:
        return
    if new.required < old.required:
        yield f"approvals.required falls from {old.required} to {new.required}"
    if more := set(new.roles) - set(old.roles):
        yield f"approvals of {', '.join(sorted(more))} would count"
    if fewer := set(old.exclude) - set(new.exclude):
        yield f"{', '.join(sorted(fewer))} could approve their own change"
    if new.expires > old.expires:
        yield "approvals would count for longer"
    if old.signed and not new.signed:
        yield "approvals would not have to be signed by the people themselves"


def _people(old: Mapping[str, Person], new: Mapping[str, Person]) -> Iterator[str]:
    for name, person in new.items():
        known = old.get(name, Person())
        if more := (set(person.roles) | set(person.groups)) - (set(known.roles) | set(known.groups)):
            yield f"{name} gets {', '.join(sorted(more))}"


def _windows(old: Sequence[Window], new: Sequence[Window]) -> Iterator[str]:
    denied, allowed = _parted(old)
    denied_now, allowed_now = _parted(new)
    if denied - denied_now:
        yield "a window in which changes are denied is removed or changed"
    if allowed and (not allowed_now or allowed_now - allowed):
        yield "changes would be allowed at other times"


def _parted(windows: Sequence[Window]) -> tuple[set[Window], set[Window]]:
    return {w for w in windows if w.effect == "deny"}, {w for w in windows if w.effect == "allow"}


def _questions(old: QuestionPolicy, new: QuestionPolicy) -> Iterator[str]:
    if new.approvals < old.approvals:
        yield f"questions.approvals falls from {old.approvals} to {new.approvals}"
    if fewer := set(old.exclude) - set(new.exclude):
        yield f"{', '.join(sorted(fewer))} could answer questions"
    if allowed := set(old.deny_on_timeout) - set(new.deny_on_timeout):
        yield f"silence could {', '.join(sorted(allowed))}"
    if strongest(old.receipt, new.receipt) != new.receipt:
        signed = "be signed by those who answer" if new.receipt else "have a signed receipt"
        yield f"decisions would not have to {signed}"


def _added(before: Environment, after: Environment) -> Iterator[str]:
    """Report removed and changed gates; a changed gate cannot be compared, and counts as weaker."""
    for gate in before.gates:
        if gate not in after.gates:
            gone = "changed" if gate.name in {other.name for other in after.gates} else "removed"
            yield f"the gate {gate.name} is {gone}"


def _gates(old: EnvironmentSpec, new: EnvironmentSpec) -> Iterator[str]:
    if new.inline_specs and not old.inline_specs:
        yield "runs could bring their own specs"
    if old.promote_from is not None and new.promote_from != old.promote_from:
        yield f"releases would not have to come from {old.promote_from}"
    if new.soak < old.soak:
        yield "soak gets shorter"
    if new.prune.max_percent > old.prune.max_percent:
        yield "more releases could disappear at once"
    if old.atomic and not new.atomic:
        yield "changes would not have to happen together"
    yield from _questions(old.questions, new.questions)
    if new.allow_self and not old.allow_self:
        yield "people could approve what they signed or asked for"
    for module, digest in old.implementations.items():
        if new.implementations.get(module) != digest:
            yield f"the code of {module} is not pinned to {digest} any more"
