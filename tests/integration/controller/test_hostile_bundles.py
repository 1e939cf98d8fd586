"""Bundles that should not be served, each offered by a commit of its own to a controller that serves something good."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from config_repo import announcement
from siege import EVIL, Attempts, Siege, with_spec

from kneo.store.engine import Store
from kneo.trust.dsse import SIGNATURES, Envelope, Signature, parse_envelope, serialise
from kneo.trust.hmac_bundle import sign_hmac_bundle
from kneo.trust.root import TRUST_ROOT_TYPE
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, build_approval

ATTEMPTS = Attempts()
refused = ATTEMPTS.refused


@pytest.fixture(scope="module")
def siege(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Siege:
    return Siege(shared_store, tmp_path_factory.mktemp("siege"))


# ---- who signed ------------------------------------------------------------------------------------------------------


@refused("SignatureInvalid")
def signed_by_somebody_nobody_knows(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(), siege.repo.stranger))


@refused("SignatureInvalid")
def signed_by_a_stranger_in_the_name_of_somebody_known(siege: Siege) -> None:
    made = siege.signed(siege.payload(), siege.repo.stranger)
    forged = Signature(siege.repo.key.keyid, made.signatures[0].sig)
    siege.plant(Envelope(made.payload_type, made.payload, (forged,)))


@refused("SignatureInvalid")
def changed_after_it_was_signed(siege: Siege) -> None:
    siege.repo.bundle("mail", EVIL, seq=3, prev=siege.head)
    siege.repo.tamper("mail", EVIL)
    siege.name({"mail": EVIL})


@refused("SignatureInvalid")
def a_payload_under_the_signatures_of_another(siege: Siege) -> None:
    good = parse_envelope((siege.repo.folder / "bundles/mail/1.1.0.dsse.json").read_bytes())
    siege.plant(Envelope(good.payload_type, siege.payload(), good.signatures))


@refused("SignatureInvalid")
def a_key_that_signs_outside_its_paths(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(), siege.dan))


@refused("KeyRevoked")
def a_stolen_key_after_it_was_revoked(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(), siege.eve))


@refused("KeyRevoked")
def a_stolen_key_that_dates_everything_back(siege: Siege) -> None:
    long_ago = siege.now - timedelta(days=900)
    siege.plant(siege.signed(siege.payload(issuedAt=long_ago), siege.eve))
    siege.repo.git("add", "-A")
    siege.repo.git("commit", "-q", "-m", "Very old", dated=long_ago.isoformat())


@refused("ThresholdNotMet", "pair")
def one_signature_where_two_people_are_needed(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload()), environment="pair")


@refused("ThresholdNotMet", "pair")
def one_key_under_two_key_ids(siege: Siege) -> None:
    made = siege.signed(siege.payload())
    again = (
        made.signatures[0],
        Signature(siege.bob.keyid, made.signatures[0].sig),
        Signature("", made.signatures[0].sig),
    )
    siege.plant(Envelope(made.payload_type, made.payload, again), environment="pair")


@refused("ThresholdNotMet", "pair")
def one_person_with_two_keys(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(), siege.bob, siege.twin), environment="pair")


@refused("ThresholdNotMet", "pair")
def a_second_signature_of_somebody_nobody_knows(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(), siege.bob, siege.repo.stranger), environment="pair")


@refused("KeyRevoked", "pair")
def a_second_signature_of_somebody_who_was_robbed(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(), siege.bob, siege.eve), environment="pair")


# ---- what was signed -------------------------------------------------------------------------------------------------


@refused("Malformed")
def signed_as_another_kind_of_thing(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(), kind="application/json"))


@refused("SignatureInvalid")
def signed_as_another_kind_and_called_a_bundle(siege: Siege) -> None:
    made = siege.signed(siege.payload(), kind=TRUST_ROOT_TYPE)
    siege.plant(Envelope(PAYLOAD_TYPE, made.payload, made.signatures))


@refused("Malformed")
def a_trust_root_where_a_bundle_belongs(siege: Siege) -> None:
    siege.plant((siege.repo.folder / "environments/trust.json").read_bytes())


@refused("Malformed")
def an_approval_where_a_bundle_belongs(siege: Siege) -> None:
    approval = build_approval(
        bundle_name="mail",
        bundle_digest=siege.head,
        environment="prod",
        policy_digest=siege.repo.pin,
        decision=ApprovalDecision.APPROVE,
        issued_at=siege.now,
        expires=siege.now + timedelta(days=1),
    )
    siege.plant(siege.signed(approval.payload))


@refused("Malformed")
def another_kind_of_predicate(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(predicateType="https://slsa.dev/provenance/v1")))


@refused("Malformed")
def a_spec_that_is_not_the_one_digested(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(spec=announcement(version="v2"))))


@refused("Malformed")
def a_key_of_the_signed_bytes_given_twice(siege: Siege) -> None:
    payload = siege.payload()
    twice = payload.replace(b'"approvedBy":"ann"', b'"approvedBy":"ann","approvedBy":"bob"')
    assert twice != payload
    siege.plant(siege.signed(twice))


@refused("Malformed")
def signed_bytes_nested_beyond_any_use(siege: Siege) -> None:
    siege.plant(siege.signed(b'{"a":' * 30_000 + b"1" + b"}" * 30_000))


@refused("SpecInvalid")
def a_spec_that_makes_no_sense(siege: Siege) -> None:
    spec = announcement(workflow={"type": "sequential", "steps": [{"id": "x", "kind": "agent", "ref": "nobody"}]})
    siege.plant(siege.signed(with_spec(siege, spec)))


# ---- how it is wrapped -----------------------------------------------------------------------------------------------


def _wrapped(siege: Siege, change: Callable[[dict[str, object]], None]) -> bytes:
    value = json.loads(serialise(siege.signed(siege.payload())))
    change(value)
    return json.dumps(value).encode()


@refused("Malformed")
def two_payloads_in_one_envelope(siege: Siege) -> None:
    evil = base64.b64encode(siege.payload(approvedBy="eve")).decode()
    text = serialise(siege.signed(siege.payload())).decode().rstrip().removesuffix("}")
    siege.plant(f'{text}, "payload": "{evil}"}}'.encode())


@refused("Malformed")
def text_after_the_envelope(siege: Siege) -> None:
    siege.plant(serialise(siege.signed(siege.payload())) + b"{}")


@refused("Malformed")
def base64_with_room_for_something_else(siege: Siege) -> None:
    def spread(value: dict[str, object]) -> None:
        value["payload"] = str(value["payload"])[:76] + "\n" + str(value["payload"])[76:]

    siege.plant(_wrapped(siege, spread))


@refused("Malformed")
def base64_of_two_alphabets(siege: Siege) -> None:
    def mix(value: dict[str, object]) -> None:
        signature = value["signatures"][0]  # type: ignore[index]
        signature["sig"] = "+_" + signature["sig"][2:]

    siege.plant(_wrapped(siege, mix))


@refused("Malformed")
def thirty_thousand_brackets(siege: Siege) -> None:
    siege.plant(b"[" * 30_000)


@refused("Malformed")
def no_signature_at_all(siege: Siege) -> None:
    siege.plant(_wrapped(siege, lambda value: value.update(signatures=[])))


@refused("LimitExceeded")
def more_signatures_than_anybody_checks(siege: Siege) -> None:
    signature = {"keyid": "", "sig": "YQ=="}
    siege.plant(_wrapped(siege, lambda value: value.update(signatures=[signature] * (SIGNATURES + 1))))


@refused("Malformed")
def a_pointer_to_a_file_kept_elsewhere(siege: Siege) -> None:
    siege.plant(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"1" * 64 + b"\nsize 12345\n")


@refused("PolicyDenied")
def a_shared_secret_where_signatures_are_asked_for(siege: Siege) -> None:
    data = sign_hmac_bundle(
        announcement(), approved_by="ann", environment="prod", created_at=siege.now, key="secret", key_id="k"
    )
    siege.repo.write(f"bundles/mail/{EVIL}.json", data)
    siege.name({"mail": EVIL})


# ---- where and when --------------------------------------------------------------------------------------------------


@refused("SubjectMismatch")
def a_good_bundle_under_another_version(siege: Siege) -> None:
    siege.plant((siege.repo.folder / "bundles/mail/1.0.0.dsse.json").read_bytes())


@refused("SubjectMismatch")
def a_good_bundle_under_another_name(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload()), at=("bank", EVIL))


@refused("SubjectMismatch")
def a_bundle_that_was_signed_for_dev(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(environments=["dev"])))


@refused("NotYetValid")
def a_bundle_from_the_future(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(issuedAt=siege.now + timedelta(minutes=10))))


@refused("Expired")
def an_expired_bundle_in_a_commit_of_long_ago(siege: Siege) -> None:
    long_ago = siege.now - timedelta(days=30)
    siege.plant(siege.signed(siege.payload(issuedAt=long_ago, expiresAt=long_ago + timedelta(days=1))))
    siege.repo.git("add", "-A")
    siege.repo.git("commit", "-q", "-m", "Very old", dated=long_ago.isoformat())


# ---- which of many ---------------------------------------------------------------------------------------------------


@refused("RollbackDetected")
def an_old_number_that_was_never_accepted(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(seq=1, prev=None)))


@refused("Equivocation")
def a_second_bundle_of_one_number(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(seq=2)))


@refused("Equivocation")
def a_history_that_forks(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(prev="sha256:" + "1" * 64)))


@refused("LimitExceeded")
def a_number_so_high_that_nothing_could_follow(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(seq=2**53 - 1)))


@refused("DigestMismatch")
def another_bundle_than_the_one_that_is_pinned(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload()))
    siege.name({"mail": EVIL}, digests={"mail": "sha256:" + "1" * 64})


@refused("BundleNotFound")
def a_bundle_that_is_not_there(siege: Siege) -> None:
    siege.name({"mail": EVIL})


@refused("DependencyNotReady")
def a_bundle_without_the_one_it_was_made_for(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(dependsOn=[{"name": "bank", "digest": "sha256:" + "1" * 64}])))


@refused("DependencyNotReady")
def a_new_bundle_beside_the_old_one_it_was_not_made_for(siege: Siege) -> None:
    newer = siege.repo.bundle("bank", "1.2.0", keys=[siege.dan])
    siege.plant(siege.signed(siege.payload(dependsOn=[{"name": "bank", "digest": newer}])))


@refused("SignatureInvalid")
def an_unsigned_bundle_in_the_middle_of_signed_ones(siege: Siege) -> None:
    siege.plant(siege.signed(siege.payload(), siege.repo.stranger))
    siege.repo.commit("In the middle")
    siege.repo.write("bundles/bank/note.dsse.json", b"{}")


# ---- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTEMPTS)
def test_it_is_refused_for_the_right_reason_and_nothing_changes(siege: Siege, name: str) -> None:
    reason, environment, attempt = ATTEMPTS[name]
    siege.withstand(attempt, reason, environment)


def test_what_is_honest_goes_through_after_all_that(siege: Siege) -> None:
    def honest(siege: Siege) -> None:
        siege.plant(siege.signed(siege.payload(version="1.2.0")), at=("mail", "1.2.0"))

    assert siege.attempt(honest).outcomes["prod"].state == "Ready"
    assert siege.bench.served() == {"bank": "1.1.0", "mail": "1.2.0"}
