"""KNEO_SERV_MAX_LIST_ITEMS bounds the pages of lists, and the lists in requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from service_bench import DRAFT, Bench, serving, spec_of

from kneo.service.app import routers
from kneo.service.routing import RouteTable

MOST = 2


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("limited")
    database = f"sqlite:///{folder / 'kneo.sqlite'}"
    with serving(folder, database, KNEO_SERV_MAX_LIST_ITEMS=str(MOST)) as made:
        for number in range(3):
            made.paused(session_id=f"session-{number}")
        yield made


LISTS = sorted(
    route.template
    for route in RouteTable(routers())
    if route.method == "GET" and "limit" in route.query and "{" not in route.template.replace("{run_id}", "")
)


@pytest.mark.parametrize("template", LISTS)
@pytest.mark.parametrize("query", [{}, {"limit": 3}, {"limit": 200}])
def test_no_page_is_longer_than_the_setting(bench: Bench, template: str, query: dict[str, int]) -> None:
    run = bench.get("/runs", limit=1)["runs"][0]
    page = bench.get(template.format(run_id=run["id"]), **query)
    lists = [value for value in page.values() if isinstance(value, list)]
    assert lists
    assert max(map(len, lists)) <= MOST
    assert page.get("limit", MOST) == MOST


def test_a_shorter_page_is_continued_where_it_ends(bench: Bench) -> None:
    first = bench.get("/runs", limit=100)
    rest = bench.get("/runs", limit=100, offset=first["limit"])
    assert (first["count"], first["total"], rest["count"]) == (2, 3, 1)
    assert len({run["id"] for page in (first, rest) for run in page["runs"]}) == 3
    begun = bench.get("/inbox", limit=100)
    assert len(begun["items"]) == MOST
    assert len(bench.get("/inbox", limit=100, after=begun["next_after"])["items"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/runs", {"input": "x", "spec": spec_of(DRAFT), "overlays": ["a", "b", "c"]}, "overlays"),
        ("POST", "/runs", {"input": "x", "spec": spec_of(DRAFT), "skills": {"add": ["a", "b", "c"]}}, "add"),
        ("POST", "/specs/validate", {"spec": spec_of(DRAFT), "overlays": ["a", "b", "c"]}, "overlays"),
        (
            "PUT",
            "/policies/environment/prod",
            {"blocked_diagnostic_codes": ["A", "B", "C"]},
            "blocked_diagnostic_codes",
        ),
        (
            "POST",
            "/human-tasks/batch",
            {"items": [{"continuation_id": "x", "request_id": "x", "decision": "approved"}] * 3},
            "items",
        ),
    ],
)
def test_a_longer_list_in_a_request_is_refused(
    bench: Bench, method: str, path: str, body: dict[str, object], field: str
) -> None:
    answer = bench.ask(method, path, body)
    assert answer.status_code == 422, answer.text
    refused = answer.json()
    assert (refused["error"], refused["detail"]["field"], refused["detail"]["limit"]) == (
        "input_too_large",
        field,
        MOST,
    )


def test_lists_inside_content_are_not_counted(bench: Bench) -> None:
    run = bench.start(
        spec_of(*[{**DRAFT, "id": f"draft-{number}"} for number in range(4)]), metadata={"tags": ["a"] * 9}
    )
    assert run["status"] == "succeeded"
