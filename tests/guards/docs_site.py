"""Build the documentation site: ``make docs``.

The pages of the repository's root join those of ``docs/``, and links from a page to another file of the repository lead to a copy in the
site. The build fails on a warning, on a link without a target, and on an address from which a browser would load something.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "site"

JOINED = {
    "SECURITY.md": "project/security.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "README.md": "README.md",
}
"""Pages of the root, with their place in the site. The README's place is taken by the first page of ``docs/``."""

PARTS = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~) *$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\(\s*<?)([^)\s>]+)")
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def stage() -> None:
    """Copy the pages and the files they link to below ``build/docs``."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(DOCS, STAGED)
    pages = {page: page.relative_to(DOCS) for page in DOCS.rglob("*.md")}
    pages |= {ROOT / name: Path(place) for name, place in JOINED.items() if name != "README.md"}
    for page, place in pages.items():
        target = STAGED / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(rewrite(page.read_text(encoding="utf-8"), page, place), encoding="utf-8")


def rewrite(text: str, page: Path, place: Path) -> str:
    """Return the page with links that hold at its place in the site; code is left as it is."""
    parts = PARTS.split(text)
    parts[::2] = [LINK.sub(lambda link: link[1] + _address(link[2], page, place), part) for part in parts[::2]]
    return "".join(parts)


def _address(address: str, page: Path, place: Path) -> str:
    path, _, anchor = address.partition("#")
    if urlsplit(address).scheme or not path:
        return address
    file = (page.parent / path).resolve()
    name = file.relative_to(ROOT).as_posix()
    if file.is_relative_to(DOCS):
        target = file.relative_to(DOCS).as_posix()
    elif name in JOINED:
        target = JOINED[name]
    else:
        target = f"repository/{name}"
        (STAGED / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, STAGED / target)
    return os.path.relpath(target, place.parent) + (f"#{anchor}" if anchor else "")


class Page(HTMLParser):
    """The links, the anchors and the loaded addresses of a built page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in LOADS and LOADS[tag] in found:
            self.loaded.append(found[LOADS[tag]])


def problems(site: Path) -> Iterator[str]:
    """Name each link of the built site that leads nowhere, and each file that would be loaded from elsewhere."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html") if file.name != "404.html"}
    for file, page in pages.items():
        name = file.relative_to(site)
        for address in page.loaded:
            if urlsplit(address).netloc:
                yield f"{name} loads {address}"
        for address in {*page.links, *page.loaded}:
            path, anchor = urldefrag(address)
            if urlsplit(address).scheme or urlsplit(address).netloc:
                continue
            target = (file.parent / unquote(urlsplit(path).path)).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{name} links to {address}"
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                yield f"{name} links to {address}, which has no such anchor"


def main() -> int:
    stage()
    shutil.rmtree(SITE, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if built.returncode or "Warning" in built.stdout + built.stderr:
        print(built.stdout + built.stderr, file=sys.stderr)
        return 1
    found = sorted(problems(SITE))
    print("\n".join(found) or f"site/ has {len(list(SITE.rglob('*.html')))} pages; every link has a target.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
