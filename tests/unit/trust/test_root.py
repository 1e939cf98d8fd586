from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest

from kneo.digest import Digest, digest_of
from kneo.errors import Conflict, Invalid, KneoError, NotFound, Untrusted
from kneo.trust import dsse
from kneo.trust.dsse import TrustedKey
from kneo.trust.keys import Algorithm, PrivateKey
from kneo.trust.root import (
    TRUST_ROOT_TYPE,
    RootDocument,
    TrustRoot,
    parse_root,
    root_payload,
    trust_epoch,
    verify_chain,
)
from kneo.trust.root_edit import add_key, first_root, next_root, remove_key, revoke_key, set_expiry, set_role

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ANN, BOB, EVE = (PrivateKey.generate(a) for a in (Algorithm.ED25519, Algorithm.P256, Algorithm.ED25519))


def start(threshold: int = 1) -> RootDocument:
    ann, bob = TrustedKey(ANN.public, "ann"), TrustedKey(BOB.public, "bob")
    document = first_root(
        {"root": [ann, bob], "release": [ann]}, expires=NOW + 365 * DAY, paths={"release": ["bundles/*"]}
    )
    return set_role(document, "root", threshold=threshold)


def signed(document: RootDocument, *keys: PrivateKey) -> bytes:
    envelope = dsse.Envelope(TRUST_ROOT_TYPE, root_payload(document), ())
    for key in keys:
        envelope = dsse.add_signature(envelope, key)
    return dsse.serialise(envelope)


def pin(document: RootDocument) -> Digest:
    return digest_of(root_payload(document))


def refusal(pinned: Digest, *envelopes: bytes) -> str:
    with pytest.raises((Untrusted, Invalid)) as refused:
        verify_chain(pinned, envelopes, NOW)
    return refused.value.code


def test_the_file_says_what_the_format_says() -> None:
    value = json.loads(root_payload(revoke_key(start(), BOB.keyid, at=NOW, reason="left")))
    assert set(value) == {"version", "expires", "keys", "roles", "revoked"}
    assert value["keys"][ANN.keyid] == {"algorithm": "ed25519", "public": ANN.public.pem, "principal": "ann"}
    assert value["roles"]["root"] == {"keys": [ANN.keyid, BOB.keyid], "threshold": 1}
    assert value["roles"]["release"] == {"keys": [ANN.keyid], "threshold": 1, "paths": ["bundles/*"]}
    assert value["revoked"] == [{"keyid": BOB.keyid, "at": "2026-11-21T12:00:00.000000+00:00", "reason": "left"}]


def test_what_was_written_is_what_is_read() -> None:
    document = revoke_key(start(), BOB.keyid, at=NOW, reason="x", compromised_since=NOW - DAY)
    assert parse_root(root_payload(document)) == document


def test_a_pinned_root_is_believed() -> None:
    root = verify_chain(pin(start()), [signed(start(), ANN)], NOW)
    assert root.version == 1
    assert root.digest == pin(start())
    assert root.keys[BOB.keyid].principal == "bob"


def test_the_chain_is_walked_to_its_end() -> None:
    second = add_key(next_root(start()), EVE.public, principal="eve", roles=["root", "release"])
    third = remove_key(next_root(second), ANN.keyid)
    chain = [signed(start(), ANN), signed(second, ANN, EVE), signed(third, EVE)]
    assert verify_chain(pin(start()), chain, NOW).version == 3
    assert verify_chain(pin(second), chain, NOW).version == 3
    assert verify_chain(pin(third), [*chain, chain[-1]], NOW).version == 3


def test_nothing_is_believed_without_its_pin() -> None:
    assert refusal(pin(next_root(start())), signed(start(), ANN)) == "RootNotPinned"
    assert refusal(pin(start())) == "RootNotPinned"
    assert refusal(Digest(""), signed(start(), ANN)) == "RootNotPinned"


def test_a_pinned_root_that_its_own_people_did_not_sign_is_refused() -> None:
    assert refusal(pin(start()), signed(start(), EVE)) == "SignatureInvalid"
    assert refusal(pin(start(2)), signed(start(2), ANN)) == "ThresholdNotMet"


def test_the_old_threshold_is_needed() -> None:
    first = start(2)
    second = add_key(set_role(next_root(first), "root", threshold=1), EVE.public, principal="eve", roles=["root"])
    assert refusal(pin(first), signed(first, ANN, BOB), signed(second, ANN, EVE)) == "ThresholdNotMet"
    assert refusal(pin(first), signed(first, ANN, BOB), signed(second, EVE)) == "SignatureInvalid"


def test_the_new_threshold_is_needed() -> None:
    second = add_key(next_root(start()), EVE.public, principal="eve", roles=["root"])
    second = set_role(second, "root", threshold=2)
    assert refusal(pin(start()), signed(start(), ANN), signed(second, ANN)) == "ThresholdNotMet"
    assert verify_chain(pin(start()), [signed(start(), ANN), signed(second, ANN, EVE)], NOW).version == 2


def test_versions_go_up_by_one() -> None:
    second, third = next_root(start()), next_root(next_root(start()))
    assert refusal(pin(start()), signed(start(), ANN), signed(third, ANN)) == "RollbackDetected"
    back = set_expiry(start(), NOW + DAY)
    assert refusal(pin(second), signed(second, ANN), signed(back, ANN)) == "RollbackDetected"
    other = set_expiry(second, NOW + DAY)
    assert refusal(pin(start()), signed(start(), ANN), signed(second, ANN), signed(other, ANN)) == "RollbackDetected"


def test_an_accepted_root_as_pin_refuses_an_older_chain() -> None:
    assert refusal(pin(next_root(start())), signed(start(), ANN)) == "RootNotPinned"


def test_a_revoked_key_changes_no_root() -> None:
    second = revoke_key(next_root(start()), BOB.keyid, at=NOW - DAY, reason="lost")
    chain = [signed(start(), ANN), signed(second, BOB)]
    assert refusal(pin(start()), *chain) == "KeyRevoked"
    third = next_root(second)
    chain = [signed(start(), ANN), signed(second, ANN), signed(third, BOB)]
    assert refusal(pin(start()), *chain) == "KeyRevoked"


def test_one_person_with_two_keys_is_one_person() -> None:
    document = add_key(start(2), EVE.public, principal="ann", roles=["root"])
    assert refusal(pin(document), signed(document, ANN, EVE)) == "ThresholdNotMet"
    assert verify_chain(pin(document), [signed(document, ANN, EVE, BOB)], NOW).version == 1


def test_another_kind_of_envelope_is_no_root() -> None:
    envelope = dsse.sign("application/vnd.in-toto+json", root_payload(start()), ANN)
    assert refusal(pin(start()), dsse.serialise(envelope)) == "Malformed"


def test_expiry_is_a_fact_and_no_failure() -> None:
    old = set_expiry(start(), NOW)
    root = verify_chain(pin(old), [signed(old, ANN)], NOW)
    assert root.expired_at(NOW)
    assert not root.expired_at(NOW - DAY)


def test_a_chain_too_long_to_walk_is_refused() -> None:
    assert refusal(pin(start()), *[signed(start(), ANN)] * 300) == "LimitExceeded"


def edited(change: object) -> bytes:
    value = json.loads(root_payload(start()))
    change(value)  # type: ignore[operator]
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["roles"].pop("root"),
        lambda v: v["roles"]["root"].update(keys=[]),
        lambda v: v["roles"]["root"].update(keys=[ANN.keyid, ANN.keyid], threshold=2),
        lambda v: v["roles"]["root"].update(threshold=0),
        lambda v: v["roles"]["root"].update(threshold=3),
        lambda v: v["roles"]["root"].update(threshold=True),
        lambda v: v["roles"]["root"].update(keys=[EVE.keyid]),
        lambda v: v["roles"]["release"].update(paths=["bundles/[a-z]"]),
        lambda v: v["roles"]["release"].update(surplus=1),
        lambda v: v["keys"].update({EVE.keyid: v["keys"][ANN.keyid]}),
        lambda v: v["keys"].update({"second-name": v["keys"][ANN.keyid]}),
        lambda v: v["keys"][ANN.keyid].update(algorithm="p256"),
        lambda v: v["keys"][ANN.keyid].update(algorithm="rsa"),
        lambda v: v["keys"][ANN.keyid].update(public="x"),
        lambda v: v["keys"][ANN.keyid].update(principal=""),
        lambda v: v["keys"][ANN.keyid].update(principal="Bob"),
        lambda v: v["keys"][ANN.keyid].update(principal="bob "),
        lambda v: v.update(version=0),
        lambda v: v.update(version="1"),
        lambda v: v.update(expires="never"),
        lambda v: v.update(revoked=[{"keyid": ANN.keyid, "at": "2026-01-01T00:00:00Z", "reason": "x"}] * 2),
        lambda v: v.pop("revoked"),
        lambda v: v.update(surplus=1),
    ],
)
def test_a_root_that_contradicts_itself_is_malformed(change: object) -> None:
    with pytest.raises(Invalid) as refused:
        parse_root(edited(change), file="environments/trust.json")
    assert refused.value.code == "Malformed"
    assert "environments/trust.json" in refused.value.message


def test_the_last_usable_root_key_cannot_be_lost() -> None:
    alone = remove_key(start(), BOB.keyid)
    for edit in (
        lambda: remove_key(alone, ANN.keyid),
        lambda: revoke_key(alone, ANN.keyid, at=NOW, reason="x"),
        lambda: remove_key(start(2), BOB.keyid),
        lambda: set_role(start(), "root", threshold=3),
    ):
        with pytest.raises(Invalid):
            edit()


def test_edits_say_what_is_missing_or_in_the_way() -> None:
    def code(edit: object) -> type[KneoError]:
        with pytest.raises(KneoError) as refused:
            edit()  # type: ignore[operator]
        return type(refused.value)

    assert code(lambda: remove_key(start(), EVE.keyid)) is NotFound
    assert code(lambda: revoke_key(start(), EVE.keyid, at=NOW, reason="x")) is NotFound
    assert code(lambda: set_role(start(), "nobody", threshold=1)) is NotFound
    assert code(lambda: add_key(start(), ANN.public, principal="bob", roles=["root"])) is Conflict
    revoked = revoke_key(start(), BOB.keyid, at=NOW, reason="x")
    assert code(lambda: add_key(revoked, BOB.public, principal="bob", roles=["release"])) is Conflict
    assert code(lambda: revoke_key(revoked, BOB.keyid, at=NOW + DAY, reason="x")) is Conflict
    widened = revoke_key(revoked, BOB.keyid, at=NOW, reason="worse", compromised_since=NOW - DAY)
    assert widened.revoked[0].compromised_since == NOW - DAY


def test_a_role_loses_its_name_with_its_last_key() -> None:
    document = remove_key(start(), ANN.keyid, roles=["release"])
    assert "release" not in document.roles
    assert ANN.keyid in document.keys


def test_scopes_are_over_repository_paths_and_none_is_none() -> None:
    role = start().roles["release"]
    assert role.covers("bundles/a/1.dsse.json")
    assert not role.covers("environments/prod.yaml")
    assert not start().roles["root"].covers("bundles/a/1.dsse.json")


def test_the_epoch_changes_with_the_root_and_the_rules() -> None:
    root = verify_chain(pin(start()), [signed(start(), ANN)], NOW)
    later = verify_chain(pin(next_root(start())), [signed(next_root(start()), ANN)], NOW)
    a, b = digest_of(b"a"), digest_of(b"b")
    assert trust_epoch(root, a, b) == trust_epoch(root, b, a)
    assert len({trust_epoch(root), trust_epoch(later), trust_epoch(root, a), trust_epoch(root, a, b)}) == 4


def test_nobody_else_makes_a_trust_root() -> None:
    root = verify_chain(pin(start()), [signed(start(), ANN)], NOW)
    with pytest.raises(TypeError):
        TrustRoot(document=root.document, payload=root.payload, keys=root.keys, seal=object())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(root, payload=b"other")
