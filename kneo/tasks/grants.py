"""Standing grants: creation and votes of people, and their answers to questions before calls of tools.

A gate asks as without grants; the grant answers, in the transaction that opens the task. Each answer is one decision with one
receipt, and one row of uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from kneo import registry
from kneo.clock import isoformat, new_id, parse_time
from kneo.digest import digest_of_json
from kneo.errors import Conflict, Forbidden, Invalid, InvalidValue, KneoError, NotFound, Untrusted
from kneo.names import person_key
from kneo.records.grant import Grant, GrantLimits, GrantStatus, GrantUse, NotCovered
from kneo.records.run import ReleaseRef, Run
from kneo.records.task import (
    GRANTED,
    SIGNED_BY_REVIEWER,
    UNRESOLVED,
    Decision,
    DecisionKind,
    HumanTask,
    TaskStatus,
    Vote,
)
from kneo.spec.conditions import draw
from kneo.spec.coverage.environment_gates import gates_at_calls_of
from kneo.spec.coverage.gates import effective_human, step_gates, strengthened
from kneo.spec.expression import (
    Comparison,
    ExpressionFlaw,
    ExpressionInvalid,
    ValuePath,
    call_facts,
    find_type_errors,
    kind_of,
    parse,
)
from kneo.spec.gates import default_rejection
from kneo.spec.index import SpecIndex
from kneo.spec.models.environment import with_gates
from kneo.spec.policy import GrantRule, evaluate_text
from kneo.spec.reading.load import load_tree
from kneo.store import audit, grants, releases, runs, tasks
from kneo.store.engine import Tx
from kneo.tasks import decisions, inbox, people
from kneo.tasks.grant_proposal import AnsweredCall
from kneo.tasks.lifecycle import notify_people
from kneo.tasks.questions import candidates_of, quorum_of
from kneo.tasks.receipts import can_sign
from kneo.tasks.review import PERSON, is_unread
from kneo.trust.answer import ReviewerKeys, answer_digest, check_signer
from kneo.trust.dsse import Envelope, parse_envelope, read_envelope, serialise
from kneo.trust.grant import GrantTerms, TermsStatement, build_terms, check_terms, open_terms

if TYPE_CHECKING:
    from kneo.digest import Digest
    from kneo.spec.models.environment import Environment
    from kneo.spec.models.human import Human
    from kneo.spec.models.spec import Tool

APPROVED = answer_digest("approved", None, (), None)
"""The answer of each vote: the call as it is."""

TOLERANCE = timedelta(minutes=5)
"""The longest time by which a signed expiry may be earlier or later than the one of the request: signing takes a moment."""


MAX_ANSWERS = 2_000
"""The newest answers that a draft is made from."""


# ---- answers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CallAsked:
    """The call that a gate asks about.

    Attributes:
        tool: The declaration of the tool.
        human: The human of the gate.
        facts: Returns what expressions compare.
    """

    tool: Tool
    human: Human
    facts: Callable[[], Mapping[str, object]]


def answer_by_grant(tx: Tx, run: Run, task: HumanTask, asked: CallAsked | None) -> HumanTask:
    """Decide a task that this transaction opened, where a grant covers its call; else notify people of it. Return the task.

    A task that no grant of its tool covers has the reason among its metadata.

    Raises:
        Fenced: another driver has the run.
    """
    if task.status not in UNRESOLVED:
        return task
    environment = registry.find_declared(tx, run.environment)
    if (
        asked is not None
        and environment is not None
        and environment.spec.grants
        and run.release is not None
        and task.position == decisions.CALL
        and task.is_about_a_call
        and task.answer_schema is None
        and DecisionKind.APPROVED in task.decisions
    ):
        task = _answered(tx, run, run.release, task, asked)
    if task.status in UNRESOLVED:
        notify_people(tx, task, "requested")
    return task


def _answered(tx: Tx, run: Run, release: ReleaseRef, task: HumanTask, asked: CallAsked) -> HumanTask:
    runs.lock_own(tx, run)
    name, place = _fact(task, "tool"), task.environment or ""
    reason: tuple[str, object] | None = None
    found = grants.lock_open(tx, place, release.digest, name)
    # People, keys and rules are read after the locks, once for all grants.
    reading = replace(tx, snapshot={})
    for grant in found:
        cover = _Cover(reading, run, task, grant, asked)
        why = cover.find_obstacle()
        if why is None:
            return cover.use()
        reason = reason or (grant.id, why)
    if reason is None:
        over = grants.last_over(tx, place, release, name)
        if over is None:
            return task
        reason = (over.id, over.ended)
    return tasks.note(tx, task, {**task.metadata, GRANTED: {"id": reason[0], "not_covered": reason[1]}})


def _fact(task: HumanTask, name: str) -> str:
    facts = task.metadata.get("facts")
    return str(facts.get(name)) if isinstance(facts, Mapping) else ""


class _Cover:
    """One grant and one call."""

    def __init__(self, tx: Tx, run: Run, task: HumanTask, grant: Grant, asked: CallAsked) -> None:
        self.tx, self.run, self.task, self.grant, self.asked = tx, run, task, grant, asked
        self.facts = asked.facts()
        self.voters: tuple[Vote, ...] = ()
        self.amounts: dict[str, Decimal] = {}

    def find_obstacle(self) -> NotCovered | None:
        """Return why the grant does not cover the call; ``None`` where it does."""
        grant = self.grant
        if grant.expires_at <= self.tx.at:
            return "expired"
        if grant.expression is not None and evaluate_text(grant.expression, self.facts) is not True:
            return "condition"
        rule = self._rule()
        if not isinstance(rule, GrantRule):
            return rule
        return self._over_limit() or self._not_decided(rule) or ("spot_check" if self._is_spot_check(rule) else None)

    def _rule(self) -> GrantRule | NotCovered:
        names = self.asked.tool.names(self.grant.tool)
        if self.asked.human.grants == "never" or self.asked.tool.always_ask:
            return "never"
        rules = [rule for rule in registry.declared(self.tx, self.grant.environment).spec.grants if rule.matches(names)]
        true = [rule for rule in rules if rule.holds(self.facts) is True]
        lasts = parse_time(self.grant.expires_at) - parse_time(self.grant.created_at)
        fitting = [rule for rule in true if _exceeded(rule, self.grant.limits, lasts) is None]
        # Of several rules the one without signatures is enough, and that with the most spot checks counts.
        best = min(fitting, key=lambda rule: (rule.signed, -rule.spot_checks), default=None)
        return best or ("limits" if true else "condition" if rules else "no_rule")

    def _over_limit(self) -> NotCovered | None:
        grant, limits = self.grant, self.grant.limits
        if grant.uses >= limits.uses:
            return "used_up"
        if limits.uses_per_run is not None and grants.uses_in_run(self.tx, grant, self.run.id) >= limits.uses_per_run:
            return "limits"
        today = isoformat(self.tx.now.replace(hour=0, minute=0, second=0, microsecond=0))
        if limits.uses_per_day is not None and grants.uses_since(self.tx, grant, today) >= limits.uses_per_day:
            return "limits"
        arguments = self.facts["args"]
        assert isinstance(arguments, Mapping)
        for name, most in limits.total.items():
            amount = arguments.get(name)
            if kind_of(amount) != "number" or not isinstance(amount, int | float) or amount < 0:
                return "total"
            self.amounts[name] = Decimal(str(amount))
            if self._total(name) > Decimal(str(most)):
                return "total"
        return None

    def _total(self, name: str) -> Decimal:
        return Decimal(self.grant.totals.get(name, "0")) + self.amounts[name]

    def _not_decided(self, rule: GrantRule) -> NotCovered | None:
        """Return why the votes would not decide the task today."""
        if self.grant.status is GrantStatus.PENDING:
            return "quorum"
        decisive, why = decide_by_votes(self.tx, self.task, self.grant.votes)
        if decisive is None:
            return why
        must_sign = rule.signed or self.task.plan.receipt == SIGNED_BY_REVIEWER
        if not can_sign(self.tx, self.task) or (must_sign and not _are_signed(self.tx, self.grant, decisive)):
            return "signature"
        self.voters = decisive
        return None

    def _is_spot_check(self, rule: GrantRule) -> bool:
        return draw(f"{self.task.id}:{self.grant.id}") < rule.spot_checks

    def use(self) -> HumanTask:
        """Count the use, and decide the task by it."""
        tx, grant = self.tx, self.grant
        use = GrantUse(
            task_id=self.task.id,
            grant_id=grant.id,
            number=grant.uses + 1,
            run_id=self.run.id,
            amounts={name: str(amount) for name, amount in self.amounts.items()},
            at=tx.at,
        )
        totals = {name: str(self._total(name)) for name in self.amounts}
        grants.count_use(tx, grant, use, totals)
        about = {"id": grant.id, "number": use.number, "of": grant.limits.uses, "terms_digest": grant.terms_digest}
        decision = Decision(
            kind=DecisionKind.APPROVED,
            content=None,
            selected_option=None,
            comment=None,
            actor=self.voters[-1].actor,
            by=GRANTED,
            at=tx.at,
            voters=tuple(vote.actor for vote in self.voters),
            source=grant.id,
        )
        metadata = {**self.task.metadata, GRANTED: about}
        return inbox.record(tx, self.task, decision, votes=self.voters, metadata=metadata, run=self.run)


def decide_by_votes(
    tx: Tx, task: HumanTask, votes: tuple[Vote, ...]
) -> tuple[tuple[Vote, ...] | None, NotCovered | None]:
    """Return those of the votes that decide a task today, or why none do: of people who may answer it now."""
    counted, roles, why = [], {}, None
    for vote in votes:
        try:
            people.check_known(tx, task.environment, vote.actor)
            person = people.check_may_answer(tx, task, vote.actor)
        except KneoError as error:
            why = why or ("separation_of_duties" if error.code == "separation_of_duties" else "not_a_candidate")
            continue
        counted.append(vote)
        roles[person_key(vote.actor)] = person.roles
    decisive = decisions.decisive_votes(task.quorum, counted, roles)
    return (decisive, None) if decisive is not None else (None, why or "quorum")  # type: ignore[return-value]


def _are_signed(tx: Tx, grant: Grant, votes: tuple[Vote, ...]) -> bool:
    """Return whether each voter signed the terms of a grant with a key that is not revoked."""
    if terms_of(grant).digest != grant.terms_digest:
        return False
    try:
        root = registry.trust_root(tx, None)
        reviewers = ReviewerKeys(keys=root.keys, void=root.void)
        for vote in votes:
            if vote.statement is None:
                return False
            envelope = parse_envelope(vote.statement.encode())
            if open_terms(envelope).digest != grant.terms_digest:
                return False
            check_signer(envelope, vote.actor, reviewers, tx.now)
    except (Untrusted, Invalid):
        return False
    return True


def is_lapsed(tx: Tx, grant_id: str) -> bool:
    """Return whether a decision of a grant is not applied, and lock the grant: it ended, other than by its last use."""
    grant = grants.get(tx, grant_id, lock=True)
    if grant is None:
        return True
    return grant.expires_at <= tx.at or (grant.status is GrantStatus.ENDED and grant.ended != "used_up")


def is_active(tx: Tx, grant_id: str) -> bool:
    """Return whether a grant is active."""
    grant = grants.get(tx, grant_id)
    return grant is not None and grant.status is GrantStatus.ACTIVE and grant.expires_at > tx.at


# ---- terms and limits ---------------------------------------------------------------------------------------------


def terms_of(grant: Grant) -> TermsStatement:
    """Return the terms of a grant, as its voters sign them."""
    limits = grant.limits
    return build_terms(
        GrantTerms(
            grant=grant.id,
            environment=grant.environment,
            bundle=grant.bundle,
            bundle_digest=grant.digest,  # type: ignore[arg-type]  # a digest, checked by its pattern
            tool=grant.tool,
            when=grant.expression,
            uses=limits.uses,
            uses_per_day=limits.uses_per_day,
            uses_per_run=limits.uses_per_run,
            total={name: float(most) for name, most in limits.total.items()},
            expires=parse_time(grant.expires_at),
            reason=grant.reason,
        )
    )


def _exceeded(rule: GrantRule, limits: GrantLimits, lasts: timedelta) -> str | None:
    """Return the first limit of a rule that a grant exceeds, as ``uses 200 exceeds 100``."""
    pairs: list[tuple[str, float | None, float | None]] = [
        ("uses", limits.uses, rule.uses),
        ("uses_per_day", limits.uses_per_day, rule.uses_per_day),
        ("uses_per_run", limits.uses_per_run, rule.uses_per_run),
        *((f"total of {name}", limits.total.get(name), most) for name, most in rule.total.items()),
    ]
    for name, value, most in pairs:
        if most is not None and (value is None or value > most):
            return f"{name} {'without a limit' if value is None else f'{value:g}'} exceeds {most:g}"
    if lasts > rule.expires + TOLERANCE:
        return f"expires_in {lasts.total_seconds():.0f}s exceeds {rule.expires.total_seconds():.0f}s"
    return None


# ---- creation and votes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GrantRequest:
    """A grant as a person asks for it."""

    environment: str
    bundle: str
    tool: str
    when: str | None
    limits: GrantLimits
    expires_in: timedelta
    reason: str


@dataclass(frozen=True, kw_only=True)
class GrantedTool:
    """A tool of a released bundle, with the gates at its calls.

    Attributes:
        gates: The humans of the gates that grants may answer, by the ids of the gates.
    """

    environment: Environment
    digest: str
    name: str
    tool: Tool
    gates: Mapping[str, Human]

    @property
    def rules(self) -> list[tuple[int, GrantRule]]:
        """The rules of the environment for the tool, with their numbers."""
        names = self.tool.names(self.name)
        return [(number, rule) for number, rule in enumerate(self.environment.spec.grants) if rule.matches(names)]

    @property
    def needs_signatures(self) -> bool:
        """Whether each voter signs: a rule without signatures is enough."""
        return all(rule.signed for _, rule in self.rules)

    def question(self, human: Human) -> HumanTask:
        """Return the question of a gate about a call, as far as it is known before."""
        return HumanTask(
            **{  # type: ignore[arg-type]
                **dict.fromkeys(("id", "request_id", "run_id", "step_id", "key", "title", "prompt", "subject"), ""),
                **dict.fromkeys(("workflow_name", "workflow_type", "options", "default_option", "decision"), None),
                **dict.fromkeys(("timeout_seconds", "deadline_at", "escalated_at"), None),
            },
            environment=self.environment.name,
            kind="approval",
            status=TaskStatus.OPEN,
            version=0,
            subject_digest="",
            decisions=(DecisionKind.APPROVED, DecisionKind.REJECTED),
            assignee=human.assignee,
            on_timeout="fail",
            on_reject="tell_agent",
            position=decisions.CALL,
            bundle_digest=self.digest,
            candidates=candidates_of(human),
            quorum=quorum_of(human),
        )


def find_tool(tx: Tx, environment: str, bundle: str, name: str) -> GrantedTool:
    """Return a tool of the bundle that is released to an environment.

    Raises:
        NotFound: there is no such environment or release.
        Forbidden: ``grant_not_allowed``: the bundle has no such tool.
    """
    declared = registry.declared(tx, environment)
    release = registry.find_served(tx, environment, bundle)
    record = releases.bundle(tx, release.digest) if release is not None else None
    if release is None or record is None:
        msg = f"{bundle} is not released to {environment}."
        raise NotFound(msg, code="release_not_found", hint=f"See the releases there: kneo status {environment}")
    spec = load_tree(dict(registry.spec_in(releases.check_bundle(tx, record)))).spec
    tool = spec.tools.get(name) if spec is not None else None
    if spec is None or tool is None:
        msg = f"{bundle} has no tool {name}."
        raise Forbidden(msg, code="grant_not_allowed")
    index = SpecIndex.of(with_gates(spec, declared.gates))
    gates = dict(_gates(index, declared, name, tool))
    return GrantedTool(environment=declared, digest=release.digest, name=name, tool=tool, gates=gates)


def _gates(index: SpecIndex, environment: Environment, name: str, tool: Tool) -> Iterator[tuple[str, Human]]:
    humans = index.spec.components.humans
    before = step_gates(tool).get("before")
    found = [(f"tools.{name}.before", effective_human(before, humans))] if before is not None else []
    for gate in gates_at_calls_of(index, name):
        assert gate.before is not None
        found.append((f"environment.{gate.name}.before", effective_human(gate.before, {})))
    for gate_id, human in found:
        yield gate_id, strengthened(human, environment.spec.questions, default_rejection("tool"))


def check_allowed(found: GrantedTool) -> list[tuple[int, GrantRule]]:
    """Return the rules for a tool, with their numbers.

    Raises:
        Forbidden: ``grant_not_allowed``: no grant may cover its calls.
        Invalid: ``grant_unpinned``.
    """
    environment, name, rules, why = found.environment, found.name, found.rules, None
    if not rules:
        why = f"{environment.name} has no rule under grants for {name}."
    elif found.tool.always_ask:
        why = f"{name} always asks a person: always_ask of the tool."
    elif environment.spec.tools.denied(found.tool.names(name)) is not None:
        why = f"{environment.name} denies the tool {name}."
    elif not found.gates:
        why = f"No gate asks before calls of {name}."
    elif all(human.grants == "never" for human in found.gates.values()):
        why = f"The gates before calls of {name} are answered by people alone: grants: never."
    if why is not None:
        raise Forbidden(why, code="grant_not_allowed")
    if found.tool.mcp is not None and found.tool.mcp.pin is None:
        msg = f"{name} is a tool of an MCP server without a pin."
        raise InvalidValue(msg, code="grant_unpinned", hint="Sign the bundle with its tools pinned: --pin-tools.")
    return rules


def _check_condition(found: GrantedTool, request: GrantRequest) -> None:
    facts = call_facts(found.tool.parameters)
    flaws: list[ExpressionFlaw] = []
    try:
        if request.when is not None:
            flaws += find_type_errors(parse(request.when), facts, tool=found.name)
    except ExpressionInvalid as error:
        raise InvalidValue(error.message, code="condition_invalid") from error
    for argument in request.limits.total:
        flaws += find_type_errors(Comparison(">=", ValuePath(("args", argument)), 0), facts, tool=found.name)
    if flaws:
        raise InvalidValue(flaws[0].message, code="condition_invalid")


def draft(tx: Tx, request: GrantRequest, *, statement: Mapping[str, object] | None = None) -> Grant:
    """Return a grant as it would be created, after the checks that need no person; ``statement`` has its signed terms.

    Raises:
        NotFound: there is no such environment or release.
        Forbidden, Invalid: ``grant_not_allowed``, ``grant_exceeds_rule``, ``grant_unpinned``, ``condition_invalid``.
        Untrusted: ``SubjectMismatch``: the signed terms are others.
    """
    found = find_tool(tx, request.environment, request.bundle, request.tool)
    rules = check_allowed(found)
    _check_condition(found, request)
    exceeded = [(number, _exceeded(rule, request.limits, request.expires_in)) for number, rule in rules]
    if all(what is not None for _, what in exceeded):
        number, what = exceeded[0]
        msg = f"{what} of the rule grants[{number}] of {request.environment}."
        raise InvalidValue(msg, code="grant_exceeds_rule")
    grant_id, expires = new_id("grt", tx.now), tx.now + request.expires_in
    envelope = read_envelope(statement, file="statement") if statement is not None else None
    if envelope is not None:
        signed = open_terms(envelope).terms
        grant_id, expires = _signed_id(tx, signed.grant), _signed_expiry(signed.expires, expires)
    grant = Grant(
        id=grant_id,
        environment=request.environment,
        bundle=request.bundle,
        digest=found.digest,
        tool=request.tool,
        expression=request.when,
        limits=request.limits,
        status=GrantStatus.PENDING,
        reason=request.reason,
        terms_digest="",
        created_by="",
        created_at=tx.at,
        expires_at=isoformat(expires),
    )
    grant = replace(grant, terms_digest=terms_of(grant).digest)
    if envelope is not None:
        check_terms(envelope, terms_of(grant).terms)
    return grant


def _signed_id(tx: Tx, grant_id: str) -> str:
    if not grant_id.startswith("grt_") or len(grant_id) > len(new_id("grt", tx.now)):
        msg = "The signed terms have no id of a grant."
        raise Untrusted(msg, code="SubjectMismatch", field="grant")
    if grants.get(tx, grant_id) is not None:
        msg = f"The grant {grant_id} exists."
        raise Conflict(msg, code="grant_exists", hint="Sign new terms.")
    return grant_id


def _signed_expiry(signed: datetime, asked: datetime) -> datetime:
    if abs(signed - asked) > TOLERANCE:
        msg = "The signed terms expire at another time than the request says."
        raise Untrusted(msg, code="SubjectMismatch", field="expires", hint="Read the statement again, and sign it.")
    return signed


def answered_calls(tx: Tx, found: GrantedTool, *, since: str) -> list[AnsweredCall]:
    """Return the answers of people to calls of a tool of the released bundle."""
    calls = []
    for task in tasks.resolved_calls(tx, found.environment.name, found.digest, since=since, limit=MAX_ANSWERS):
        facts, decision = task.metadata.get("facts"), task.decision
        arguments = facts.get("arguments") if isinstance(facts, Mapping) else None
        if decision is None or decision.by != PERSON or _fact(task, "tool") != found.name:
            continue
        if not isinstance(arguments, Mapping) or task.resolved_at is None:
            continue
        seconds = (parse_time(task.resolved_at) - parse_time(task.created_at)).total_seconds()
        calls.append(
            AnsweredCall(
                arguments=arguments,
                decision=decision.kind,
                is_quick=is_unread(seconds, len(task.subject)),
                voters=decision.voters or (decision.actor,),
            )
        )
    return calls


def create(
    tx: Tx, request: GrantRequest, *, actor: str, statement: Mapping[str, object] | None, pin: Digest | None
) -> Grant:
    """Create a grant with the vote of its creator.

    Raises:
        KneoError: as ``draft`` and ``approve``.
    """
    registry.lock_environment(tx, request.environment)
    grant = replace(draft(tx, request, statement=statement), created_by=actor)
    found = find_tool(tx, grant.environment, grant.bundle, grant.tool)
    voted = _with_vote(tx, found, grant, actor, statement, pin)
    grants.insert_grant(tx, voted)
    audit.record(tx, "grant.created", actor=actor, environment=grant.environment, metadata=grants.about(voted))
    _record_active(tx, voted, actor)
    return voted


def approve(tx: Tx, grant_id: str, *, actor: str, statement: Mapping[str, object] | None, pin: Digest | None) -> Grant:
    """Add the vote of a person to a grant.

    Raises:
        NotFound: ``grant_not_found``.
        Conflict: ``grant_ended``.
        Forbidden: ``not_a_candidate``, ``separation_of_duties``, ``signature_required``.
        Untrusted, Invalid: the signature is not valid.
    """
    seen = find(tx, grant_id)
    registry.lock_environment(tx, seen.environment)
    grant = check_open(tx, find(tx, grant_id, lock=True))
    found = find_tool(tx, grant.environment, grant.bundle, grant.tool)
    check_allowed(found)
    voted = grants.put(tx, _with_vote(tx, found, grant, actor, statement, pin))
    facts = {**grants.about(voted), "votes": len(voted.votes)}
    audit.record(tx, "grant.voted", actor=actor, environment=grant.environment, metadata=facts)
    if grant.status is GrantStatus.PENDING:
        _record_active(tx, voted, actor)
    return voted


def revoke(tx: Tx, grant_id: str, *, actor: str, reason: str | None = None) -> Grant:
    """End a grant. No decision of it is recorded or applied afterwards.

    Args:
        tx: The transaction.
        grant_id: The grant.
        actor: The person.
        reason: Why; the audit log has its digest.

    Raises:
        NotFound: ``grant_not_found``.
        Conflict: ``grant_ended``.
    """
    found = check_open(tx, find(tx, grant_id, lock=True))
    facts = {"reason_digest": digest_of_json(reason)} if reason else {}
    return grants.end(tx, [found], "revoked", actor=actor, facts=facts)[0]


def find(tx: Tx, grant_id: str, *, lock: bool = False) -> Grant:
    """Read a grant.

    Raises:
        NotFound: ``grant_not_found``.
    """
    grant = grants.get(tx, grant_id, lock=lock)
    if grant is None:
        msg = f"There is no grant {grant_id[:80]}."
        raise NotFound(msg, code="grant_not_found", hint="List grants: kneo grant list")
    return grant


def check_open(tx: Tx, grant: Grant) -> Grant:
    """Return a grant that has not ended.

    Raises:
        Conflict: ``grant_ended``.
    """
    ended = grant.ended or ("expired" if grant.expires_at <= tx.at else None)
    if ended is not None:
        msg = f"{grant.id} ended on {(grant.ended_at or grant.expires_at)[:10]}: {ended}."
        raise Conflict(msg, code="grant_ended")
    return grant


def _with_vote(
    tx: Tx, found: GrantedTool, grant: Grant, actor: str, statement: Mapping[str, object] | None, pin: Digest | None
) -> Grant:
    questions = [found.question(human) for human in found.gates.values() if human.grants != "never"]
    refusals = [refusal for question in questions if (refusal := _refusal(tx, question, actor)) is not None]
    if len(refusals) == len(questions):
        raise refusals[0]
    envelope = _check_signed(tx, found, grant, actor, statement, pin)
    vote = Vote(
        actor=actor,
        decision=DecisionKind.APPROVED,
        answer=APPROVED,
        at=tx.at,
        statement=serialise(envelope).decode() if envelope is not None else None,
    )
    others = tuple(each for each in grant.votes if person_key(each.actor) != person_key(actor))
    voted = replace(grant, votes=(*others, vote))
    covers, _ = gates_covered(tx, found, voted)
    return replace(voted, status=GrantStatus.ACTIVE if covers else GrantStatus.PENDING)


def _refusal(tx: Tx, question: HumanTask, actor: str) -> Forbidden | None:
    try:
        people.check_may_answer(tx, question, actor)
    except Forbidden as refusal:
        message = refusal.message.replace(f" {question.id}:", " the gate:").replace(
            f"answer {question.id}.", "approve it."
        )
        return Forbidden(message, code=refusal.code, hint=refusal.hint)
    return None


def _check_signed(
    tx: Tx, found: GrantedTool, grant: Grant, actor: str, statement: Mapping[str, object] | None, pin: Digest | None
) -> Envelope | None:
    if statement is None:
        if found.needs_signatures:
            msg = f"Grants for {found.name} in {grant.environment} need the signature of each voter."
            raise Forbidden(msg, code="signature_required", hint="Sign with your own key: --key FILE")
        return None
    envelope = read_envelope(statement, file="statement")
    check_terms(envelope, terms_of(grant).terms)
    root = registry.trust_root(tx, pin)
    if root.expired_at(tx.now):
        msg = f"The trust root expired on {isoformat(root.expires)}; no signed terms are taken until it is renewed."
        raise Untrusted(msg, code="Expired", hint="kneo trust sign --expires 365d --key FILE, then commit.")
    check_signer(envelope, actor, ReviewerKeys(keys=root.keys, void=root.void), tx.now)
    return envelope


def gates_covered(tx: Tx, found: GrantedTool, grant: Grant) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Return the gates that the votes of a grant decide, and the number of approvals that each other one needs."""
    covers, lacks = [], {}
    for gate, human in found.gates.items():
        if human.grants == "never":
            continue
        question = found.question(human)
        decisive, _ = decide_by_votes(tx, question, grant.votes)
        if decisive is not None and (not found.needs_signatures or _are_signed(tx, grant, decisive)):
            covers.append(gate)
        else:
            valid = sum(people.may_still_answer(tx, question, vote.actor) for vote in grant.votes)
            lacks[gate] = max(1, question.quorum.approvals - valid)
    return tuple(covers), lacks


def gates_now(tx: Tx, grant: Grant) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Return the gates of a grant, as ``gates_covered``, of the bundle that is released now; none where it is gone."""
    key = (GrantedTool, grant.environment, grant.bundle, grant.tool)
    try:
        found = tx.once(key, lambda: find_tool(tx, grant.environment, grant.bundle, grant.tool))
    except KneoError:
        return (), {}
    return gates_covered(tx, found, grant)


def _record_active(tx: Tx, grant: Grant, actor: str) -> None:
    if grant.status is GrantStatus.ACTIVE:
        audit.record(tx, "grant.activated", actor=actor, environment=grant.environment, metadata=grants.about(grant))
