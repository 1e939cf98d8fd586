"""The pages: every one is in the navigation, every link has a target, and every make target is explained."""

import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent)]

from docs_site import JOINED, problems  # noqa: E402

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOORS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]

CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
TARGET = re.compile(r"^([a-z-]+):.*## ", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The files a page links to, with the place in each."""
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, place = target.partition("#")
            yield (page.parent / path).resolve() if path else page, place


@cache
def places(page: Path) -> set[str]:
    """The names of a page's headings, as hosts of Git repositories make them."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def test_every_page_is_in_the_navigation():
    listed = re.findall(
        r"^ +- (?:[^:\n]+: )?([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(listed) > 40
    root = set(JOINED.values())
    assert [path for path in listed if path not in root and not (DOCS / path).is_file()] == []
    reached = {DOCS / path for path in listed}
    for index in [page for page in reached if page.name == "README.md"]:
        reached |= {found for found, _ in links(index) if found.parent == index.parent}
    assert [str(page.relative_to(DOCS)) for page in PAGES if page not in reached] == [], "list the page in mkdocs.yml"


def test_the_build_of_the_site_finds_dead_links_and_loaded_addresses(tmp_path: Path):
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#top">b</a><a href="https://kneo.example">k</a>')
    (tmp_path / "b.html").write_text(
        '<a href="a.html#top">a</a><a href="a.html#end">a</a><img src="c.svg"><script src="https://cdn.example/x.js"></script>'
    )
    assert sorted(problems(tmp_path)) == [
        "a.html links to b.html#top, which has no such anchor",
        "b.html links to a.html#end, which has no such anchor",
        "b.html links to c.svg",
        "b.html loads https://cdn.example/x.js",
    ]


def test_every_link_leads_somewhere():
    lost = [
        f"{name(page)}: {found}" + f"#{place}" * bool(place)
        for page in (*DOORS, *PAGES)
        for found, place in links(page)
        if not found.exists() or (place and place not in places(found))
    ]
    assert lost == []


def test_contributing_explains_every_make_target():
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    explained = set(re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert len(targets) > 20
    assert (targets - explained, explained - targets) == (set(), set())


WORDS = re.compile(
    r"\b(told|nobody|beside|anew|somebody|whoever|heard|vouch(es|ed|ing)?|believ(e|es|ed|ing)|lets? go|letting go|a pass)\b",
    re.IGNORECASE,
)
"""Words that stand in for a noun or a verb; the glossary has better ones."""

RECORDS = ("adr", "benchmarks", "conformance", "security")
RECORD_WORDS = re.compile(
    r"\b(goes on|go on|going on|theirs|ours|what (came|comes|waits|flows|it (was|is) given)"
    r"|passed over|sticks?|nothing brings|for everybody)\b",
    re.IGNORECASE,
)
"""Further words that decision records, measurements, matrices and the guide for contributors do without."""


def lines_with(words: re.Pattern[str], pages: Iterable[Path]) -> list[str]:
    """The lines of pages, outside code, that have one of these words."""
    return [
        f"{name(page)}: {line}"
        for page in pages
        for line in CODE.sub("", page.read_text(encoding="utf-8")).splitlines()
        if words.search(line)
    ]


def test_pages_name_people_and_things():
    # The changelog is a record of its time.
    assert lines_with(WORDS, [page for page in (*DOORS, *PAGES) if page.name != "CHANGELOG.md"]) == []


def test_records_are_written_in_the_terms_of_the_field():
    records = [page for page in PAGES if page.relative_to(DOCS).parts[0] in RECORDS]
    assert lines_with(RECORD_WORDS, [ROOT / "CONTRIBUTING.md", *records]) == []
