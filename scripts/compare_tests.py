"""Compare the tests of an earlier commit with those of this work tree: which cases are gone, and which tests of their files are new.

.venv/bin/python scripts/compare_tests.py COMMIT
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLLECT = (
    "-m",
    "pytest",
    "--collect-only",
    "-q",
    "-o",
    "addopts=--strict-markers --import-mode=importlib -p no:schemathesis",
)


def collected(folder: Path) -> set[str]:
    """Return the ids of all cases below a folder that holds a version of the repository."""
    done = subprocess.run(  # noqa: S603 - this interpreter, on a version of this repository
        [sys.executable, *COLLECT],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return {line for line in done.stdout.splitlines() if "::" in line}


def collected_at(commit: str) -> set[str]:
    """Return the ids of all cases of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)  # noqa: S603 - git
        try:
            return collected(tree)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)  # noqa: S603 - git


def tests_of(ids: set[str]) -> Counter[str]:
    """Return the number of cases of each test."""
    return Counter(each.partition("[")[0] for each in ids)


def compare(before: set[str], after: set[str]) -> str:
    """Return what became of the cases of a commit, file by file."""
    gone, new = before - after, after - before
    lines = [f"{len(before)} cases before, {len(after)} now: {len(gone)} gone, {len(new)} new"]
    new_of_file: defaultdict[str, list[str]] = defaultdict(list)
    for test, count in sorted(tests_of(new).items()):
        new_of_file[test.partition("::")[0]].append(f"{test} ({count})")
    for test, count in sorted(tests_of(gone).items()):
        successors = new_of_file[test.partition("::")[0]]
        lines.append(f"  {test} ({count}): {', '.join(successors) or 'dropped, no new test in its file'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(compare(collected_at(sys.argv[1]), collected(ROOT)))  # noqa: T201 - its output
