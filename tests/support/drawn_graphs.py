"""Steps and edges of a workflow as pages draw them, without what the drawing does not show."""

from __future__ import annotations

from collections.abc import Sequence

from kneo.api.specs import GraphEdgeView, GraphNodeView


def drawn_step(
    *,
    id: str,  # noqa: A002 - the name in the view
    name: str,
    kind: str,
    parent: str | None = None,
    gates: Sequence[str] = (),
) -> GraphNodeView:
    return GraphNodeView(
        id=id,
        name=name,
        kind=kind,
        parent=parent,
        gates=list(gates),
        on_error=None,
        fallback_node=None,
        max_retries=None,
        timeout_seconds=None,
        ref=None,
    )


def drawn_edge(*, source: str, target: str, label: str | None = None, conditional: bool = False) -> GraphEdgeView:
    return GraphEdgeView(source=source, target=target, label=label, conditional=conditional, priority=0)
