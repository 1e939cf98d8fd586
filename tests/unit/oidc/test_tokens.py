from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from oidc_issuer import AUDIENCE, Json, OidcIssuer, ec_key, ed_key, jwk_of, rsa_key

from kneo.extensions.oidc.discovery import IssuerKey, IssuerMetadata, signing_keys
from kneo.extensions.oidc.people import InvalidToken, identity_of, signing_key_of, verified_claims
from kneo.settings import OidcSettings

ISSUER = "https://login.example.org/"
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
AT = int(NOW.timestamp())
SETTINGS = OidcSettings(issuer=ISSUER, audience=AUDIENCE)
KEYS = [
    jwk_of(rsa_key(), kid="rsa", use="sig"),
    jwk_of(ec_key(), kid="ec", alg="ES256"),
    jwk_of(ed_key(), kid="ed", alg="EdDSA"),
]


def token(key: object = None, algorithm: str = "RS256", header: Json | None = None, **changes: object) -> str:
    issuer = _named()
    times = {"iat": AT, "exp": AT + 600}
    return issuer.token(
        key=key, algorithm=algorithm, kid=None, header={"kid": "rsa"} | (header or {}), **times | changes
    )


def checked(text: str, keys: list[Json] = KEYS, settings: OidcSettings = SETTINGS) -> Json:
    key_id, algorithm = signing_key_of(text)
    key = IssuerMetadata(keys=signing_keys({"keys": keys})).find_key(key_id, algorithm)
    if key is None:
        raise InvalidToken("no key")
    return dict(verified_claims(text, key, issuer=settings.issuer, audience=AUDIENCE, now=NOW))


def refused(text: str, keys: list[Json] = KEYS) -> str:
    with pytest.raises(InvalidToken) as caught:
        checked(text, keys)
    assert caught.value.http_status == 401
    return caught.value.message


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(rsa_key(), "RS256", "rsa"), (ec_key(), "ES256", "ec"), (ed_key(), "EdDSA", "ed")]
)
def test_each_accepted_algorithm(key: object, algorithm: str, kid: str) -> None:
    assert checked(token(key, algorithm, {"kid": kid}))["sub"] == "ann"


def raw(header: Json, claims: Json, signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_the_public_key_is_no_shared_secret() -> None:
    pem = (
        rsa_key().public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    issuer = _named()
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    unsigned = raw({"alg": "HS256", "kid": "rsa"}, issuer.claims(iat=AT, exp=AT + 600)).rpartition(".")[0]
    for secret in (pem, json.dumps(KEYS[0]).encode(), b""):
        signature = base64.urlsafe_b64encode(hmac.sign(unsigned.encode(), secret)).rstrip(b"=").decode()
        assert "algorithm" in refused(f"{unsigned}.{signature}")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, 5, "RS512", "PS256", "ES384", "HS256", "RS1"])
def test_no_other_algorithm(algorithm: object) -> None:
    assert "algorithm" in refused(raw({"alg": algorithm, "kid": "rsa"}, {"sub": "ann"}))


def test_a_key_has_one_algorithm() -> None:
    """A key of one kind is not found for the algorithm of another."""
    assert refused(token(ec_key(), "ES256", {"kid": "rsa"})) == "no key"
    assert refused(token(ed_key(), "EdDSA", {"kid": "ec"})) == "no key"
    assert "signed" in refused(token(rsa_key("other")))


def test_an_issuer_that_publishes_shared_secrets_and_weak_keys_publishes_none() -> None:
    secret = {"kty": "oct", "k": base64.urlsafe_b64encode(b"x" * 32).decode(), "kid": "rsa"}
    weak = jwk_of(rsa_key("weak", 1024), kid="rsa")
    others = [
        jwk_of(rsa_key(), kid="rsa", use="enc"),
        jwk_of(rsa_key(), kid="rsa", alg="RS512"),
        jwk_of(rsa_key(), kid=5),
        {"kty": "RSA", "kid": "rsa"},
        {"kty": "EC", "crv": "P-384", "kid": "rsa"},
        {**jwk_of(rsa_key(), kid="rsa"), "n": "A" * 5_000},
        "text",
        None,
    ]
    assert signing_keys({"keys": [secret, weak, *others]}) == ()
    assert signing_keys({"keys": "text"}) == signing_keys({}) == ()


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": jwk_of(rsa_key("other"), kid="rsa")},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/certificate"},
        {"x5c": ["MIIB"]},
    ],
)
def test_keys_that_the_token_brings_are_not_used(header: Json) -> None:
    assert "signed" in refused(token(rsa_key("other"), header=header))
    assert checked(token(header=header))["sub"] == "ann"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aud": "another"}, "audience"),
        ({"aud": [f"{AUDIENCE}x", "y"]}, "audience"),
        ({"aud": None}, "aud"),
        ({"aud": {"a": 1}}, "token"),
        ({"iss": "https://login.example.org"}, "issuer"),
        ({"iss": None}, "iss"),
        ({"sub": None}, "sub"),
        ({"exp": None}, "exp"),
        ({"iat": None}, "iat"),
        ({"exp": AT - 60}, "expired"),
        ({"exp": AT - 60, "iat": AT - 600}, "expired"),
        ({"nbf": AT + 61}, "not valid yet"),
        ({"iat": AT + 61}, "not valid yet"),
        ({"exp": "2099-01-01"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": 1e300}, "exp"),
        ({"exp": float("nan")}, "exp"),
        ({"exp": float("inf")}, "exp"),
        ({"iat": -5}, "iat"),
        ({"nbf": []}, "nbf"),
        ({"cnf": {"jkt": "x"}}, "bound"),
    ],
)
def test_claims_that_are_refused(changes: Json, message: str) -> None:
    assert message in refused(token(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"exp": AT - 59}, {"nbf": AT + 60}, {"iat": AT + 60}, {"aud": ["other", AUDIENCE]}, {"exp": AT + 0.5}],
)
def test_clocks_may_differ_by_a_minute(changes: Json) -> None:
    assert checked(token(**changes))


@pytest.mark.parametrize("kind", ["logout+jwt", "secevent+jwt", "dpop+jwt", 5, None])
def test_tokens_of_another_kind(kind: object) -> None:
    good = OidcIssuer().claims()
    assert "neither" in refused(raw({"alg": "RS256", "kid": "rsa", "typ": kind}, good))


@pytest.mark.parametrize("kind", ["JWT", "at+jwt", "application/at+jwt"])
def test_access_and_id_tokens(kind: str) -> None:
    assert checked(token(header={"typ": kind}))


def test_a_critical_header_that_is_not_understood() -> None:
    assert refused(token(header={"crit": ["exp"], "exp": 1}))


@pytest.mark.parametrize(
    "text",
    ["..", "a.b.c", "e30.e30.e30", raw({"alg": "RS256"}, {}) + "=", "\x00.\x00.\x00", "é.é.é", "[" * 9_000 + ".."],
)
def test_what_is_no_token(text: str) -> None:
    assert refused(text)


def test_a_header_in_a_header() -> None:
    nested = base64.urlsafe_b64encode(b'{"alg":' * 800 + b"1" + b"}" * 800).decode().rstrip("=")
    assert refused(f"{nested}.e30.e30")


def test_a_huge_token_is_not_read() -> None:
    assert "16384" in refused(token(filler="x" * 20_000))


def test_without_a_key_id_only_where_one_key_fits() -> None:
    bare = _named().token(kid=None, iat=AT, exp=AT + 600)
    assert checked(bare)["sub"] == "ann"
    assert refused(bare, [*KEYS, jwk_of(rsa_key("other"), kid="two")]) == "no key"


def _named() -> OidcIssuer:
    issuer = OidcIssuer()
    issuer.url = ISSUER
    return issuer


def identity(settings: OidcSettings = SETTINGS, **changes: object) -> tuple[str, frozenset[str]]:
    found = identity_of(_named().claims(iat=AT, exp=AT + 600, **changes), settings)
    return found.name, found.groups


def test_the_name_is_the_subject_unless_the_operator_names_a_claim() -> None:
    assert identity()[0] == "ann"
    by_login = OidcSettings(issuer=ISSUER, name_claim="preferred_username")
    assert identity(by_login, preferred_username="  Ａnn ")[0] == "Ann"
    with pytest.raises(InvalidToken, match="preferred_username"):
        identity(by_login)


@pytest.mark.parametrize("verified", [None, False, "true", 1, "false"])
def test_an_address_counts_only_where_the_issuer_verified_it(verified: object) -> None:
    by_mail = OidcSettings(issuer=ISSUER, name_claim="email")
    assert identity(by_mail, email="ann@example.org", email_verified=True)[0] == "ann@example.org"
    with pytest.raises(InvalidToken, match="verified"):
        identity(by_mail, email="ann@example.org", email_verified=verified)


@pytest.mark.parametrize("name", ["", " ", "\u200b", "a\nb", "\u202eann", "\u0430nn", "x" * 201, 5, ["ann"], "\ud800"])
def test_names_that_no_person_has(name: object) -> None:
    with pytest.raises(InvalidToken):
        identity(OidcSettings(issuer=ISSUER, name_claim="login"), login=name)
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        with pytest.raises(InvalidToken):
            identity(sub=name)


@pytest.mark.parametrize("name", ["\ufdfa" * 12, "\u00df" * 101, "\ufb03" * 67], ids=["name", "key", "ligature"])
def test_a_name_that_is_too_long_in_its_normal_form_is_refused(name: str) -> None:
    with pytest.raises(InvalidToken, match="200 characters"):
        identity(OidcSettings(issuer=ISSUER, name_claim="login"), login=name)
    identity(OidcSettings(issuer=ISSUER, name_claim="login"), login=name[:10])


@pytest.mark.parametrize(
    ("groups", "read"),
    [
        (None, set()),
        ([], set()),
        (["a", "b", "a"], {"a", "b"}),
        ("one", {"one"}),
        (["a", "x" * 201], {"a"}),
    ],
)
def test_groups(groups: object, read: set[str]) -> None:
    assert identity(groups=groups)[1] == read


@pytest.mark.parametrize("groups", [{"a": 1}, 5, True, ["a", 5], [["a"]], [None], ["a\x00"], "", [""], ["a", {"b": 1}]])
def test_malformed_groups_are_refused_rather_than_none(groups: object) -> None:
    with pytest.raises(InvalidToken, match="groups"):
        identity(groups=groups)


def test_groups_in_another_claim() -> None:
    settings = OidcSettings(issuer=ISSUER, groups_claim="https://example.org/teams")
    assert identity(settings, **{"https://example.org/teams": ["red"]})[1] == {"red"}


def test_a_key_that_is_published_with_its_private_part_only_verifies() -> None:
    private = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(), as_dict=True)
    keys = signing_keys({"keys": [{**private, "kid": "rsa", "key_ops": None}]})
    assert [type(key) for key in keys] == [IssuerKey]
    assert isinstance(keys[0].key.key, rsa.RSAPublicKey)
