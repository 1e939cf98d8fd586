"""The page of a canary: its shares, its runs and how it compares, and what operators do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from kneo.api.canaries import (
    CanaryChange,
    CanaryView,
    abort_canary,
    get_canary,
    pause_canary,
    promote_canary,
    restart_canary,
    resume_canary,
)
from kneo.api.operation import Operation
from kneo.errors import InvalidValue, KneoError
from kneo.records.canary import MetricFigures
from kneo.service.console.environments import PLACE
from kneo.service.console.page import Page, PageRequest, Pages, SeeOther, Shown

pages = Pages(PLACE)

MAX_REASON = 1_000

WIDTH = 240
"""The width of a bar of the chart."""

ACTS: Mapping[str, Operation[..., CanaryView]] = {
    "pause": pause_canary,
    "resume": resume_canary,
    "promote": promote_canary,
    "abort": abort_canary,
    "restart": restart_canary,
}

OFFERED: Mapping[str, tuple[str, ...]] = {
    "running": ("pause", "promote", "abort"),
    "paused": ("resume", "promote", "abort"),
    "rolled_back": ("restart",),
    "ended": ("restart",),
}
"""What an operator can do with a canary, by its state."""


@dataclass(frozen=True)
class Bar:
    """A bar of the chart: its words, and its length."""

    name: str
    text: str
    length: int
    kind: str


def _bar(name: str, text: str, part: float, kind: str) -> Bar:
    return Bar(name, text, round(min(1.0, max(0.0, part)) * WIDTH), kind)


def _steps(view: CanaryView) -> list[Bar]:
    return [
        _bar(
            f"Step {number}",
            f"{share * 100:.4g} %" + (", now" if number == view.step and view.ended_at is None else ""),
            share,
            "now" if number == view.step and view.ended_at is None else "other",
        )
        for number, share in enumerate(view.steps, 1)
    ]


def _compared(view: CanaryView, item: MetricFigures) -> list[Bar]:
    """Return the bars of a metric: the parts of bad runs, and the evidence against the canary."""
    parts = [
        (item.candidate_bad / view.runs if view.runs else 0.0),
        (item.control_bad / view.control if view.control else 0.0),
    ]
    most = max(*parts, 1e-9)
    return [
        _bar("Canary", f"{item.candidate_bad} of {view.runs}", parts[0] / most, "now"),
        _bar("Release", f"{item.control_bad} of {view.control}", parts[1] / most, "other"),
        _bar("Evidence", f"{item.evidence:.2f} of {item.limit:g}", item.evidence / item.limit, "bad"),
    ]


@pages.get("/environments/{environment}/{bundle}/canary", scope="releases:read")
def show_canary(request: PageRequest) -> Page:
    """Show the newest canary of a bundle."""
    return _page(request, None)


def _page(request: PageRequest, problem: KneoError | None) -> Page:
    view = request.call(get_canary, request.path["environment"], request.path["bundle"])
    values = {
        "canary": view,
        "steps": _steps(view),
        "metrics": [(item, _compared(view, item)) for item in view.metrics],
        "width": WIDTH,
        "acts": OFFERED.get(view.state, ()) if request.may("releases:operate") else (),
        "typed": request.form.get("reason"),
    }
    return Page("canary.html", values, live="environments", problem=problem)


def _act(name: str) -> Callable[[PageRequest], Shown]:
    def act(request: PageRequest) -> Shown:
        environment, bundle = request.path["environment"], request.path["bundle"]
        reason = " ".join(request.form.get("reason").split())
        try:
            if not 0 < len(reason) <= MAX_REASON:
                msg = f"A reason of 1 to {MAX_REASON} characters is required."
                raise InvalidValue(msg, code="reason_required")
            request.call(ACTS[name], environment, bundle, CanaryChange(reason=reason))
        except KneoError as error:
            return _page(request, error)
        return SeeOther(f"/console/environments/{quote(environment, safe='')}/{quote(bundle, safe='')}/canary")

    return act


for _name in ACTS:
    pages.post(f"/environments/{{environment}}/{{bundle}}/canary/{_name}", scope=("releases:read", "releases:operate"))(
        _act(_name)
    )
