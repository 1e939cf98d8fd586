"""What people ask about releases and decide about them, for HTTP and for commands beside the database alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta

from kneo import registry
from kneo.clock import isoformat, parse_time
from kneo.digest import Digest
from kneo.errors import Conflict, Forbidden, Invalid, InvalidValue, KneoError, NotFound, Transient, Untrusted
from kneo.names import person_key
from kneo.records.release import ApprovalRecord, Hold, Pending, Suspension
from kneo.registry import explain
from kneo.registry.explain import Explanation, Trace
from kneo.service import wire
from kneo.service.receipts import summary
from kneo.service.wire import Json
from kneo.settings import Settings
from kneo.spec.models.environment import Approvals
from kneo.store import approvals, idempotency, releases, requests, sources
from kneo.store.engine import Store, Tx
from kneo.store.service_key import service_key
from kneo.trust.dsse import parse_envelope
from kneo.trust.root import TrustRoot
from kneo.trust.statement import ApprovalDecision, parse_approval, rewrite_subject

POLICY = "policy"
"""What kind of change an environment file that waits is."""


class Deployments:
    """Answers questions about releases and records decisions about them.

    Args:
        store: The database.
        settings: This process's settings.
        over_http: Whether people are known by their keys, and what no controller is there to act on is refused. Beside the
            database neither holds: whoever can write to it needs nobody's leave.
    """

    def __init__(self, store: Store, settings: Settings, *, over_http: bool) -> None:
        self.store = store
        self.settings = settings
        self.over_http = over_http

    # ---- deciding -------------------------------------------------------------------------------------------------

    def decide(
        self,
        environment: str,
        bundle: str,
        decision: ApprovalDecision,
        *,
        actor: str,
        envelope: bytes | None = None,
        reason: str | None = None,
    ) -> Json:
        """Record a decision about something that waits.

        Args:
            environment: Where it waits.
            bundle: Its name, ``name@version``, digest, or the id of what waits.
            decision: Which.
            actor: Who is known to ask.
            envelope: The person's own signed decision; without one the service signs for ``actor``.
            reason: Why, where the service signs; a signed decision carries its own.

        Raises:
            NotFound: nothing of it waits there.
            Forbidden: ``not_an_approver``: this person's word does not count there.
            Untrusted, Invalid: the envelope is not a decision about this by somebody we know.
        """
        if (done := self._decided_before()) is not None:
            return done
        self._require_controller()
        with self.store.write() as tx:
            waits = registry.pending_item(tx, environment, bundle)
            record = (
                self._record_for(tx, environment, waits, decision, actor, reason)
                if envelope is None
                else self._record_signed(tx, environment, waits, decision, envelope, reason)
            )
        return {"approval": approval(record), **self._after(environment, actor)}

    def decide_by_id(
        self,
        pending_id: str,
        decision: ApprovalDecision,
        *,
        actor: str,
        envelope: bytes | None = None,
        reason: str | None = None,
    ) -> Json:
        """Record a decision about what waits under an id.

        Raises:
            NotFound: nothing does any more.
        """
        if (done := self._decided_before()) is not None:
            return done
        with self.store.read() as tx:
            found = releases.find_pending(tx, pending_id)
        if found is None:
            msg = f"Nothing waits under {pending_id[:60]!r}."
            raise NotFound(msg, code="promotion_not_found", hint="GET /v1/promotions lists what does.")
        return self.decide(found[0], pending_id, decision, actor=actor, envelope=envelope, reason=reason)

    def _decided_before(self) -> Json | None:
        """Answer for the decision that an earlier execution of this request has recorded, where one has."""
        made = idempotency.made()
        if made is None:
            return None
        with self.store.read() as tx:
            (record,) = approvals.approvals_by_id(tx, (made,))
        return {"approval": approval(record), "result": None, "environment": self._status(record.environment)}

    def _record_for(
        self, tx: Tx, environment: str, waits: Pending, decision: ApprovalDecision, actor: str, reason: str | None
    ) -> ApprovalRecord:
        if waits.kind == POLICY:
            self._check_may_decide_rules(tx, environment, actor)
        else:
            self.check_may_decide(tx, environment, actor)
        self._check_root(tx)
        decided = registry.prepare_decision(tx, environment, waits, decision, self._expiry(tx, environment), reason)
        return registry.record_decision(tx, decided, approver=actor, service_key=service_key(self.settings))

    def _record_signed(
        self, tx: Tx, environment: str, waits: Pending, decision: ApprovalDecision, envelope: bytes, reason: str | None
    ) -> ApprovalRecord:
        said = parse_approval(parse_envelope(envelope, file="approval").payload).predicate
        bound = (said.environment, said.bundle_digest, said.policy_digest, said.decision, said.about)
        about = registry.pending_subject(tx, environment, waits)
        if bound != (environment, waits.subject, waits.policy_digest, decision, about):
            msg = f"The signed decision is not about what waits: {waits.bundle} {waits.version} in {environment}."
            hint = f"Sign it for {waits.subject} under the policy {waits.policy_digest}."
            raise Invalid(msg, code="SubjectMismatch", hint=hint)
        if reason not in {None, said.reason}:
            msg = "The reason beside the signed decision is not the one that was signed."
            raise Invalid(msg, code="SubjectMismatch", hint="Send it inside the signed decision only.")
        return registry.record_signed_decision(tx, envelope, self._check_root(tx).keys)

    def _check_root(self, tx: Tx) -> TrustRoot:
        """Read the trust root, which has to be valid still: an expired one admits no decision.

        Raises:
            Untrusted: ``Expired``, or there is none.
        """
        root = registry.trust_root(tx, self.settings.trust_root)
        if root.expired_at(tx.now):
            msg = f"The trust root expired on {isoformat(root.expires)}; no decision is taken until it is renewed."
            raise Untrusted(msg, code="Expired", hint="kneo trust sign --expires 365d --key FILE, then commit.")
        return root

    def _check_known(self, tx: Tx, environment: str, actor: str) -> None:
        """Check that somebody who holds, suspends or rolls back is one of those who decide about the environment."""
        if self.over_http and releases.environment(tx, environment) is not None:
            self._check_person(tx, environment, actor)

    def check_may_decide(self, tx: Tx, environment: str, actor: str) -> None:
        """Check that somebody whom we only authenticated has a say in an environment.

        Raises:
            Forbidden: ``not_an_approver``, or ``signature_required``.
        """
        spec = registry.declared(tx, environment).spec
        rule = spec.approvals
        if rule is None:
            return
        if rule.signed:
            msg = f"{environment} counts only decisions that people sign with their own keys."
            raise Forbidden(msg, code="signature_required", hint="kneo approve --key FILE")
        self._check_person(tx, environment, actor)

    def _check_person(self, tx: Tx, environment: str, actor: str) -> None:
        spec = registry.declared(tx, environment).spec
        rule = spec.approvals
        if rule is None:
            return
        person = {person_key(name): person for name, person in spec.people.items()}.get(person_key(actor))
        if person is None or not set(person.roles) & set(rule.roles):
            msg = f"{actor} may not decide about {environment}; that takes the role {' or '.join(rule.roles)} there."
            raise Forbidden(msg, code="not_an_approver", hint=f"environments/{environment}.yaml lists people.")

    def _check_may_decide_rules(self, tx: Tx, environment: str, actor: str) -> None:
        """Check that somebody whom we only authenticated has a say in an environment file that waits.

        The first file of an environment, and one that lets runs bring their own specs, are approved by the people of every
        environment that requires approvals; which of them still have to, the controller says each time.

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
                self.check_may_decide(tx, name, actor)
            except Forbidden as error:
                refused.append(error)
            else:
                return
        if refused:
            raise refused[0]
        msg = f"No rules are in force yet that say who may approve the first file of {environment}."
        hint = f"Sign with a key of the trust root: kneo approve {environment} --policy --key FILE"
        raise Forbidden(msg, code="signature_required", hint=hint)

    def _expiry(self, tx: Tx, environment: str) -> datetime:
        record = releases.environment(tx, environment)
        rule = registry.declared(tx, environment).spec.approvals if record is not None else None
        return tx.now + (rule or Approvals()).expires

    def accept_rewrite(self, envelope: bytes, *, actor: str) -> Json:
        """Record that somebody of the root role agrees to a rewritten history."""
        if (done := self._decided_before()) is not None:
            return done
        with self.store.write() as tx:
            root = self._check_root(tx)
            said = parse_approval(parse_envelope(envelope, file="approval").payload).predicate
            found = sources.source(tx)
            if found is None or found.refused_code != "HistoryRewritten":
                msg = "History was not rewritten; there is nothing to accept."
                raise NotFound(msg, code="nothing_waits", hint="kneo source show says what was refused.")
            wanted = rewrite_subject(str(found.accepted_commit), str(found.refused_commit))
            if (said.environment, said.about, said.policy_digest) != ("source", wanted, root.digest):
                msg = "This decision is not about the rewriting of history that was refused."
                hint = f"Sign it for {found.accepted_commit} becoming {found.refused_commit}."
                raise Invalid(msg, code="SubjectMismatch", hint=hint)
            record = registry.record_signed_decision(tx, envelope, root.keys)
        return {"approval": approval(record), **self._after("-", actor)}

    def hold(self, environment: str, bundle: str, reason: str, until: str | None, *, actor: str) -> Json:
        """Keep what is served of a bundle as it is."""
        self._require_controller()
        with self.store.write() as tx:
            self._check_known(tx, environment, actor)
            serving = releases.release(tx, environment, bundle)
            item = Hold(
                environment=environment,
                bundle=bundle,
                digest=serving.digest if serving else None,
                actor=actor,
                reason=reason,
                since=tx.at,
                until=_until(tx, until),
            )
            registry.hold(tx, item)
        return {"hold": asdict(item), **self._after(environment, actor)}

    def unhold(self, environment: str, bundle: str, *, actor: str) -> Json:
        """Let a bundle follow Git again."""
        self._require_controller()
        with self.store.write() as tx:
            self._check_known(tx, environment, actor)
            registry.unhold(tx, environment, bundle, actor=actor)
        return self._after(environment, actor)

    def suspend(self, environment: str, reason: str, until: str | None, *, actor: str) -> Json:
        """Change nothing in an environment for a while."""
        self._require_controller()
        with self.store.write() as tx:
            self._check_known(tx, environment, actor)
            item = Suspension(environment=environment, actor=actor, reason=reason, since=tx.at, until=_until(tx, until))
            registry.suspend(tx, item)
        return {"suspension": asdict(item), **self._after(environment, actor)}

    def unsuspend(self, environment: str, *, actor: str) -> Json:
        """Let an environment change again."""
        self._require_controller()
        with self.store.write() as tx:
            self._check_known(tx, environment, actor)
            registry.unsuspend(tx, environment, actor=actor)
        return self._after(environment, actor)

    def rollback(self, environment: str, bundle: str, to: str | None, reason: str, *, actor: str) -> Json:
        """Ask the controller to serve what was served before, and to stay there."""
        with self.store.read() as tx:
            self._check_known(tx, environment, actor)
        payload = {"environment": environment, "bundle": bundle, "to": to, "reason": reason}
        return {"result": self._asked("rollback", payload, actor), "environment": self._status(environment)}

    def plan(self, environment: str | None, ref: str | None, *, actor: str) -> Json:
        """Ask the controller what a commit would change."""
        return self._asked("plan", {"environment": environment, "ref": ref}, actor)

    def _asked(self, kind: str, payload: Mapping[str, object], actor: str) -> Json:
        result = requests.ask(self.store, kind, payload, actor=actor)
        if "error" in result:
            raise _refusal(result)
        return result

    # ---- asking ---------------------------------------------------------------------------------------------------

    def why(self, environment: str, bundle: str) -> Json:
        """Say which gate blocks a bundle, since when, who can open it and with which command."""
        with self.store.read() as tx:
            return explanation(explain.why(tx, environment, bundle))

    def trace(self, reference: str) -> Json:
        """Follow a run or a digest back to the people who vouch for it."""
        with self.store.read() as tx:
            return traced(explain.trace(tx, reference))

    def promotions(self, environment: str | None, phase: str | None, limit: int) -> Json:
        """List what waits, then what happened, newest first."""
        with self.store.read() as tx:
            names = [environment] if environment else list(releases.environment_names(tx))
            waiting = [item for name in names for item in _waiting(tx, name)]
            done = [
                {"phase": "done", **wire.promotion(item)}
                for item in releases.list_promotions(tx, environment, limit=limit)
            ]
        items = [*waiting, *done] if phase is None else waiting if phase == "waiting" else done
        return {"promotions": items[:limit], "count": len(items[:limit])}

    def source(self) -> Json:
        """Say how far the repository was followed."""
        with self.store.read() as tx:
            found = sources.source(tx)
            root = _root_digest(tx, self.settings)
        if found is None:
            msg = "No controller followed a repository on this database yet."
            raise NotFound(msg, code="source_not_found", hint="kneo up --repo DIR")
        return asdict(found) | {"trust_root": root}

    # ---- and then -------------------------------------------------------------------------------------------------

    def _require_controller(self) -> None:
        if not self.over_http:
            return
        with self.store.read() as tx:
            if requests.lease_holder(tx, requests.CONTROLLER_LEASE) is None:
                msg = "No controller is running on this database."
                raise Transient(msg, code="no_controller", hint="Start one: kneo controller run, or kneo up.")

    def _after(self, environment: str, actor: str) -> Json:
        """Let the controller act on it now, and say how things stand then."""
        try:
            result: Json | None = requests.ask(self.store, "reconcile", {"environment": environment}, actor=actor)
        except Transient:
            if self.over_http:
                raise
            result = None
        return {"result": result, "environment": self._status(environment)}

    def _status(self, environment: str) -> Json | None:
        with self.store.read() as tx:
            status = registry.status(tx, environment)
        return wire.environment(status) if status else None


def approval(record: ApprovalRecord) -> Json:
    """A decision, without its proof's bytes."""
    without = {name: value for name, value in asdict(record).items() if name != "envelope"}
    return without | {"reason": registry.decision_reason(record)}


def explanation(found: Explanation) -> Json:
    """Why a bundle is not served as Git says."""
    waits, gates = found.waits, found.gates
    first = gates[0] if gates else None
    return {
        "environment": found.environment,
        "bundle": found.bundle,
        "blocked": first is not None,
        "gate": first.gate if first else None,
        "reason": first.reason if first else None,
        "message": first.message if first else "It is served as Git says.",
        "since": first.since if first else None,
        "who": list(first.who) if first else [],
        "command": found.command,
        "gates": [asdict(item) | {"who": list(item.who)} for item in gates],
        "way_back": found.way_back,
        "waiting": wire.pending(waits) if waits else None,
        "serving": wire.release(found.serving) if found.serving else None,
        "hold": asdict(found.hold) if found.hold else None,
        "suspension": asdict(found.suspension) if found.suspension else None,
        "conditions": [asdict(item) | {"type": item.type.value} for item in found.conditions],
    }


def traced(found: Trace) -> Json:
    """From what ran back to the people who vouch for it."""
    bundle = found.bundle
    return {
        "digest": found.digest,
        "run": {"id": found.run.id, "status": found.run.status.value, "requester": found.run.requester}
        if found.run
        else None,
        "bundle": {
            "name": bundle.name,
            "version": bundle.version,
            "seq": bundle.seq,
            "signers": list(bundle.signers),
            "first_seen_at": bundle.first_seen_at,
            "spec_digest": bundle.spec_digest,
        }
        if bundle
        else None,
        "promotions": [
            wire.promotion(item)
            | {
                "approvals": [approval(record) for record in found.approvals.get(item.id, ())],
                "commit": item.revision.rpartition(":")[2],
                "audit": wire.audit_event(found.events[item.id]) if item.id in found.events else None,
            }
            for item in found.promotions
        ],
        "receipts": [summary(record) for record in found.receipts],
    }


def _waiting(tx: Tx, environment: str) -> list[Json]:
    """What waits in an environment; where that is no bundle, with what a decision about it has to say in full."""
    said: dict[str | None, Json | None] = {}
    items = releases.pending(tx, environment)
    for item in items:
        if item.subject not in said:
            try:
                about = registry.pending_subject(tx, environment, item)
            except Conflict:
                about = None  # the next pass says anew what waits
            said[item.subject] = about.as_json() if about is not None else None
    return [
        {"phase": "waiting", "environment": environment, **wire.pending(item), "about": said[item.subject]}
        for item in items
    ]


def _until(tx: Tx, text: str | None) -> str | None:
    if text is None:
        return None
    until = parse_time(text)
    if not tx.now < until <= tx.now + timedelta(days=3_650):
        msg = f"{text[:60]} is not a time ahead of us."
        raise InvalidValue(msg, code="invalid_time")
    return isoformat(until)


def _root_digest(tx: Tx, settings: Settings) -> Digest | None:
    try:
        return registry.trust_root(tx, settings.trust_root).digest
    except KneoError:
        return None


_KINDS: Mapping[str, type[KneoError]] = {
    kind.__name__: kind for kind in (NotFound, Conflict, Untrusted, Invalid, Forbidden)
}


def _refusal(result: Mapping[str, object]) -> KneoError:
    kind = _KINDS.get(str(result.get("kind")), Transient)
    return kind(str(result.get("message")), code=str(result.get("error")))
