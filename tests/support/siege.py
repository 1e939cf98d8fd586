"""A registry that serves something good, and a repository in which somebody bad can write whatever he likes.

All attempts of a module are made on one registry, one after the other: none of them may leave a trace in what is served,
so none of them can be in the way of the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import yaml
from controller_bench import Bench
from sqlalchemy import select

from kneo import registry
from kneo.clock import isoformat
from kneo.controller.reconcile import ReconcileResult
from kneo.digest import canonical_json, digest_of_json
from kneo.records.release import ConditionType
from kneo.store.engine import Store
from kneo.store.tables import metadata
from kneo.trust.dsse import Envelope, Signature, serialise
from kneo.trust.keys import PrivateKey
from kneo.trust.root_edit import add_key, set_role
from kneo.trust.statement import PAYLOAD_TYPE, build_bundle

TOLD = {
    "approvals",
    "audit_chain",
    "audit_checkpoints",
    "audit_events",
    "audit_nodes",
    "audit_pending",
    "conditions",
    "environments",
    "leases",
    "pending_plans",
    "pending_releases",
    "requests",
    "sources",
}
"""Tables in which a refusal is told to people, and decisions kept, whether they count or not. All the others say what is served
and what runs."""

EVIL = "6.6.6"
"""The version under which bad bundles are offered."""

SIGNATURES = {"accept": ["dsse"], "roles": ["release", "bankers"], "threshold": 1}
PAIR: dict[str, object] = {
    "signatures": {**SIGNATURES, "threshold": 2},
    "approvals": {"required": 1, "roles": ["approver"], "signed": True},
}

Attempt = Callable[["Siege"], None]


class Attempts(dict[str, tuple[str, str, Attempt]]):
    """What somebody bad tries, by name, with the reason for which it has to fail and the environment it is aimed at."""

    def refused(self, reason: str, environment: str = "prod") -> Callable[[Attempt], Attempt]:
        """Say for which reason an attempt has to fail, and where."""

        def keep(attempt: Attempt) -> Attempt:
            assert attempt.__name__ not in self
            self[attempt.__name__] = (reason, environment, attempt)
            return attempt

        return keep


class Siege:
    """Two releases of one bundle were served, the second one is; a key was revoked, a role signs one bundle only.

    ``ann``, ``bob`` (with two keys) and ``eve`` (revoked) have the role ``release``; ``dan`` may sign ``bank`` alone.
    ``prod`` asks for one signature, ``pair`` for two and for an approver, who is ``cid``.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.bench = Bench(store, folder)
        self.repo = self.bench.repo
        self._trust()
        for version in ("1.0.0", "1.1.0"):
            self.head = self.repo.bundle("mail", version, environments=["dev", "pair", "prod"])
            self.bank = self.repo.bundle("bank", version, keys=[self.repo.people["dan"]])
            self.repo.environment("prod", {"bank": version, "mail": version}, signatures=SIGNATURES)
            self.repo.commit(f"Release {version}")
            self.bench.reconcile()
        self.repo.revoke("eve")
        self.good = self.repo.commit("Revoke eve")
        self.bench.reconcile()
        assert self.bench.served() == {"bank": "1.1.0", "mail": "1.1.0"}
        self.bench.failed_run("mail", "prod")

    def _trust(self) -> None:
        self.eve = self.repo.person("eve", "release")
        self.dan = self.repo.person("dan", "bankers")
        self.bob = self.repo.person("bob", "release")
        self.cid = self.repo.person("cid", "approver")
        self.twin = PrivateKey.generate()
        document = add_key(self.repo.root, self.twin.public, principal="bob", roles=["release"])
        self.repo.next_root(set_role(document, "bankers", paths=["bundles/bank/*"]))
        self.repo.environment("prod", {}, signatures=SIGNATURES)
        self.repo.environment("pair", {}, **PAIR)
        self.repo.commit("Trust them")
        self.bench.reconcile()

    @property
    def now(self) -> datetime:
        return self.bench.store.clock.now()

    # ---- what is served -------------------------------------------------------------------------------------------

    def served(self) -> object:
        """Everything the registry holds but what it tells of refusals, and the very bytes that the runtime would run."""
        environments = metadata.tables["environments"]
        with self.bench.store.read() as tx:
            names = select(environments.c.name, environments.c.policy_digest)
            policies = sorted(tuple(row) for row in tx.connection.execute(names))
            found = [registry.resolve(tx, name, "prod", pin=self.repo.pin).bundle for name in ("bank", "mail")]
        return self.bench.rows(but=TOLD), policies, [(bundle.digest, bundle.payload) for bundle in found]

    def attempt(self, what: Attempt) -> ReconcileResult:
        """Let somebody commit something on top of what is good, and the controller look at it."""
        self.repo.git("read-tree", "-u", "--reset", self.good)
        self.repo.git("clean", "-fdq")
        what(self)
        self.repo.commit("Improve something")
        return self.bench.reconcile()

    def withstand(self, what: Attempt, reason: str, environment: str) -> ReconcileResult:
        """Look that an attempt is refused for this reason in an environment, and that nothing served changes."""
        before = self.served()
        found = self.attempt(what)
        assert found.outcomes[environment].state == reason
        assert self.told(environment) == {reason}
        assert self.served() == before
        return found

    def told(self, environment: str = "prod") -> set[str]:
        """The reason that people see for an environment not being as Git says; several where they differ."""
        kinds = (ConditionType.STALLED, ConditionType.RECONCILING)
        found = [self.bench.condition(kind, environment) for kind in kinds]
        ready = self.bench.condition(ConditionType.READY, environment)
        assert ready is not None
        assert not ready[0]
        return {ready[1], *(item[1] for item in found if item is not None)}

    # ---- what somebody bad makes ----------------------------------------------------------------------------------

    def payload(self, **changes: object) -> bytes:
        """A bundle as somebody honest would make it next, but for these fields; ``spec`` is digested anew."""
        fields = {
            "name": "mail",
            "version": EVIL,
            "seq": 3,
            "prev": self.head,
            "environments": ["prod", "pair"],
            "issued_at": self.now - timedelta(minutes=1),
            "approved_by": "ann",
            "spec": self.repo.other_spec(),
        }
        statement = json.loads(build_bundle(**fields).payload)
        predicate = statement["predicate"]
        for name, value in changes.items():
            holder, key = (statement, name) if name in statement else (predicate, name)
            assert key in holder or key == "expiresAt"
            holder[key] = isoformat(value) if isinstance(value, datetime) else value
        return canonical_json(statement)

    def signed(self, payload: bytes, *keys: PrivateKey, kind: str = PAYLOAD_TYPE) -> Envelope:
        """Sign whatever it is; by the release key where none is named."""
        envelope = Envelope(kind, payload, ())
        made = (Signature(key.keyid, key.sign(envelope.signed_bytes)) for key in keys or (self.repo.key,))
        return Envelope(kind, payload, tuple(made))

    def plant(
        self, envelope: Envelope | bytes, *, at: tuple[str, str] = ("mail", EVIL), environment: str = "prod"
    ) -> None:
        """Put a file where a bundle belongs, and name it in an environment."""
        name, version = at
        data = envelope if isinstance(envelope, bytes) else serialise(envelope)
        self.repo.write(f"bundles/{name}/{version}.dsse.json", data)
        self.name({name: version}, environment)

    def name(self, releases: Mapping[str, str], environment: str = "prod", **spec: object) -> None:
        """Name releases in an environment, beside what it serves."""
        base = {"bank": "1.1.0", "mail": "1.1.0"} if environment == "prod" else {}
        rules = PAIR if environment == "pair" else {"signatures": SIGNATURES}
        self.repo.environment(environment, {**base, **releases}, **{**rules, **spec})

    def edit(self, environment: str, change: Callable[[str], str]) -> None:
        """Change an environment file as text."""
        path = self.repo.folder / f"environments/{environment}.yaml"
        path.write_text(change(path.read_text()))

    def rules(self, environment: str = "prod") -> dict[str, object]:
        """Read an environment file."""
        return yaml.safe_load((self.repo.folder / f"environments/{environment}.yaml").read_text())


def with_spec(siege: Siege, spec: Mapping[str, object]) -> bytes:
    """A statement about another spec, with digests to match."""
    digest = digest_of_json(spec)
    subject = [{"name": "mail", "digest": {"sha256": digest.removeprefix("sha256:")}}]
    return siege.payload(spec=spec, specDigest=digest, subject=subject)
