"""Names of refs, as people write them and as git takes them."""

from __future__ import annotations

import re

from kneo.errors import Invalid

_BRANCHES = "refs/heads/"
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_REF_CHARS = 250


def check_ref(ref: str) -> str:
    """Check that a text can only be a ref.

    Raises:
        Invalid: it could be an option, a revision expression or a path.
    """
    odd = "..", "//", "@{", ".lock/", "/."
    if (
        len(ref) > _REF_CHARS
        or not _REF.fullmatch(ref)
        or ref.endswith((".lock", "."))
        or any(part in ref for part in odd)
    ):
        msg = f"{ref[:100]!r} is not the name of a branch or a ref."
        raise Invalid(
            msg, code="invalid_ref", hint="Give a branch such as main, or a full ref such as refs/pull/7/head."
        )
    return ref


def short_ref(ref: str) -> str:
    """Call a branch by its plain name."""
    return ref.removeprefix(_BRANCHES)


def full_ref(ref: str) -> str:
    """Call a branch by its full name."""
    return ref if ref == "HEAD" or ref.startswith("refs/") else f"{_BRANCHES}{ref}"
