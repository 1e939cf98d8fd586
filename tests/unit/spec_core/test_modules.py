from kneo.spec.modules import imports_of, read_module

SOURCE = '''
"""Doc."""
import os
import a.b as short
import c.d
from . import sibling
from ..up import thing as renamed
from os import system
run = system
call = os.system
part = partial(os.system, "x")
kept = functools.cache(partial(system))
made = Service(os.environ)
X, (Y, Z) = 1, (2, 3)
N: int = 3
def function(): inner = 1
async def coroutine(): ...
class Class:
    attribute = 1
try:
    import fast
except ImportError:
    fast = None
else:
    extra = 1
if True:
    def conditional(): ...
'''


def test_names_and_where_they_come_from():
    module = read_module(SOURCE, "pkg.sub.mod")
    assert module.complete
    assert module.names == {
        "part", "kept", "made", "os", "short", "c", "sibling", "renamed", "system", "run", "call", "X", "Y", "Z", "N", "function", "coroutine",
        "Class", "fast", "extra", "conditional",
    }  # fmt: skip
    assert module.imported == {
        "os": "os",
        "short": "a.b",
        "c": "c",
        "sibling": "pkg.sub.sibling",
        "renamed": "pkg.up.thing",
        "system": "os.system",
        "run": "os.system",
        "call": "os.system",
        "part": "os.system",
        "kept": "os.system",
        "fast": "fast",
    }


def test_a_package_resolves_its_own_relative_imports():
    assert read_module("from .x import y", "pkg", is_package=True).imported == {"y": "pkg.x.y"}


def test_what_cannot_be_told_is_said_to_be_incomplete():
    assert not read_module("from x import *").complete
    assert not read_module("def __getattr__(name): ...").complete
    for source in ("def (", "\0", "x" * 2_000_000, "(" * 5_000 + ")" * 5_000, "-" * 200_000 + "1"):
        module = read_module(source)
        assert not module.complete
        assert module.names == frozenset()


def test_imports_are_found_wherever_they_stand():
    source = b"""
import a.b
from . import c
from .d import e as f
from .. import g
def act():
    from h import *
    if True:
        import i
"""
    assert imports_of(source, "p.q.r", is_package=False) == {
        "a.b",
        "p.q",
        "p.q.c",
        "p.q.d",
        "p.q.d.e",
        "p",
        "p.g",
        "h",
        "i",
    }
    assert imports_of(b"from . import c", "p", is_package=True) == {"p", "p.c"}
    assert imports_of(b"def (", "p", is_package=False) == frozenset()


def test_the_parameters_of_plain_functions_are_known():
    source = """
def plain(arguments, /, key, *, context): pass
async def other(**named): pass
@wrapped
def decorated(arguments): pass
class Callable_: pass
"""
    assert read_module(source).parameters == {
        "plain": frozenset({"arguments", "key", "context"}),
        "other": frozenset(),
    }
