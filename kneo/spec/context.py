"""What a rule may know about the world outside the spec. All of it is handed in; rules look nothing up themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Module:
    """A Python module that an ``implementation`` may name, known from its source without importing it.

    Attributes:
        names: What it defines or imports at its top level.
        complete: False where more names may exist than the source shows (``from x import *``, ``__getattr__``,
            an extension module): a missing name is then no finding.
        imported: The part of ``names`` that it takes from somewhere else, with the dotted name of the origin. An
            ``implementation`` that points through such a name reaches code the module does not own.
    """

    names: frozenset[str] = frozenset()
    complete: bool = True
    imported: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleContext:
    """The surroundings in which a spec is judged.

    Attributes:
        modules: Importable modules by dotted name. It may be a lazy mapping; rules only use ``get`` and ``in``. None
            means that nobody looked, so rules about missing modules stay silent.
        import_allow: Module prefixes that ``implementation`` may name. None means every module in ``modules``.
        tools: Names that the embedding's tool registry provides beside the spec's own ``tools``.
        functions: Names that the embedding registers beside ``components.functions``.
        environment: The environment the spec is meant for, where one is chosen.
    """

    modules: Mapping[str, Module] | None = None
    import_allow: tuple[str, ...] | None = None
    tools: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    environment: str | None = None


NOTHING_KNOWN = RuleContext()
"""Judge the spec by itself alone."""
