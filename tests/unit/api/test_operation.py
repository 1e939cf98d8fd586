"""Operations: their HTTP requests follow from their parameters, and each is served once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest
from pydantic import BaseModel

from kneo.api import runs
from kneo.api.operation import Context, operation, operations_of
from kneo.api.runs import RunSortField, get_run, list_runs
from kneo.records.run import RunStatus
from kneo.roles import SCOPES
from kneo.service.app import routers
from kneo.service.routing import RouteTable
from kneo.store.run_filter import SORTABLE


class Remark(BaseModel):
    text: str


@dataclass(frozen=True)
class Echo:
    said: str
    status: RunStatus
    inner: tuple[str, ...] = ()


@operation("POST", "/things/{name}/remarks", scope="runs:write", about=None)
def remark(_context: Context, name: str, body: Remark, loud: bool | None = None) -> Echo:
    """Answer with a remark."""
    return Echo(said=f"{name}: {body.text} {loud}", status=RunStatus.PAUSED)


def test_parameters_of_the_path_are_encoded_models_are_the_body_and_the_rest_is_the_query() -> None:
    request = remark.request("a/b ?#", Remark(text="hi"), loud=True)
    assert (request.method, request.path, request.query, request.body) == (
        "POST",
        "/things/a%2Fb%20%3F%23/remarks",
        {"loud": True},
        Remark(text="hi"),
    )


def test_what_was_not_given_is_not_asked_for() -> None:
    assert list_runs.request(status=None, limit=5).query == {"limit": 5}


def test_a_request_that_lacks_a_parameter_cannot_be_made() -> None:
    with pytest.raises(TypeError):
        get_run.request()  # type: ignore[call-arg]


def test_an_operation_is_called_like_its_function() -> None:
    assert remark.function(None, "x", Remark(text="y"), loud=False).said == "x: y False"  # type: ignore[arg-type]
    assert (remark.id, remark.view, remark.body) == ("remark", Echo, "body")


def test_each_operation_is_served_once_with_its_scope_and_parameters() -> None:
    served = {one.id: one for one in RouteTable(routers())}
    for one in operations_of(runs):
        route = served[one.id]
        assert (route.method, route.template) == (one.method, one.path)
        assert [need.scope for need in route.required] == list(one.scopes)
        assert set(one.scopes) <= set(SCOPES)
        inside = {name for name in one.signature.parameters if f"{{{name}}}" in one.path}
        assert route.query == set(one.signature.parameters) - inside - {one.body}


def test_runs_are_sorted_by_what_the_database_can_sort_by() -> None:
    assert set(get_args(RunSortField)) == set(SORTABLE)
