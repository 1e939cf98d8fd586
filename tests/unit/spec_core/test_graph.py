from kneo.spec.graph import as_dot, as_mermaid, spec_graph
from kneo.spec.reading.load import load_spec

HEAD = "agent: {name: a}\n"


def graph(text):
    loaded = load_spec((HEAD + text).encode(), file="s.yaml")
    assert loaded.spec is not None, loaded.diagnostics
    return spec_graph(loaded.spec)


def ways(drawing):
    return [(edge.source, edge.target, edge.label) for edge in drawing.edges]


def test_the_published_shape():
    drawing = graph(
        "workflow: {type: graph, name: g, start: a, max_steps: 10, nodes: {a: {id: a, kind: function, ref: f}, "
        "b: {id: b, kind: human, ref: h}, off: {id: off, kind: human, ref: h, enabled: false}}, edges: ["
        "{from: a, to: b, label: has-draft, condition: {type: output_contains, value: x}}, {from: a, to: a}, {from: a, to: off}]}"
    ).as_json()
    assert {key: drawing[key] for key in ("workflow_name", "workflow_kind", "start", "max_steps")} == {
        "workflow_name": "g",
        "workflow_kind": "graph",
        "start": "a",
        "max_steps": 10,
    }
    assert drawing["nodes"][0].items() >= {
        "id": "a", "kind": "function", "name": "a", "on_error": "fail", "fallback_node": None, "max_retries": 0,
        "timeout_seconds": None,
    }.items()  # fmt: skip
    assert drawing["edges"] == [
        {"source": "a", "target": "b", "label": "has-draft", "conditional": True, "priority": 0},
        {"source": "a", "target": "a", "label": None, "conditional": False, "priority": 1},
    ]


def test_every_family_has_its_ways():
    people = "participants: [x, y]"
    assert ways(graph("workflow: [x, y]")) == [("x", "y", None)]
    assert ways(graph(f"workflow: {{type: concurrent, {people}}}")) == []
    assert ways(graph(f"workflow: {{type: handoff, {people}, selector: {{sequence: [y, x]}}}}")) == [("y", "x", None)]
    assert ways(graph(f"workflow: {{type: group-chat, {people}, rounds: 2}}")) == [
        ("x", "y", None),
        ("y", "x", "2 rounds"),
    ]
    assert graph("").nodes[0].id == "a", "without a workflow the agent is all there is"


def test_containers_hold_their_steps():
    drawing = graph(
        "workflow:\n"
        "  - {id: p, kind: parallel, steps: [x, y], review: {before: true, after: true}}\n"
        "  - {id: c, kind: condition, when: {any_of: [{type: always}, {type: metadata_equals, key: k, value: 1}]},"
        " steps: [x], else: [y]}\n"
        "  - {id: r, kind: router, selector: f, choices: {quick: {steps: [x, y]}}}\n"
    )
    assert [node.id for node in drawing.nodes] == ["p", "p/x", "p/y", "c", "c/x", "c/y", "r", "r/x", "r/y"]
    assert drawing.nodes[0].gates == ("before", "after")
    assert ways(drawing) == [
        ("c", "c/x", "(always or metadata.k is 1)"),
        ("c", "c/y", "else"),
        ("r/x", "r/y", None),
        ("r", "r/x", "quick"),
        ("p", "c", None),
        ("c", "r", None),
    ]


def test_drawings_escape_names():
    drawing = graph("workflow: ['a\"<b>', 'c\\d']")
    assert "a&quot;&lt;b&gt;" in as_mermaid(drawing)
    assert '"a\\"<b>"' in as_dot(drawing)
    assert as_mermaid(drawing).startswith("flowchart TD\n")
