"""Pages of runs."""

from __future__ import annotations

from kneo.errors import Invalid
from kneo.service import wire
from kneo.service.wire import Json
from kneo.state.run import RunStatus
from kneo.store import runs, tasks
from kneo.store.engine import Tx
from kneo.store.run_filter import LASTING, SORTABLE, RunFilter


def run_page(
    tx: Tx,
    where: RunFilter,
    *,
    published: bool,
    limit: int = 100,
    offset: int = 0,
    sort_by: str = "updated_at",
    sort_order: str = "desc",
    after: str | None = None,
) -> Json:
    """Answer with one page of runs, each with what it asks people first.

    Args:
        tx: The transaction.
        where: Which ones.
        published: Whether to answer in the published status words.
        limit: How many.
        offset: How many to leave out.
        sort_by: One of ``SORTABLE``; for any other word ``updated_at``.
        sort_order: ``asc`` or ``desc``.
        after: ``next_after`` of the page before, in one of the orders in which no run moves.

    Raises:
        Invalid: ``after`` in another order.
    """
    order = sort_by if sort_by in SORTABLE else "updated_at"
    lasts = order in LASTING
    if after is not None and not lasts:
        msg = f"Runs move while they are sorted by {order}, so there is no going on after one of them."
        hint = f"Sort by {', '.join(sorted(LASTING))}, or page with offset."
        raise Invalid(msg, code="validation_error", field="after", hint=hint)
    found = runs.list_runs(
        tx, where, sort_by=order, descending=sort_order == "desc", limit=limit, offset=offset, after=after
    )
    # What comes to an end here need not be counted.
    ends = after is None and len(found) < limit and (found or not offset)
    total = offset + len(found) if ends else runs.count_runs(tx, where)
    asked = tasks.first_of_runs(tx, [run.id for run in found if run.status is RunStatus.PAUSED])
    items = [wire.run_status(run, asked.get(run.id), published=published) for run in found]
    page = wire.page("runs", items, total=total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order)
    return {**page, "next_after": found[-1].id if lasts and len(found) == limit else None}
