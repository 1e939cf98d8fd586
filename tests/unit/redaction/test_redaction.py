from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kneo import redaction
from kneo.redaction import LOOKAHEAD, REDACTED, hide_paths, is_secret_key, redact, redact_start, redact_text

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N"


@pytest.mark.parametrize(
    "key",
    [
        "api_key", "apiKey", "X-Kneo-Api-Key", "OPENAI_API_KEY", "authorization", "Set-Cookie", "client_secret",
        "clientSecret", "dbPassword", "refresh_token", "accessToken", "session", "session_key", "credentials",
        "private_key", "ssn", "user_email", "SSHPrivateKey", "tokens", "ca_bundle", "client_cert", "client_key",
    ],
)  # fmt: skip
def test_what_stands_under_a_secret_key_goes_whole(key: str) -> None:
    assert redact({key: "plain words"}) == {key: REDACTED}
    assert redact({"deep": [{key: {"a": 1}}]}) == {"deep": [{key: REDACTED}]}


@pytest.mark.parametrize(
    "key",
    [
        "max_tokens", "input_tokens", "outputTokens", "total_tokens", "token_budget", "usage", "session_id",
        "tokens_used_total", "trace_event_count", "cached_tokens", "reasoning_tokens", "tokens_per_minute", "tokenizer", "secretary", "passwordless", "cookiecutter", "keyboard",
        "author", "key", "keyid", "monkey", "obsession", "emailed",
    ],
)  # fmt: skip
def test_words_that_only_contain_secret_ones_stay(key: str) -> None:
    assert not is_secret_key(key)
    assert redact({key: "plain words"}) == {key: "plain words"}


def test_nothing_and_yes_and_no_stay_under_any_key() -> None:
    assert redact({"token": None, "api_key": False}) == {"token": None, "api_key": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ann@example.com now", "write to [REDACTED_EMAIL] now"),
        ("his number is 123-45-6789.", "his number is [REDACTED_SSN]."),
        ("Authorization: Bearer abcdef0123456789", "Authorization=[REDACTED] [REDACTED]"),
        ("bearer abcdef0123456789", "bearer [REDACTED]"),
        ("Basic dXNlcjpwYXNz", "Basic [REDACTED]"),
        ("key sk-abcdefghijklmnop end", "key [REDACTED] end"),
        ("AKIAABCDEFGHIJKLMNOP", REDACTED),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", REDACTED),
        ("github_pat_11ABCDEFG0abcdefghijklmnop", REDACTED),
        ("AIzaSyA1234567890abcdefghijklmnopqrstuv", REDACTED),
        (JWT, REDACTED),
        ("password: hunter2, and so on", "password=[REDACTED], and so on"),
        ('{"api_key": "abc def"}', '{"api_key"=[REDACTED]}'),
        ("?token=abc&next=1", "?token=[REDACTED]&next=1"),
        ("client_secret=abc", "client_secret=[REDACTED]"),
        ("Cookie: a=b; c=d\nHost: x", "Cookie: [REDACTED]\nHost: x"),
        ("-----BEGIN PRIVATE KEY-----\nMIIB\nAB==\n-----END PRIVATE KEY-----\nafter", "[REDACTED]\nafter"),
        ("bearer -----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----", "bearer [REDACTED]"),
    ],
)
def test_secrets_in_text_are_replaced(text: str, expected: str) -> None:
    assert redact_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The basic idea is simple.", "a bearer of news", "2026-11-21T03:14:11+00:00", "sha256:" + "a" * 64,
        "run_01jd3x7q8m9n0p1r2s3t4v5w6x", "secretary: Ann", "ask-me-anything-about-this", "1-800-123-45-67890",
        "max_tokens: 20", "tokens are counted",
    ],
)  # fmt: skip
def test_ordinary_text_stays(text: str) -> None:
    assert redact_text(text) == text


def test_personal_data_stays_where_people_have_to_judge_it() -> None:
    text = "Send it to ann@example.com, password=hunter2"
    assert redact_text(text, personal=False) == "Send it to ann@example.com, password=[REDACTED]"


def test_paths_are_hidden_only_where_asked() -> None:
    assert redact_text("see /srv/app/x.py") == "see /srv/app/x.py"
    assert hide_paths("see /srv/app/x.py, 1/2 and https://a/b/c") == "see [PATH], 1/2 and https://a/b/c"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_redacting_twice_is_redacting_once(value: object) -> None:
    once = redact(value)
    assert redact(once) == once


@given(st.text(alphabet="aA1@.-_=: \"'/", max_size=300))
def test_no_text_takes_long_or_fails(text: str) -> None:
    assert isinstance(redact_text(text * 20), str)


def test_what_is_too_deep_is_not_shown() -> None:
    value: object = "ann@example.com"
    for _ in range(200):
        value = [value]
    assert "example.com" not in str(redact(value))


def test_the_original_is_left_alone() -> None:
    given_value = {"password": "x", "list": ["ann@example.com"]}
    redact(given_value)
    assert given_value == {"password": "x", "list": ["ann@example.com"]}


EVERY_SIGN = "".join(sign for rule in redaction._EVERYTHING for sign in rule.signs)


@given(
    st.lists(
        st.sampled_from(
            [
                "Bearer ", "basic ", JWT, "sk-", "AKIA", "ghp_", "github_pat_", "AIza", "-----BEGIN PRIVATE KEY-----",
                "Set-Cookie: ", "api-key", "apikey", "client_secret", "password", "token", "credential", "=", ": ", "\n",
                "abcdefghijklmnopqrstuvwxyz", "0123456789ABCDEF", "ann@example.com", "123-45-6789", " ", '"', "\u017fecret", "bas\u0131c ", "BAS\u0130C ", "to\u212aen",
            ]
        ),
        max_size=6,
    ).map("".join)
)  # fmt: skip
def test_looking_beforehand_keeps_nothing(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_folded", lambda _text: EVERY_SIGN)
        careful = redact_text(text)
    assert redact_text(text) == careful


def test_a_long_run_of_tokens_that_are_none_is_read_once() -> None:
    begun = process_time()
    for piece in ("-eyJ", "eyJ-", "eyJabcdefgh-"):
        text = piece * 250_000
        assert redact_text(text) == text
    assert process_time() - begun < 5
    assert redact_text("x-eyJ" * 1_000 + JWT) == "x-" + REDACTED


def test_a_long_key_is_judged_by_its_end_too() -> None:
    assert redact({"a" * 5_000 + "_password": "plain words"}) == {"a" * 5_000 + "_password": REDACTED}
    assert redact({"password_" + "a" * 5_000: "plain words"}) == {"password_" + "a" * 5_000: REDACTED}


# ---- the beginning of a text ----------------------------------------------------------------------------------------

SECRETS = [
    "QZ0QZ1QZ2QZ3", "sk-QZ0QZ1QZ2QZ3QZ4", "AKIAQZQZQZQZQZQZQZQZ", "ghp_QZ0QZ1QZ2QZ3QZ4QZ5QZ6", "AIza" + "QZ0QZ" * 7,
    "github_pat_" + "QZ0QZ1QZ2QZ3" * 3, "-----BEGIN RSA PRIVATE KEY-----\n" + "QZ0QZ1QZ\n" * 9 + "-----END RSA PRIVATE KEY-----",
    "eyJ" + "QZ0QZ1" * 20 + "." + "QZ2QZ3" * 20 + ".QZ4QZ5", "eyJ" + "QZ0QZ1" * 200 + "." + "QZ2QZ3" * 20 + ".QZ4QZ5",
    "QZQZQZ.QZQZ@QZQZ.QZ", "Q" * 64 + "@" + "Z" * 63 + ".QZ", "000-00-0000",
]  # fmt: skip
"""Secrets of characters that stand nowhere else in these tests."""

OPENINGS = ["", "word ", "bearer ", "Cookie:   a=", "password=", "'api_key': '", '"client_secret": "', "token = "]


def leaks(shown: str) -> bool:
    """Return whether a text has a character of a secret."""
    return any(character in "QZ0" for character in shown.replace(REDACTED, "").replace("[REDACTED_EMAIL]", ""))


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: f"{secret[:12]!r}-{len(secret)}")
def test_no_cut_shows_a_part_of_a_secret(opening: str, secret: str) -> None:
    before = f"some words, {opening}"
    length = len(before) + len(secret)
    for after in (" and more words", "\nand more lines\n" * 90):
        text = f"{before}{secret}{after}"
        redacted = redact_text(text)
        if leaks(redacted):
            # A password is one only behind its name; of an address behind another word the host stays.
            assert (opening in {"", "word "} and secret == SECRETS[0]) or (opening == "bearer " and "@" in secret)
            continue
        for limit in {*range(min(length, 150)), *range(150, length, 31), *range(max(length - 9, 0), length + 3)}:
            shown = redact_start(text, limit)
            assert not leaks(shown), (limit, shown)
            assert redacted.startswith(shown), (limit, shown)
            assert len(shown) <= limit


PIECES = [
    "Bearer ", "basic ", JWT, "sk-", "AKIA", "ghp_", "github_pat_", "AIza", "eyJ", "-----BEGIN PRIVATE KEY-----", ".",
    "-----END PRIVATE KEY-----", "Set-Cookie: ", "api-key", "client_secret", "password", "token", "=", ": ", "\n", "'",
    "abcdefghijklmnopqrstuvwxyz", "0123456789ABCDEF", "ann@example.com", "123-45-6789", " ", '"', "-", "_", "[REDACTED]",
    "words " * 40, "A" * 700, "bas\u0131c ", "BAS\u0130C ",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.booleans(), st.data())
def test_the_start_of_a_text_is_the_start_of_what_may_be_shown_of_it(
    text: str, personal: bool, data: st.DataObject
) -> None:
    limit = data.draw(st.integers(0, len(text) + 2))
    shown = redact_start(text, limit, personal=personal)
    assert redact_text(text, personal=personal).startswith(shown)
    assert redact_start(text[: limit + LOOKAHEAD], limit, personal=personal) == shown, "more is not read"


@pytest.mark.parametrize("text", ["", "plain", "plain " * 900, "token " * 900, "basic ideas " * 500])
def test_the_start_of_an_ordinary_text_is_as_long_as_it_may_be(text: str) -> None:
    assert redact_start(text, 700) == text[:700]
