"""The code of a bundle: the project files that its functions are made of, and the packages that these import. Pure.

The payload carries them as ``{"files": {PATH: {"text": …} | {"base64": …}}, "packages": {NAME: VERSION}}``. A file is text where
its bytes are UTF-8, so that one content has one form; the identity of the code is the digest of that object.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, TypeAlias

from kneo.digest import Digest, digest_of_json
from kneo.errors import Invalid
from kneo.names import visible
from kneo.redaction import find_secret

if TYPE_CHECKING:
    from kneo.spec.models.spec import Spec

CodeSource: TypeAlias = Literal["bundle", "project", "program"]
"""Where the code of a step comes from: its bundle, the folder of the project, or the program that registered it."""

INPROCESS = "inprocess."
"""The prefix of implementations whose code is an object of the program that started the run."""

MAX_FILES, MAX_CODE_BYTES, MAX_PACKAGES = 200, 524_288, 500

_PATH_CHARS = 500

_BINARIES = frozenset({".so", ".pyd", ".dll", ".dylib", ".pyc", ".pyo"})

_KEY_SUFFIXES = frozenset({".pem", ".key", ".p12", ".pfx", ".jks"})

_KEY_NAMES = frozenset({".netrc", ".pypirc", ".npmrc", "id_dsa", "id_ecdsa", "id_ed25519", "id_rsa"})


@dataclass(frozen=True)
class BundleCode:
    """The code of a bundle.

    Attributes:
        files: Bytes by the path below the folder that modules are imported from.
        packages: Versions of the installed distributions that the files import, by name.

    Raises:
        Invalid: ``E_CODE_SIZE``, ``E_CODE_OUTSIDE``, ``E_CODE_BINARY``: it is beyond the limits of bundles.
    """

    files: Mapping[str, bytes]
    packages: Mapping[str, str]

    def __post_init__(self) -> None:
        _check_size(self.files)
        for path, data in self.files.items():
            _check_path(path, self.files)
            _check_binary(path, data)

    def as_json(self) -> dict[str, object]:
        """Return the object of the payload."""
        return {
            "files": {path: _encoded(data) for path, data in sorted(self.files.items())},
            "packages": dict(sorted(self.packages.items())),
        }

    @cached_property
    def digest(self) -> Digest:
        """The SHA-256 of the canonical JSON of the object."""
        return digest_of_json(self.as_json())

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(map(len, self.files.values()))

    def modules(self) -> Iterator[tuple[str, str]]:
        """Yield the dotted name and the path of each Python module."""
        for path in self.files:
            parts = PurePosixPath(path).with_suffix("").parts
            if path.endswith(".py") and all(part.isidentifier() for part in parts):
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@dataclass(frozen=True)
class RunCode:
    """The code that a run executes.

    Attributes:
        pins: The SHA-256 of modules that the run's environment pins, by name.
        digest: The digest of the bundle's code; ``None`` where the modules are those of the project.
        bundle: The digest of the bundle that carries the code.
        same_packages: Whether packages must have the recorded versions.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    digest: Digest | None = None
    bundle: Digest | None = None
    same_packages: bool = False

    def facts(self, module_digest: str | None) -> dict[str, object]:
        """Return the code for the trace of a step that executed a module."""
        source: CodeSource = "bundle" if self.digest is not None else "project"
        return {"digest": self.digest or module_digest, "source": source}


def read_code(value: object, *, file: str) -> BundleCode:
    """Parse the object of a payload.

    Raises:
        Invalid: ``Malformed``, or as ``BundleCode``.
    """
    if not isinstance(value, dict) or value.keys() != {"files", "packages"}:
        raise _malformed(file, "code has exactly the fields files and packages")
    files, packages = value["files"], value["packages"]
    if not isinstance(files, dict) or not isinstance(packages, dict) or len(packages) > MAX_PACKAGES:
        raise _malformed(file, f"files and packages are objects, with at most {MAX_PACKAGES} packages")
    for name, version in packages.items():
        if not (isinstance(version, str) and 0 < len(name) <= _PATH_CHARS and 0 < len(version) <= _PATH_CHARS):
            raise _malformed(file, "a package has a name and a version")
        if visible(name + version) != name + version:
            raise _malformed(file, "the name or the version of a package is not printable")
    return BundleCode({path: _decoded(path, each, file) for path, each in files.items()}, packages)


def check_secrets(code: BundleCode) -> None:
    """Check that no file is a key, or holds one.

    Raises:
        Invalid: ``E_CODE_SECRET``.
    """
    for path, data in code.files.items():
        name = PurePosixPath(path).name
        is_key = (
            name.partition(".env")[:2] == ("", ".env")
            or name in _KEY_NAMES
            or PurePosixPath(name).suffix in _KEY_SUFFIXES
        )
        line = None if is_key else find_secret(data.decode("utf-8", "replace"))
        if is_key or line is not None:
            where = f"{path}:{line} holds a key or a token" if line else f"{path} is a file of secrets by its name"
            msg = f"{where}, and everyone who can read a bundle can read its code."
            hint = f"Read it from the environment or a secret of the worker, or leave the file out: code.exclude: [{path}]."
            raise Invalid(msg, code="E_CODE_SECRET", hint=hint, file=path)


def names_functions(spec: Spec) -> bool:
    """Return whether a spec names code that a bundle has to carry: all but objects of the program that starts its runs."""
    return any(not name.startswith(INPROCESS) for name in spec.implementations()) or any(spec.scripts())


def _check_size(files: Mapping[str, bytes]) -> None:
    total = sum(map(len, files.values()))
    if len(files) > MAX_FILES or total > MAX_CODE_BYTES:
        largest = sorted(files, key=lambda path: (-len(files[path]), path))[:3]
        names = ", ".join(f"{path} ({len(files[path]):,} bytes)" for path in largest)
        msg = (
            f"The code has {len(files):,} files with {total:,} bytes; at most {MAX_FILES} files with {MAX_CODE_BYTES:,} bytes "
            f"are signed. The largest: {names}."
        )
        raise Invalid(
            msg, code="E_CODE_SIZE", hint="Leave files out (code.exclude), or install large parts as a package."
        )


def _check_path(path: str, files: Mapping[str, bytes]) -> None:
    parts = path.split("/")
    is_plain = len(path) <= _PATH_CHARS and "\\" not in path and "\0" not in path and visible(path) == path
    if not is_plain or any(part in {"", ".", ".."} for part in parts):
        msg = f"{visible(path)[:200]!r} is no path below the root of the project."
        raise Invalid(msg, code="E_CODE_OUTSIDE", hint="Move the file below the root of the project.", file=path[:200])
    if any("/".join(parts[:length]) in files for length in range(1, len(parts))):
        msg = f"{path} is below another file of the code."
        raise Invalid(msg, code="E_CODE_OUTSIDE", file=path)


def _check_binary(path: str, data: bytes) -> None:
    suffix = PurePosixPath(path).suffix
    if suffix in _BINARIES:
        msg = f"{path} is compiled: no reviewer can read it."
        hint = "Install it on the workers as a package, which the bundle records with its version; or leave it out (code.exclude)."
        raise Invalid(msg, code="E_CODE_BINARY", hint=hint, file=path)
    if suffix == ".py" and text_of(data) is None:
        msg = f"{path} is no text in UTF-8."
        raise Invalid(msg, code="E_CODE_BINARY", hint="Save the module as UTF-8.", file=path)


def text_of(data: bytes) -> str | None:
    """Return the text of a file; ``None`` where it is binary."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _encoded(data: bytes) -> dict[str, str]:
    text = text_of(data)
    return {"text": text} if text is not None else {"base64": base64.b64encode(data).decode("ascii")}


def _decoded(path: str, value: object, file: str) -> bytes:
    match value:
        case {"text": str() as text, **rest} if not rest:
            data = text.encode()
        case {"base64": str() as text, **rest} if not rest:
            try:
                data = base64.b64decode(text, validate=True)
            except (ValueError, binascii.Error):
                raise _malformed(file, f"the content of {path[:200]} is not base64") from None
        case _:
            raise _malformed(file, f"the file {path[:200]} has either text or base64")
    if _encoded(data) != value:
        raise _malformed(file, f"the content of {path[:200]} is not in its one form")
    return data


def _malformed(file: str, why: str) -> Invalid:
    return Invalid(f"{file}: {why}.", code="Malformed")
