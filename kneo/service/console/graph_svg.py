"""Workflow graphs and bars of time as SVG without styles: classes and attributes that the stylesheet colours. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote

from markupsafe import Markup, escape

from kneo.service.console.graph_layout import MAX_LABEL_CHARS, Box, EdgeLine, GraphLayout, shortened, text_width
from kneo.service.console.time_axis import LENGTH, TimeAxis
from kneo.spec.gates import positions_of

StepState = Literal["pending", "running", "waiting", "succeeded", "failed", "skipped"]

STATE_WORDS: Mapping[StepState, str] = {
    "pending": "not reached",
    "running": "running",
    "waiting": "waits for people",
    "succeeded": "succeeded",
    "failed": "failed",
    "skipped": "skipped",
}

_MARKS: Mapping[StepState, str] = {
    "pending": "M4 1a3.5 3.5 0 1 0 .01 0",
    "running": "M1 0l6 4-6 4z",
    "waiting": "M4-1a5 5 0 1 0 .01 0M4 1.5v2.8l2 1.2",
    "succeeded": "M0 4l3 3 6-7",
    "failed": "M0 0l8 8M8 0l-8 8",
    "skipped": "M0 4h8",
}

MAX_LINE_CHARS = 300
"""Characters of a name in the graph's accessible text."""


def graph_svg(layout: GraphLayout, states: Mapping[str, StepState], notes: Mapping[str, str]) -> Markup:
    """Draw a graph.

    Args:
        layout: The graph with positions.
        states: The states of the steps by id; a step without one was not reached.
        notes: Words instead of the kind of a step, as ``attempt 2``.
    """
    # Containers are drawn first, so that edges between steps stay in front of them.
    groups = Markup("").join(_group(box, states) for box in layout.boxes if box.is_open)
    lines = Markup("").join(_line(line, states) for line in layout.lines)
    steps = Markup("").join(_step(box, states, notes) for box in layout.boxes if not box.is_open)
    return Markup(
        '<svg class="graph" data-graph="" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="group"'
        ' aria-label="Workflow and state of its steps"><defs>{tip}{taken}</defs>{groups}{lines}{steps}</svg>'
    ).format(
        w=_n(layout.width),
        h=_n(layout.height),
        tip=_tip("tip"),
        taken=_tip("tip-taken"),
        groups=groups,
        lines=lines,
        steps=steps,
    )


def step_anchor(path: str) -> str:
    """Return the id of a step's row in the list of steps; any path makes a valid id without blanks."""
    return f"step-{quote(path, safe='')}"


def bar_svg(axis: TimeAxis, start: float, end: float, state: str) -> Markup:
    """Draw the bar of a step or a gate on the axis of its run, with the squeezed stretches behind it."""
    left = axis.at(start)
    left = min(left, LENGTH - 3)
    width = max(axis.at(end) - left, 3)
    cuts = Markup("").join(
        Markup('<rect class="cut" x="{}" width="{}" y="0" height="20"/>').format(_n(cut.offset), _n(cut.length))
        for cut in axis.squeezed
    )
    return Markup(
        '<svg class="bar" viewBox="0 0 1000 20" preserveAspectRatio="none" aria-hidden="true">{}'
        '<rect class="b {}" x="{}" width="{}" y="5" height="10"/></svg>'
    ).format(cuts, state, _n(left), _n(width))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tip(name: str) -> Markup:
    return Markup(
        '<marker id="{name}" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="{name}" d="M0 0l6 3-6 3z"/></marker>'
    ).format(name=name)


def _group(box: Box, states: Mapping[str, StepState]) -> Markup:
    fitting = max(int((box.width - 24) / 6.2) - len(box.step.kind) - 3, 4)
    return Markup(
        '<g data-step="{path}" data-status="{state}" role="img" aria-label="{label}"><title>{label}</title>'
        '<rect class="group" x="{x}" y="{y}" width="{w}" height="{h}" rx="10"/>'
        '<text class="gname" x="{tx}" y="{ty}">{name} · {kind}</text></g>'
    ).format(
        path=box.step.id,
        state=states.get(box.step.id, "pending"),
        label=f"{shortened(box.step.name, MAX_LINE_CHARS)}, {box.step.kind}, {STATE_WORDS[states.get(box.step.id, 'pending')]}",
        x=_n(box.x),
        y=_n(box.y),
        w=_n(box.width),
        h=_n(box.height),
        tx=_n(box.x + 12),
        ty=_n(box.y + 19),
        name=shortened(box.step.name, fitting),
        kind=box.step.kind,
    )


def _step(box: Box, states: Mapping[str, StepState], notes: Mapping[str, str]) -> Markup:
    state = states.get(box.step.id, "pending")
    note = notes.get(box.step.id) or (f"{box.step.kind}, {box.hidden} steps" if box.hidden else box.step.kind)
    note = shortened(note, MAX_LINE_CHARS)
    gates = Markup("").join(
        Markup('<path class="gate" d="M{} {}v{}"/>').format(_n(x), _n(box.y + 6), _n(box.height - 12))
        for x in _gate_places(box)
    )
    return Markup(
        '<a href="#{anchor}" class="step {state}" data-step="{path}" data-status="{state}" aria-label="{label}">'
        "<title>{label}</title>"
        '<rect class="node" x="{x}" y="{y}" width="{w}" height="{h}" rx="{rx}"/>'
        '<path class="mark" transform="translate({mx} {my})" d="{mark}"/>'
        '<text class="nname" x="{tx}" y="{name_y}">{name}</text>'
        '<text class="nkind" x="{tx}" y="{note_y}">{note}</text>{gates}</a>'
    ).format(
        anchor=step_anchor(box.step.id),
        path=box.step.id,
        state=state,
        label=f"{shortened(box.step.name, MAX_LINE_CHARS)}, {note}, {STATE_WORDS[state]}",
        x=_n(box.x),
        y=_n(box.y),
        w=_n(box.width),
        h=_n(box.height),
        rx=20 if box.step.kind == "human" else 8,
        mx=_n(box.x + 12),
        my=_n(box.y + 16),
        mark=_MARKS[state],
        tx=_n(box.x + 30),
        name_y=_n(box.y + 18),
        note_y=_n(box.y + 32),
        name=_fitting(box.step.name, box.width - 38, 7.4),
        note=_fitting(note, box.width - 38, 6.2),
        gates=gates,
    )


def _fitting(text: str, width: float, per_char: float) -> str:
    """Return a text that fits into a width."""
    chars = int(width / per_char)
    while text_width(shortened(text, chars), per_char) > width and chars > 1:
        chars -= 1
    return shortened(text, chars)


def _gate_places(box: Box) -> list[float]:
    """Return where the gates of a step stand: before it, after it."""
    places = {gate.partition("+")[0] for gate in box.step.gates}
    before, after = bool(places & positions_of("input")), bool(places & positions_of("result"))
    return [x for x, there in ((box.x, before), (box.right, after)) if there]


def _line(line: EdgeLine, states: Mapping[str, StepState]) -> Markup:
    edge = line.edge
    taken = states.get(edge.source, "pending") != "pending" and states.get(edge.target, "pending") not in {
        "pending",
        "skipped",
    }
    classes = ["edge", *(["taken"] if taken else []), *(["conditional"] if edge.conditional else [])]
    label = Markup("")
    if edge.label:
        label = _label(line, edge.label)
    return Markup('<path class="{}" d="{}" marker-end="url(#{})"/>{}').format(
        " ".join(classes), _path(line), "tip-taken" if taken else "tip", label
    )


def _path(line: EdgeLine) -> str:
    """Return the path of an edge: straight lanes joined by curves."""
    (x, y), *rest = line.points
    if line.leads_back:
        (x1, y1), (x2, y2), (x3, y3) = rest
        return f"M{_n(x)} {_n(y)}C{_n(x1)} {_n(y1)} {_n(x2)} {_n(y2)} {_n(x3)} {_n(y3 + 1)}"
    drawn = [f"M{_n(x)} {_n(y)}"]
    for to_x, to_y in rest:
        if y == to_y:
            drawn.append(f"H{_n(to_x)}")
        else:
            middle = (x + to_x) / 2
            drawn.append(f"C{_n(middle)} {_n(y)} {_n(middle)} {_n(to_y)} {_n(to_x)} {_n(to_y)}")
        x, y = to_x, to_y
    return "".join(drawn)


def _label(line: EdgeLine, text: str) -> Markup:
    first, second = line.points[0], line.points[1]
    x, y = (first[0] + second[0]) / 2, second[1] - 6
    if line.leads_back:
        x, y = (line.points[1][0] + line.points[2][0]) / 2, line.points[1][1] - 8
    return Markup('<text class="elabel" x="{}" y="{}">{}</text>').format(
        _n(x), _n(y), escape(shortened(text, MAX_LABEL_CHARS))
    )
