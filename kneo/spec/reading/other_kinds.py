"""Files of other kinds that are given in place of a spec: environment files, trust roots, signed bundles and decisions."""

from __future__ import annotations

from kneo.spec.documents import Diagnostic, Path, error

ENVIRONMENT = "Environment"

_SIGNED = (
    "This is a signed bundle or decision, and not a spec.",
    "Verify a bundle: kneo spec bundle verify FILE; verify a decision: kneo promotion receipt verify FILE.",
)
_KINDS: dict[tuple[str, str], tuple[str, str]] = {
    ("kind", ENVIRONMENT): ("This is an environment file, and not a spec.", "Check it: kneo spec lint FILE."),
    ("kind", "kneo.spec.bundle"): _SIGNED,
    ("payloadType", "application/vnd.in-toto+json"): _SIGNED,
    ("payloadType", "application/vnd.kneo.trust-root+json"): (
        "This is a signed trust root, and not a spec.",
        "Show it: kneo trust show.",
    ),
}
"""Message and hint by the key that names the kind, and its value. A spec has neither of the keys."""


def is_environment(value: object) -> bool:
    """Return whether a value is an environment file by its kind."""
    return isinstance(value, dict) and value.get("kind") == ENVIRONMENT


def find_other_kind(value: dict[str, object]) -> Diagnostic | None:
    """Return the finding about a file of another kind; ``None`` for a spec."""
    for (key, kind), (message, hint) in _KINDS.items():
        if value.get(key) == kind:
            path: Path = (key,)
            return error("E_SCHEMA", message, path, suggestion=hint)
    return None
