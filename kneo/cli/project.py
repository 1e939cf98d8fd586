"""The project of a command: its config, the environment, and its specs with overlays and defaults."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kneo.agents.providers import model_check
from kneo.agents.start_check import missing_libraries
from kneo.cli.files import read_bytes
from kneo.errors import NotFound, Usage
from kneo.project import read_config
from kneo.project.files import ModuleFiles, SpecFiles
from kneo.settings import Settings, from_env
from kneo.spec.compiler import SpecCompiler
from kneo.spec.documents import DEFAULT_LIMITS
from kneo.spec.environment import ENVIRONMENT_LIMITS, parse_environment
from kneo.spec.lint import check
from kneo.spec.models.environment import Environment, EnvironmentGate, with_gates
from kneo.spec.modules import RuleContext
from kneo.spec.project import ProjectConfig, choose_environment
from kneo.spec.reading.load import LoadedSpec, SourceFile, load_spec
from kneo.spec.reading.normalize import NO_DEFAULTS

if TYPE_CHECKING:
    from kneo.agents.function_tools import ToolRegistry
    from kneo.cli.repository import ConfigRepository
    from kneo.embed.platform import PlatformManager


def spec_compiler(settings: Settings) -> SpecCompiler:
    """Return the check of specs with the tools of the platform, where one is configured.

    Raises:
        Invalid: ``invalid_setting``: the factory does not exist, or does not create a platform.
    """
    platform = _platform(settings)
    return platform.compiler if platform is not None else SpecCompiler()


def registered_tools(settings: Settings) -> ToolRegistry | None:
    """Return the tools that the platform registered; ``None`` without a platform.

    Raises:
        Invalid: ``invalid_setting``: as for ``spec_compiler``.
    """
    platform = _platform(settings)
    return platform.tools if platform is not None else None


def _platform(settings: Settings) -> PlatformManager | None:
    if not settings.execution.platform:
        return None
    # The import takes a good part of a second, and is rarely needed.
    platform: PlatformManager = importlib.import_module("kneo.embed.platform").load_platform(settings)
    return platform


@dataclass(frozen=True)
class LoadedFile:
    """A loaded spec, and the files it was loaded from.

    Attributes:
        path: The spec's file.
        overlays: The applied overlay files.
        missing: Overlays of the project's config that do not exist.
        files: The files that the spec may refer to.
        declared: The file of the environment in the spec's config repository; None where there is none.
    """

    loaded: LoadedSpec
    path: Path
    overlays: tuple[Path, ...]
    missing: tuple[Path, ...]
    files: SpecFiles
    declared: Environment | None

    @property
    def sources(self) -> Mapping[str, str]:
        """The text of every file that was read, by its name in diagnostics."""
        return {document.file: document.text for document in self.loaded.documents}

    @property
    def gates(self) -> tuple[EnvironmentGate, ...]:
        """The gates that the environment adds."""
        return self.declared.gates if self.declared else ()


@dataclass(frozen=True)
class Project:
    """The project and the environment of a command.

    Attributes:
        config: The project's config; None where there is no project.
        environment: The environment of the command.
    """

    settings: Settings
    config: ProjectConfig | None
    environment: str
    cwd: Path

    @property
    def root(self) -> Path:
        return self.settings.project_root

    def spec_path(self, argument: Path | None) -> Path:
        """Return the path of the spec: the argument, relative to the working directory, or the project's default.

        Raises:
            Usage: the command names none and the project has no default.
            NotFound: the file does not exist.
        """
        if argument is None:
            default = self.config.specs.default_spec if self.config is not None else None
            if default is None:
                message = "The command names no spec, and the project has no default spec."
                raise Usage(message, hint="Pass a file, or set specs.default_spec in .kneo/config.yaml.")
            argument = self.root / default
        path = self.cwd / argument
        if not path.is_file():
            there = self.root / argument
            hint = f"There is one at {self.shown(there)}." if there.is_file() else None
            message = f"There is no spec at {self.shown(path)}."
            if path.is_dir():
                message = f"{path.resolve()} is a folder; name a spec in it."
            raise NotFound(message, hint=hint, file=str(path))
        return path

    def overlay_paths(self, spec: Path | None) -> tuple[Path, ...]:
        """Return the overlays of a spec in this environment, existing or not.

        The overlays of a project are for its default spec: another spec is loaded without them.
        """
        if self.config is None:
            return ()
        default = self.config.specs.default_spec
        if default is not None and spec is not None and (self.root / default).resolve() != spec.resolve():
            return ()
        return tuple(self.root / overlay for overlay in self.config.specs.overlays.get(self.environment, ()))

    def context_of(self, spec: Path, declared: Environment | None) -> RuleContext:
        """Return the context of lint rules: the modules below the import roots and in the spec's config repository, the
        environment with its rules, the tools of the platform that this process names, and the models that it can ask.

        A process that reconciles a local config repository finds the functions in it, in every working directory;
        so does a check of a spec from there.
        """
        settings, repository = self.settings, _config_repository(spec)
        roots = (*settings.import_roots, *([repository.root] if repository else []))
        modules = ModuleFiles(roots, settings.import_allow)
        compiler = spec_compiler(settings)
        return RuleContext(
            modules,
            settings.import_allow or None,
            compiler.tools,
            middleware=compiler.middleware,
            environment=self.environment,
            rules=declared.spec if declared else None,
            models=model_check(settings, self.config),
            mcp_commands=settings.mcp.commands,
            missing_libraries=missing_libraries(),
        )

    def declared(self, spec: Path) -> Environment | None:
        """Return the file of the environment in the spec's config repository; None where there is none.

        Raises:
            Invalid: the file is not valid.
        """
        repository = _config_repository(spec)
        path = repository.environment_file(self.environment) if repository else None
        return _parse_environment(path, self.shown(path)) if path is not None else None

    def load(self, argument: Path | None) -> LoadedFile:
        """Load a spec with the overlays and defaults of the project's environment, and apply every rule.

        Raises:
            Usage, NotFound: the spec does not exist.
        """
        path = self.spec_path(argument)
        overlays = self.overlay_paths(path)
        present = tuple(overlay for overlay in overlays if overlay.is_file())
        files = SpecFiles(path.parent, self.root)
        declared = self.declared(path)
        loaded = load_spec(
            self._read(path),
            file=self.shown(path),
            overlays=[SourceFile(self.shown(overlay), self._read(overlay)) for overlay in present],
            defaults=self.config.spec_defaults(self.environment) if self.config is not None else NO_DEFAULTS,
            context=self.context_of(path, declared),
            files=files,
            rules=lambda spec, context: check(with_gates(spec, declared.gates if declared else ()), context),
        )
        missing = tuple(overlay for overlay in overlays if overlay not in present)
        return LoadedFile(loaded, path, present, missing, files, declared)

    def shown(self, path: Path) -> str:
        """Return a path relative to the working directory where that is shorter."""
        return str(path.relative_to(self.cwd)) if path.is_relative_to(self.cwd) else str(path)

    def _read(self, path: Path) -> bytes:
        return read_bytes(path, max_bytes=DEFAULT_LIMITS.max_bytes, what="spec")


def _config_repository(spec: Path) -> ConfigRepository | None:
    folders = spec.resolve().parents
    root = next((folder for folder in folders if (folder / "environments" / "trust.json").is_file()), None)
    if root is None:
        return None
    from kneo.cli.repository import ConfigRepository  # imports cryptography, which most checks do not need

    return ConfigRepository(root)


def open_project(environment: str | None = None) -> Project:
    """Find the project of the working directory.

    Raises:
        Invalid: its config is not valid; the message names file and line.
    """
    settings, cwd = from_env(), Path.cwd()
    config = read_config(settings)
    return Project(settings, config, choose_environment(environment, settings.environment, config), cwd)


def read_environment(repository: ConfigRepository, name: str) -> Environment:
    """Read the file of an environment.

    Raises:
        NotFound: the repository has no such file.
        Invalid: the file is not an environment; the findings carry file and line.
    """
    path = repository.environment_file(name)
    if path is not None:
        return _parse_environment(path, str(path))
    msg = f"There is no environment {name!r} in {repository.root}."
    known = ", ".join(repository.environment_names()) or "none"
    raise NotFound(msg, hint=f"There are: {known}.")


def _parse_environment(path: Path, shown: str) -> Environment:
    return parse_environment(read_bytes(path, max_bytes=ENVIRONMENT_LIMITS.max_bytes, what="environment"), file=shown)
