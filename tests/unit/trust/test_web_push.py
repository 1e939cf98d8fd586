"""Messages of Web Push are those of RFC 8291, and only keys that can be used are accepted."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from push_service import PushBrowser, decoded

from kneo.errors import Invalid
from kneo.extensions.push.keys import MAX_TEXT_BYTES, ReceiverKeys, VapidKey, decode_base64url, encrypt
from kneo.trust.keys import Algorithm, PrivateKey

# The example of RFC 8291, section 5 and appendix A.
TEXT = b"When I grow up, I want to be a watermelon"
SENDER = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"
RECEIVER = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"
RECEIVER_PUBLIC = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
AUTH = "BTBZMqHH6r4Tts7J_aSIgg"
SALT = "DGv6ra1nlYgDCS1FRnbzlw"
BODY = (
    "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95b"
    "Qpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
)


def private(text: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(decoded(text), "big"), ec.SECP256R1())


def test_the_published_example() -> None:
    keys = ReceiverKeys.read(RECEIVER_PUBLIC, AUTH)
    body = encrypt(TEXT, keys, sender=private(SENDER), salt=decoded(SALT))
    assert body == decoded(BODY)
    # The browser of the tests is one of the RFC, too.
    assert PushBrowser(key=private(RECEIVER), auth=decoded(AUTH)).decrypt(body) == TEXT


@pytest.mark.parametrize("text", [b"", b"x", b"y" * MAX_TEXT_BYTES])
def test_each_message_has_keys_of_its_own(text: bytes) -> None:
    browser = PushBrowser()
    keys = ReceiverKeys.read(browser.subscription["p256dh"], browser.subscription["auth"])
    first, second = encrypt(text, keys), encrypt(text, keys)
    assert browser.decrypt(first) == browser.decrypt(second) == text
    assert first[:16] != second[:16]
    assert first[21:86] != second[21:86]
    assert len(first) <= 86 + 4_096


def test_a_key_is_read_as_it_is_written() -> None:
    key = VapidKey.generate()
    assert VapidKey.load(key.pem.decode()) == key
    assert VapidKey.load(f"\n{key.pem.decode()}\n") == key
    point = decoded(key.public)
    assert (len(point), point[0]) == (65, 4)
    assert "PRIVATE" not in repr(key)


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "x",
        PrivateKey.generate(Algorithm.ED25519).dump().decode(),
        PrivateKey.generate(Algorithm.P256).dump("secret").decode(),
        PrivateKey.generate(Algorithm.P256).public.pem,
    ],
    ids=["empty", "text", "ed25519", "passphrase", "public"],
)
def test_other_keys_are_refused(pem: str) -> None:
    with pytest.raises(Invalid, match="KNEO_SERV_VAPID_PRIVATE_KEY must be a P-256 private key") as refused:
        VapidKey.load(pem)
    assert refused.value.code == "invalid_setting"
    assert refused.value.hint is not None
    assert "kneo keys vapid" in refused.value.hint


@pytest.mark.parametrize(
    ("p256dh", "auth"),
    [
        ("", AUTH),
        (RECEIVER_PUBLIC, ""),
        (RECEIVER_PUBLIC, AUTH + "AAAA"),
        (RECEIVER_PUBLIC[:-4], AUTH),
        ("B" + "A" * 86, AUTH),  # not on the curve
        ("é", AUTH),
        (RECEIVER_PUBLIC, "?" * 22),
        ("A", AUTH),  # infinity, in one byte
    ],
)
def test_keys_that_no_browser_has_are_refused_and_not_repeated(p256dh: str, auth: str) -> None:
    with pytest.raises(Invalid) as refused:
        ReceiverKeys.read(p256dh, auth)
    assert refused.value.code == "invalid_subscription"
    assert RECEIVER_PUBLIC[:10] not in str(refused.value)


def test_base64url_of_browsers_is_decoded() -> None:
    assert decode_base64url("-_8") == b"\xfb\xff"
    assert decode_base64url("+/8") == b"\xfb\xff" or decode_base64url("+/8") == b""
    assert decode_base64url("a b") == b""
