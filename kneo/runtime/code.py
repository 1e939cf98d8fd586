"""Finding the function that a spec names in ``implementation:``, within an allow-list.

The code is not part of a bundle, so the allow-list decides which modules may be named at all, and each step records
the SHA-256 of the module it ran. An environment may pin that digest; another module is then never imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kneo.digest import Digest, digest_of
from kneo.errors import Forbidden, Invalid, Transient

INPROCESS = "inprocess."
"""What the implementation of a step begins with whose code is an object of the program that started the run."""


class Elsewhere(Transient):
    """A step's code is in another process; the run waits for that one."""

    default_code = "implementation_elsewhere"


@dataclass(frozen=True)
class Code:
    function: Callable[..., object]
    module_digest: Digest | None


class CodeLoader:
    """Loads functions from modules that may be named.

    Args:
        roots: Folders whose modules are allowed and importable.
        allow: Module prefixes that are allowed instead of the folders' own; empty means the folders and ``examples``.
    """

    def __init__(self, roots: tuple[Path, ...], allow: tuple[str, ...]) -> None:
        self.roots = tuple(root.resolve() for root in roots)
        self.allow = allow
        self._digests: dict[str, Digest | None] = {}
        self._allowed: set[str] = set()
        for root in reversed(self.roots):
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))

    def load(self, implementation: str, pins: Mapping[str, str] | None = None) -> Code:
        """Import the function behind a dotted name.

        Args:
            implementation: The name.
            pins: The SHA-256 that modules must have, by name; a module that is not listed may be any.

        Raises:
            Invalid: the name is not dotted, the module is missing or fails to import, or it has no such function.
            Elsewhere: it is an object of another process.
            Forbidden: the module may not be named, or is not the pinned one.
        """
        module_name, _, attribute = implementation.rpartition(".")
        if not module_name:
            msg = f"{implementation!r} is not a dotted name such as package.module.function."
            raise Invalid(msg, code="implementation_invalid")
        if implementation.startswith(INPROCESS):
            msg = f"The code of {implementation} is in the program that started the run."
            raise Elsewhere(msg, hint="Go on with the run there; what people have answered is kept.")
        self._check_allowed(module_name)
        digest = self._digest_of(module_name)
        pinned = (pins or {}).get(module_name)
        if pinned is not None and pinned != digest:
            msg = f"The module {module_name} is {digest or 'nowhere to be found'}, but its environment pins {pinned}."
            hint = "Deploy the pinned code, or pin the new one under implementations in the environment file."
            raise Forbidden(msg, code="implementation_not_pinned", hint=hint)
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            msg = f"The module {module_name} of {implementation} failed to import: {type(error).__name__}: {error}"
            raise Invalid(msg, code="implementation_invalid") from error
        function = getattr(module, attribute, None)
        if not callable(function):
            msg = f"The module {module_name} has no function {attribute}."
            raise Invalid(msg, code="implementation_invalid")
        return Code(function, digest)

    def _check_allowed(self, module: str) -> None:
        if module in self._allowed:
            return
        if self.allow:
            allowed = any(module == prefix or module.startswith(f"{prefix}.") for prefix in self.allow)
        else:
            allowed = module.split(".", maxsplit=1)[0] == "examples" or any(
                _source(root, module) for root in self.roots
            )
        if not allowed:
            where = ", ".join(self.allow) if self.allow else ", ".join(str(root) for root in self.roots)
            msg = f"The module {module} may not be named by a spec; allowed: {where}."
            raise Forbidden(msg, code="implementation_forbidden", hint="KNEO_SERV_IMPORT_ALLOW lists module prefixes.")
        self._allowed.add(module)

    def _digest_of(self, module: str) -> Digest | None:
        """Name a module's source as it was before this process imported it; a later change on disk is not what runs."""
        if module not in self._digests:
            file = next(
                (found for path in (*self.roots, *map(Path, sys.path)) if (found := _source(path, module))), None
            )
            self._digests[module] = digest_of(file.read_bytes()) if file is not None else None
        return self._digests[module]


def _source(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
