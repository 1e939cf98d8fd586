"""Compiler of specs for embedding programs, with the program's own tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kneo.errors import Invalid
from kneo.spec.documents import Diagnostic
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.modules import RuleContext
from kneo.spec.reading.inline import Files
from kneo.spec.reading.load import LoadedSpec, SourceFile, load_spec, load_tree, resolve
from kneo.spec.reading.normalize import merge_all


class NamedTools(Protocol):
    """A registry of tools by name."""

    @property
    def names(self) -> frozenset[str]: ...

    @property
    def middleware_names(self) -> frozenset[str]: ...


class SpecCompiler:
    """Checks specs with the tools of an embedding program.

    Args:
        runtime_registry: Accepted and unused; the spec alone decides the runtime.
        tool_registry: The tools of this process, which specs may name.
    """

    def __init__(self, runtime_registry: object | None = None, tool_registry: NamedTools | None = None) -> None:
        self.runtime_registry = runtime_registry
        self.tool_registry = tool_registry

    @property
    def tools(self) -> frozenset[str]:
        """The names of the tools that specs may use without declaring them."""
        return self.tool_registry.names if self.tool_registry is not None else frozenset()

    @property
    def middleware(self) -> frozenset[str] | None:
        """The names of the middleware that agents may have; ``None`` without a registry."""
        return self.tool_registry.middleware_names if self.tool_registry is not None else None

    @property
    def _context(self) -> RuleContext:
        return RuleContext(tools=self.tools, middleware=self.middleware)

    def load(
        self,
        data: bytes,
        file: str,
        *,
        overlays: Sequence[SourceFile] = (),
        overrides: Mapping[str, object] | None = None,
        files: Files | None = None,
    ) -> LoadedSpec:
        """Load a spec from the bytes of a file, with all findings; ``files`` are those that the spec can refer to."""
        context = self._context
        loaded = load_spec(
            data, file=file, overlays=overlays, overrides=overrides, files=files, rules=check, context=context
        )
        return loaded if files is None else resolve(loaded, files)

    def load_tree(self, tree: Mapping[str, object], *, overrides: Mapping[str, object] | None = None) -> LoadedSpec:
        """Load a spec from plain values, with all findings."""
        return load_tree(merge_all(dict(tree), [overrides]), rules=check, context=self._context)

    def compile(self, tree: Mapping[str, object]) -> Spec:
        """Check a spec.

        Raises:
            Invalid: ``spec_invalid``; the diagnostics are in its details.
        """
        return require_valid(self.load_tree(tree))


def require_valid(loaded: LoadedSpec) -> Spec:
    """Return the spec of a load without errors.

    Raises:
        Invalid: ``spec_invalid``; the diagnostics are in its details.
    """
    if loaded.spec is None or not loaded.valid:
        raise refusal(loaded.diagnostics)
    return loaded.spec


def refusal(findings: Sequence[Diagnostic]) -> Invalid:
    """Return the exception for a spec with at least one error among its findings."""
    errors = [found for found in findings if found.is_error]
    first = errors[0]
    where = f"{first.file}:{first.line}: " if first.file else ""
    more = f" And {len(errors) - 1} more." if len(errors) > 1 else ""
    return Invalid(
        f"{where}{first.code}: {first.message} (at {first.path_text or 'the whole spec'}){more}",
        code="spec_invalid",
        hint=first.suggestion or "kneo spec lint shows every finding.",
        diagnostics=[found.as_json() for found in findings],
    )
