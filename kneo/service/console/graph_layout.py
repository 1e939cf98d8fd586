"""GraphLayout of workflow graphs: boxes with positions, and edges as lines of points. Pure.

Steps stand in columns by the longest path to them; a container is laid out by the same rules and is one box in the layout
around it. Edges that lead back, found by a walk in the order of declaration, have no part in the order of columns.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from kneo.api.specs import GraphEdgeView, GraphNodeView

BOX_HEIGHT = 40
MIN_WIDTH, MAX_WIDTH = 104, 232
COLUMN_GAP, ROW_GAP = 38, 14
PADDING = 12
TITLE_HEIGHT = 20
"""The room for the title of an open container."""
LANE_HEIGHT = 8
"""The room of an edge that passes a column."""
MAX_LANES = 400
"""Edges of graphs that need more lanes pass behind the boxes."""
MAX_LABEL_CHARS = 28


@dataclass(frozen=True, kw_only=True)
class Box:
    """A step with its position and size. ``hidden`` counts the steps inside a closed container."""

    step: GraphNodeView
    x: float = 0
    y: float = 0
    width: float
    height: float
    is_open: bool = False
    hidden: int = 0

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True, kw_only=True)
class EdgeLine:
    """An edge and the points that it passes; ``leads_back`` marks an edge to an earlier step."""

    edge: GraphEdgeView
    points: tuple[tuple[float, float], ...]
    leads_back: bool = False


@dataclass(frozen=True, kw_only=True)
class GraphLayout:
    """A graph with positions. A container comes before the steps inside it."""

    boxes: tuple[Box, ...]
    lines: tuple[EdgeLine, ...]
    width: float
    height: float


def lay_out(
    steps: Sequence[GraphNodeView], edges: Sequence[GraphEdgeView], closed: Collection[str] = ()
) -> GraphLayout:
    """Return the layout of a graph.

    Args:
        steps: The steps; a container comes before the steps inside it.
        edges: The edges; one whose end is missing is left out.
        closed: The ids of the containers that are drawn as one box.
    """
    tree = _Tree(steps, closed)
    known = [edge for edge in edges if tree.shows(edge.source) and tree.shows(edge.target)]
    block = _Block.of(tree, tree.children[None], known)
    boxes, bends, labels = block.placed(1, 1)
    by_id = {box.step.id: box for box in boxes}
    back = set(block.back)
    bottom = block.height + 1
    lines = []
    for edge in known:
        source, target = by_id[edge.source], by_id[edge.target]
        ends = (edge.source, edge.target)
        points: tuple[tuple[float, float], ...]
        if ends in back:
            low = max(source.bottom, target.bottom) + ROW_GAP
            bottom = max(bottom, low + LANE_HEIGHT)
            middle, end = source.x + source.width / 2, target.x + target.width / 2
            points = ((middle, source.bottom), (middle, low), (end, low), (end, target.bottom))
        elif target.step.parent == edge.source:
            points = ((labels[edge.source], target.middle), (target.x, target.middle))
        else:
            points = ((source.right, source.middle), *bends.get(ends, ()), (target.x, target.middle))
        lines.append(EdgeLine(edge=edge, points=points, leads_back=ends in back))
    return GraphLayout(boxes=tuple(boxes), lines=tuple(lines), width=block.width + 2, height=bottom + 1)


def text_width(text: str, per_char: float = 7.4) -> float:
    """Return the estimated width of a text; wide characters count twice."""
    return per_char * sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def shortened(text: str, chars: int) -> str:
    """Return a text of at most this many characters."""
    return text if len(text) <= chars else f"{text[: chars - 1]}…"


class _Tree:
    """The steps by their containers."""

    def __init__(self, steps: Sequence[GraphNodeView], closed: Collection[str]) -> None:
        self.steps = {step.id: step for step in steps}
        self.closed = frozenset(closed)
        self.children: dict[str | None, list[str]] = defaultdict(list)
        # Both branches of a condition may have a step of one name, which then is one box.
        for step in self.steps.values():
            self.children[step.parent if step.parent in self.steps else None].append(step.id)
        self._shown = {id_: self._is_shown(id_) for id_ in self.steps}

    def shows(self, id_: str) -> bool:
        return self._shown.get(id_, False)

    def _is_shown(self, id_: str) -> bool:
        parent = self.steps[id_].parent
        while parent is not None and parent in self.steps:
            if parent in self.closed:
                return False
            parent = self.steps[parent].parent
        return True

    def count_inside(self, id_: str) -> int:
        left, count = list(self.children.get(id_, ())), 0
        while left:
            count += 1
            left += self.children.get(left.pop(), ())
        return count


Ends = tuple[str, str]


class _Block:
    """The layout of the steps of one container, relative to its corner."""

    def __init__(self) -> None:
        self.boxes: dict[str, Box] = {}
        self.inside: dict[str, _Block] = {}
        self.bends: dict[Ends, tuple[tuple[float, float], ...]] = {}
        self.back: list[Ends] = []
        self.entry = 0.0
        self.width = 0.0
        self.height = 0.0

    @classmethod
    def of(cls, tree: _Tree, ids: Sequence[str], edges: Sequence[GraphEdgeView], parent: str | None = None) -> _Block:
        """Lay out steps of one container with the edges between them."""
        block = cls()
        for id_ in ids:
            block._add(tree, id_, edges)
        members = set(ids)
        between = [edge for edge in edges if edge.source in members and edge.target in members]
        entering = [
            len(shortened(edge.label or "", MAX_LABEL_CHARS))
            for edge in edges
            if edge.source == parent and edge.target in members
        ]
        if entering:
            block.entry = max(entering) * 6.2 + 24
        ends = list(dict.fromkeys((edge.source, edge.target) for edge in between))
        own_back = leading_back(ids, ends)
        block.back += own_back
        forward = [pair for pair in ends if pair not in set(own_back)]
        block._place(columns_of(ids, forward), forward, _label_room(between))
        return block

    def _add(self, tree: _Tree, id_: str, edges: Sequence[GraphEdgeView]) -> None:
        step, children = tree.steps[id_], tree.children.get(id_, [])
        title = text_width(step.name) + PADDING * 2
        if not children or id_ in tree.closed:
            width = min(max(title + 24, MIN_WIDTH), MAX_WIDTH)
            hidden = tree.count_inside(id_)
            self.boxes[id_] = Box(step=step, width=width, height=BOX_HEIGHT, hidden=hidden)
            return
        inner = _Block.of(tree, children, edges, id_)
        self.inside[id_] = inner
        self.back += inner.back
        head = min(title + text_width(f" · {step.kind}", 6.2), MAX_WIDTH)
        room = LANE_HEIGHT + ROW_GAP if inner.back else 0
        self.boxes[id_] = Box(
            step=step,
            width=max(inner.width + 2 * PADDING, head),
            height=inner.height + 2 * PADDING + TITLE_HEIGHT + room,
            is_open=True,
        )

    def _place(
        self, columns: Sequence[Sequence[str]], forward: Sequence[Ends], label_room: Mapping[str, float]
    ) -> None:
        rank = {id_: number for number, column in enumerate(columns) for id_ in column}
        lanes = _lanes(forward, rank)
        rows: list[list[str | Ends]] = [[*column] for column in columns]
        for pair, passed in lanes.items():
            for number in passed:
                rows[number].append(pair)
        before: dict[str | Ends, list[str | Ends]] = defaultdict(list)
        for pair in forward:
            before[pair[1]].append(pair if lanes.get(pair) else pair[0])
        for pair in lanes:
            before[pair].append(pair[0])
        _sort_rows(rows, before)
        heights = [sum(self._height(item) for item in row) + ROW_GAP * (len(row) - 1) for row in rows]
        self.height = max(heights, default=0)
        x = self.entry
        for row, height in zip(rows, heights, strict=True):
            width = max((self.boxes[item].width for item in row if isinstance(item, str)), default=0)
            gap, y = float(COLUMN_GAP), (self.height - height) / 2
            for item in row:
                if isinstance(item, str):
                    box = self.boxes[item]
                    self.boxes[item] = replace(box, x=x + (width - box.width) / 2, y=y)
                    gap = max(gap, label_room.get(item, 0))
                else:
                    middle = y + LANE_HEIGHT / 2
                    self.bends[item] = (*self.bends.get(item, ()), (x, middle), (x + width, middle))
                y += self._height(item) + ROW_GAP
            self.width = x + width
            x += width + gap

    def _height(self, item: str | Ends) -> float:
        return self.boxes[item].height if isinstance(item, str) else LANE_HEIGHT

    def placed(
        self, dx: float, dy: float
    ) -> tuple[list[Box], dict[Ends, tuple[tuple[float, float], ...]], dict[str, float]]:
        """Return the boxes, bends and left edges of branches at their places in the whole graph."""
        boxes: list[Box] = []
        bends = {pair: tuple((x + dx, y + dy) for x, y in points) for pair, points in self.bends.items()}
        lefts: dict[str, float] = {}
        for id_, relative in self.boxes.items():
            box = replace(relative, x=relative.x + dx, y=relative.y + dy)
            boxes.append(box)
            inner = self.inside.get(id_)
            if inner is not None:
                inset = (box.width - inner.width) / 2
                lefts[id_] = box.x
                deeper = inner.placed(box.x + inset, box.y + PADDING + TITLE_HEIGHT)
                boxes += deeper[0]
                bends |= deeper[1]
                lefts |= deeper[2]
        return boxes, bends, lefts


def leading_back(ids: Sequence[str], edges: Sequence[Ends]) -> list[Ends]:
    """Return the edges that lead back to a step of the walk that found them."""
    following: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        following[source].append(target)
    found: list[Ends] = []
    done: set[str] = set()
    for first in ids:
        if first in done:
            continue
        way, left = {first}, [(first, iter(following[first]))]
        while left:
            id_, rest = left[-1]
            after = next(rest, None)
            if after is None:
                left.pop()
                way.discard(id_)
                done.add(id_)
            elif after in way:
                found.append((id_, after))
            elif after not in done:
                way.add(after)
                left.append((after, iter(following[after])))
    return found


def columns_of(ids: Sequence[str], forward: Sequence[Ends]) -> list[list[str]]:
    """Return the steps in columns by the longest path to them, over edges without a cycle."""
    following: dict[str, list[str]] = defaultdict(list)
    missing = dict.fromkeys(ids, 0)
    for source, target in forward:
        following[source].append(target)
        missing[target] += 1
    rank = dict.fromkeys(ids, 0)
    ready = [id_ for id_ in ids if not missing[id_]]
    for id_ in ready:
        for after in following[id_]:
            rank[after] = max(rank[after], rank[id_] + 1)
            missing[after] -= 1
            if not missing[after]:
                ready.append(after)
    columns: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for id_ in ids:
        columns[rank[id_]].append(id_)
    return columns


def _lanes(forward: Sequence[Ends], rank: Mapping[str, int]) -> dict[Ends, range]:
    """Return the columns that each long edge passes; none where there would be too many."""
    lanes = {(a, b): range(rank[a] + 1, rank[b]) for a, b in forward if rank[b] - rank[a] > 1}
    return lanes if sum(map(len, lanes.values())) <= MAX_LANES else {}


def _sort_rows(rows: list[list[str | Ends]], before: Mapping[str | Ends, Sequence[str | Ends]]) -> None:
    """Sort each column by the mean position of the items before."""
    for earlier, row in pairwise(rows):
        position = {item: number for number, item in enumerate(earlier)}

        def mean(item: str | Ends, position: Mapping[str | Ends, int] = position) -> float:
            # An edge is in one lane of every column that it passes.
            found = [position[one] for one in (item, *before.get(item, ())) if one in position]
            return sum(found) / len(found) if found else 0

        row.sort(key=mean)


def _label_room(edges: Sequence[GraphEdgeView]) -> dict[str, float]:
    """Return the room that the labels of edges need after their source."""
    room: dict[str, float] = {}
    for edge in edges:
        if edge.label:
            needed = len(shortened(edge.label, MAX_LABEL_CHARS)) * 6.2 + 22
            room[edge.source] = max(room.get(edge.source, 0), needed)
    return room
