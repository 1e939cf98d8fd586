from __future__ import annotations

import pytest

from kneo import errors
from kneo.errors import KneoError

TREE = {
    "Invalid": (400, 1, "invalid_request"),
    "Usage": (400, 2, "invalid_request"),
    "Unauthorized": (401, 3, "unauthorized"),
    "Forbidden": (403, 1, "forbidden"),
    "Untrusted": (403, 3, "untrusted"),
    "NotFound": (404, 4, "not_found"),
    "Conflict": (409, 5, "conflict"),
    "Transient": (503, 75, "try_again"),
}


def test_the_tree_is_what_clients_and_scripts_rely_on() -> None:
    found = {
        kind.__name__: (kind.http_status, kind.exit_code, kind.default_code) for kind in KneoError.__subclasses__()
    }
    ours = {name: row for name, row in found.items() if hasattr(errors, name)}
    assert ours == TREE


def test_the_drawing_in_the_docstring_names_every_class() -> None:
    for name in TREE:
        assert f"── {name} " in errors.__doc__


def test_an_error_says_what_happened_and_what_to_do() -> None:
    error = errors.NotFound("There is no run x.", code="run_not_found", hint="kneo runs list shows them.", run_id="x")
    assert str(error) == "There is no run x. kneo runs list shows them."
    assert (error.code, error.details) == ("run_not_found", {"run_id": "x"})
    assert str(errors.Conflict("Somebody else did.")) == "Somebody else did."


@pytest.mark.parametrize("name", TREE)
def test_each_error_is_caught_as_the_base(name: str) -> None:
    with pytest.raises(KneoError):
        raise getattr(errors, name)("x")
