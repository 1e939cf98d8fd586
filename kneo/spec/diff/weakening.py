"""Weakenings of an environment: the requirements of the current file that a new file drops.

An environment file is not signed: every person who can merge can change it. A stricter file is accepted; a weaker one needs the
approvals that the current file requires.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kneo.roles import EVERYTHING, scopes_of
from kneo.spec import policy
from kneo.spec.models.environment import (
    AccessRule,
    Approvals,
    Environment,
    EnvironmentSpec,
    Person,
    QuestionPolicy,
    Quotas,
    Recordings,
    Signatures,
)
from kneo.spec.models.evidence import EvidenceRule, MetricRequirement
from kneo.spec.models.human import strongest
from kneo.spec.policy import SWITCHES, PolicyFlags, Window

NO_APPROVALS = Approvals(required=0)

WEAKER_CHANGES: Mapping[str, str] = {
    "access": "removed, or a person, group, role or scope is added",
    "admins": "set to `true`",
    "quotas.running": "raised or removed",
    "quotas.queued": "raised or removed",
    "quotas.requests_per_minute": "raised or removed",
    "quotas.stored": "raised or removed",
    "inlineSpecs": "set to `true`",
    "people.<name>.groups": "a group is added",
    "people.<name>.roles": "a role is added",
    "people.<name>.slack": "added or changed",
    "promoteFrom": "removed or changed",
    "policy.enabled": "set to `false`",
    "policy.fail_on_warnings": "set to `false`",
    "policy.blocked_diagnostic_codes": "a code is removed",
    "policy.require_human_review": "set to `false`",
    "policy.require_tool_permissions": "set to `false`",
    "policy.deny_unrestricted_tools": "set to `false`",
    "policy.require_guardrails": "set to `false`",
    "signatures.accept": "a format is added",
    "signatures.roles": "a role is added",
    "signatures.threshold": "lowered",
    "approvals.required": "lowered",
    "approvals.roles": "a role is added",
    "approvals.exclude": "an entry is removed",
    "approvals.expires": "lengthened",
    "approvals.signed": "set to `false`",
    "questions.approvals": "lowered",
    "questions.exclude": "an entry is removed",
    "questions.denyOnTimeout": "an entry is removed",
    "questions.context": "calls instead of none",
    "questions.via": "a chat program is added",
    "questions.receipt": "removed, or `signed` instead of `signed_by_reviewer`",
    "humans": "the human of a gate is changed",
    "gates": "a gate is removed or changed",
    "windows": "a `deny` window is removed or changed; `allow` windows at other times",
    "soak": "shortened",
    "evidence": "a rule is removed or comes from elsewhere; an exclusion or a requirement is removed or eased; `maxAge` is "
    "lengthened; `allowScripted` is set",
    "recordings": "added",
    "recordings.redact": "`secrets` instead of `personal`",
    "recordings.maxAge": "lengthened",
    "prune.maxPercent": "raised",
    "atomic": "set to `false`",
    "models.allow": "removed, or a provider or pattern is added",
    "models.connections": "a connection is added, changed or removed",
    "models.hosts": "a host is added",
    "models.limits": "a limit is removed or raised",
    "models.budgets": "a budget is removed or raised, or asks instead of failing",
    "models.prices": "with a budget of costs: a price is lowered, added or removed",
    "tools.deny": "an entry is removed or changed",
    "tools.unattended": "an entry is added or changed",
    "tools.allow": "removed, or a pattern is added",
    "tools.inside": "a host is added",
    "tools.mcp.commands": "a program is added",
    "tools.mcp.hosts": "removed, or a host is added",
    "tools.mcp.pinned": "set to `false`",
    "grants": "a rule is added or changed",
    "tools.sandbox.required": "lowered",
    "tools.sandbox.trusted": "a name is added",
    "tools.sandbox.limits": "a limit is removed or widened",
    "protocols.a2a": "a pattern is added",
    "protocols.mcp": "a pattern is added",
    "protocols.calls": "an entry, a caller or a pattern is added, or `callers` is removed",
    "implementations.<name>": "a digest is removed or changed",
    "code": "`pinned` instead of `bundled`, or `any`",
    "packages": "`recorded` instead of `same`",
    "allowSelf": "set to `true`",
}
"""The change of each key below ``spec`` that weakens the rules, in the words of the reference."""


class Weakening(NamedTuple):
    """A requirement that a new file drops: the key of ``WEAKER_CHANGES``, and a sentence."""

    key: str
    text: str


def weakenings(before: Environment, after: Environment) -> tuple[str, ...]:
    """Describe the requirements that a new file drops; none when it only adds requirements."""
    return tuple(found.text for found in find_weakenings(before, after))


def find_weakenings(before: Environment, after: Environment) -> tuple[Weakening, ...]:
    """Return the requirements that a new file drops; none when it only adds requirements.

    Values that cannot be compared, such as moved windows, count as weaker.
    """
    old, new = before.spec, after.spec
    return (
        *_flags(old.policy, new.policy),
        *_signatures(old.signatures, new.signatures),
        *_approvals(old.approvals or NO_APPROVALS, new.approvals or NO_APPROVALS),
        *_people(old.people, new.people),
        *_access(old, new),
        *_quotas(old.quotas, new.quotas),
        *_windows(before.windows, after.windows),
        *_added(before, after),
        *_gates(old, new),
        *_code(old, new),
        *_models(old.models, new.models),
        *_tools(old.tools, new.tools),
        *_grants(old.grants, new.grants),
        *_protocols(old.protocols, new.protocols),
    )


def _flags(before: PolicyFlags, after: PolicyFlags) -> Iterator[Weakening]:
    if not before.enabled:
        return
    if not after.enabled:
        if before != PolicyFlags():
            yield Weakening("policy.enabled", "the policy is switched off")
        return
    for name in SWITCHES:
        if getattr(before, name) and not getattr(after, name):
            yield Weakening(f"policy.{name}", f"{name} is switched off")
    for code in sorted(frozenset(before.blocked_diagnostic_codes) - frozenset(after.blocked_diagnostic_codes)):
        yield Weakening("policy.blocked_diagnostic_codes", f"{code} is no longer blocked")


def _signatures(old: Signatures, new: Signatures) -> Iterator[Weakening]:
    if new.threshold < old.threshold:
        yield Weakening("signatures.threshold", f"signatures.threshold falls from {old.threshold} to {new.threshold}")
    if more := set(new.roles) - set(old.roles):
        yield Weakening("signatures.roles", f"signatures of {', '.join(sorted(more))} would count")
    if formats := set(new.accept) - set(old.accept):
        yield Weakening("signatures.accept", f"bundles in the format {', '.join(sorted(formats))} would be accepted")


def _approvals(old: Approvals, new: Approvals) -> Iterator[Weakening]:
    if old.required == 0:
        return
    if new.required < old.required:
        yield Weakening("approvals.required", f"approvals.required falls from {old.required} to {new.required}")
    if more := set(new.roles) - set(old.roles):
        yield Weakening("approvals.roles", f"approvals of {', '.join(sorted(more))} would count")
    if fewer := set(old.exclude) - set(new.exclude):
        yield Weakening("approvals.exclude", f"{', '.join(sorted(fewer))} could approve their own change")
    if new.expires > old.expires:
        yield Weakening("approvals.expires", "approvals would count for longer")
    if old.signed and not new.signed:
        yield Weakening("approvals.signed", "approvals would not have to be signed by the people themselves")


def _people(old: Mapping[str, Person], new: Mapping[str, Person]) -> Iterator[Weakening]:
    for name, person in new.items():
        known = old.get(name, Person())
        has = {*known.roles, *known.groups}
        for field, names in (("roles", person.roles), ("groups", person.groups)):
            if more := set(names) - has:
                yield Weakening(f"people.<name>.{field}", f"{name} gets {', '.join(sorted(more))}")
        if person.slack is not None and person.slack != known.slack:
            yield Weakening("people.<name>.slack", f"the account {person.slack} of Slack could decide as {name}")


def _access(old: EnvironmentSpec, new: EnvironmentSpec) -> Iterator[Weakening]:
    if old.access is None:
        return
    if new.access is None:
        yield Weakening("access", "callers with the scopes would not need a rule of access")
        return
    if new.admins and not old.admins:
        yield Weakening("admins", "administrators would have access without a rule")
    had = _given(old.access)
    more: dict[str, set[str]] = {}
    for who, scope in _given(new.access) - had:
        if (who, EVERYTHING) not in had:
            more.setdefault(who, set()).add(scope)
    for who, scopes in sorted(more.items()):
        yield Weakening("access", f"{who} could use {', '.join(sorted(scopes))}")


def _given(rules: Sequence[AccessRule]) -> frozenset[tuple[str, str]]:
    """Return the pairs of a person, group or role and a scope of rules of access."""
    return frozenset(
        (f"the {kind} {name}", scope)
        for rule in rules
        for kind, names in (("user", rule.who.users), ("group", rule.who.groups), ("role", rule.who.roles))
        for name in names
        for scope in scopes_of(rule.may)
    )


def _quotas(old: Quotas, new: Quotas) -> Iterator[Weakening]:
    for name in type(old).model_fields:
        was, becomes = _amount(getattr(old, name)), _amount(getattr(new, name))
        if not _at_most(becomes, was):
            yield Weakening(f"quotas.{name}", f"quotas.{name} is {'raised' if becomes is not None else 'removed'}")


def _amount(quota: int | str | None) -> int | None:
    return policy.in_bytes(quota) if isinstance(quota, str) else quota


def _windows(old: Sequence[Window], new: Sequence[Window]) -> Iterator[Weakening]:
    denied, allowed = _parted(old)
    denied_now, allowed_now = _parted(new)
    if denied - denied_now:
        yield Weakening("windows", "a window in which changes are denied is removed or changed")
    if allowed and (not allowed_now or allowed_now - allowed):
        yield Weakening("windows", "changes would be allowed at other times")


def _parted(windows: Sequence[Window]) -> tuple[set[Window], set[Window]]:
    return {w for w in windows if w.effect == "deny"}, {w for w in windows if w.effect == "allow"}


def _questions(old: QuestionPolicy, new: QuestionPolicy) -> Iterator[Weakening]:
    if new.approvals < old.approvals:
        yield Weakening("questions.approvals", f"questions.approvals falls from {old.approvals} to {new.approvals}")
    if fewer := set(old.exclude) - set(new.exclude):
        yield Weakening("questions.exclude", f"{', '.join(sorted(fewer))} could answer questions")
    if allowed := set(old.deny_on_timeout) - set(new.deny_on_timeout):
        yield Weakening("questions.denyOnTimeout", f"silence could {', '.join(sorted(allowed))}")
    if chats := set(new.via) - set(old.via):
        yield Weakening("questions.via", f"questions could be decided in {', '.join(sorted(chats))}")
    if strongest(old.receipt, new.receipt) != new.receipt:
        signed = "be signed by those who answer" if new.receipt else "have a signed receipt"
        yield Weakening("questions.receipt", f"decisions would not have to {signed}")
    if old.context == "none" and new.context != "none":
        text = "people who decide about a call would see the results of earlier calls"
        yield Weakening("questions.context", text)


def _added(before: Environment, after: Environment) -> Iterator[Weakening]:
    """Report removed and changed gates; a changed gate cannot be compared, and counts as weaker."""
    stated = {gate.name: gate for gate in after.spec.gates}
    for gate, was in zip(before.gates, before.spec.gates, strict=True):
        if gate not in after.gates:
            gone = "changed" if gate.name in stated else "removed"
            # The gate itself may be as before, and ask another human under the same name.
            yield Weakening("humans" if stated.get(gate.name) == was else "gates", f"the gate {gate.name} is {gone}")


def _gates(old: EnvironmentSpec, new: EnvironmentSpec) -> Iterator[Weakening]:
    if new.inline_specs and not old.inline_specs:
        yield Weakening("inlineSpecs", "runs could bring their own specs")
    if old.promote_from is not None and new.promote_from != old.promote_from:
        yield Weakening("promoteFrom", f"releases would not have to come from {old.promote_from}")
    if new.soak < old.soak:
        yield Weakening("soak", "soak gets shorter")
    if new.prune.max_percent > old.prune.max_percent:
        yield Weakening("prune.maxPercent", "more releases could disappear at once")
    if old.atomic and not new.atomic:
        yield Weakening("atomic", "changes would not have to happen together")
    yield from _evidence(old.evidence, new.evidence)
    yield from _recordings(old.recordings, new.recordings)
    yield from _questions(old.questions, new.questions)
    if new.allow_self and not old.allow_self:
        yield Weakening("allowSelf", "people could approve what they signed or asked for")
    for module, digest in old.implementations.items():
        if new.implementations.get(module) != digest:
            yield Weakening("implementations.<name>", f"the code of {module} is not pinned to {digest} any more")


def _evidence(old: Sequence[EvidenceRule], new: Sequence[EvidenceRule]) -> Iterator[Weakening]:
    stated = {rule.name: rule for rule in new}
    for rule in old:
        now = stated.get(rule.name)
        if now is None:
            yield Weakening("evidence", f"releases would not need the evidence {rule.name}")
        elif _source_of(now) != _source_of(rule):
            yield Weakening("evidence", f"the evidence {rule.name} would come from another suite, environment or role")
        else:
            yield from _eased(rule, now)


def _recordings(old: Recordings | None, new: Recordings | None) -> Iterator[Weakening]:
    if new is None:
        return
    if old is None:
        yield Weakening("recordings", "recordings of its runs could be read for rehearsals")
        return
    if (old.redact, new.redact) == ("personal", "secrets"):
        yield Weakening("recordings.redact", "recordings would have personal data")
    if new.max_age > old.max_age:
        yield Weakening("recordings.maxAge", "older recordings could be read")


def _source_of(rule: EvidenceRule) -> tuple[object, ...]:
    return rule.type, rule.suite, rule.environment, rule.signers.role


def _eased(old: EvidenceRule, new: EvidenceRule) -> Iterator[Weakening]:
    if fewer := set(old.signers.exclude) - set(new.signers.exclude):
        yield Weakening("evidence", f"{', '.join(sorted(fewer))} could sign the evidence {old.name}")
    if new.max_age > old.max_age:
        yield Weakening("evidence", f"the evidence {old.name} would count for longer")
    if new.allow_scripted and not old.allow_scripted:
        yield Weakening("evidence", f"results of scripted models would count as evidence {old.name}")
    for item in old.require:
        if not any(_no_easier(other, item) for other in new.require):
            text = f"the requirement of {item.metric} in the evidence {old.name} is removed or eased"
            yield Weakening("evidence", text)


def _no_easier(new: MetricRequirement, old: MetricRequirement) -> bool:
    if new.metric != old.metric or new.min_samples < old.min_samples:
        return False
    if old.at_least is not None and (new.at_least is None or new.at_least < old.at_least):
        return False
    if not _at_most(new.at_most, old.at_most):
        return False
    if old.not_worse_than is None:
        return True
    same_direction = new.less_is_better == old.less_is_better
    return new.not_worse_than == old.not_worse_than and new.margin <= old.margin and same_direction


def _code(old: EnvironmentSpec, new: EnvironmentSpec) -> Iterator[Weakening]:
    order = ("bundled", "pinned", "any")
    if order.index(new.code) > order.index(old.code):
        what = "any code of the workers" if new.code == "any" else "code of the workers that implementations pins"
        yield Weakening("code", f"bundles without code could be released, and would run {what}")
    if old.packages == "same" and new.packages != "same":
        yield Weakening("packages", "packages of the workers could have other versions than the bundle records")


def _models(old: policy.ModelRules, new: policy.ModelRules) -> Iterator[Weakening]:
    if old.allow is not None and (new.allow is None or set(_allowed(new.allow)) - set(_allowed(old.allow))):
        yield Weakening("models.allow", "runs could ask more models")
    for provider in sorted({*old.connections, *new.connections}):
        if old.connections.get(provider) != new.connections.get(provider):
            yield Weakening(
                "models.connections",
                f"the connection to {provider} changes: prompts could go to another address, with another key",
            )
    if more := set(new.hosts) - set(old.hosts):
        yield Weakening("models.hosts", f"specs could send prompts to {', '.join(sorted(more))}")
    for limit in old.limits:
        if not any(_no_looser(other, limit) for other in new.limits):
            yield Weakening("models.limits", f"the limits of {limit.provider} are removed or raised")
    for budget in old.budgets:
        if not any(_no_larger(other, budget) for other in new.budgets):
            yield Weakening("models.budgets", f"the budget per {budget.per} is removed or raised")
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


def _prices(old: Mapping[str, policy.ModelPrice], new: Mapping[str, policy.ModelPrice]) -> Iterator[Weakening]:
    """A price that falls, appears or disappears lets a cost budget last longer, or cannot be compared."""
    for name in sorted({*old, *new}):
        was, becomes = old.get(name), new.get(name)
        if was is None or becomes is None or becomes.input < was.input or becomes.output < was.output:
            yield Weakening("models.prices", f"the price of {name} changes, and the budgets with it")


def _tools(old: policy.ToolRules, new: policy.ToolRules) -> Iterator[Weakening]:
    yield from _calls(old, new)
    if old.allow is not None and (new.allow is None or set(new.allow) - set(old.allow)):
        yield Weakening("tools.allow", "agents could call more tools")
    if more := set(new.inside) - set(old.inside):
        yield Weakening("tools.inside", f"tools could reach {', '.join(sorted(more))} inside the network")
    if programs := set(new.mcp.commands) - set(old.mcp.commands):
        yield Weakening("tools.mcp.commands", f"MCP servers could run {', '.join(sorted(programs))}")
    if old.mcp.hosts is not None and (new.mcp.hosts is None or set(new.mcp.hosts) - set(old.mcp.hosts)):
        yield Weakening("tools.mcp.hosts", "MCP servers could be on other hosts")
    if old.mcp.pinned and not new.mcp.pinned:
        yield Weakening("tools.mcp.pinned", "the tools of MCP servers could change without a new release")
    yield from _sandboxes(old.sandbox, new.sandbox)


def _sandboxes(old: policy.SandboxRules, new: policy.SandboxRules) -> Iterator[Weakening]:
    levels = policy.SANDBOX_LEVELS
    if levels.index(new.required) < levels.index(old.required):
        yield Weakening(
            "tools.sandbox.required", f"functions could run at level {new.required} instead of {old.required}"
        )
    if more := set(new.trusted) - set(old.trusted):
        yield Weakening("tools.sandbox.trusted", f"{', '.join(sorted(more))} could run in the worker")
    for key in policy.SandboxLimits.model_fields:
        before, after = getattr(old.limits, key), getattr(new.limits, key)
        if before is None or before == after:
            continue
        if after is None or _is_wider(key, before, after):
            yield Weakening("tools.sandbox.limits", f"sandboxes could have more {key.replace('_', ' ')}")


def _is_wider(key: str, before: Sequence[str] | str | int, after: Sequence[str] | str | int) -> bool:
    if key == "memory":
        return policy.in_bytes(str(after)) > policy.in_bytes(str(before))
    if isinstance(after, int):
        return isinstance(before, int) and after > before
    return bool(set(after) - set(before if not isinstance(before, int) else ()))


def _calls(old: policy.ToolRules, new: policy.ToolRules) -> Iterator[Weakening]:
    gone = [each for each in old.deny if each not in new.deny]
    if patterns := sorted(each for each in gone if isinstance(each, str)):
        yield Weakening("tools.deny", f"the tools {', '.join(patterns)} are no longer denied")
    for denial in gone:
        if not isinstance(denial, str):
            yield Weakening("tools.deny", f"calls of {', '.join(denial.tools)} are no longer denied when {denial.when}")
    for rule in new.unattended:
        if rule not in old.unattended:
            text = f"calls of {', '.join(rule.tools)} could happen without an approval when {rule.when}"
            yield Weakening("tools.unattended", text)


def _grants(old: Sequence[policy.GrantRule], new: Sequence[policy.GrantRule]) -> Iterator[Weakening]:
    for rule in new:
        if rule not in old:
            text = f"standing grants could cover up to {rule.uses} calls of {', '.join(rule.tools)}"
            yield Weakening("grants", text)


def _protocols(old: policy.ProtocolRules, new: policy.ProtocolRules) -> Iterator[Weakening]:
    for key, name, served, serves in (("a2a", "Agent2Agent", old.a2a, new.a2a), ("mcp", "MCP", old.mcp, new.mcp)):
        if more := set(serves) - set(served):
            yield Weakening(f"protocols.{key}", f"programs could call {', '.join(sorted(more))} over {name}")
    allowed = {(rule.bundle, *grant) for rule in old.calls for grant in rule.grants}
    more_calls = {
        (rule.bundle, tool, caller)
        for rule in new.calls
        for tool, caller in rule.grants
        if not {(rule.bundle, tool, caller), (rule.bundle, tool, "*")} & allowed
    }
    for bundle, tool, caller in sorted(more_calls):
        who = "every key with the scope calls:make" if caller == "*" else caller
        yield Weakening("protocols.calls", f"{who} could call {tool} of {bundle}")
