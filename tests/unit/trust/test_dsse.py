from __future__ import annotations

import base64
import json

import pytest

from kneo.errors import Invalid
from kneo.trust.dsse import (
    ENVELOPE_BYTES,
    SIGNATURES,
    Envelope,
    add_signature,
    decode_base64,
    pae,
    parse_envelope,
    serialise,
    sign,
)
from kneo.trust.keys import Algorithm, PrivateKey

KEY = PrivateKey.generate()
KIND = "application/vnd.in-toto+json"
PAYLOAD = b'{"a": "\xfb\xff\xfe??>>"}'


def envelope_json(**changes: object) -> bytes:
    value = json.loads(serialise(sign(KIND, PAYLOAD, KEY)))
    value.update(changes)
    return json.dumps({k: v for k, v in value.items() if v is not ...}).encode()


def test_the_encoding_is_the_one_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_lengths_count_bytes_not_characters() -> None:
    assert pae("é", "ü".encode()) == b"DSSEv1 2 \xc3\xa9 2 \xc3\xbc"


def test_what_is_written_is_what_is_read() -> None:
    envelope = add_signature(sign(KIND, PAYLOAD, KEY), PrivateKey.generate(Algorithm.P256))
    data = serialise(envelope)
    again = parse_envelope(data)
    assert again.payload == PAYLOAD
    assert set(again.signatures) == set(envelope.signatures)
    assert serialise(again) == data
    assert data.endswith(b"}\n")


def test_signatures_do_not_change_identity() -> None:
    one = sign(KIND, PAYLOAD, KEY)
    assert add_signature(one, PrivateKey.generate()).digest == one.digest


def test_a_key_that_signs_again_replaces_its_signature() -> None:
    envelope = add_signature(sign(KIND, PAYLOAD, KEY), KEY)
    assert len(envelope.signatures) == 1


def test_the_kind_is_part_of_what_is_signed() -> None:
    envelope = sign(KIND, PAYLOAD, KEY)
    other = Envelope("text/plain", PAYLOAD, envelope.signatures)
    assert KEY.public.verify(envelope.signed_bytes, envelope.signatures[0].sig)
    assert not KEY.public.verify(other.signed_bytes, envelope.signatures[0].sig)


def test_url_safe_base64_is_read_too() -> None:
    payload = base64.urlsafe_b64encode(PAYLOAD).decode()
    assert "_" in payload or "-" in payload
    assert parse_envelope(envelope_json(payload=payload)).payload == PAYLOAD


@pytest.mark.parametrize(
    "text",
    ["YQ", "YQ=", "YR==", "YQ==YQ==", "Y Q==", "YQ==\n", "+_==", "-_+/", "=", "ä===", "YQ==="],
    ids=[
        "no padding",
        "short padding",
        "stray bits",
        "twice",
        "space",
        "newline",
        "mixed",
        "mixed 4",
        "=",
        "ä",
        "more =",
    ],
)
def test_base64_has_one_spelling(text: str) -> None:
    with pytest.raises(Invalid):
        decode_base64(text)
    with pytest.raises(Invalid, match="payload"):
        parse_envelope(envelope_json(payload=text))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        envelope_json() + b"{}",
        envelope_json() + b"\0",
        envelope_json()[:-1] + b', "payload": "e30="}',
        envelope_json(payload=...),
        envelope_json(payload=7),
        envelope_json(payloadType=...),
        envelope_json(payloadType=""),
        envelope_json(payloadType="a\nb"),
        envelope_json(payloadType=["x"]),
        envelope_json(signatures=...),
        envelope_json(signatures=[]),
        envelope_json(signatures={}),
        envelope_json(signatures=["x"]),
        envelope_json(signatures=[{"keyid": "x"}]),
        envelope_json(signatures=[{"keyid": 1, "sig": "YQ=="}]),
        envelope_json(signatures=[{"keyid": "x" * 300, "sig": "YQ=="}]),
        b"[" * 30_000,
    ],
)
def test_what_is_not_an_envelope_is_malformed(data: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        parse_envelope(data, file="bundles/a/1.dsse.json")
    assert refused.value.code == "Malformed"
    assert "bundles/a/1.dsse.json" in str(refused.value)


def test_too_much_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Invalid) as refused:
        parse_envelope(b"[" * (ENVELOPE_BYTES + 1))
    assert refused.value.code == "LimitExceeded"
    with pytest.raises(Invalid) as refused:
        parse_envelope(envelope_json(signatures=[{"sig": "YQ=="}] * (SIGNATURES + 1)))
    assert refused.value.code == "LimitExceeded"


def test_a_key_hint_may_be_missing_and_strange_fields_are_ignored() -> None:
    envelope = parse_envelope(envelope_json(signatures=[{"sig": "YQ==", "cert": "x"}], extra={"x": 1}))
    assert envelope.signatures[0].keyid == ""
