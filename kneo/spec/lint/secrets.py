"""Rules for secrets: a spec is signed, kept in Git and shown to all reviewers, so it must not contain credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.documents import Path
from kneo.spec.index import SpecIndex

_SHAPES = (
    ("a private key", r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY-----"),
    ("an Anthropic key", r"\bsk-ant-[A-Za-z0-9_-]{16,200}"),
    ("an API key", r"\bsk-(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{20,200}"),
    ("a Stripe key", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,200}"),
    ("an AWS access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{30,200}|github_pat_[A-Za-z0-9_]{30,200})"),
    ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,200}"),
    ("a Google key", r"\bAIza[A-Za-z0-9_-]{35}\b"),
    ("a Slack token", r"\bxox[abeprs]-[A-Za-z0-9-]{10,200}"),
    ("a Slack webhook", r"hooks\.slack\.com/services/T[A-Za-z0-9]{6,20}/B[A-Za-z0-9]{6,20}/[A-Za-z0-9]{16,40}"),
    ("a Hugging Face token", r"\bhf_[A-Za-z0-9]{30,60}\b"),
    ("a JSON web token", r"\beyJ[A-Za-z0-9_-]{10,500}\.eyJ[A-Za-z0-9_-]{10,500}\.[A-Za-z0-9_-]{10,500}"),
    (
        "a password in an address",
        r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@$<{]{1,100}:(?![$<{]|(?:pass|password|pw|secret|token)@)[^\s/@]{3,200}@",
    ),
)
"""Patterns of credentials of well-known issuers; each is unambiguous and bounded."""

_SHAPE = re.compile("|".join(f"(?P<s{number}>{pattern})" for number, (_, pattern) in enumerate(_SHAPES)))

_HINTS = (
    *("-----BEGIN", "sk-", "k_live_", "k_test_", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    *("glpat-", "AIza", "xox", "hooks.slack", "hf_", "eyJ", "://"),
)
"""Every shape contains one of these; texts without are not searched."""

_SECRET_WORDS = frozenset(
    {"password", "passwd", "passphrase", "secret", "token", "apikey", "credential", "credentials", "authorization"}
)
_SECRET_PAIRS = frozenset({("api", "key"), ("access", "key"), ("private", "key"), ("signing", "key"), ("auth", "key")})
_REFERENCE_ENDINGS = frozenset({"ref", "refs", "env", "var", "name", "file", "path", "url", "uri", "id", "type"})

MIN_DISTINCT = 10
"""Different characters in a credential with its prefix; documentation writes sk-xxxxxxxxxxxxxxxxxxxx."""

_SCHEME = re.compile(r"^(?:bearer|basic|token|digest) +", re.IGNORECASE)
_ENV_NAME = re.compile(r"[A-Z]{2,20}|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_PLACEHOLDER = re.compile(
    r"""
      \$\{.*\} | \$[a-z_][a-z0-9_]*     # ${NAME}, ${{ secrets.NAME }}, $NAME
    | [<{%\[].*[>}%\]]                  # <your key>, {{ key }}, %KEY%, [REDACTED]
    | (?:env|secrets?|vault|ref|file|op|ssm|arn|keyring|sops|k8s):.*
    | (?:~|\.{1,2})?/[\w./ -]*          # a file
    | [*x.…-]+ | none | null | true | false
    | (?:change|replace|your|insert|example|dummy|placeholder|todo|redacted)[a-z_. -]*
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def inline_secrets(index: SpecIndex) -> Iterator[Diagnostic]:
    """No text in the spec is a credential."""
    tree = index.spec.model_dump(by_alias=True, exclude_unset=True)
    for path, text in _texts(tree, ()):
        what = _known_shape(text) or _by_name(path, text)
        if what is not None:
            yield _inline(what, path)
    for name, server in index.spec.mcp_servers.items():
        for number, (option, value) in enumerate(pairwise(server.args)):
            named = option.startswith("-") and "=" not in option and _names_secret(option.lstrip("-"))
            if named and not value.startswith("-") and not _is_reference(value) and _known_shape(value) is None:
                yield _inline("a credential", ("mcp_servers", name, "args", number + 1))


def _inline(what: str, path: Path) -> Diagnostic:
    message = f"This looks like {what}, written into the spec."
    hint = "Keep it in an environment variable or a secret store and name that here; revoke this one."
    return error("E_SECRET_INLINE", message, path, suggestion=hint)


def _texts(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*path, number))


def _known_shape(text: str) -> str | None:
    if not any(hint in text for hint in _HINTS):
        return None
    for found in _SHAPE.finditer(text):
        made_up = "EXAMPLE" in found[0] or len(set(found[0])) < MIN_DISTINCT
        if found.lastgroup is not None and not made_up:
            return _SHAPES[int(found.lastgroup[1:])][0]
    return None


def _by_name(path: Path, text: str) -> str | None:
    """Find credentials by the key of a text, or by the command line option before it."""
    key = path[-1]
    if path[:1] == ("mcp_servers",) and len(path) == 4 and path[2] == "args":
        option, _, value = text.partition("=")
        named = option.startswith("-") and bool(value) and _names_secret(option.lstrip("-"))
        return "a credential" if named and not _is_reference(value) else None
    if not isinstance(key, str) or not _may_hold(path) or not _names_secret(key):
        return None
    return "a credential" if not _is_reference(text) else None


def _may_hold(path: Path) -> bool:
    """Tell whether keys at a path are names of settings rather than prose, schemas or names that people chose."""
    if path[0] in {"metadata", "policies"} or (path[0] == "mcp_servers" and path[2:3] in {("env",), ("headers",)}):
        return True
    return any(part in {"extra", "config", "defaults", "context"} for part in path[:-1])


def _names_secret(key: str) -> bool:
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower().replace("-", "_").split("_")
    if words[-1] in _REFERENCE_ENDINGS:
        return False
    pairs = frozenset(pairwise(words))
    return bool(_SECRET_WORDS & frozenset(words) or _SECRET_PAIRS & pairs)


def _is_reference(text: str) -> bool:
    bare = _SCHEME.sub("", text.strip())
    return len(bare) < 4 or _ENV_NAME.fullmatch(bare) is not None or _PLACEHOLDER.fullmatch(bare) is not None
