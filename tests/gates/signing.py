"""People with keys of their own, and the trust root that says so."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from kneo import registry
from kneo.records.task import DecisionKind, HumanTask
from kneo.store.engine import Store
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import statement_for
from kneo.trust.answer import AnswerStatement
from kneo.trust.dsse import TrustedKey, serialise, sign
from kneo.trust.keys import Algorithm, PrivateKey
from kneo.trust.root import TRUST_ROOT_TYPE, RootDocument, root_payload
from kneo.trust.root_edit import first_root, next_root, revoke_key
from kneo.trust.statement import PAYLOAD_TYPE

KEYS = {
    name: PrivateKey.generate(algorithm)
    for name, algorithm in (
        ("ann", Algorithm.ED25519),
        ("ben", Algorithm.P256),
        ("cy", Algorithm.ED25519),
        ("reviewer", Algorithm.ED25519),
    )
}
STRANGER = PrivateKey.generate()


def trust(store: Store) -> RootDocument:
    """Accept a first trust root as the controller does, in which everybody has a key."""
    people = [TrustedKey(key.public, name) for name, key in KEYS.items()]
    expires = store.clock.now() + timedelta(days=365)
    document = first_root({"root": people[:1], "reviewer": people}, expires=expires, paths={})
    accept(store, document)
    return document


def revoke(store: Store, document: RootDocument, name: str) -> None:
    """Accept a next trust root in which somebody's key is revoked from now on."""
    accept(store, next_root(revoke_key(document, KEYS[name].keyid, at=store.clock.now(), reason="lost")))


def accept(store: Store, document: RootDocument) -> None:
    envelope = serialise(sign(TRUST_ROOT_TYPE, root_payload(document), KEYS["ann"]))
    with store.write() as tx:
        registry.accept_roots(tx, [envelope], revision="main@sha1:1")


def prepare(
    store: Store, task: HumanTask, actor: str, kind: str = "approved", *, lasts: str = "15m", **more: object
) -> AnswerStatement:
    """Write down what somebody would sign."""
    said = replace(DecisionRequest(request_id=task.request_id, decision=DecisionKind(kind)), **more)
    minutes = timedelta(minutes=int(lasts.removesuffix("m")))
    with store.read() as tx:
        return statement_for(tx, task.id, said, actor=actor, lasts=minutes).statement


def enveloped(statement: AnswerStatement, key: PrivateKey) -> dict[str, object]:
    found: dict[str, object] = json.loads(serialise(sign(PAYLOAD_TYPE, statement.payload, key)))
    return found


def signed(store: Store, task: HumanTask, actor: str, kind: str = "approved", **more: object) -> dict[str, object]:
    """Sign an answer with the actor's own key."""
    return enveloped(prepare(store, task, actor, kind, **more), KEYS[actor])
