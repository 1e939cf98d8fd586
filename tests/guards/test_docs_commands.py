"""Every command of the documentation is executed by a test, or marked with the reason why it is not; each one exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from docs_pages import COMMAND, DOCS, ROOT, Block, blocks
from typer._click import Command, Context
from typer.core import TyperGroup
from typer.main import get_group

from kneo.cli.commands import COMMANDS, aliases_of
from kneo.cli.main import LazyGroup, app

PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]
GENERATED = {"docs/reference/cli.md"}
EXECUTED = {
    "README.md": "tests/e2e/test_readme.py",
    "docs/guides/releases/README.md": "tests/e2e/controller/test_release_guide.py",
    "docs/guides/releases/story.md": "tests/integration/cli/test_release_story.py",
    "docs/guides/specs/agents.md": "tests/e2e/test_agents_guide.py",
    "docs/guides/specs/memory.md": "tests/e2e/test_memory_guide.py",
    "docs/guides/specs/skills.md": "tests/e2e/test_skills_guide.py",
    "docs/operations/README.md": "tests/e2e/test_operator.py",
    "docs/operations/oidc.md": "tests/integration/service/test_oidc.py",
    "docs/operations/doctor.md": "tests/integration/cli/test_doctor.py",
    "docs/operations/upgrade.md": "tests/integration/cli/test_maintenance.py",
}
"""The test that executes the ``bash`` (in the README, ``sh``) blocks of a page, where it is not the walk of ``WALKS``."""

WALKS = "tests/e2e/test_docs_walks.py"
SPAN = re.compile(r"(?<!`)`(kneo [^`\n]+)`(?!`)")
OPTION = re.compile(r"\W*?(--[a-z][a-z-]*)")


def executed(block: Block) -> bool:
    """Return whether a test executes the block's commands."""
    if block.kind == "console" and block.text.startswith("$ "):
        return block.page.startswith(("docs/guides/", "docs/moving/"))  # test_docs_examples
    if block.kind not in {"bash", "sh"}:
        return False
    test = EXECUTED.get(block.page, WALKS)
    return block.page.removeprefix("docs/") in (ROOT / test).read_text(encoding="utf-8")


def test_every_block_of_commands_is_executed_or_says_why_not() -> None:
    found = [
        block
        for page in PAGES
        for block in blocks(page)
        if block.kind in {"bash", "sh", "console"} or any(COMMAND.match(line) for line in block.text.splitlines())
        if block.page not in GENERATED
        and block.kind not in {"yaml", "python", "diff", "json", "markdown", "dockerfile", "ini", "nginx"}
    ]
    assert len(found) > 30
    unmarked = [str(block) for block in found if not block.reason and not executed(block)]
    assert not unmarked, "execute these blocks in a test, or put <!-- not executed: REASON --> before each"


@cache
def program() -> TyperGroup:
    root = get_group(app)
    assert isinstance(root, LazyGroup)
    root.entries, root.aliases = COMMANDS, aliases_of("")
    return root


def written(page: Path) -> Iterator[str]:
    """Return each ``kneo`` command of a page, in blocks and in sentences."""
    for block in blocks(page):
        yield from (command.removeprefix("$ ") for command in block.commands if re.match(r"(\$ )?kneo ", command))
    yield from SPAN.findall(page.read_text(encoding="utf-8"))


def problem(text: str) -> str | None:
    """Return what is wrong with a command: an unknown word where a command is expected, or an unknown option."""
    try:
        words = shlex.split(text.replace("…", " "), comments=True)
    except ValueError:
        words = text.partition('"')[0].split()  # a quotation that goes on in the next line
    command: Command = program()
    context = Context(command, info_name="kneo")
    for word in words[1:]:
        if not isinstance(command, TyperGroup) or word.startswith("-"):
            break
        names = [command.get_command(context, name) for name in re.split(r"[|/]", word)]
        if None in names:
            return None if re.fullmatch(r"[A-Z.]+|\W+", word) else f"{word!r} is no command"
        command = names[0]
        context = Context(command, info_name=word, parent=context)
    if isinstance(command, TyperGroup):
        return None
    known = {"--help", "--json", *(option for each in command.params for option in (*each.opts, *each.secondary_opts))}
    given = [found[1] for word in words if (found := OPTION.match(word))]
    unknown = [option for option in given if option not in known]
    return f"{context.command_path} has no option {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_the_page_exists(page: Path) -> None:
    assert [f"{text}: {found}" for text in written(page) if (found := problem(text))] == []


def test_an_unknown_command_or_option_is_found() -> None:
    assert problem("kneo task decide TASK --aprove") == "kneo task decide has no option --aprove"
    assert problem("kneo tsak list") == "'tsak' is no command"
    assert problem("kneo task claim|release TASK") is None


def test_every_test_that_a_reason_names_exists() -> None:
    named = {name for page in PAGES for block in blocks(page) for name in re.findall(r"tests/[\w/.]+", block.reason)}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
