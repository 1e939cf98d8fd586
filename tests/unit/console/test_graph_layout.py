"""Tests for the layout of workflow graphs: boxes never overlap, edges lead forward, any workflow can be drawn."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from itertools import combinations, count, pairwise

from drawn_graphs import drawn_edge, drawn_step
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_workflows import named, workflows

from kneo.service.console.graph_layout import Box, GraphLayout, lay_out
from kneo.service.console.graph_svg import graph_svg
from kneo.spec.graph import workflow_graph
from kneo.spec.models.spec import Spec

CHECKS = [
    drawn_step(id="read", name="read", kind="function"),
    drawn_step(id="checks", name="checks", kind="parallel"),
    drawn_step(id="checks/policy", name="policy", kind="agent", parent="checks"),
    drawn_step(id="checks/fraud", name="fraud", kind="agent", parent="checks"),
    drawn_step(id="send", name="send", kind="function", gates=("before",)),
]
CHAIN = [drawn_edge(source="read", target="checks"), drawn_edge(source="checks", target="send")]


def overlap(one: Box, two: Box) -> bool:
    return one.x < two.right and two.x < one.right and one.y < two.bottom and two.y < one.bottom


def check(layout: GraphLayout) -> None:
    """Check that boxes stand beside each other or inside their container, and that edges lead forward."""
    boxes = {box.step.id: box for box in layout.boxes}
    for one, two in combinations(layout.boxes, 2):
        if one.step.parent == two.step.parent:
            assert not overlap(one, two), (one, two)
    for box in layout.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.right <= layout.width
        assert box.bottom <= layout.height
        around = boxes.get(box.step.parent or "")
        if around is not None:
            assert around.x < box.x
            assert around.y < box.y
            assert box.right < around.right
            assert box.bottom < around.bottom
    for line in layout.lines:
        if not line.leads_back:
            assert all(a[0] <= b[0] for a, b in pairwise(line.points)), line


def test_steps_stand_in_columns_and_a_container_around_its_steps() -> None:
    layout = lay_out(CHECKS, CHAIN)
    check(layout)
    read, checks, policy, fraud, send = layout.boxes
    assert read.right < checks.x < policy.x
    assert policy.x == fraud.x
    assert policy.bottom < fraud.y
    assert checks.right < send.x
    assert read.middle == checks.middle == send.middle


def test_a_closed_container_is_one_box_that_counts_its_steps() -> None:
    layout = lay_out(CHECKS, CHAIN, closed={"checks"})
    check(layout)
    assert [box.step.id for box in layout.boxes] == ["read", "checks", "send"]
    assert layout.boxes[1].hidden == 2
    assert "parallel, 2 steps" in graph_svg(layout, {}, {})


def test_an_edge_back_is_drawn_below_and_moves_no_column() -> None:
    steps = [drawn_step(id=name, name=name, kind="agent") for name in ("draft", "review", "send")]
    edges = [("draft", "review"), ("review", "draft"), ("review", "send")]
    layout = lay_out(steps, [drawn_edge(source=a, target=b) for a, b in edges])
    check(layout)
    assert [line.leads_back for line in layout.lines] == [False, True, False]
    draft, review, _ = layout.boxes
    assert max(y for _, y in layout.lines[1].points) > max(draft.bottom, review.bottom)


def test_an_edge_over_a_column_passes_between_its_boxes() -> None:
    steps = [drawn_step(id=name, name=name, kind="agent") for name in "abc"]
    edges = [("a", "b"), ("b", "c"), ("a", "c")]
    layout = lay_out(steps, [drawn_edge(source=a, target=b) for a, b in edges])
    check(layout)
    middle = layout.boxes[1]
    passing = [y for x, y in layout.lines[2].points if middle.x <= x <= middle.right]
    assert passing
    assert all(y < middle.y or y > middle.bottom for y in passing)


def test_edges_to_missing_steps_are_left_out() -> None:
    layout = lay_out(CHECKS[:1], CHAIN)
    assert layout.lines == ()
    assert lay_out([], []).boxes == ()


def test_the_drawing_of_a_graph() -> None:
    svg = graph_svg(
        lay_out(CHECKS, CHAIN),
        {"read": "succeeded", "checks": "running", "checks/policy": "failed", "checks/fraud": "running"},
        {"checks/policy": "attempt 2"},
    )
    tree = ET.fromstring(svg)
    assert tree.attrib["data-graph"] == ""
    steps = {one.attrib["data-step"]: one.attrib for one in tree.iter() if "data-step" in one.attrib}
    assert {name: one["data-status"] for name, one in steps.items()} == {
        "read": "succeeded",
        "checks": "running",
        "checks/policy": "failed",
        "checks/fraud": "running",
        "send": "pending",
    }
    assert steps["checks/policy"]["aria-label"] == "policy, attempt 2, failed"
    assert steps["checks/policy"]["href"] == "#step-checks%2Fpolicy"
    assert [one.attrib["class"] for one in tree.iter("path") if "edge" in one.attrib.get("class", "")] == [
        "edge taken",
        "edge",
    ]
    assert len([one for one in tree.iter("path") if one.attrib.get("class") == "gate"]) == 1
    assert " style=" not in svg


def test_names_in_a_drawing_are_text() -> None:
    name = '<script>alert(1)</script>"&\u202e\u200b' + "x" * 1_000_000
    steps = [drawn_step(id="a", name=name, kind="agent"), drawn_step(id="b", name="b", kind="agent")]
    edge = drawn_edge(source="a", target="b", label=name)
    svg = graph_svg(lay_out(steps, [edge]), {}, {"b": name})
    assert "<script>" not in svg
    assert len(svg) < 10_000
    ET.fromstring(svg)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(workflows())
def test_every_workflow_can_be_drawn(workflow: dict[str, object]) -> None:
    numbers = count()
    workflow = named(workflow, numbers)
    functions = {f"fire{n}": {"implementation": "app.fire"} for n in range(next(numbers))}
    spec = Spec.model_validate(
        {
            "agent": {"name": "a", "model": {"provider": "dummy", "name": "m"}},
            "components": {"functions": functions},
            "workflow": workflow,
        }
    )
    assert spec.workflow is not None
    graph = workflow_graph(spec.workflow)
    steps = [
        drawn_step(id=one.id, name=one.name, kind=one.kind, parent=one.parent, gates=one.gates) for one in graph.nodes
    ]
    edges = [
        drawn_edge(source=one.source, target=one.target, label=one.label, conditional=one.conditional)
        for one in graph.edges
    ]
    layout = lay_out(steps, edges)
    check(layout)
    assert len(layout.boxes) == len({step.id for step in steps})
    ET.fromstring(graph_svg(layout, {}, {}))


NAMES = [f"n{number}" for number in range(12)]


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=40))
def test_any_edges_can_be_drawn(edges: list[tuple[str, str]]) -> None:
    steps = [drawn_step(id=name, name=name * 3, kind="agent") for name in NAMES]
    layout = lay_out(steps, [drawn_edge(source=a, target=b) for a, b in edges])
    check(layout)
    assert len(layout.lines) == len(edges)


def test_large_graphs_are_drawn_in_little_work() -> None:
    names = [f"n{number}" for number in range(600)]
    steps = [drawn_step(id=name, name=name, kind="agent") for name in names]
    edges = [drawn_edge(source=a, target=b) for a, b in pairwise(names)]
    edges += [drawn_edge(source=names[n], target=names[(n * 7 + 3) % 600]) for n in range(0, 600, 3)]
    began = time.process_time()
    layout = lay_out(steps, edges)
    svg = graph_svg(layout, {}, {})
    assert time.process_time() - began < 5, "a quadratic layout of 600 steps"
    assert len(layout.boxes) == 600
    assert len(svg) < 1_000_000
