"""The specs of requests, inline or by path, and their loading with overlays, overrides and changes of skills."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from kneo.agents.providers import model_check
from kneo.agents.start_check import missing_libraries
from kneo.api.operation import MAX_NAMES, Body, EnvironmentName, Name, check_size
from kneo.errors import Invalid, Usage
from kneo.project import read_config
from kneo.project.files import ModuleFiles, SpecFiles, is_hidden
from kneo.settings import Settings
from kneo.spec.documents import DEFAULT_LIMITS, Document, Unreadable, unreadable
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.modules import RuleContext
from kneo.spec.reading.inline import Files, NoFiles
from kneo.spec.reading.load import LoadedSpec, load_tree, resolve
from kneo.spec.reading.normalize import merge_all
from kneo.spec.reading.reader import read


class SkillsChange(Body):
    """Skills to add to the root agent, and to remove from every agent."""

    add: list[Name] = Field(default_factory=list, max_length=MAX_NAMES)
    disable: list[Name] = Field(default_factory=list, max_length=MAX_NAMES)


class SpecRequest(Body):
    """A spec with its overlays in order, then its overrides."""

    spec_path: Name | None = Field(default=None, description="A file below the service's spec root.")
    spec: dict[str, object] | None = Field(default=None, description="The spec itself; takes precedence over a path.")
    environment: EnvironmentName | None = None
    overlays: list[Name] = Field(
        default_factory=list, max_length=MAX_NAMES, description="Files below the service's spec root."
    )
    overrides: dict[str, object] = Field(default_factory=dict)

    @property
    def has_layers(self) -> bool:
        """Whether there are overlays or overrides."""
        return bool(self.overlays or self.overrides)

    def origin(self) -> dict[str, object]:
        """Return the source of the spec for the audit log."""
        return {
            "spec_path": self.spec_path,
            "inline_spec": self.spec is not None,
            "environment": self.environment,
            "overlays": self.overlays,
        }


class Confined(Invalid):
    """The path leads out of the folder, or does not exist."""

    http_status = 422
    default_code = "spec_path_confined"


class SpecLoader:
    """Loads specs for requests. Nothing outside the spec root is read, and nothing is imported.

    Args:
        settings: The spec root, the modules that specs may name, and the size limits.
        tools: The tools of this process, which specs may name.
    """

    def __init__(self, settings: Settings, tools: frozenset[str] = frozenset()) -> None:
        self.settings = settings
        self.tools = tools
        self.root = settings.spec_root.resolve()

    def check_sizes(self, order: SpecRequest) -> None:
        """Check the sizes of a request's spec.

        Raises:
            Invalid: ``input_too_large``.
        """
        limits = self.settings.limits
        sizes = (
            ("spec", _size(order.spec), limits.inline_spec_bytes),
            ("overrides", _size(order.overrides), limits.overrides_bytes),
            *(("overlays", len(path), limits.path_chars) for path in order.overlays),
            ("spec_path", len(order.spec_path or ""), limits.path_chars),
            ("environment", len(order.environment or ""), limits.path_chars),
        )
        for name, size, limit in sizes:
            check_size(name, size, limit)

    def load(self, order: SpecRequest, skills: SkillsChange | None = None) -> LoadedSpec:
        """Load a spec with its diagnostics, with its overlays, then its overrides, then a change of its skills.

        Raises:
            Usage: the request has neither a spec nor a path.
            Confined: a path does not exist below the spec root.
            Invalid: a part is too large.
        """
        self.check_sizes(order)
        try:
            documents = [] if order.spec is not None else [self._document(order.spec_path)]
            base = order.spec if order.spec is not None else documents[0].value
            overlays = [self._document(path) for path in order.overlays]
        except Unreadable as refusal:
            return LoadedSpec(None, {}, (unreadable(refusal),))
        merged = merge_all(base, [*(overlay.value for overlay in overlays), order.overrides or None])
        return load_tree(
            _with_skills(merged, skills or SkillsChange()),
            documents=[*documents, *overlays],
            context=self._context(order.environment),
            files=self._files(order),
            rules=check,
        )

    def whole(self, order: SpecRequest, skills: SkillsChange | None = None) -> LoadedSpec:
        """Load a spec with every referenced file inlined: the content to sign and to run."""
        return resolve(self.load(order, skills), self._files(order))

    def _files(self, order: SpecRequest) -> Files:
        # An inline spec has no folder, and so no files to refer to.
        if order.spec is not None or order.spec_path is None:
            return NoFiles()
        return SpecFiles((self.root / order.spec_path).parent, self.root)

    def _context(self, environment: str | None) -> RuleContext:
        settings = self.settings
        modules = ModuleFiles(settings.import_roots, settings.import_allow)
        return RuleContext(
            modules,
            settings.import_allow or None,
            self.tools,
            environment=environment,
            models=model_check(settings, read_config(settings)),
            mcp_commands=settings.mcp.commands,
            missing_libraries=missing_libraries(),
        )

    def _document(self, path: str | None) -> Document:
        if path is None:
            msg = "The request has no spec."
            raise Usage(msg, hint="Send spec or spec_path.")
        with self._inside(path).open("rb") as file:
            return read(file.read(DEFAULT_LIMITS.max_bytes + 1), file=path)

    def _inside(self, path: str) -> Path:
        """Find a file below the spec root; ``..``, links out of it and hidden files are refused."""
        try:
            target = (self.root / path).resolve()
            if target.is_relative_to(self.root) and not is_hidden(target, self.root) and target.is_file():
                return target
        except (OSError, ValueError, RuntimeError):  # A NUL in the name, a name that is too long, a cycle of links.
            pass
        msg = f"{path[:200]!r} is not a spec under the spec root of this service."
        raise Confined(msg, hint="Specs are read below KNEO_SERV_SPEC_ROOT.")


def usable(loaded: LoadedSpec) -> Spec:
    """Return a spec that can run.

    Raises:
        Invalid: ``spec_invalid``: it cannot; the diagnostics are in its details.
    """
    if loaded.spec is not None and loaded.valid:
        return loaded.spec
    raise refused(loaded)


def shaped(loaded: LoadedSpec) -> Spec:
    """Return a spec of valid shape, which may have other errors.

    Raises:
        Invalid: ``spec_invalid``; the diagnostics are in its details.
    """
    if loaded.spec is None:
        raise refused(loaded)
    return loaded.spec


def refused(loaded: LoadedSpec) -> Invalid:
    """Return the diagnostics of a spec as an error."""
    errors = [found for found in loaded.diagnostics if found.is_error]
    first = errors[0]
    more = f" And {len(errors) - 1} more." if len(errors) > 1 else ""
    return Invalid(
        f"{first.code}: {first.message} (at {first.path_text or 'the whole spec'}){more}",
        code="spec_invalid",
        hint=first.suggestion,
        diagnostics=[found.as_json() for found in loaded.diagnostics],
    )


def _size(value: object) -> int:
    return len(json.dumps(value)) if value else 0


def _with_skills(tree: object, change: SkillsChange) -> object:
    """Change the skills of agents."""
    if not isinstance(tree, dict) or change == SkillsChange():
        return tree
    components = tree.get("components")
    agents = components.get("agents") if isinstance(components, dict) else None
    changed = {**tree, "agent": _skilled(tree.get("agent"), change.add, change.disable)}
    if isinstance(components, dict) and isinstance(agents, dict):
        kept = {name: _skilled(agent, [], change.disable) for name, agent in agents.items()}
        changed["components"] = {**components, "agents": kept}
    return changed


def _skilled(agent: object, add: list[str], disable: list[str]) -> object:
    if not isinstance(agent, dict):
        return agent
    has = agent.get("skills") or []
    if not isinstance(has, list) or not all(isinstance(name, str) for name in has):
        return agent  # the schema, which comes next, reports what it is
    return {**agent, "skills": [name for name in dict.fromkeys([*has, *add]) if name not in disable]}
