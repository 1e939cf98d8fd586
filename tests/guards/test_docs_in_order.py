"""The pages: every one can be found, every link leads somewhere, and every make target is explained."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
DOORS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]

CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
TARGET = re.compile(r"^([a-z-]+):.*## ", re.MULTILINE)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The files a page links to, with the place in each."""
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, place = target.partition("#")
            yield (page.parent / path).resolve() if path else page, place


def places(page: Path) -> set[str]:
    """The names of a page's headings, as hosts of Git repositories make them."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def test_every_page_can_be_reached_from_the_index():
    reached, left = set(), [INDEX]
    while left:
        page = left.pop()
        if page not in reached:
            reached.add(page)
            left += [found for found, _ in links(page) if found.suffix == ".md" and found.is_relative_to(DOCS)]
    assert [str(page.relative_to(DOCS)) for page in PAGES if page not in reached] == []


@pytest.mark.parametrize("page", [*DOORS, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path):
    lost = [str(found) for found, _ in links(page) if not found.exists()]
    lost += [f"{found.name}#{place}" for found, place in links(page) if place and place not in places(found)]
    assert lost == []


def test_contributing_explains_every_make_target():
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    explained = set(re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert len(targets) > 20
    assert (targets - explained, explained - targets) == (set(), set())
