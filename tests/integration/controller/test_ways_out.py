"""The two ways out of a refused commit: each opened by a statement that says in full what it is about, and by no other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench

from kneo import registry
from kneo.digest import Digest
from kneo.errors import Conflict, Invalid
from kneo.records.release import Pending
from kneo.registry import UnsignedDecision
from kneo.store.engine import Store
from kneo.trust.dsse import serialise, sign
from kneo.trust.statement import (
    PAYLOAD_TYPE,
    ApprovalDecision,
    DecisionSubject,
    build_approval,
    parse_approval,
    prune_subject,
    rewrite_subject,
)

PEOPLE = {"bob": {"roles": ["approver"]}}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    bench = Bench(store, tmp_path)
    for name in ("mail", "bank", "fax"):
        bench.repo.bundle(name, "1.0.0")
    bench.repo.environment("prod", dict.fromkeys(("mail", "bank", "fax"), "1.0.0"), people=PEOPLE)
    bench.repo.commit("Release three")
    bench.reconcile()
    return bench


def empty(bench: Bench, message: str = "Empty prod") -> None:
    bench.repo.environment("prod", {"fax": "1.0.0"}, people=PEOPLE)
    bench.repo.commit(message)
    assert bench.reconcile().outcomes["prod"].state == "MassPruneBlocked"


def agree(bench: Bench, about: DecisionSubject | None, *, subject: Digest | None = None) -> None:
    """Sign as ann, who is an approver of the trust root, something about what waits."""
    waits: Pending = bench.pending()[0]
    decided = UnsignedDecision(
        environment="prod",
        subject_name="prune",
        subject=subject or (about.digest if about else Digest(str(waits.subject))),
        policy_digest=Digest(str(waits.policy_digest)),
        decision=ApprovalDecision.APPROVE,
        issued_at=bench.store.clock.now(),
        expires=bench.store.clock.now() + timedelta(days=1),
        about=about,
    )
    with bench.store.write() as tx:
        root = registry.trust_root(tx, bench.repo.pin)
        registry.record_signed_decision(tx, serialise(sign(PAYLOAD_TYPE, decided.payload(), bench.repo.key)), root.keys)


def gone(bench: Bench) -> list[tuple[str, str]]:
    return [(name, bench.release(name).digest) for name in ("bank", "mail")]


def test_exactly_this_removal_by_exactly_this_commit_passes(bench: Bench) -> None:
    empty(bench)
    agree(bench, prune_subject("prod", f"main@sha1:{bench.repo.head()}", gone(bench)))
    assert bench.reconcile().outcomes["prod"].state == "Ready"
    assert bench.served() == {"fax": "1.0.0"}
    assert bench.events("release.retired")[0]["approvals"]


Wrong = Callable[[Bench, str], DecisionSubject | None]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda _bench, _head: None,
        lambda bench, _head: prune_subject("prod", f"main@sha1:{'0' * 40}", gone(bench)),
        lambda bench, head: prune_subject("dev", head, gone(bench)),
        lambda bench, head: prune_subject("prod", head, gone(bench)[:1]),
        lambda bench, head: prune_subject("prod", head, [*gone(bench), ("fax", bench.release("fax").digest)]),
        lambda bench, head: prune_subject("prod", head, [(name, "sha256:" + "0" * 64) for name, _ in gone(bench)]),
        lambda _bench, _head: rewrite_subject("0" * 40, "1" * 40),
    ],
    ids=["a plain approval", "another commit", "another place", "fewer", "more", "other versions", "a rewrite"],
)
def test_a_statement_about_anything_else_does_not(bench: Bench, wrong: Wrong) -> None:
    empty(bench)
    agree(bench, wrong(bench, f"main@sha1:{bench.repo.head()}"))
    assert bench.reconcile().outcomes["prod"].state == "MassPruneBlocked"
    assert len(bench.served()) == 3


def test_agreeing_says_nothing_about_the_next_commit(bench: Bench) -> None:
    empty(bench)
    agree(bench, prune_subject("prod", f"main@sha1:{bench.repo.head()}", gone(bench)))
    bench.repo.write("environments/note.txt", b"another commit")
    empty(bench, "And something else")
    assert len(bench.served()) == 3


def test_the_service_signs_for_somebody_in_the_same_words(bench: Bench) -> None:
    empty(bench)
    bench.decide("bob")
    with bench.store.read() as tx:
        waits = bench.pending()[0]
        assert registry.pending_subject(tx, "prod", waits) == prune_subject(
            "prod", f"main@sha1:{bench.repo.head()}", gone(bench)
        )
    assert bench.reconcile().outcomes["prod"].state == "Ready"


def test_deciding_about_what_has_changed_meanwhile_is_refused(bench: Bench) -> None:
    empty(bench)
    waits = bench.pending()[0]
    bench.repo.environment("prod", {"mail": "1.0.0", "bank": "1.0.0", "fax": "1.0.0"}, people=PEOPLE)
    bench.repo.commit("Never mind")
    bench.reconcile()
    with bench.store.read() as tx, pytest.raises(Conflict):
        registry.pending_subject(tx, "prod", waits)


def test_a_statement_whose_subject_is_not_what_it_is_about_is_none(bench: Bench) -> None:
    empty(bench)
    about = prune_subject("prod", "main@sha1:" + "0" * 40, gone(bench))
    with pytest.raises(Invalid) as refused:
        agree(bench, about, subject=Digest(str(bench.pending()[0].subject)))
    assert refused.value.code == "Malformed"


def test_statements_read_as_they_were_written(bench: Bench) -> None:
    for about in (
        prune_subject("prod", "main@sha1:" + "0" * 40, gone(bench)),
        rewrite_subject("0" * 40, "1" * 64),
        None,
    ):
        made = build_approval(
            bundle_name="x",
            bundle_digest=about.digest if about else Digest("sha256:" + "1" * 64),
            environment="prod",
            policy_digest=bench.repo.pin,
            decision=ApprovalDecision.APPROVE,
            issued_at=bench.store.clock.now() - timedelta(hours=1),
            expires=bench.store.clock.now(),
            about=about,
        )
        read = parse_approval(made.payload)
        assert read.predicate == made.predicate
        assert read.predicate.about == about


def test_a_plain_approval_does_not_rewrite_history(bench: Bench) -> None:
    old = bench.repo.head()
    bench.repo.git("commit", "-q", "--amend", "--allow-empty", "-m", "Rewritten")
    new = bench.repo.head()
    with pytest.raises(Invalid):
        bench.reconcile()
    statement = build_approval(
        bundle_name="rewrite",
        bundle_digest=rewrite_subject(old, new).digest,
        environment="source",
        policy_digest=bench.repo.pin,
        decision=ApprovalDecision.APPROVE,
        issued_at=bench.store.clock.now(),
        expires=bench.store.clock.now() + timedelta(days=1),
    )
    with bench.store.write() as tx:
        root = registry.trust_root(tx, bench.repo.pin)
        registry.record_signed_decision(tx, serialise(sign(PAYLOAD_TYPE, statement.payload, bench.repo.key)), root.keys)
    with pytest.raises(Invalid):
        bench.reconcile()
    bench.accept_rewrite(old, new, bench.repo.key)
    assert bench.reconcile().outcomes["prod"].state == "Ready"
