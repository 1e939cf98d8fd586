"""Which code a spec may name, and that it is the code somebody pinned."""

from __future__ import annotations

import importlib
import itertools
import os
import py_compile
import sys
from pathlib import Path

import pytest

from kneo.digest import digest_of
from kneo.errors import Forbidden, Invalid
from kneo.runtime.steps.code import CodeLoader

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


def test_a_loader_finds_a_module_in_its_own_folders_first(module: Path, tmp_path: Path) -> None:
    loader(module, module.stem).load(f"{module.stem}.act")
    del sys.modules[module.stem]
    other = tmp_path / "other" / module.name
    other.parent.mkdir()
    other.write_text("def act(text):\n    return 'other'\n")
    assert loader(other, module.stem).load(f"{module.stem}.act").function("x") == "other"


@pytest.mark.parametrize("name", ["act", "{}.missing", "{}.ran"])
def test_a_name_that_is_no_function_is_refused(module: Path, name: str) -> None:
    with pytest.raises(Invalid):
        loader(module).load(name.format(module.stem))


BORROWED = """\
import functools
import operator
import os
import subprocess
from os import system
from pathlib import Path
from subprocess import Popen, getoutput


def logged(function):
    @functools.wraps(function)
    def wrapper(text):
        return function(text)
    return wrapper


alias = os.system
part = functools.partial(getoutput)
cached = functools.lru_cache(getoutput)
wrapped = logged(getoutput)
method = os.environ.get
getter = operator.itemgetter(0)
joined = "".join


class Shell(Popen):
    pass


class Caller:
    __call__ = staticmethod(getoutput)


caller = Caller()


def act(text):
    return text.upper()


@logged
def decorated(text):
    return text.upper()


@functools.cache
def remembered(text):
    return text.upper()


@functools.lru_cache(maxsize=1)
@logged
def twice(text):
    return text.upper()


prefixed = functools.partial(logged(act))


class Upper:
    def __init__(self, text):
        self.text = text.upper()

    def __str__(self):
        return self.text


class Service:
    def __call__(self, text):
        return text.upper()

    def act(self, text):
        return text.upper()

    @staticmethod
    def still(text):
        return text.upper()


service = Service()
bound = Service().act
still = Service.still


async def later(text):
    return text.upper()
"""


@pytest.mark.parametrize(
    "name",
    [
        *("system", "getoutput", "Popen", "Path", "alias", "part", "cached", "wrapped", "method", "getter", "joined"),
        *("Shell", "caller"),
    ],
)
def test_what_a_module_only_imported_is_none_of_its_functions(module: Path, name: str) -> None:
    module.write_text(BORROWED)
    for here in (loader(module), loader(module, module.stem)):
        with pytest.raises(Forbidden) as caught:
            here.load(f"{module.stem}.{name}")
        assert caught.value.code == "implementation_forbidden"


@pytest.mark.parametrize(
    "name", ["act", "decorated", "remembered", "twice", "prefixed", "Upper", "service", "bound", "still"]
)
@pytest.mark.parametrize("listed", [False, True])
def test_what_a_module_defines_can_be_named(module: Path, name: str, listed: bool) -> None:
    module.write_text(BORROWED)
    here = loader(module, *([module.stem] if listed else []))
    assert str(here.load(f"{module.stem}.{name}").function("x")) == "X"


def test_functions_of_another_allowed_module_can_be_named_through_this_one(module: Path) -> None:
    (module.parent / f"{module.stem}_more.py").write_text("def shout(text):\n    return text.upper() + '!'\n")
    module.write_text(f"from {module.stem}_more import shout\n")
    assert loader(module).load(f"{module.stem}.shout").function("x") == "X!"
    with pytest.raises(Forbidden):
        loader(module, module.stem).load(f"{module.stem}.shout")


def test_the_programs_own_packages_are_never_a_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    checkout = Path(__file__).parents[3]
    with pytest.raises(Forbidden):
        CodeLoader((checkout,), ()).load("kneo.settings.from_env")


def test_a_name_that_something_else_has_taken_is_refused(module: Path) -> None:
    (module.parent / "json.py").write_text("def loads(text):\n    return text\n")
    with pytest.raises(Forbidden, match="another name"):
        loader(module).load("json.loads")


# ---- the bytes that are hashed are the bytes that are executed -----------------------------------------------------


def pin(path: Path) -> str:
    return digest_of(path.read_bytes())


def test_a_stale_compiled_file_is_not_executed(module: Path) -> None:
    module.write_text("def act(text):\n    return 'evil'\n")
    py_compile.compile(str(module), doraise=True)
    stat = module.stat()
    module.write_text("def act(text):\n    return 'good'\n")
    os.utime(module, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert loader(module).load(f"{module.stem}.act", {module.stem: pin(module)}).function("x") == "good"


def test_a_package_beside_the_pinned_module_is_not_executed(module: Path) -> None:
    pins = {module.stem: pin(module)}
    package = module.with_suffix("")
    package.mkdir()
    (package / "__init__.py").write_text("def act(text):\n    return 'evil'\n")
    with pytest.raises(Forbidden) as caught:
        loader(module).load(f"{module.stem}.act", pins)
    assert caught.value.code == "implementation_not_pinned"
    assert module.stem not in sys.modules


def test_another_folder_of_the_path_does_not_win(module: Path, tmp_path: Path) -> None:
    other = tmp_path / "first"
    other.mkdir()
    (other / module.name).write_text("def act(text):\n    return 'evil'\n")
    here = loader(module)
    sys.path.insert(0, str(other))
    assert here.load(f"{module.stem}.act", {module.stem: pin(module)}).function("x") == "X"


def test_a_folder_of_a_project_takes_the_place_of_nothing_that_is_installed(module: Path) -> None:
    (module.parent / "jsonschema.py").write_text("raise SystemExit('taken over')\n")
    (module.parent / "sqlalchemy").mkdir()
    module.write_text("import sqlalchemy\n\n\ndef act(text):\n    return sqlalchemy.__name__\n")
    here = loader(module)
    assert here.load(f"{module.stem}.act", {module.stem: pin(module)}).function("x") == "sqlalchemy"
    assert sys.path.index(str(module.parent.resolve())) == len(sys.path) - 1


IMPORTS = {
    "at the top": "import {0}_more\n\n\ndef act(text):\n    return {0}_more.shout(text)\n",
    "from it": "from {0}_more import shout\n\n\ndef act(text):\n    return shout(text)\n",
    "in a function": "def act(text):\n    import {0}_more\n    return {0}_more.shout(text)\n",
}


@pytest.mark.parametrize("how", IMPORTS)
def test_a_pinned_module_imports_pinned_modules_only(module: Path, how: str) -> None:
    more = module.parent / f"{module.stem}_more.py"
    more.write_text("def shout(text):\n    return text.upper() + '!'\n")
    module.write_text(IMPORTS[how].format(module.stem))
    pins = {module.stem: pin(module)}
    for wrong in ({}, {more.stem: digest_of(b"what was reviewed")}):
        with pytest.raises(Forbidden) as caught:
            loader(module).load(f"{module.stem}.act", {**pins, **wrong})
        assert caught.value.code == "implementation_not_pinned"
        assert more.stem in caught.value.message
    assert {module.stem, more.stem}.isdisjoint(sys.modules)
    code = loader(module).load(f"{module.stem}.act", {**pins, more.stem: pin(more)})
    more.write_text("def shout(text):\n    return 'evil'\n")
    assert code.function("x") == "X!"


def test_the_packages_around_a_pinned_module_are_pinned_too(module: Path) -> None:
    package = module.parent / f"{module.stem}_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import shared\n")
    (package / "shared.py").write_text("MARK = '!'\n")
    tools = package / "inner" / "tools.py"
    tools.write_text("from ..shared import MARK\n\n\ndef act(text):\n    return text.upper() + MARK\n")
    names = {f"{package.name}.inner.tools": tools, package.name: package / "__init__.py"}
    pins = {name: pin(path) for name, path in names.items()}
    with pytest.raises(Forbidden, match=rf"{package.name}\.shared"):
        loader(module).load(f"{package.name}.inner.tools.act", pins)
    pins[f"{package.name}.shared"] = pin(package / "shared.py")
    assert loader(module).load(f"{package.name}.inner.tools.act", pins).function("x") == "X!"


def test_an_installed_module_is_pinned_as_well(module: Path, tmp_path: Path) -> None:
    sys.path.append(str(module.parent))
    elsewhere = tmp_path / "project"
    elsewhere.mkdir()
    here = CodeLoader((elsewhere,), (module.stem,))
    with pytest.raises(Forbidden):
        here.load(f"{module.stem}.act", {module.stem: digest_of(b"what was reviewed")})
    assert here.load(f"{module.stem}.act", {module.stem: pin(module)}).module_digest == pin(module)


def test_a_module_that_was_imported_unseen_is_not_believed(module: Path) -> None:
    sys.path.append(str(module.parent))
    importlib.import_module(module.stem)
    assert loader(module).load(f"{module.stem}.act").module_digest is None
    with pytest.raises(Forbidden, match="before its bytes"):
        loader(module).load(f"{module.stem}.act", {module.stem: pin(module)})


def test_what_a_pinned_module_raises_shows_its_lines(module: Path) -> None:
    module.write_text("def act(text):\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        loader(module).load(f"{module.stem}.act", {module.stem: pin(module)}).function("x")
    assert str(caught.traceback[-1].path) == str(module.resolve())
    assert "1 / 0" in str(caught.traceback[-1].statement)
