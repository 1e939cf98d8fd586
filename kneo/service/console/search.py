"""Search: a run, task, bundle or digest by its name, else a list of what fits."""

from __future__ import annotations

import re

from kneo.api.bundles import BundleView, list_bundles
from kneo.api.decisions import get_human_task
from kneo.api.environments import trace
from kneo.api.runs import get_run, list_runs
from kneo.errors import KneoError
from kneo.service.console.page import Page, PageRequest, Pages, SeeOther
from kneo.service.console.runs import RunRow

pages = Pages()

MAX_CHARS = 200
MAX_RUNS = 20
MAX_BUNDLES = 50

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_RUN, _TASK = re.compile(r"run_\w{1,36}"), re.compile(r"cont_\w{1,35}")


@pages.get("/find")
def find(request: PageRequest) -> Page | SeeOther:
    """Lead to the one thing that has this name, or list what fits."""
    text = request.query.get("q").strip()[:MAX_CHARS]
    exact = _exact(request, text)
    if exact:
        return SeeOther(exact)
    bundles = _bundles(request, text) if text else []
    listed = None
    if text and request.may("runs:read"):
        listed = request.call(list_runs, q=text, limit=MAX_RUNS, sort_by="created_at")
    runs = listed.runs if listed is not None else []
    if len(bundles) == 1 and not runs:
        return SeeOther(f"/console/trace/{bundles[0].digest}")
    if len(runs) == 1 and not bundles:
        return SeeOther(f"/console/runs/{runs[0].id}")
    return Page(
        "find.html",
        {
            "text": text,
            "bundles": bundles,
            "runs": [RunRow.of(run, request) for run in runs],
            "searched": listed.searched if listed is not None else None,
        },
    )


def _exact(request: PageRequest, text: str) -> str:
    """Return the address of the thing that has this id or digest; empty where there is none."""
    digest = _DIGEST.fullmatch(text.lower())
    try:
        if _RUN.fullmatch(text) and request.may("runs:read"):
            return f"/console/runs/{request.call(get_run, text).id}"
        if _TASK.fullmatch(text) and request.may("human:read"):
            return f"/console/inbox/{request.call(get_human_task, text).id}"
        if digest and request.may("runs:read", "releases:read"):
            return f"/console/trace/{request.call(trace, f'sha256:{digest[1]}').digest}"
    except KneoError:
        # There is no such thing, or it is not this person's to see: the list says so.
        return ""
    return ""


def _bundles(request: PageRequest, text: str) -> list[BundleView]:
    if not request.may("specs:read"):
        return []
    sought = text.lower().removeprefix("sha256:")
    found = [
        bundle
        for bundle in request.call(list_bundles).bundles
        if sought in bundle.name.lower()
        or (len(sought) >= 6 and bundle.digest.removeprefix("sha256:").startswith(sought))
    ]
    return found[:MAX_BUNDLES]
