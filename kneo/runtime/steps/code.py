"""The code loader: the function that a spec names in ``implementation:``, within an allow-list.

The code is not part of a bundle, so the allow-list decides which modules may be named at all, and each step records
the SHA-256 of the module it ran. An environment may pin that digest, and then has to pin what the module imports from the
same folders too; a module that is not the pinned one is never imported.

An allowed module offers its own functions, and none that it merely imports (``from os import system``).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

from kneo.digest import Digest
from kneo.errors import Forbidden, Invalid, Transient
from kneo.runtime.steps import modules
from kneo.runtime.steps.modules import ModuleSource
from kneo.spec.modules import OWN_PACKAGES

INPROCESS = "inprocess."
"""The prefix of implementations whose code is an object of the program that started the run."""

MAX_WRAPPERS = 50
"""Decorators around one function, and callables inside callables."""


class CodeUnavailable(Transient):
    """A step's code is in another process; the run waits for that one."""

    default_code = "implementation_elsewhere"


@dataclass(frozen=True)
class Code:
    function: Callable[..., object]
    module_digest: Digest | None


@dataclass(frozen=True)
class _Loaded:
    """A function, and the modules that its module is made of, itself first."""

    code: Code
    sources: tuple[ModuleSource, ...]


class CodeLoader:
    """Loads functions from modules that may be named.

    Args:
        roots: Folders whose modules are allowed and importable.
        allow: Module prefixes that are allowed instead of the folders' own; empty means the folders.
    """

    def __init__(self, roots: tuple[Path, ...], allow: tuple[str, ...]) -> None:
        self.roots = tuple(root.resolve() for root in roots)
        self.allow = allow
        self._loaded: dict[str, _Loaded] = {}
        modules.make_importable(self.roots)

    def load(self, implementation: str, pins: Mapping[str, str] | None = None) -> Code:
        """Import the function behind a dotted name.

        Args:
            implementation: The name.
            pins: The SHA-256 that modules must have, by name. Where the function's module is listed, everything that it
                imports from the same folders must be listed too; where it is not, it may be any.

        Raises:
            Invalid: the name is not dotted, the module is missing or fails to import, or it has no such function.
            CodeUnavailable: it is an object of another process.
            Forbidden: the module may not be named, is not the pinned one, or does not own the function.
        """
        module_name, attribute = _split(implementation)
        if implementation.startswith(INPROCESS):
            msg = f"The code of {implementation} is in the program that started the run."
            raise CodeUnavailable(msg, hint="Go on with the run there; what people have answered is kept.")
        known = self._loaded.get(implementation)
        if known is None:
            known = self._loaded[implementation] = self._load(implementation, module_name, attribute, pins or {})
        else:
            _check_pins(module_name, known.sources, pins or {})
        return known.code

    def check(self, implementation: str, pins: Mapping[str, str]) -> None:
        """Check, as far as the source shows it, that ``load`` finds a function. Nothing of the module is executed.

        Raises:
            Invalid: the name is not dotted, the module is missing or no Python, or it has no such function.
            Forbidden: the module may not be named, or is not the pinned one.
        """
        module_name, attribute = _split(implementation)
        self._check_allowed(module_name)
        home = self._home(module_name)
        with modules.lock:
            sources = modules.closure(module_name, self.roots, home)
        _check_pins(module_name, sources, pins)
        if not sources and not modules.is_installed(module_name, home):
            msg = f"The module {module_name} of {implementation} is nowhere to be found."
            raise Invalid(msg, code="implementation_invalid")
        for source in sources[:1]:
            known = modules.names_of(source)
            if known.complete and attribute not in known.names:
                msg = f"The module {module_name} has no function {attribute}."
                raise Invalid(msg, code="implementation_invalid")

    def is_loaded(self, implementation: str) -> bool:
        """Return whether the function behind a dotted name was imported."""
        return implementation in self._loaded

    def _load(self, implementation: str, module_name: str, attribute: str, pins: Mapping[str, str]) -> _Loaded:
        self._check_allowed(module_name)
        with modules.lock:
            sources = modules.closure(module_name, self.roots, self._home(module_name))
            _check_pins(module_name, sources, pins)
            modules.accept(sources)
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            msg = f"The module {module_name} of {implementation} failed to import: {type(error).__name__}: {error}"
            raise Invalid(msg, code="implementation_invalid") from error
        self._check_place(module_name, module)
        function = getattr(module, attribute, None)
        if not callable(function):
            msg = f"The module {module_name} has no function {attribute}."
            raise Invalid(msg, code="implementation_invalid")
        foreign = next(self._foreign(function), None)
        if foreign is not None:
            msg = f"{implementation} is {foreign}, which a spec may not name: {module_name} only imports or wraps it."
            hint = f"Define a function in {module_name} that does exactly what is needed, and name that."
            raise Forbidden(msg, code="implementation_forbidden", hint=hint)
        return _Loaded(Code(function, sources[0].digest if sources else None), sources)

    # ---- modules ------------------------------------------------------------------------------------------------

    def _check_allowed(self, module: str) -> None:
        if self.allow:
            allowed = self._is_listed(module)
        else:
            own = module.partition(".")[0] in OWN_PACKAGES
            allowed = not own and any(modules.has_module(root, module) for root in self.roots)
        if not allowed:
            where = ", ".join(self.allow) if self.allow else ", ".join(str(root) for root in self.roots)
            msg = f"The module {module} may not be named by a spec; allowed: {where}."
            raise Forbidden(msg, code="implementation_forbidden", hint="KNEO_SERV_IMPORT_ALLOW lists module prefixes.")

    def _check_place(self, name: str, module: ModuleType) -> None:
        if not self._owns(name):
            place = getattr(module, "__file__", None) or "this program"
            msg = f"The name {name} belongs to a module of {place}, not to one of {', '.join(map(str, self.roots))}."
            raise Forbidden(msg, code="implementation_forbidden", hint="Give the module of the project another name.")

    def _owns(self, name: str) -> bool:
        """Return whether specs may name an imported module."""
        return self._is_listed(name) if self.allow else modules.source_of(name, self.roots) is not None

    def _is_listed(self, module: str) -> bool:
        return any(module == prefix or module.startswith(f"{prefix}.") for prefix in self.allow)

    def _home(self, module: str) -> Path | None:
        """Find the folder of an allowed package that is installed elsewhere; nothing of it is executed."""
        top = module.partition(".")[0]
        try:
            spec = importlib.util.find_spec(top) if self.allow else None
        except ValueError:  # a program that was started as a file has no spec
            spec = None
        if spec is None or spec.origin is None:
            return None
        place = Path(spec.origin)
        return place.parent.parent if place.name == "__init__.py" else place.parent

    # ---- functions ----------------------------------------------------------------------------------------------

    def _foreign(self, thing: object, depth: int = 0) -> Iterator[str]:
        """Yield the foreign parts of a callable: those that no allowed module defines.

        What an object says of its own module (``__module__``) is copied by decorators, so it has to be allowed but is not
        believed: the namespace that a function's code was made in is what counts.
        """
        if depth > MAX_WRAPPERS:
            yield "wrapped too many times"
        elif isinstance(thing, partial):
            yield from self._foreign(thing.func, depth + 1)
        elif not self._says_ours(thing):
            yield f"{getattr(thing, '__module__', None) or 'an object of'} {_name(thing)}"
        elif hasattr(thing, "__wrapped__"):
            yield from self._foreign(thing.__wrapped__, depth + 1)
        elif isinstance(thing, MethodType):
            yield from self._foreign(thing.__func__, depth + 1)
        elif isinstance(thing, FunctionType | BuiltinFunctionType):
            if not self._defines(thing):
                yield f"{thing.__module__} {_name(thing)}"
        else:
            for part in _called(thing):
                yield from self._foreign(part, depth + 1)

    def _defines(self, function: FunctionType | BuiltinFunctionType) -> bool:
        """Return whether an allowed module defines a function."""
        if isinstance(function, BuiltinFunctionType):
            place = function.__self__
            return isinstance(place, ModuleType) and self._owns(place.__name__)
        stated = function.__globals__.get("__name__")
        module = sys.modules.get(stated) if isinstance(stated, str) else None
        return module is not None and module.__dict__ is function.__globals__ and self._owns(module.__name__)

    def _says_ours(self, thing: object) -> bool:
        stated = getattr(thing, "__module__", None)
        return isinstance(stated, str) and stated in sys.modules and self._owns(stated)


def _split(implementation: str) -> tuple[str, str]:
    """Return the module and the attribute of a dotted name.

    Raises:
        Invalid: ``implementation_invalid``.
    """
    module_name, _, attribute = implementation.rpartition(".")
    if not module_name:
        msg = f"{implementation!r} is not a dotted name such as package.module.function."
        raise Invalid(msg, code="implementation_invalid")
    return module_name, attribute


def _called(thing: object) -> Iterator[object]:
    """Yield the functions that a call of a class or an object executes."""
    made = thing if isinstance(thing, type) else None
    names = ("__new__", "__init__") if made else ("__call__",)
    for name in names:
        owner = next((each for each in (made or type(thing)).__mro__ if name in each.__dict__), object)
        if owner is not object:
            part = owner.__dict__[name]
            yield part.__func__ if isinstance(part, staticmethod | classmethod) else part
    if made and type(made) is not type:
        yield from (part for part in (vars(type(made)).get("__call__"),) if part is not None)


def _name(thing: object) -> str:
    return str(getattr(thing, "__qualname__", None) or f"an object of {type(thing).__qualname__}")[:200]


def _check_pins(module: str, sources: tuple[ModuleSource, ...], pins: Mapping[str, str]) -> None:
    """Compare the bytes that a module is made of with those that were pinned.

    Raises:
        Forbidden: ``implementation_not_pinned``.
    """
    if module in pins and not sources:
        msg = f"The module {module} is nowhere to be found, but its environment pins {pins[module]}."
        raise Forbidden(msg, code="implementation_not_pinned", hint=_PIN_HINT)
    for source in sources:
        pinned = pins.get(source.name)
        if pinned is None and (module not in pins or source.is_folder):
            continue
        if pinned is None:
            msg = (
                f"The environment pins {module}, but not {source.name}, which it imports: {source.digest or 'unknown'}."
            )
            raise Forbidden(msg, code="implementation_not_pinned", hint="Pin it under implementations too.")
        if source.digest is None:
            msg = f"The module {source.name} was imported before its bytes could be compared with {pinned}."
            hint = "Let nothing else in this process import it, and start the process again."
            raise Forbidden(msg, code="implementation_not_pinned", hint=hint)
        if pinned != source.digest:
            msg = f"The module {source.name} is {source.digest}, but its environment pins {pinned}."
            raise Forbidden(msg, code="implementation_not_pinned", hint=_PIN_HINT)


_PIN_HINT = "Deploy the pinned code, or pin the new one under implementations in the environment file."
