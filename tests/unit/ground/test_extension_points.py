"""Extensions of installed packages: found by their entry points, imported where they are used, refused with their package."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kneo import extension_points
from kneo.errors import Invalid
from kneo.extension_points import ExtensionFailed, Point, import_with_extra


@dataclass(frozen=True)
class Shape:
    """The record of a point of this test."""

    corners: int


SHAPES = Point("shapes", Shape, own={"line"})

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs packages of one module each into a folder of the path."""

    def install(package: str, entry_points: str, source: str = "") -> None:
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[kneo.extensions.shapes]\n{entry_points}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extension_points, "PATH", tuple(sys.path))
    monkeypatch.setitem(sys.modules, "shapes_of_this_test", sys.modules[__name__])
    extension_points._scan.cache_clear()
    yield install
    extension_points._scan.cache_clear()


RECORD = "from shapes_of_this_test import Shape\nSQUARE = Shape(4)\nTEXT = 'four'\n"


def test_an_extension_is_imported_where_it_is_used(install: Install) -> None:
    install("shapes_of_ann", "square = shapes_of_ann:SQUARE", RECORD)
    assert SHAPES.names() == ["square"]
    assert SHAPES.has("square")
    assert "shapes_of_ann" not in sys.modules
    assert SHAPES.load("square") == Shape(4)
    (found,) = SHAPES.check().items()
    assert str(found[0]) == "kneo.extensions.shapes: square = shapes_of_ann:SQUARE of shapes_of_ann 1.5"
    assert found[1] == ""


def test_an_extension_that_is_not_installed(install: Install) -> None:
    install("shapes_of_ben", "square = shapes_of_ben:SQUARE", RECORD)
    assert not SHAPES.has("circle")
    with pytest.raises(KeyError):
        SHAPES.load("circle")


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("shapes_broken:SQUARE", "ZeroDivisionError"),
        ("shapes_missing:SQUARE", "ModuleNotFoundError"),
        ("shapes_plain:CIRCLE", "AttributeError"),
        ("shapes_plain:TEXT", "is no Shape"),
    ],
)
def test_an_extension_that_cannot_be_loaded_is_named_with_its_package(install: Install, target: str, word: str) -> None:
    install("shapes_broken", "", "1 / 0")
    install("shapes_plain", f"square = {target}", RECORD)
    with pytest.raises(ExtensionFailed) as failed:
        SHAPES.load("square")
    assert f"kneo.extensions.shapes: square = {target} of shapes_plain 1.5" in failed.value.message
    assert word in failed.value.message
    assert [bool(problem) for problem in SHAPES.check().values()] == [True]


def test_of_two_extensions_with_one_name_neither_is_used(install: Install) -> None:
    install("shapes_one", "square = shapes_one:SQUARE", RECORD)
    install("shapes_two", "square = shapes_two:SQUARE", RECORD)
    assert SHAPES.names() == []
    with pytest.raises(ExtensionFailed, match=r"shapes_one 1.5 and .* of shapes_two 1.5"):
        SHAPES.load("square")
    assert len(SHAPES.check()) == 2
    assert "shapes_one" not in sys.modules


def test_a_folder_that_is_added_to_the_path_later_adds_no_extension(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension_points, "PATH", tuple(sys.path[1:]))
    install("shapes_of_a_project", "square = shapes_of_a_project:SQUARE", RECORD)
    assert not SHAPES.has("square")


def test_of_two_copies_of_a_package_the_first_of_the_path_counts(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("shapes_copied", "square = shapes_copied:SQUARE", RECORD)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy)
    monkeypatch.setattr(extension_points, "PATH", (*extension_points.PATH, str(copy)))
    assert SHAPES.load("square") == Shape(4)


def test_an_extension_replaces_nothing_of_kneo(install: Install) -> None:
    install("shapes_lines", "line = shapes_lines:SQUARE", RECORD)
    assert SHAPES.names() == []
    with pytest.raises(ExtensionFailed, match="name of Kneo"):
        SHAPES.load("line")


@pytest.mark.parametrize("name", ["Square", "../square", "a.b.c.d", "s" * 61, "-square", "squäre", "a b"])
def test_names_that_are_refused(install: Install, name: str) -> None:
    install("shapes_named", f"{name} = shapes_named:SQUARE", RECORD)
    assert SHAPES.names() == []
    with pytest.raises(ExtensionFailed, match="not valid"):
        SHAPES.load(name)


def test_a_missing_library_is_named_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Invalid) as missing:
        import_with_extra("needs_more", "temporal", "Dispatch through Temporal")
    assert (missing.value.code, missing.value.hint) == (
        "temporal_not_installed",
        "Install it: pip install 'kneo[temporal]'.",
    )
    assert missing.value.message.startswith("Dispatch through Temporal needs a package")


def test_a_missing_module_of_kneo_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_with_extra("kneo.no_such_module", "temporal", "Dispatch")
