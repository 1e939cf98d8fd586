"""The design rules of CONTRIBUTING.md, as far as a program can check them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kneo",)

REPEATED = {
    "Candidates",
    "ChangedView",
    "Checkpoint",
    "ConcurrentWorkflow",
    "Condition",
    "DecisionRequest",
    "Escalation",
    "GroupChatWorkflow",
    "HandoffWorkflow",
    "Message",
    "Outcome",
    "Person",
    "Quorum",
    "RollbackRequest",
    "RunResult",
    "RunStatus",
    "SequentialWorkflow",
    "StepOutput",
    "Workflow",
}
"""Public class names in several modules: names that programs of the Python surfaces use, and a spec's model beside its record."""

UNFINISHED = re.compile(r"\b(todo|fixme|xxx|hack|wip)\b", re.IGNORECASE)
TICKET = re.compile(
    r"(?<![\w&])#\d+\b|\b(issue|ticket|bug|pull request|pr)[ -]?#?\d+\b|\b[A-Z]{2,}-\d{2,}\b", re.IGNORECASE
)
STANDARD = re.compile(r"\b(RFC|ISO|SHA|UTF|P|ECMA|CVE|AES|NIST)-\d+[\d-]*\b", re.IGNORECASE)
HOME_FOLDER = re.compile(r"(?<![\w.])/(root|home/\w+|Users/\w+)/")


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def comments(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Yield comments and docstrings with their lines, of modules that have this pattern anywhere."""
    source = path.read_text()
    if not pattern.search(source):
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        text = ast.get_docstring(node) if documented else None
        if text:
            yield getattr(node, "lineno", 1), text


def named(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_nothing_is_marked_as_unfinished() -> None:
    found = [
        f"{named(path, line)}: {text.strip()[:100]}"
        for path in modules(*PACKAGES, "tests")
        if path != Path(__file__)
        for line, text in comments(path, UNFINISHED)
        if UNFINISHED.search(text)
    ]
    assert found == []


def test_no_comment_needs_a_tracker_to_be_understood() -> None:
    found = [
        f"{named(path, line)}: {text.strip()[:100]}"
        for path in modules(*PACKAGES, "tests")
        if path != Path(__file__)
        for line, text in comments(path, TICKET)
        if TICKET.search(STANDARD.sub("", text))
    ]
    assert found == []


def test_imports_stand_together_at_the_top() -> None:
    """ruff accepts an import below ``if TYPE_CHECKING:``, where a reader does not look for it."""
    late = []
    for path in modules(*PACKAGES):
        body = ast.parse(path.read_text()).body
        first = next((number for number, node in enumerate(body) if _is_for_types(node)), len(body))
        late += [named(path, node.lineno) for node in body[first + 1 :] if _is_import(node) or _is_for_types(node)]
    assert not late


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_a_public_class_name_exists_once() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in modules(*PACKAGES):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(ROOT).as_posix())
    repeated = {name: where for name, where in places.items() if len(where) > 1}
    assert repeated.keys() == REPEATED, {name: repeated.get(name) for name in repeated.keys() ^ REPEATED}


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "docs", "examples", ".github", ".ci"])
def test_no_file_names_a_home_folder(folder: str) -> None:
    texts = (path for path in (ROOT / folder).rglob("*") if path.suffix in {"", ".md", ".py", ".toml", ".yaml", ".yml"})
    found = [
        named(path, number)
        for path in texts
        if path.is_file() and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if HOME_FOLDER.search(line)
    ]
    assert found == []


def test_every_workflow_action_is_pinned_and_every_job_has_the_least_rights() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text()
        for action in re.findall(r"uses: (\S+)", text):
            assert action.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), f"{path.name}: {action}"
        assert "\npermissions: {}\n" in text, f"{path.name} starts with rights"
