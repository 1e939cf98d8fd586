"""Weakenings of an environment: the requirements of the current file that a new file drops.

An environment file is not signed: every person who can merge can change it. A stricter file is accepted; a weaker one needs the
approvals that the current file requires.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kneo.spec import policy
from kneo.spec.models.environment import Approvals, Environment, EnvironmentSpec, Person, QuestionPolicy, Signatures
from kneo.spec.models.human import strongest
from kneo.spec.policy import SWITCHES, PolicyFlags, Window

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
        *_models(old.models, new.models),
        *_tools(old.tools, new.tools),
        *_protocols(old.protocols, new.protocols),
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
    if old.context == "none" and new.context != "none":
        yield "people who decide about a call would see the results of earlier calls"


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


def _models(old: policy.ModelRules, new: policy.ModelRules) -> Iterator[str]:
    if old.allow is not None and (new.allow is None or set(_allowed(new.allow)) - set(_allowed(old.allow))):
        yield "runs could ask more models"
    for provider in sorted({*old.connections, *new.connections}):
        if old.connections.get(provider) != new.connections.get(provider):
            yield f"the connection to {provider} changes: prompts could go to another address, with another key"
    if more := set(new.hosts) - set(old.hosts):
        yield f"specs could send prompts to {', '.join(sorted(more))}"
    for limit in old.limits:
        if not any(_no_looser(other, limit) for other in new.limits):
            yield f"the limits of {limit.provider} are removed or raised"
    for budget in old.budgets:
        if not any(_no_larger(other, budget) for other in new.budgets):
            yield f"the budget per {budget.per} is removed or raised"
    if any(budget.cost is not None for budget in old.budgets):
        yield from _prices(old.prices, new.prices)


def _allowed(models: Sequence[policy.AllowedModel]) -> Iterator[tuple[str, str]]:
    return ((each.provider, name) for each in models for name in each.names)


def _no_looser(new: policy.ModelLimit, old: policy.ModelLimit) -> bool:
    return (
        new.provider == old.provider
        and _at_most(new.concurrency, old.concurrency)
        and _at_most(new.requests_per_minute, old.requests_per_minute)
        and _at_most(new.tokens_per_minute, old.tokens_per_minute)
    )


def _no_larger(new: policy.ModelBudget, old: policy.ModelBudget) -> bool:
    asks = new.on_exceeded == "ask" and old.on_exceeded == "fail"
    return new.per == old.per and not asks and _at_most(new.tokens, old.tokens) and _at_most(new.cost, old.cost)


def _at_most(new: float | None, old: float | None) -> bool:
    return old is None or (new is not None and new <= old)


def _prices(old: Mapping[str, policy.ModelPrice], new: Mapping[str, policy.ModelPrice]) -> Iterator[str]:
    """A price that falls, appears or disappears lets a cost budget last longer, or cannot be compared."""
    for name in sorted({*old, *new}):
        was, becomes = old.get(name), new.get(name)
        if was is None or becomes is None or becomes.input < was.input or becomes.output < was.output:
            yield f"the price of {name} changes, and the budgets with it"


def _tools(old: policy.ToolRules, new: policy.ToolRules) -> Iterator[str]:
    if gone := set(old.deny) - set(new.deny):
        yield f"the tools {', '.join(sorted(gone))} are no longer denied"
    if old.allow is not None and (new.allow is None or set(new.allow) - set(old.allow)):
        yield "agents could call more tools"
    if more := set(new.inside) - set(old.inside):
        yield f"tools could reach {', '.join(sorted(more))} inside the network"
    if programs := set(new.mcp.commands) - set(old.mcp.commands):
        yield f"MCP servers could run {', '.join(sorted(programs))}"
    if old.mcp.hosts is not None and (new.mcp.hosts is None or set(new.mcp.hosts) - set(old.mcp.hosts)):
        yield "MCP servers could be on other hosts"
    if old.mcp.pinned and not new.mcp.pinned:
        yield "the tools of MCP servers could change without a new release"


def _protocols(old: policy.ProtocolRules, new: policy.ProtocolRules) -> Iterator[str]:
    for name, served, serves in (("Agent2Agent", old.a2a, new.a2a), ("MCP", old.mcp, new.mcp)):
        if more := set(serves) - set(served):
            yield f"programs could call {', '.join(sorted(more))} over {name}"
