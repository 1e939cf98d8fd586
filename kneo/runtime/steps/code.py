"""The code loader: the function that a spec names in ``implementation:``, within an allow-list.

The code is not part of a bundle, so the allow-list decides which modules may be named at all, and each step records
the SHA-256 of the module it ran. An environment may pin that digest, and then has to pin what the module imports from the
same folders too; a module that is not the pinned one is never imported.

An allowed module offers its own functions, and none that it merely imports (``from os import system``).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from kneo.digest import Digest
from kneo.errors import Forbidden, Invalid, Transient
from kneo.runtime.steps import modules
from kneo.runtime.steps.code_store import CodeStore, import_path, sources_in
from kneo.runtime.steps.modules import ModuleSource
from kneo.sandbox.functions import import_function
from kneo.sandbox.processes import ModuleCode
from kneo.spec.code import INPROCESS, BundleCode, RunCode
from kneo.spec.models.spec import SkillScript, Spec
from kneo.spec.modules import OWN_PACKAGES


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


@dataclass(frozen=True)
class _Source:
    """A function that was not imported, and the modules that its module is made of, itself first."""

    code: ModuleCode
    sources: tuple[ModuleSource, ...]


class CodeLoader:
    """Loads functions from modules that may be named.

    Args:
        roots: Folders whose modules are allowed and importable.
        allow: Module prefixes that are allowed instead of the folders' own; empty means the folders.
        store: The code of bundles.
    """

    def __init__(self, roots: tuple[Path, ...], allow: tuple[str, ...], store: CodeStore | None = None) -> None:
        self.roots = tuple(root.resolve() for root in roots)
        self.allow, self._store = allow, store
        self._loaded: dict[str, _Loaded] = {}
        self._sources: dict[tuple[str, Digest | None], _Source] = {}
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
        module_name, _ = _split(implementation)
        if implementation.startswith(INPROCESS):
            raise _elsewhere(implementation)
        known = self._loaded.get(implementation)
        if known is None:
            known = self._loaded[implementation] = self._load(implementation, module_name, pins or {})
        else:
            _check_pins(module_name, known.sources, pins or {})
        return known.code

    def known_source(self, implementation: str, run: RunCode) -> ModuleCode | None:
        """Return a function of the project that ``source`` returned before; no file is read. Raises what ``source`` raises."""
        known = self._sources.get((implementation, None)) if run.digest is None else None
        return self._checked(implementation, known, run) if known is not None else None

    def source(self, implementation: str, run: RunCode) -> ModuleCode:
        """Return a function with the bytes that it is executed from. Nothing of the module is executed.

        Raises:
            Invalid: the name is not dotted, the module is missing or no Python, or it has no such function.
            CodeUnavailable: it is an object of another process.
            Forbidden: the module may not be named, or is not the pinned one.
            Untrusted, Conflict: as ``CodeStore.open``.
        """
        if implementation.startswith(INPROCESS):
            raise _elsewhere(implementation)
        opened = self._open(run) if run.digest is not None else None
        known = self._sources.get((implementation, run.digest))
        if known is None:
            known = self._of_bundle(implementation, *opened, run) if opened else self._of_project(implementation)
            self._sources[implementation, run.digest] = known
        return self._checked(implementation, known, run)

    @staticmethod
    def _checked(implementation: str, known: _Source, run: RunCode) -> ModuleCode:
        _check_pins(_split(implementation)[0], known.sources, run.pins)
        return known.code

    def script(self, script: SkillScript, spec: Spec, run: RunCode) -> dict[str, bytes]:
        """Return a script and the files below its folder, by their paths below the folder of its skill.

        Raises:
            Invalid: ``implementation_invalid``: there is no such file.
            Untrusted, Conflict: as ``CodeStore.open``.
        """
        files = spec.script_files(script) if run.digest is None else self._open(run, starts=True)[1].files
        if script.path not in files:
            where = f"the skill {script.skill}" if run.digest is None else f"the code {run.digest}"
            raise Invalid(f"{where} has no file {script.path}.", code="implementation_invalid")
        root = f"skills/{script.skill}/"
        return {path.removeprefix(root): data for path, data in files.items() if path.startswith(root)}

    def _open(self, run: RunCode, *, starts: bool = False) -> tuple[Path, BundleCode]:
        if self._store is None:
            msg = f"This process has no code store for the code {run.digest}."
            raise CodeUnavailable(msg, hint="Let a worker continue the run.")
        return self._store.open(run, starts=starts)

    def _of_project(self, implementation: str) -> _Source:
        module_name, _ = _split(implementation)
        self._check_allowed(module_name, is_known=any(modules.has_module(root, module_name) for root in self.roots))
        home = self._home(module_name)
        sources = modules.closure(module_name, self.roots, home, modules.source_in)
        if not sources and not modules.is_installed(module_name, home):
            msg = f"The module {module_name} of {implementation} is nowhere to be found."
            raise Invalid(msg, code="implementation_invalid")
        own = {str(root) for root in self.roots}
        paths = [each for each in sys.path if each and each not in own and each != os.getcwd()]  # noqa: PTH109
        return self._source(implementation, sources, sources, (*paths, *sorted(own)))

    def _of_bundle(self, implementation: str, folder: Path, content: BundleCode, run: RunCode) -> _Source:
        module_name, _ = _split(implementation)
        every = {each.name: each for each in sources_in(folder, content) if modules.may_be_own(each.name)}
        self._check_allowed(module_name, is_known=module_name in every)
        sources = modules.closure(module_name, (folder,), find=lambda name, _: every.get(name))
        source = self._source(implementation, sources, tuple(every.values()), tuple(import_path(folder)))
        code = replace(source.code, folder=str(folder), before_start=lambda: self._open(run, starts=True))
        return replace(source, code=code)

    def _source(
        self,
        implementation: str,
        own: tuple[ModuleSource, ...],
        every: tuple[ModuleSource, ...],
        paths: tuple[str, ...],
    ) -> _Source:
        module_name, attribute = _split(implementation)
        for source in own[:1]:
            known = modules.names_of(source)
            if known.complete and attribute not in known.names:
                msg = f"The module {module_name} has no function {attribute}."
                raise Invalid(msg, code="implementation_invalid")
        code = ModuleCode(
            function=implementation,
            sources={each.name: (str(each.path), each.data) for each in every},
            paths=paths,
            allow=self.allow,
            digest=own[0].digest if own else None,
        )
        return _Source(code, own)

    def _load(self, implementation: str, module_name: str, pins: Mapping[str, str]) -> _Loaded:
        self._check_allowed(module_name, is_known=any(modules.has_module(root, module_name) for root in self.roots))
        with modules.lock:
            sources = modules.closure(module_name, self.roots, self._home(module_name))
            _check_pins(module_name, sources, pins)
            modules.accept(sources)
        function = import_function(implementation, self._owns, partial(self._check_place, module_name))
        return _Loaded(Code(function, sources[0].digest if sources else None), sources)

    # ---- modules ------------------------------------------------------------------------------------------------

    def _check_allowed(self, module: str, *, is_known: bool) -> None:
        is_own = is_known and module.partition(".")[0] not in OWN_PACKAGES
        allowed = self._is_listed(module) if self.allow else is_own
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


def _elsewhere(implementation: str) -> CodeUnavailable:
    msg = f"The code of {implementation} is in the program that started the run."
    return CodeUnavailable(msg, hint="Go on with the run there; what people have answered is kept.")


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
