"""What people declare: specs, overlays, environments and project settings, as values.

Everything here is pure. Bytes, overlays, the index of importable modules and the time are handed in; nothing in this
package opens a file, asks the clock or the environment, or imports the code that a spec names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kneo.spec.compiler import SpecCompiler

__all__ = ["SpecCompiler"]


def __getattr__(name: str) -> object:
    # On demand: the import of one module of this package must not import all of it.
    if name == "SpecCompiler":
        from kneo.spec.compiler import SpecCompiler

        return SpecCompiler
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
