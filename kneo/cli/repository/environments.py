"""Environment files of a config repository, read with the rules of the language."""

from __future__ import annotations

from kneo.cli.files import read_bytes
from kneo.cli.repository.layout import ConfigRepository
from kneo.errors import NotFound
from kneo.spec.environment import ENVIRONMENT_LIMITS, parse_environment
from kneo.spec.models.environment import Environment


def read_environment(repository: ConfigRepository, name: str) -> Environment:
    """Read the file of an environment.

    Raises:
        NotFound: the repository has no such file.
        Invalid: the file is not an environment; the findings carry file and line.
    """
    for suffix in ("yaml", "yml"):
        path = repository.root / "environments" / f"{name}.{suffix}"
        if path.is_file():
            data = read_bytes(path, max_bytes=ENVIRONMENT_LIMITS.max_bytes, what="environment")
            return parse_environment(data, file=str(path))
    msg = f"There is no environment {name!r} in {repository.root}."
    known = ", ".join(repository.environment_names()) or "none"
    raise NotFound(msg, hint=f"There are: {known}.")
