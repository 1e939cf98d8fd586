"""How records look in JSON, over HTTP and with ``--json`` alike. Superset of what the published clients parse.

What runs were given and gave goes out without secrets. Texts that people have to read or judge keep names and addresses;
what is there for machines and for looking back (metadata, trace, checkpoints) goes without those too. What is stored stays
whole: the next step works on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kneo.api.run_views import RunErrorView, clean, readable, run_metadata
from kneo.api.status_words import say
from kneo.api.task_views import votes_of
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, HumanTask

Json = dict[str, object]


def run_created(run: Run, task: HumanTask | None, *, published: bool) -> Json:
    """Answer to starting or continuing a run."""
    return {
        "run_id": run.id,
        "status": say(run.status, published=published),
        "output_text": readable(run.output_text),
        "human_intervention_required": task is not None,
        "continuation_id": task.id if task else None,
        "metadata": run_metadata(run, task),
        "error": RunErrorView.of(run),
    }


def human_resumed(run: Run, answered: HumanTask, following: HumanTask | None, *, published: bool) -> Json:
    """Answer to a decision: where the run went from there."""
    answer = run_created(run, following, published=published)
    metadata = answer["metadata"]
    assert isinstance(metadata, dict)
    metadata["resumed_from_continuation_id"] = answered.id
    if answered.status in UNRESOLVED:
        answer |= votes_of(answered)
    return answer


def view(told: Json) -> Json:
    """A view of a run's past."""
    return clean(told)


def page(
    name: str,
    items: Sequence[Mapping[str, object]],
    *,
    total: int,
    limit: int,
    offset: int,
    sort_by: str,
    sort_order: str,
) -> Json:
    """One page of a list."""
    return {
        name: list(items),
        "count": len(items),
        "total": total,
        "window": 10_000,
        "limit": limit,
        "offset": offset,
        "sort_by": sort_by,
        "sort_order": sort_order,
    }
