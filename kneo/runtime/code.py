"""Finding the function that a spec names in ``implementation:``, within an allow-list.

The code is not part of a bundle, so the allow-list decides which modules may be named at all, and each step records
the SHA-256 of the module it ran.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kneo.digest import Digest, digest_of
from kneo.errors import Forbidden, Invalid


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
        for root in reversed(self.roots):
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))

    def load(self, implementation: str) -> Code:
        """Import the function behind a dotted name.

        Raises:
            Invalid: the name is not dotted, the module is missing or fails to import, or it has no such function.
            Forbidden: the module may not be named.
        """
        module_name, _, attribute = implementation.rpartition(".")
        if not module_name:
            msg = f"{implementation!r} is not a dotted name such as package.module.function."
            raise Invalid(msg, code="implementation_invalid")
        self._check_allowed(module_name)
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            msg = f"The module {module_name} of {implementation} failed to import: {type(error).__name__}: {error}"
            raise Invalid(msg, code="implementation_invalid") from error
        function = getattr(module, attribute, None)
        if not callable(function):
            msg = f"The module {module_name} has no function {attribute}."
            raise Invalid(msg, code="implementation_invalid")
        return Code(function, self._digest(getattr(module, "__file__", None)))

    def _check_allowed(self, module: str) -> None:
        if self.allow:
            allowed = any(module == prefix or module.startswith(f"{prefix}.") for prefix in self.allow)
        else:
            allowed = module.split(".", maxsplit=1)[0] == "examples" or any(_holds(root, module) for root in self.roots)
        if not allowed:
            where = ", ".join(self.allow) if self.allow else ", ".join(str(root) for root in self.roots)
            msg = f"The module {module} may not be named by a spec; allowed: {where}."
            raise Forbidden(msg, code="implementation_forbidden", hint="KNEO_SERV_IMPORT_ALLOW lists module prefixes.")

    @staticmethod
    def _digest(file: str | None) -> Digest | None:
        return digest_of(Path(file).read_bytes()) if file is not None and Path(file).is_file() else None


def _holds(root: Path, module: str) -> bool:
    path = root.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
