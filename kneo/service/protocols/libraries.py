"""The libraries of protocols, which extras install."""

from __future__ import annotations

import importlib
from types import ModuleType

from kneo.errors import Invalid


def import_with_extra(name: str, extra: str) -> ModuleType:
    """Import a module of Kneo that needs the SDK of a protocol.

    Raises:
        Invalid: ``a2a_not_installed``, ``mcp_not_installed``.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kneo":
            raise
        msg = "This protocol needs a package that is not installed here."
        raise Invalid(msg, code=f"{extra}_not_installed", hint=f"Install it: pip install 'kneo[{extra}]'.") from None
