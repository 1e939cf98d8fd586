"""Answers that people sign with keys of their own: what is taken, what is refused, and that nothing of that is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from engine import Engine, step
from gates.asking import ENVIRONMENT, answer, ask, declare
from gates.signing import KEYS, STRANGER, enveloped, prepare, revoke, signed, trust
from sqlalchemy import select

from kneo import registry
from kneo.clock import ManualClock
from kneo.digest import Digest
from kneo.errors import KneoError
from kneo.records.run import RunStatus
from kneo.records.task import DecisionKind, HumanTask, ReceiptRecord, TaskStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.runtime.engine.start import StartRequest
from kneo.store import audit, receipts, runs
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import metadata
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide, find
from kneo.tasks.lifecycle import process_due
from kneo.tasks.links import make_link
from kneo.trust.answer import ReviewerKeys
from kneo.trust.dsse import TrustedKey, parse_envelope, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.receipt import ReceiptFile, parse_receipt
from kneo.trust.receipt_check import PresentedReceipt, ReceiptVerdict, check_receipts
from kneo.trust.root import RootDocument
from kneo.trust.statement import PAYLOAD_TYPE

Json = dict[str, object]
KEY = PrivateKey.generate()
BY_REVIEWER = {"receipt": "signed_by_reviewer"}


@pytest.fixture
def store(migrated_url: str, clock: ManualClock) -> Iterator[Store]:
    """A store that signs what is decided, with an environment and a trust root."""
    opened = open_store(migrated_url, clock, lambda: KEY)
    declare(opened)
    yield opened
    opened.close()


@pytest.fixture
def root(store: Store) -> RootDocument:
    return trust(store)


def rows(store: Store) -> dict[str, list[str]]:
    with store.read() as tx:
        return {
            name: sorted(map(repr, tx.connection.execute(select(table)))) for name, table in metadata.tables.items()
        }


def refused(store: Store, task: HumanTask, actor: str, kind: str = "approved", **more: object) -> str:
    """Give an answer that is not taken; return the code, having seen that no row changed."""
    before = rows(store)
    with pytest.raises(KneoError) as caught:
        answer(store, task, actor, kind, **more)
    assert rows(store) == before
    return caught.value.code


def kept(store: Store, task: HumanTask) -> ReceiptRecord:
    with store.read() as tx:
        found = receipts.of_task(tx, task.id)
    assert found is not None
    return found


def check(record: ReceiptRecord, reviewers: ReviewerKeys | None = None, *statements: Json) -> ReceiptVerdict:
    texts = [json.dumps(one) for one in statements] or record.statements
    handed = PresentedReceipt(
        envelope=parse_envelope(record.envelope),
        statements=tuple(parse_envelope(text.encode()) for text in texts),
    )
    return check_receipts(ReceiptFile((handed,), is_chain=False), [KEY.public], reviewers)


def keys_of(*names: str) -> ReviewerKeys:
    return ReviewerKeys(keys={KEYS[name].keyid: TrustedKey(KEYS[name].public, name) for name in names})


def fields(verdict: ReceiptVerdict) -> list[str]:
    return [problem.field for problem in verdict.problems]


@pytest.mark.usefixtures("root")
def test_an_answer_signed_by_who_gives_it_is_taken_and_proved_by_the_receipt(store: Store) -> None:
    task = ask(store, **BY_REVIEWER)
    said = signed(store, task, "ann", "edited", content="better")
    assert answer(store, task, "ann", "edited", content="better", statement=said).status is TaskStatus.DECIDED
    record = kept(store, task)
    receipt = parse_receipt(parse_envelope(record.envelope).payload).receipt
    assert receipt.voters[0].statement == parse_envelope(json.dumps(said).encode()).digest
    assert b"better" not in record.envelope + "".join(record.statements).encode()
    verdict = check(record, keys_of("ann", "ben"))
    assert (verdict.valid, verdict.checked[0].signed_by) == (True, ("ann",))
    with store.read() as tx:
        found = registry.trust_root(tx, None)
    assert check(record, ReviewerKeys(keys=found.keys, void=found.void)).valid


@pytest.mark.usefixtures("root")
def test_a_name_spelled_otherwise_is_the_same_person(store: Store) -> None:
    task = ask(store, **BY_REVIEWER)
    said = enveloped(prepare(store, task, "Ann"), KEYS["ann"])
    assert answer(store, task, "ANN", statement=said).status is TaskStatus.DECIDED
    assert check(kept(store, task), keys_of("ann")).valid


@pytest.mark.usefixtures("root")
def test_an_answer_nobody_signed_is_refused(store: Store) -> None:
    assert refused(store, ask(store, **BY_REVIEWER), "ann") == "signature_required"


Forge = Callable[[Store, HumanTask], Json]


def _stranger(store: Store, task: HumanTask) -> Json:
    return enveloped(prepare(store, task, "ann"), STRANGER)


def _of_ben(store: Store, task: HumanTask) -> Json:
    return signed(store, task, "ben")


def _with_bens_key(store: Store, task: HumanTask) -> Json:
    return enveloped(prepare(store, task, "ann"), KEYS["ben"])


def _of_another_task(store: Store, task: HumanTask) -> Json:
    del task
    return signed(store, ask(store, **BY_REVIEWER), "ann")


def _other_decision(store: Store, task: HumanTask) -> Json:
    return signed(store, task, "ann", "rejected")


def _other_content(store: Store, task: HumanTask) -> Json:
    return signed(store, task, "ann", comment="something else")


def _two_signatures(store: Store, task: HumanTask) -> Json:
    said = signed(store, task, "ann")
    return {**said, "signatures": [*said["signatures"], {"keyid": "", "sig": "AAAA"}]}  # type: ignore[misc]


def _changed(field: str, value: str | None) -> Forge:
    def forge(store: Store, task: HumanTask) -> Json:
        statement = prepare(store, task, "ann")
        tree = json.loads(statement.payload)
        assert field in tree["predicate"]
        tree["predicate"][field] = value
        if field == "subjectDigest":
            tree["subject"][0]["digest"]["sha256"] = str(value).removeprefix("sha256:")
        if field == "task":
            tree["subject"][0]["name"] = value
        payload = json.dumps(tree).encode()
        return json.loads(serialise(sign(PAYLOAD_TYPE, payload, KEYS["ann"])))  # type: ignore[no-any-return]

    forge.__name__ = field
    return forge


ZEROS = "sha256:" + "0" * 64


FORGED: tuple[tuple[Forge, str], ...] = (
    (_stranger, "SignatureInvalid"),
    (_with_bens_key, "WrongSigner"),
    (_of_ben, "WrongSigner"),
    (_of_another_task, "SubjectMismatch"),
    (_other_decision, "SubjectMismatch"),
    (_other_content, "SubjectMismatch"),
    (_two_signatures, "Malformed"),
    (_changed("task", "cont_other"), "SubjectMismatch"),
    (_changed("request", "req_other"), "SubjectMismatch"),
    (_changed("run", "run_other"), "SubjectMismatch"),
    (_changed("environment", None), "SubjectMismatch"),
    (_changed("gate", "other.step"), "SubjectMismatch"),
    (_changed("subjectDigest", ZEROS), "SubjectMismatch"),
    (_changed("answerDigest", ZEROS), "SubjectMismatch"),
    (_changed("contentDigest", ZEROS), "SubjectMismatch"),
    (_changed("bundleDigest", ZEROS), "SubjectMismatch"),
    (_changed("policyDigest", ZEROS), "SubjectMismatch"),
    (_changed("reviewer", "ben"), "SubjectMismatch"),
    (_changed("expires", "2026-03-01T00:00:00.000000Z"), "Expired"),
    (_changed("issuedAt", "2026-03-01T00:00:00.000000Z"), "Expired"),
)


@pytest.mark.usefixtures("root")
def test_what_is_not_this_persons_word_for_this_answer_is_refused(store: Store) -> None:
    task = ask(store, **BY_REVIEWER)
    for forge, code in FORGED:
        assert refused(store, task, "ann", statement=forge(store, task)) == code, forge.__name__


@pytest.mark.usefixtures("root")
def test_a_statement_lasts_a_while_and_no_longer(store: Store, clock: ManualClock) -> None:
    task = ask(store, **BY_REVIEWER)
    said = signed(store, task, "ann", lasts="5m")
    clock.advance(timedelta(minutes=5))
    assert refused(store, task, "ann", statement=said) == "Expired"
    with pytest.raises(KneoError, match="up to 24 hours"):
        prepare(store, task, "ann", lasts="1441m")


def test_a_revoked_key_counts_no_more_and_what_it_signed_before_does(
    store: Store, root: RootDocument, clock: ManualClock
) -> None:
    before, after = ask(store, **BY_REVIEWER), ask(store, **BY_REVIEWER)
    answer(store, before, "ann", statement=signed(store, before, "ann"))
    clock.advance(timedelta(seconds=1))
    said = signed(store, after, "ben")
    revoke(store, root, "ben")
    assert refused(store, after, "ben", statement=said) == "KeyRevoked"
    with store.read() as tx:
        found = registry.trust_root(tx, None)
    assert check(kept(store, before), ReviewerKeys(keys=found.keys, void=found.void)).valid


@pytest.mark.usefixtures("root")
def test_the_pinned_root_says_whose_key_is_whose(store: Store) -> None:
    task = ask(store, **BY_REVIEWER)
    said = signed(store, task, "ann")
    given = DecisionRequest(request_id=task.request_id, decision=DecisionKind.APPROVED, statement=said)
    with pytest.raises(KneoError) as caught:
        decide(store, task.id, given, actor="ann", pin=Digest(ZEROS))
    assert caught.value.code == "RootNotPinned"


def test_an_expired_trust_root_takes_no_answer(store: Store, clock: ManualClock) -> None:
    trust(store)
    task = ask(store, **BY_REVIEWER)
    said = signed(store, task, "ann")
    with store.read() as tx:
        ends = registry.trust_root(tx, None).expires
    clock.advance(ends - clock.now())
    assert refused(store, task, "ann", statement=said) == "Expired"


def test_without_a_trust_root_nobody_can_answer(store: Store) -> None:
    task = ask(store, **BY_REVIEWER)
    said = signed(store, task, "ann")
    assert refused(store, task, "ann", statement=said) == "no_trust_root"


@pytest.mark.usefixtures("root")
def test_every_voter_signs_and_all_their_words_are_in_the_receipt(store: Store) -> None:
    task = ask(store, **BY_REVIEWER, quorum={"approvals": 2})
    answer(store, task, "ann", comment="fine", statement=signed(store, task, "ann", comment="fine"))
    assert refused(store, task, "ben") == "signature_required"
    done = answer(store, task, "ben", comment="me too", statement=signed(store, task, "ben", comment="me too"))
    assert done.status is TaskStatus.DECIDED
    record = kept(store, task)
    voters = parse_receipt(parse_envelope(record.envelope).payload).receipt.voters
    with store.read() as tx:
        told = [*audit.events(tx, event_type="human.voted"), *audit.events(tx, event_type="human.decision")]
    assert [item.event.metadata["statement"] for item in told] == [voter.statement for voter in voters]
    verdict = check(record, keys_of("ann", "ben"))
    assert (verdict.valid, verdict.checked[0].signed_by) == (True, ("ann", "ben"))
    assert fields(check(record, keys_of("ann"))) == ["voters[1].statement.signature"]


@pytest.mark.usefixtures("root")
def test_who_changes_their_mind_signs_anew_and_the_old_word_is_not_taken_again(
    store: Store, clock: ManualClock
) -> None:
    task = ask(store, **BY_REVIEWER, quorum={"approvals": 2, "reject": "majority"})
    yes = signed(store, task, "ann")
    answer(store, task, "ann", statement=yes)
    assert refused(store, task, "ann", statement=yes) == "Replayed"
    clock.advance(timedelta(seconds=1))
    answer(store, task, "ann", "rejected", statement=signed(store, task, "ann", "rejected"))
    assert refused(store, task, "ann", statement=yes) == "Replayed"


@pytest.mark.usefixtures("root")
def test_an_answer_that_need_not_be_signed_may_be_and_then_has_to_be_right(store: Store) -> None:
    task = ask(store)
    assert refused(store, task, "ann", statement=_with_bens_key(store, task)) == "WrongSigner"
    answer(store, task, "ann", statement=signed(store, task, "ann"))
    assert check(kept(store, task), keys_of("ann")).checked[0].signed_by == ("ann",)


@pytest.mark.usefixtures("root")
def test_a_link_cannot_sign_and_so_is_not_made(store: Store) -> None:
    task = ask(store, **BY_REVIEWER, candidates={"users": ["ann"]})
    with pytest.raises(KneoError, match="a link cannot carry a signature") as caught, store.write() as tx:
        make_link(tx, task.id, "ann", actor="ann")
    assert caught.value.code == "signature_required"


def test_an_environment_can_ask_for_it(store: Store) -> None:
    trust(store)
    declare(store, questions={"receipt": "signed_by_reviewer"})
    task = ask(store, receipt="none")
    assert task.plan.receipt == "signed_by_reviewer"
    assert refused(store, task, "ann") == "signature_required"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ({"on_timeout": "approve"}, "fail"),
        ({"on_timeout": "continue"}, "fail"),
        ({"on_timeout": "skip"}, "fail"),
        ({"on_timeout": "select:x", "options": ["x"]}, "fail"),
        ({"on_timeout": "cancel"}, "cancel"),
        ({"on_timeout": "reject"}, "reject"),
        ({"on_timeout": "escalate"}, "escalate"),
    ],
)
@pytest.mark.usefixtures("root")
def test_silence_does_nothing_that_nobody_signed(
    store: Store, clock: ManualClock, words: dict[str, object], meant: str
) -> None:
    declare(store, questions={"receipt": "signed_by_reviewer"})
    task = ask(store, timeout_seconds=60, **words)
    assert task.on_timeout == meant
    clock.advance(timedelta(seconds=61))
    assert process_due(store) == 1
    with store.read() as tx:
        found = find(tx, task.id)
        run = runs.get(tx, task.run_id)
    assert run is not None
    if meant == "fail":
        assert (found.status, run.status) == (TaskStatus.EXPIRED, RunStatus.EXPIRED)
    elif meant == "escalate":
        assert (found.status, run.status) == (TaskStatus.OPEN, RunStatus.RUNNING)
    else:
        assert found.decision is not None
        assert found.decision.kind == "rejected"


@pytest.mark.usefixtures("root")
def test_a_changed_statement_beside_a_receipt_is_named_by_its_field(store: Store) -> None:
    task = ask(store, **BY_REVIEWER)
    answer(store, task, "ann", comment="ok", statement=signed(store, task, "ann", comment="ok"))
    record = kept(store, task)
    for name in ("run", "gate", "subjectDigest", "bundleDigest", "policyDigest", "contentDigest", "request"):
        changed = _altered(record, name)
        assert fields(check(record, keys_of("ann"), changed)) == [f"voters[0].statement.{name}"], name
    assert fields(check(record, keys_of("ann"), _altered(record, "decision"))) == ["voters[0].statement.decision"]
    assert fields(check(record, keys_of("ann"), _altered(record, "reviewer"))) == ["voters[0].statement"]
    # Signed bytes as they were, and the signature not: nothing but the key can tell.
    broken = json.loads(record.statements[0])
    broken["signatures"][0]["sig"] = json.loads(record.envelope)["signatures"][0]["sig"]
    assert fields(check(record, keys_of("ann"), broken)) == ["voters[0].statement.signature"]
    assert check(record, None, broken).valid
    assert check(record, None, broken).checked[0].signed_by == ()


def _altered(record: ReceiptRecord, name: str) -> Json:
    envelope = parse_envelope(record.statements[0].encode())
    tree = json.loads(envelope.payload)
    value = tree["predicate"][name]
    other = ZEROS if str(value).startswith("sha256:") else "rejected" if name == "decision" else "other"
    tree["predicate"][name] = other
    if name == "subjectDigest":
        tree["subject"][0]["digest"]["sha256"] = "0" * 64
    changed = replace(envelope, payload=json.dumps(tree).encode())
    return json.loads(serialise(changed))  # type: ignore[no-any-return]


@pytest.mark.usefixtures("root")
def test_a_statement_is_not_left_out_nor_put_in(store: Store) -> None:
    one, two = ask(store, **BY_REVIEWER), ask(store, **BY_REVIEWER)
    answer(store, one, "ann", statement=signed(store, one, "ann"))
    answer(store, two, "ann", statement=signed(store, two, "ann"))
    record, foreign = kept(store, one), json.loads(kept(store, two).statements[0])
    own = json.loads(record.statements[0])
    assert fields(check(record, keys_of("ann"), own, foreign)) == ["statements"]
    assert set(fields(check(record, keys_of("ann"), foreign))) >= {"voters[0].statement.task"}
    handed = PresentedReceipt(envelope=parse_envelope(record.envelope))
    alone = ReceiptFile((handed,), is_chain=False)
    assert check_receipts(alone, [KEY.public]).valid
    assert fields(check_receipts(alone, [KEY.public], keys_of("ann"))) == ["voters[0].statement"]


@pytest.mark.usefixtures("root")
def test_a_fork_behind_a_signed_answer_needs_a_signature_of_its_own(store: Store, tmp_path: Path) -> None:
    declare(store, inlineSpecs=True)
    engine = Engine(store, tmp_path / "code", "def publish(text): note(text); return text")
    tree = engine.tree([{"id": "ok", "kind": "human", "ref": "ann"}, step("publish")], ann=BY_REVIEWER)
    run = engine.drive(
        engine.starter.start(StartRequest(input="in", requester="bob", spec=tree, environment=ENVIRONMENT))
    )
    task = engine.open(run)[0]
    answer(store, task, "ann", statement=signed(store, task, "ann"))
    run = engine.drive(run)
    for more in ({}, {"input": "EVIL"}):
        order = ForkRequest(run_id=run.id, step="publish", requester="mal", answers={"ok.step": "approved"}, **more)
        forked = engine.drive(fork(engine.starter, ProgramLoader(store), order))
        assert (forked.status, engine.notes()) == (RunStatus.PAUSED, ["in"])
        assert refused(store, engine.open(forked)[0], "ann") == "signature_required"
    again = engine.open(forked)[0]
    answer(store, again, "ann", statement=signed(store, again, "ann"))
    assert (engine.drive(forked).status, engine.notes()) == (RunStatus.SUCCEEDED, ["in", "EVIL"])
    assert check(kept(store, again), keys_of("ann")).valid
