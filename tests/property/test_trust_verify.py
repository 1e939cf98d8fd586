"""Laws of trust that hold for whatever anybody hands us."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from kneo.digest import Digest, digest_of
from kneo.errors import Invalid, KneoError, Untrusted
from kneo.trust import dsse
from kneo.trust.dsse import TrustedKey
from kneo.trust.keys import PrivateKey
from kneo.trust.root import TRUST_ROOT_TYPE, TrustRoot, parse_root, root_payload, verify_chain
from kneo.trust.root_edit import add_key, first_root, next_root, remove_key, revoke_key, set_role
from kneo.trust.statement import PAYLOAD_TYPE, build_bundle, parse_bundle
from kneo.trust.verify import (
    SEAL,
    NewestAccepted,
    SignatureRule,
    VerifiedBundle,
    check_sequence,
    verification_steps,
    verify_bundle,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PATH = "bundles/a/1.dsse.json"
PEOPLE = ("ann", "bob", "cara")
ROOT = PrivateKey.generate()
KEYS = [PrivateKey.generate() for _ in range(6)]
OWNER = {key.keyid: PEOPLE[i // 2] for i, key in enumerate(KEYS)}
STRANGERS = [PrivateKey.generate() for _ in range(2)]
PAYLOAD = build_bundle(
    name="a", version="1", seq=1, prev=None, environments=["prod"], issued_at=NOW, approved_by="ann", spec={"x": 1}
).payload
PAE = dsse.pae(PAYLOAD_TYPE, PAYLOAD)
SIGNATURES = {key.keyid: key.sign(PAE) for key in [*KEYS, *STRANGERS]}


def trusted(revoked: frozenset[str] = frozenset(), threshold: int = 1) -> TrustRoot:
    document = first_root(
        {
            "root": [TrustedKey(ROOT.public, "root")],
            "release": [TrustedKey(key.public, OWNER[key.keyid]) for key in KEYS],
        },
        expires=NOW + timedelta(days=1),
        paths={"release": ["*"]},
    )
    document = set_role(document, "release", threshold=threshold)
    for keyid in sorted(revoked):
        document = revoke_key(document, keyid, at=NOW, reason="x")
    payload = root_payload(document)
    return verify_chain(digest_of(payload), [dsse.serialise(dsse.sign(TRUST_ROOT_TYPE, payload, ROOT))], NOW)


ROOTS = {threshold: trusted(threshold=threshold) for threshold in (1, 2, 3)}


def admits(data: bytes, root: TrustRoot, threshold: int) -> bool:
    rule = SignatureRule(roles=("release",), threshold=threshold)
    try:
        verify_bundle(data, root=root, signatures=rule, path=PATH, environment="prod", now=NOW)
    except KneoError:
        return False
    return True


def code_of(act: Callable[[], object]) -> str | None:
    """Why it was refused, or None when it was not."""
    try:
        act()
    except KneoError as refused:
        return refused.code
    return None


keyids = st.sampled_from([key.keyid for key in [*KEYS, *STRANGERS]])
storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
signed = st.lists(st.tuples(keyids, st.one_of(keyids, st.just(""), storable)), min_size=1, max_size=12)


def envelope(signatures: list[tuple[str, str]]) -> bytes:
    """Signatures by the first of each pair, under the name of the second."""
    listed = tuple(dsse.Signature(hint, SIGNATURES[signer]) for signer, hint in signatures)  # type: ignore[index]
    return dsse.serialise(dsse.Envelope(PAYLOAD_TYPE, PAYLOAD, listed))


@given(signed, st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None)
def test_a_threshold_counts_people_whatever_the_hints_say(
    signatures: list[tuple[str, str]], asked: int, of_role: int
) -> None:
    who = {OWNER[signer] for signer, _ in signatures if signer in OWNER}  # type: ignore[index]
    assert admits(envelope(signatures), ROOTS[of_role], asked) == (len(who) >= max(asked, of_role))


@given(signed, st.integers(1, 3), st.sets(st.sampled_from(sorted(OWNER)), max_size=3))
@settings(deadline=None, max_examples=40)
def test_revoking_never_admits_more(signatures: list[tuple[str, str]], asked: int, revoked: set[str]) -> None:
    data = envelope(signatures)
    if admits(data, trusted(frozenset(revoked)), asked):
        assert admits(data, ROOTS[1], asked)


@given(signed, st.integers(1, 3), st.data())
@settings(deadline=None, max_examples=60)
def test_the_account_and_the_verdict_agree(signatures: list[tuple[str, str]], asked: int, data: st.DataObject) -> None:
    environment, path = (
        data.draw(st.sampled_from(["prod", "dev"])),
        data.draw(st.sampled_from([PATH, "bundles/b/1.dsse.json"])),
    )
    rule = SignatureRule(roles=("release",), threshold=asked)
    question = {"root": ROOTS[1], "signatures": rule, "path": path, "environment": environment, "now": NOW}
    steps = verification_steps(envelope(signatures), **question)  # type: ignore[arg-type]
    verdict = code_of(lambda: verify_bundle(envelope(signatures), **question))  # type: ignore[arg-type]
    assert [step.code for step in steps if step.passed is False] == ([verdict] if verdict else [])


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_no_change_of_a_byte_changes_what_is_admitted(data: st.DataObject) -> None:
    good = bytearray(envelope([(KEYS[0].keyid, KEYS[0].keyid)]))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] = data.draw(st.integers(0, 255))
    rule = SignatureRule(roles=("release",))
    try:
        verified = verify_bundle(bytes(good), root=ROOTS[1], signatures=rule, path=PATH, environment="prod", now=NOW)
    except (Invalid, Untrusted):
        return
    assert verified.payload == PAYLOAD


def read_everything(data: bytes) -> None:
    for read in (dsse.parse_envelope, parse_bundle, parse_root):
        assert code_of(lambda read=read: read(data)) in {None, "Malformed", "LimitExceeded"}  # type: ignore[misc]


@given(st.binary(max_size=300))
def test_reading_is_total(data: bytes) -> None:
    read_everything(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
near_misses = st.fixed_dictionaries(
    {},
    optional={
        name: json_values | st.just("e30=")
        for name in ("payload", "payloadType", "signatures", "_type", "subject", "predicate", "predicateType", "version",
                     "expires", "keys", "roles", "revoked")
    },
)  # fmt: skip


@given(near_misses)
def test_reading_things_that_look_right_is_total(value: object) -> None:
    read_everything(json.dumps(value).encode("utf-8", "surrogatepass"))


@given(st.text(max_size=12), st.binary(max_size=12), st.text(max_size=12), st.binary(max_size=12))
def test_no_two_things_are_signed_alike(kind: str, payload: bytes, other_kind: str, other: bytes) -> None:
    assert (dsse.pae(kind, payload) == dsse.pae(other_kind, other)) == ((kind, payload) == (other_kind, other))


@given(st.text(alphabet="AQgw+/-_=\n é", max_size=12))
def test_base64_has_one_spelling_per_alphabet(text: str) -> None:
    try:
        decoded = dsse.decode_base64(text)
    except Invalid:
        return
    assert text in {base64.b64encode(decoded).decode(), base64.urlsafe_b64encode(decoded).decode()}


def candidate(seq: int, prev: int | None) -> VerifiedBundle:
    return VerifiedBundle(
        name="a", version=str(seq), digest=digest_of(f"{seq} {prev}".encode()), seq=seq,
        prev=None if prev is None else digest_of(str(prev).encode()), spec={}, payload=b"", envelope=b"", signers=(),
        statement=None, seal=SEAL,
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 30), st.none() | st.integers(1, 5)), max_size=40))
def test_what_is_newly_accepted_only_ever_goes_up(offers: list[tuple[int, int | None]]) -> None:
    high: NewestAccepted | None = None
    known: set[Digest] = set()
    for offer in offers:
        bundle = candidate(*offer)
        try:
            check_sequence(bundle, high, known)
        except Untrusted:
            assert high is not None
            continue
        if bundle.digest not in known:
            assert high is None or bundle.seq > high.seq
            high = NewestAccepted(bundle.seq, bundle.digest)
            known.add(bundle.digest)


edits = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "revoke", "threshold"]),
        st.sampled_from(KEYS),
        st.sampled_from(["root", "release"]),
        st.integers(1, 3),
    ),
    max_size=8,
)


@given(edits)
@settings(deadline=None, max_examples=60)
def test_whatever_is_edited_somebody_can_still_change_the_root(
    changes: list[tuple[str, PrivateKey, str, int]],
) -> None:
    document = first_root({"root": [TrustedKey(ROOT.public, "root")]}, expires=NOW)
    chain = [dsse.serialise(dsse.sign(TRUST_ROOT_TYPE, root_payload(document), ROOT))]
    pin = digest_of(root_payload(document))
    for change, key, role, threshold in changes:
        before = document
        try:
            document = next_root(document)
            if change == "add":
                document = add_key(document, key.public, principal=OWNER[key.keyid], roles=[role])
            elif change == "remove":
                document = remove_key(document, key.keyid)
            elif change == "revoke":
                document = revoke_key(document, key.keyid, at=NOW, reason="x")
            else:
                document = set_role(document, role, threshold=threshold)
        except KneoError:
            document = before
            continue
        signed_by_all = dsse.Envelope(TRUST_ROOT_TYPE, root_payload(document), ())
        for signer in [ROOT, *KEYS]:
            signed_by_all = dsse.add_signature(signed_by_all, signer)
        chain.append(dsse.serialise(signed_by_all))
        assert parse_root(root_payload(document)) == document
        assert verify_chain(pin, chain, NOW).version == document.version
