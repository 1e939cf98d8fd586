"""Which code a spec may name, and that it is the code somebody pinned."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from kneo.digest import digest_of
from kneo.errors import Forbidden, Invalid
from kneo.runtime.code import CodeLoader

_numbers = itertools.count(1)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of its own, so that nothing another test imported is found."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / f"pinned_{next(_numbers)}.py"
    path.write_text("ran = []\n\n\ndef act(text):\n    return text.upper()\n")
    return path


def loader(module: Path, *allow: str) -> CodeLoader:
    return CodeLoader((module.parent,), allow)


def test_a_function_comes_with_the_digest_of_its_module(module: Path) -> None:
    code = loader(module).load(f"{module.stem}.act")
    assert code.function("x") == "X"
    assert code.module_digest == digest_of(module.read_bytes())


def test_the_pinned_module_is_loaded(module: Path) -> None:
    pins = {module.stem: digest_of(module.read_bytes())}
    assert loader(module).load(f"{module.stem}.act", pins).function("x") == "X"


def test_another_module_than_the_pinned_one_is_not_even_imported(module: Path) -> None:
    pins = {module.stem: digest_of(b"what was reviewed")}
    with pytest.raises(Forbidden) as caught:
        loader(module).load(f"{module.stem}.act", pins)
    assert caught.value.code == "implementation_not_pinned"
    assert module.stem not in sys.modules


def test_what_changed_on_disk_after_the_import_is_not_what_runs(module: Path) -> None:
    here, before = loader(module), digest_of(module.read_bytes())
    here.load(f"{module.stem}.act")
    module.write_text("def act(text):\n    return 'evil'\n")
    again = here.load(f"{module.stem}.act", {module.stem: before})
    assert again.function("x") == "X"
    assert again.module_digest == before


def test_a_pinned_module_that_is_not_there_is_refused(module: Path) -> None:
    with pytest.raises(Forbidden):
        loader(module, "nowhere").load("nowhere.act", {"nowhere": digest_of(b"")})


@pytest.mark.parametrize("name", ["subprocess.getoutput", "os.system", "kneo.settings.from_env"])
def test_modules_outside_the_roots_may_not_be_named(module: Path, name: str) -> None:
    with pytest.raises(Forbidden):
        loader(module).load(name)


def test_an_allow_list_replaces_the_roots(module: Path) -> None:
    with pytest.raises(Forbidden):
        loader(module, "elsewhere").load(f"{module.stem}.act")
    assert loader(module, module.stem).load(f"{module.stem}.act")


@pytest.mark.parametrize("name", ["act", "{}.missing", "{}.ran"])
def test_a_name_that_is_no_function_is_refused(module: Path, name: str) -> None:
    with pytest.raises(Invalid):
        loader(module).load(name.format(module.stem))
