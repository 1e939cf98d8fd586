"""Each reader of outside text answers a long hostile one in a time that grows with its length only."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from time import process_time

import pytest
from pydantic import ValidationError

from kneo.agents.secrets import CallSecrets
from kneo.cli.releases.bundles import named
from kneo.clock import parse_duration
from kneo.controller.source.address import check_ref, parse_address, redact
from kneo.errors import Invalid, KneoError
from kneo.names import name_problem, person_key, plain
from kneo.notify.channels import one_line, quoted
from kneo.redaction import hide_paths, redact_text
from kneo.runtime.engine.questions import render
from kneo.spec.coverage.environment_gates import _any
from kneo.spec.diff import escaped, fenced
from kneo.spec.lint import check
from kneo.spec.models.environment import Match, ReleasePin
from kneo.spec.policy import parse_window
from kneo.spec.reading.load import load_tree
from kneo.trust.checkpoint import parse_checkpoint
from kneo.trust.verify import parse_bundle_path

N = 100_000
SECONDS = 10
"""Far more than any of them takes, and far less than one that backtracks."""


def secret(text: str) -> None:
    load_tree({"agent": {"name": "a"}, "metadata": {"api_key": text, "note": text}}, rules=check)


CALL = CallSecrets()
CALL.add("hunter2 hunter2")
ENCODED = base64.b64encode(b"hunter2 hunter2").decode()

READERS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "windows": (lambda text: parse_window("allow", text), ["Mon,", "Mon-Tue,", "* ", "Mon "]),
    "durations": (parse_duration, ["9", "9m"]),
    "addresses": (parse_address, ["a", "https://a", "a@", "ssh://a-", "https://[", "://a@"]),
    "texts with addresses": (redact, ["://", "://a", "://a@", "@"]),
    "refs": (check_ref, ["a/", "a.", "-", "refs/"]),
    "names": (lambda text: (name_problem(text), person_key(text)), ["a", "\u200b", "a\u0301"]),
    "paths of bundles": (parse_bundle_path, ["bundles/", "a/", "bundles/a-"]),
    "checkpoints": (parse_checkpoint, ["a", "a\n", "— a "]),
    "globs": (
        lambda text: _any([f"{text[:190]}{n}b" for n in range(500)], ["a" * 1_000]),
        ["*a", "*", "?*", "[a", "[!a]*"],
    ),
    "terminals": (plain, ["\x1b[", "\u202e", "\r\n"]),
    "messages": (lambda text: (one_line(text), quoted(text)), ["www.", "://", "> ", "\u2066", "\r"]),
    "templates": (lambda text: render(text, {"a": "b"}), ["{{ ", "{{", "{{a ", "{{a}}", "{{ a}"]),
    "paths": (hide_paths, ["/", "/a", "/+", " /a.", "@/"]),
    "secrets in specs": (
        secret,
        [
            "T9",
            "A_",
            "{",
            "${",
            "<",
            "sk-",
            "sk-a",
            "eyJ",
            "-----BEGIN ",
            "a://",
            "a://b:",
            "/./",
            "bearer ",
            "change_",
        ],
    ),
    "secrets of calls": (
        lambda text: (CALL.hide_text(text), CALL.hide_divided(text)),
        ["\\", "\\\\u", "\\u0068", "%", "%68", "&", "&#104;", "&#1", "hunter2", "hunter2 hunter", ENCODED],
    ),
    "secrets in texts": (
        redact_text,
        [
            "eyJ",
            "-eyJ",
            "eyJabcdefgh.",
            "a@",
            "a@a-",
            "a_",
            "token ",
            "token=",
            'token="',
            "cookie:\t",
            "bearer  ",
            "sk-",
            "-----BEGIN ",
            "-----BEGIN PRIVATE KEY-----",
            "AIza-",
            "ghp_",
            "1-",
            "a.a@",
            "pass_word",
            "\u0131",
        ],
    ),
    "environment files": (
        lambda text: named(text, ReleasePin(bundle="b", version="1")),
        ["- {", "- {bundle: ", "- bundle: b\n", "  ", " releases:", "releases: [ ", "- bundle:\tb "],
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_long_text_is_read_in_linear_time(name: str) -> None:
    reader, pieces = READERS[name]
    for piece in pieces:
        text = (piece * N)[:N]
        for hostile in (text, text + "\0", text + "!"):
            begun = process_time()
            with suppress(KneoError, Invalid, ValueError):
                reader(hostile)
            assert process_time() - begun < SECONDS, piece


def test_markdown_of_a_hostile_text_is_written_in_linear_time() -> None:
    begun = process_time()
    assert fenced(["`" * N, escaped("`*" * N)])[0] == "`" * (N + 1) + "diff"
    assert process_time() - begun < SECONDS


@pytest.mark.parametrize("pattern", ["", "[" * 201])
def test_a_pattern_of_steps_is_short(pattern: str) -> None:
    for field in ("refs", "tools", "steps", "workflows"):
        assert Match.model_validate({field: ["pay*"]})
        with pytest.raises(ValidationError):
            Match.model_validate({field: [pattern]})
