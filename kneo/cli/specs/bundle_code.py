"""Collect the code of a bundle: the project modules that a spec's functions import, and the scripts of its skills, read and never executed."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.metadata import packages_distributions, version
from pathlib import Path, PurePosixPath

from kneo.cli import render
from kneo.cli.repository import ConfigRepository
from kneo.errors import Invalid, KneoError
from kneo.runtime.steps.modules import closure, source_in
from kneo.spec.code import INPROCESS, BundleCode, check_secrets
from kneo.spec.documents import Diagnostic, Severity
from kneo.spec.environment import parse_environment
from kneo.spec.models.spec import Spec
from kneo.spec.modules import OWN_PACKAGES, dynamic_imports, imports_of


@dataclass(frozen=True)
class CollectedCode:
    """The code of a bundle, and what its author should know."""

    code: BundleCode | None
    warnings: tuple[Diagnostic, ...] = ()


def collect_code(spec: Spec, roots: Sequence[Path]) -> CollectedCode:
    """Collect the code that a spec names; none where it names no function and no script and includes no file.

    Args:
        spec: The spec.
        roots: The folders that modules are imported from; the first one is the root of the project.

    Raises:
        Invalid: ``E_CODE_SIZE``, ``E_CODE_OUTSIDE``, ``E_CODE_SECRET``, ``E_CODE_BINARY``, ``implementation_invalid``.
    """
    roots = tuple(root.resolve() for root in roots)
    names = {each.rpartition(".")[0] for each in spec.implementations() if not each.startswith(INPROCESS)}
    if not names and not any(spec.scripts()) and not spec.code.include:
        return CollectedCode(None)
    files, imported = dict[str, bytes](), set[str]()
    for name in sorted(names - {""}):
        found = closure(name, roots, find=source_in)
        _check_found(name, bool(found), roots)
        for source in found:
            if source.data is not None:
                _add(files, source.path, source.data, roots)
                imported |= imports_of(source.data, source.name, is_package=source.is_package)
    for file, data in _scripts(spec):
        if files.setdefault(file, data) != data:
            msg = f"{file} is a script of a skill, and another file of the project has its path."
            raise Invalid(msg, code="E_CODE_OUTSIDE", hint="Give the skill another name.", file=file)
        imported |= imports_of(data, PurePosixPath(file).stem, is_package=False)
    for path in _included(spec.code.include, roots[0]):
        data = path.read_bytes()
        _add(files, path, data, roots[:1])
        if path.suffix == ".py":
            imported |= imports_of(data, ".".join(path.relative_to(roots[0]).with_suffix("").parts), is_package=False)
    files = {path: data for path, data in files.items() if not _matches(path, spec.code.exclude)}
    for each in sorted(imported):
        _check_no_extension(each, roots)
    code = BundleCode(files, _packages(imported, roots))
    check_secrets(code)
    return CollectedCode(code, tuple(_dynamic(code)))


def _scripts(spec: Spec) -> Iterator[tuple[str, bytes]]:
    for script in spec.scripts():
        yield from spec.script_files(script).items()


def environments_without_code(repository: ConfigRepository | None, environments: Iterable[str]) -> Iterator[str]:
    """Yield the environments that refuse to release a bundle which names functions and has no code."""
    for name in environments:
        file = repository.environment_file(name) if repository is not None else None
        try:
            rules = (
                parse_environment(file.read_bytes(), file=str(file)) if file is not None and file.is_file() else None
            )
        except KneoError:
            continue
        if rules is not None and rules.spec.code == "bundled":
            yield name


def print_warnings(warnings: Iterable[Diagnostic]) -> None:
    """Print what the author of a bundle should know."""
    for found in warnings:
        render.warning(f"{found.file}:{found.line}: {found.code}: {found.message}", found.suggestion)


def _add(files: dict[str, bytes], path: Path, data: bytes, roots: Sequence[Path]) -> None:
    """Add a file by its path below the folder that it is imported from.

    Raises:
        Invalid: ``E_CODE_OUTSIDE``: it is reached through a symbolic link.
    """
    root = next(each for each in roots if path.is_relative_to(each))
    inside = path.relative_to(root)
    if any(root.joinpath(*inside.parts[:length]).is_symlink() for length in range(1, len(inside.parts) + 1)):
        msg = f"{inside.as_posix()} is reached through a symbolic link, whose target can change."
        raise Invalid(msg, code="E_CODE_OUTSIDE", hint="Put the file itself there.", file=inside.as_posix())
    files.setdefault(inside.as_posix(), data)


def _included(patterns: Sequence[str], root: Path) -> Iterator[Path]:
    for pattern in patterns:
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts or not pattern:
            msg = f"The pattern {pattern!r} of code.include is not below the root of the project."
            raise Invalid(msg, code="E_CODE_OUTSIDE", hint="Move the files below the root, and name them from there.")
        for path in sorted(root.glob(pattern)):
            if (path.is_file() or path.is_symlink()) and "__pycache__" not in path.parts:
                yield path


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(PurePosixPath("/", path).match(f"/{pattern}") for pattern in patterns)


def _check_found(name: str, is_found: bool, roots: Sequence[Path]) -> None:
    """Check that a module is in the project, or belongs to an installed package, which workers have by its version.

    Raises:
        Invalid: ``E_CODE_OUTSIDE``, ``E_CODE_BINARY``.
    """
    _check_no_extension(name, roots)
    if not is_found and not _is_installed(name):
        msg = f"The module {name} is not below {roots[0]}, and no installed package has it."
        raise Invalid(msg, code="E_CODE_OUTSIDE", hint="Move it below the root of the project, or install it.")


def _is_installed(name: str) -> bool:
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in OWN_PACKAGES:
        return True
    found = PathFinder.find_spec(top, [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return found is not None and found.origin is not None


def _check_no_extension(name: str, roots: Sequence[Path]) -> None:
    """Check that an import finds no compiled module of the project, which comes before a source of the same name.

    Raises:
        Invalid: ``E_CODE_BINARY``.
    """
    for root in roots:
        place = root.joinpath(*name.split("."))
        for suffix in EXTENSION_SUFFIXES:
            if (compiled := place.with_name(place.name + suffix)).is_file():
                path = compiled.relative_to(root).as_posix()
                msg = f"{path} is compiled: no reviewer can read it."
                hint = "Install it on the workers as a package: the bundle records its version."
                raise Invalid(msg, code="E_CODE_BINARY", hint=hint, file=path)


def _packages(imported: Iterable[str], roots: Sequence[Path]) -> dict[str, str]:
    tops = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - OWN_PACKAGES
    outside = {top for top in tops if source_in(top, roots) is None}
    known = packages_distributions() if outside else {}
    return {name: version(name) for top in outside for name in known.get(top, ())}


def _dynamic(code: BundleCode) -> Iterator[Diagnostic]:
    for path, data in sorted(code.files.items()):
        for line in dynamic_imports(data) if path.endswith(".py") else ():
            yield Diagnostic(
                "W_CODE_DYNAMIC",
                Severity.WARNING,
                "The import is by a computed name, so that its module may be missing from the bundle.",
                None,
                "Name its file under code.include.",
                file=path,
                line=line,
            )
