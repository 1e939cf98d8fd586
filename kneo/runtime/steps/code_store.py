"""The code store: the files of bundles in folders by their digests, from which functions are imported, and nothing else.

A folder is written beside its place, synchronized and renamed, so that it is whole or not there. It is compared with the signed
payload where a process starts that imports from it, and wherever a file has another time or size than then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import site
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from threading import Lock

from kneo.digest import Digest, digest_of
from kneo.errors import Conflict, Untrusted
from kneo.runtime.steps.modules import ModuleSource
from kneo.spec.code import BundleCode, RunCode

Stamps = dict[str, tuple[int, int, int]]
"""Time, size and number of each file, by its path."""


def import_path(folder: Path) -> list[str]:
    """Return the ``sys.path`` of a process that imports the code of a bundle: its folder, the standard library, packages."""
    return list(dict.fromkeys([str(folder), *package_paths()]))


def package_paths() -> list[str]:
    """Return the folders of the standard library and of installed packages.

    The working directory, ``PYTHONPATH`` and folders that packages add by ``.pth`` files are not among them.
    """
    stdlib = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    dynamic = [f"{each}/lib-dynload" for each in stdlib]
    return list(dict.fromkeys([*stdlib, *dynamic, *site.getsitepackages(), *user]))


def sources_in(folder: Path, code: BundleCode) -> list[ModuleSource]:
    """Return the modules of a code from its own bytes, and the folders that are packages without a file."""
    modules = {
        name: ModuleSource(
            name, folder / path, code.files[path], digest_of(code.files[path]), path.endswith("__init__.py")
        )
        for name, path in code.modules()
    }
    for name in list(modules):
        parts = name.split(".")
        for length in range(1, len(parts)):
            package = ".".join(parts[:length])
            modules.setdefault(
                package, ModuleSource(package, folder.joinpath(*parts[:length]), None, None, is_package=True)
            )
    return list(modules.values())


def package_differences(code: BundleCode) -> Iterator[str]:
    """Yield the packages of this installation that have another version than a code records, in words."""
    for name, recorded in sorted(code.packages.items()):
        try:
            present = version(name)
        except PackageNotFoundError:
            present = "missing"
        if present != recorded:
            yield f"{name} is {present}, recorded is {recorded}"


class CodeStore:
    """The laid-out code of bundles; safe for many threads and processes.

    Args:
        folder: The folder of all codes.
        read: Returns the code of an accepted bundle by the bundle's digest, verified.
    """

    def __init__(self, folder: Path, read: Callable[[Digest], BundleCode]) -> None:
        self._root, self._read = folder, read
        self._codes: dict[Digest, tuple[BundleCode, Stamps | None]] = {}
        self._lock = Lock()

    def open(self, run: RunCode, *, starts: bool = False) -> tuple[Path, BundleCode]:
        """Return the folder of a run's code, laid out and equal to what was signed.

        Args:
            run: The code of the run, of a bundle.
            starts: Whether a process starts that imports from it: then every file is read.

        Raises:
            Untrusted: ``code_tampered``.
            Conflict: ``package_differs``.
        """
        assert run.digest is not None
        assert run.bundle is not None
        folder = self._root / run.digest.removeprefix("sha256:")
        with self._lock:
            known = self._codes.get(run.digest)
            if known is None:
                code = self._read(run.bundle)
                if code.digest != run.digest:
                    raise _tampered(folder, f"the bundle {run.bundle} has the code {code.digest}")
                if not folder.exists():
                    self._lay_out(folder, code)
                known = (code, None)
            code, stamps = known
            if starts or stamps != _stamps(folder):
                stamps = _stamps(folder)
                _compare(folder, code, stamps)
            self._codes[run.digest] = (code, stamps)
        if run.same_packages and (differences := list(package_differences(code))):
            msg = f"Packages differ from those that the bundle records: {'; '.join(differences[:10])}."
            hint = "Install the recorded versions on the worker, or sign the bundle with the present ones."
            raise Conflict(msg, code="package_differs", hint=hint, packages=differences)
        return folder, code

    def _lay_out(self, folder: Path, code: BundleCode) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self._root / ".lock"):
            if folder.exists():
                return
            draft = self._root / f".{folder.name}"
            shutil.rmtree(draft, ignore_errors=True)
            folders = {draft}
            for path, data in code.files.items():
                target = draft / path
                target.parent.mkdir(parents=True, exist_ok=True)
                folders.update(draft / parent for parent in PurePosixPath(path).parents)
                with target.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
            draft.mkdir(exist_ok=True)
            for each in sorted(folders, reverse=True):
                each.chmod(0o555)
                _synchronize(each)
            draft.rename(folder)
            _synchronize(self._root)


def _stamps(folder: Path) -> Stamps:
    """Return what is in a folder; links and other kinds of files have a size that no file has."""
    found: Stamps = {}
    waiting = [folder]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            return {}
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
                continue
            seen = entry.stat(follow_symlinks=False)
            size = seen.st_size if entry.is_file(follow_symlinks=False) else -1
            found[Path(entry.path).relative_to(folder).as_posix()] = (seen.st_mtime_ns, size, seen.st_ino)
    return found


def _compare(folder: Path, code: BundleCode, stamps: Stamps) -> None:
    for path in sorted(stamps.keys() ^ code.files.keys()):
        raise _tampered(folder / path, "it is missing" if path in code.files else "it is not part of the bundle")
    for path, data in code.files.items():
        if stamps[path][1] != len(data) or (folder / path).read_bytes() != data:
            raise _tampered(folder / path, "its content is not that of the bundle")


def _tampered(path: Path, why: str) -> Untrusted:
    msg = f"The laid-out code {path} was changed: {why}."
    hint = "Find out who changed it, and delete the folder of that digest; it is laid out again."
    return Untrusted(msg, code="code_tampered", hint=hint)


def _synchronize(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock of all processes that lay out code in a folder; it ends with the process."""
    with file.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
