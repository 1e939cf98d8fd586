"""Files of the operator: bounded reads, atomic writes, and private files for secrets."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kneo.errors import Conflict, Invalid, NotFound

PRIVATE_FILE, PRIVATE_FOLDER, PUBLIC_FILE = 0o600, 0o700, 0o644


def read_bytes(path: Path, *, max_bytes: int, what: str = "file") -> bytes:
    """Read a file up to a maximum size.

    Raises:
        NotFound: the file does not exist.
        Invalid: it is a folder, unreadable, or larger than ``max_bytes``.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError as error:
        msg = f"There is no {what} at {path}."
        raise NotFound(msg, file=str(path)) from error
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}."
        raise Invalid(msg, file=str(path)) from error
    if len(data) > max_bytes:
        msg = f"{path} is larger than {max_bytes} bytes, the limit of a {what}."
        raise Invalid(msg, code="LimitExceeded", file=str(path))
    return data


def write_whole(path: Path, data: bytes, *, mode: int = PUBLIC_FILE) -> None:
    """Replace a file atomically: readers see the old content or the new.

    Missing folders are created. The content is on disk on return.

    Raises:
        Invalid: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            draft.chmod(mode)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}."
        raise Invalid(msg, file=str(path)) from error


def write_secret(path: Path, data: bytes) -> None:
    """Create a file that only its owner may read, in a folder with the same restriction. Nothing is overwritten.

    Raises:
        Conflict: the file exists.
        Invalid: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        # The mode is set at creation, so that other users can never open the file.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), PRIVATE_FILE)
    except FileExistsError as error:
        msg = f"{path} exists already and is not overwritten."
        raise Conflict(msg, hint="Choose another file name, or move this file.", file=str(path)) from error
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}."
        raise Invalid(msg, file=str(path)) from error
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
