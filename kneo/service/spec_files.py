"""Specs by path, confined to the folder an operator gave."""

from __future__ import annotations

from kneo.errors import Invalid
from kneo.settings import Settings
from kneo.spec.reader import read


class Confined(Invalid):
    """The path leads out of the folder, or to nothing in it."""

    http_status = 422
    default_code = "spec_path_confined"


def read_spec_file(settings: Settings, path: str) -> dict[str, object]:
    """Read a spec under the spec root; no ``..`` and no link leads out of it.

    Raises:
        Confined: it is not a file under the root.
        Invalid: it is not a readable document.
    """
    root = settings.spec_root.resolve()
    target = (root / path).resolve()
    if not target.is_relative_to(root) or not target.is_file():
        msg = f"{path[:200]!r} is not a spec under the spec root of this service."
        raise Confined(msg, hint="KNEO_SERV_SPEC_ROOT is where specs are read from.")
    value = read(target.read_bytes(), file=path).value
    if not isinstance(value, dict):
        msg = f"{path[:200]} holds no map."
        raise Invalid(msg, code="spec_invalid")
    return value
