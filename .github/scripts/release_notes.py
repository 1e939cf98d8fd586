"""Print the section of CHANGELOG.md about a version: the notes of its release.

python .github/scripts/release_notes.py v1.2.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
SECTION = r"^## \[{version}\][^\n]*\n(.*?)(?=^## \[|\Z)"


def notes_of(changelog: str, version: str) -> str:
    """Return the section of a version.

    Raises:
        ValueError: there is no such section, or it is empty.
    """
    found = re.search(SECTION.format(version=re.escape(version)), changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        msg = f"CHANGELOG.md has no section ## [{version}] with a text."
        raise ValueError(msg)
    return found[1].strip() + "\n"


def main(tag: str) -> int:
    """Print the notes of a tag; return an exit status."""
    try:
        sys.stdout.write(notes_of(CHANGELOG.read_text(encoding="utf-8"), tag.removeprefix("v")))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
