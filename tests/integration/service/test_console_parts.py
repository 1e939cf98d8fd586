"""Parts of the console and checks of ``kneo doctor`` that an installed package adds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from console_pages import Browser, signed_in
from example_extension import on_path
from service_bench import Bench, serving

from kneo.cli.checks import Level
from kneo.cli.serve.doctor import examine

SOURCE = """
from kneo.cli.checks import Check, ok
from kneo.errors import Invalid
from kneo.service.console.page import Pages, SeeOther
from kneo.service.console.parts import ConsoleExtension
from kneo.service.console.render import compile_template

SECTION = compile_template("<section><h2>Badges</h2><p>{{ name|length }} of {{ name }} &amp; co</p></section>")
pages = Pages()


@pages.get("/badges", scope="human:write")
def show_badges(request):
    return SeeOther("/console/me")


class Badges:
    pages = pages
    files = {"badges.js": b"// badges"}
    kept = []

    def routes(self, settings):
        return []

    def section(self, request):
        return SECTION({"name": request.person})

    def check(self, settings):
        if settings.push.subject == "mailto:refused@example.org":
            raise Invalid("The subject is refused.", code="invalid_setting")

    def keep(self, tx, settings, keyring):
        self.kept.append(sorted(keyring.names))


PART = Badges()
CONSOLE = ConsoleExtension("badges_of_ann:PART")
CHECK = Check("badges_of_ann:check_badges")


def check_badges(settings):
    return ok("There are badges.")
"""

ENTRY_POINTS = """
[kneo.extensions.console_parts]
badges = badges_of_ann:CONSOLE

[kneo.extensions.checks]
badge-count = badges_of_ann:CHECK
disk = badges_of_ann:CHECK
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "packages"
    info = folder / "badges_of_ann-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "badges_of_ann.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: badges_of_ann\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    with on_path(folder, monkeypatch):
        yield folder
    sys.modules.pop("badges_of_ann", None)


@pytest.fixture
def bench(installed: Path, tmp_path: Path) -> Iterator[Bench]:
    paths = [*sys.path]
    with serving(tmp_path / "service", f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0) as made:
        yield made
    Browser.close_all()
    sys.path[:] = paths


def test_a_package_adds_pages_a_file_and_a_section_to_the_console(bench: Bench) -> None:
    admin = signed_in(bench.url, "admin")
    assert admin.client.get("/console/badges").headers["location"] == "/console/me"
    assert "<p>5 of admin &amp; co</p>" in admin.get("/console/me").html
    script = httpx.get(f"{bench.url}/console/static/badges.js", timeout=60)
    assert (script.text, script.headers["content-type"]) == ("// badges", "text/javascript; charset=utf-8")
    signed_in(bench.url, "viewer").get("/console/badges", expect=403)


def test_a_part_sees_the_api_keys_at_the_start_of_the_service(bench: Bench) -> None:
    assert "admin" in sys.modules["badges_of_ann"].PART.kept[0]


def test_a_package_adds_a_check_and_replaces_none_of_kneo(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", f"sqlite:///{tmp_path / 'kneo.sqlite'}")
    found = {one.check: one for one in examine("127.0.0.1", 1)}
    assert (found["badge_count"].level, found["badge_count"].message) == (Level.OK, "There are badges.")
    assert "badges" not in found["disk"].message
    assert "An extension has a name of Kneo" in found["extensions"].message
