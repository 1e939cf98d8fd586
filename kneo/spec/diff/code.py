"""The changes of a bundle's code in words: files with all their lines, and packages."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.digest import digest_of
from kneo.names import visible
from kneo.spec.code import BundleCode, text_of
from kneo.spec.diff.locations import HIGH, LOW, MEDIUM, SpecChange
from kneo.spec.diff.texts import count, shorten, text_rows

CODE = "code"
"""The area of these changes."""

_NONE = BundleCode({}, {})


def code_changes(old: BundleCode | None, new: BundleCode | None) -> Iterator[SpecChange]:
    """Yield the changes of the code from one version to another."""
    if old is not None and new is None:
        yield SpecChange(HIGH, CODE, "The bundle carries no code any more: what runs is not part of it.", CODE)
    before, after = old or _NONE, new or _NONE
    for path in sorted({*before.files, *after.files}):
        if before.files.get(path) != after.files.get(path):
            yield _file(path, before.files.get(path), after.files.get(path))
    for name in sorted({*before.packages, *after.packages}):
        was, becomes = before.packages.get(name), after.packages.get(name)
        if was != becomes:
            words = (
                f"from {was} to {becomes}"
                if was and becomes
                else f"{becomes} is new"
                if becomes
                else "is not used any more"
            )
            danger = MEDIUM if becomes else LOW
            yield SpecChange(
                danger, CODE, visible(f"The package {name} {'changes ' if was and becomes else ''}{words}."), CODE
            )


def code_facts(new: BundleCode, command: str) -> SpecChange:
    """Return the code of a first version: its size, and all lines of all files."""
    texts = {path: text_of(data) for path, data in sorted(new.files.items())}
    lines = sum(text.count("\n") + (not text.endswith("\n")) for text in texts.values() if text)
    packages = ", ".join(f"{name} {version}" for name, version in sorted(new.packages.items()))
    whole = tuple(
        row
        for path, data in sorted(new.files.items())
        for row in (f" --- {visible(path)}", *_file(path, None, data).lines)
    )
    size = f"{count(len(new.files), 'file')}, {count(lines, 'line')}, {new.size:,} bytes"
    uses = f", packages {packages}" if packages else ""
    return SpecChange(MEDIUM, CODE, visible(f"{size}{uses}; all of it: {command}"), "", whole)


def _file(path: str, before: bytes | None, after: bytes | None) -> SpecChange:
    size = (
        f"{len(before or b''):,} to {len(after or b''):,} bytes"
        if before is not None
        else f"{len(after or b''):,} bytes"
    )
    what = "is new" if before is None else "is removed" if after is None else "is changed"
    old, new = text_of(before or b""), text_of(after or b"")
    message, where = visible(f"The file {path} {what} ({size})."), visible(f"{CODE}.{path}")
    if old is None or new is None:
        digests = " to ".join(digest_of(data) for data in (before, after) if data is not None)
        return SpecChange(HIGH, CODE, f"{message} It is binary, and its content is not shown: {digests}.", where)
    lines = text_rows(old, new)
    return SpecChange(HIGH if shorten(lines).hides else MEDIUM, CODE, message, where, lines)
