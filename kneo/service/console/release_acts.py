"""The pages of acts on environments: hold, roll back, suspend, resume and reconcile, each with what will happen."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from kneo.api.environments import (
    HoldRequest,
    RollbackRequest,
    SuspendRequest,
    UnholdRequest,
    get_environment,
    get_environment_history,
    hold_release,
    reconcile_environment,
    rollback_release,
    suspend_environment,
    unhold_release,
    unsuspend_environment,
)
from kneo.api.release_views import EnvironmentView
from kneo.errors import InvalidValue, KneoError
from kneo.service.console.environments import PLACE
from kneo.service.console.page import Page, PageRequest, Pages, SeeOther, Shown

pages = Pages(PLACE)

MAX_REASON = 1_000

_LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


@dataclass(frozen=True)
class Act:
    """An act: its name, its words, what it does, and the fields of its form."""

    name: str
    title: str
    button: str
    consequences: tuple[str, ...]
    command: str
    perform: Callable[[PageRequest, str], object]
    bundle: bool = False
    reason: bool = True
    until: bool = False
    version: bool = False


def _reason(request: PageRequest) -> str:
    return request.reason(
        MAX_REASON, "A reason is required: it is shown with the release, in the history and in the audit log."
    )


def _bundle(request: PageRequest) -> str:
    bundle = request.form.get("bundle")
    if not 0 < len(bundle) <= 200:
        msg = "Choose a bundle."
        raise InvalidValue(msg, code="bundle_required")
    return bundle


def _until(request: PageRequest) -> str | None:
    """Return the end that the form names; a time without a zone is UTC."""
    text = request.form.get("until").strip()[:60]
    return f"{text}Z" if _LOCAL_TIME.fullmatch(text) else text or None


def _hold(request: PageRequest, name: str) -> object:
    body = HoldRequest(bundle=_bundle(request), reason=_reason(request), until=_until(request))
    return request.call(hold_release, name, body)


def _rollback(request: PageRequest, name: str) -> object:
    to = request.form.get("to")[:200] or None
    return request.call(
        rollback_release, name, RollbackRequest(bundle=_bundle(request), reason=_reason(request), to=to)
    )


def _suspend(request: PageRequest, name: str) -> object:
    return request.call(suspend_environment, name, SuspendRequest(reason=_reason(request), until=_until(request)))


ACTS: dict[str, Act] = {
    act.name: act
    for act in (
        Act(
            "hold",
            "Hold a release",
            "Hold",
            (
                "The present release stays, whatever Git declares.",
                "New versions wait until a person lifts the hold, or until the time below.",
                "Runs continue.",
            ),
            "kneo hold {environment}/{bundle} --reason TEXT",
            _hold,
            bundle=True,
            until=True,
        ),
        Act(
            "unhold",
            "Lift a hold",
            "Lift the hold",
            ("The bundle follows Git again.", "A version that waited is released at once if no other gate is closed."),
            "kneo unhold {environment}/{bundle}",
            lambda request, name: request.call(unhold_release, name, UnholdRequest(bundle=_bundle(request))),
            bundle=True,
            reason=False,
        ),
        Act(
            "rollback",
            "Roll back a release",
            "Roll back",
            (
                "The controller releases an earlier version again, through the approvals of this environment.",
                "It also holds that version, so that Git does not bring the present one back at once.",
                "New runs use the earlier version; runs that were started keep theirs.",
            ),
            "kneo rollback {environment}/{bundle} --reason TEXT",
            _rollback,
            bundle=True,
            version=True,
        ),
        Act(
            "suspend",
            "Suspend an environment",
            "Suspend",
            (
                "Nothing changes here until a person resumes the environment, or until the time below.",
                "Changes that Git declares wait. Rollbacks wait too.",
                "Runs continue, and people can answer.",
            ),
            "kneo suspend {environment} --reason TEXT",
            _suspend,
            until=True,
        ),
        Act(
            "unsuspend",
            "Resume an environment",
            "Resume",
            (
                "The environment follows Git again.",
                "Changes that waited are applied at once if no other gate is closed.",
            ),
            "kneo unsuspend {environment}",
            lambda request, name: request.call(unsuspend_environment, name),
            reason=False,
        ),
        Act(
            "reconcile",
            "Look at the config repository now",
            "Look now",
            (
                "The controller fetches the commit and applies what the gates allow.",
                "Without a new commit, nothing changes.",
            ),
            "kneo reconcile --wait",
            lambda request, name: request.call(reconcile_environment, name),
            reason=False,
        ),
    )
}
"""The acts by name."""


def _show(act: Act) -> Callable[[PageRequest], Page]:
    return lambda request: _page(request, act, request.call(get_environment, request.path["environment"]), None)


def _perform(act: Act) -> Callable[[PageRequest], Shown]:
    def perform(request: PageRequest) -> Shown:
        name = request.path["environment"]
        item = request.call(get_environment, name)
        try:
            act.perform(request, name)
        except KneoError as error:
            return _page(request, act, item, error)
        return SeeOther(f"/console/environments/{quote(name, safe='')}?done={act.name}")

    return perform


def _page(request: PageRequest, act: Act, item: EnvironmentView, problem: KneoError | None) -> Page:
    typed = {name: request.form.get(name) for name in ("bundle", "reason", "until", "to")}
    bundle = typed["bundle"] or request.query.get("bundle")
    held = [one.bundle for one in item.holds]
    released = [one.bundle for one in item.releases]
    earlier: list[str] = []
    if act.version and bundle:
        history = request.call(get_environment_history, item.name, bundle=bundle, limit=50).promotions
        earlier = list(dict.fromkeys(one.version for one in history if one.version))
        serving = next((one.version for one in item.releases if one.bundle == bundle), None)
        earlier = [version for version in earlier if version != serving]
    values = {
        "act": act,
        "item": item,
        "guarded": bool(item.approvals and item.approvals.required),
        "bundle": bundle,
        "bundles": held if act.name == "unhold" else released,
        "earlier": earlier,
        "typed": typed,
        "command": act.command.format(environment=item.name, bundle=shlex.quote(bundle) if bundle else "BUNDLE"),
        "in_the_way": _in_the_way(act, item, bundle),
        "holds": [one for one in item.holds if bundle in {"", one.bundle}] if act.name in {"hold", "unhold"} else [],
        "suspension": item.suspension if act.name in {"suspend", "unsuspend"} else None,
    }
    return Page("act.html", values, problem=problem)


def _in_the_way(act: Act, item: EnvironmentView, bundle: str) -> str:
    """Return what keeps an act from having its effect, as the environment stands now."""
    held = {one.bundle for one in item.holds}
    if act.name == "unhold" and bundle not in held:
        return f"{bundle or 'No bundle'} is not held here." if bundle or not held else ""
    if act.name == "hold" and bundle in held:
        return f"{bundle} is held already; another hold replaces its reason and time."
    if act.name == "unsuspend" and item.suspension is None:
        return f"{item.name} is not suspended."
    if act.name == "suspend" and item.suspension is not None:
        return f"{item.name} is suspended already; this replaces the reason and time."
    if act.name in {"reconcile", "rollback", "unhold"} and item.suspension is not None:
        return f"{item.name} is suspended by {item.suspension.actor}, so nothing changes before it is resumed."
    return ""


for _act in ACTS.values():
    pages.get(f"/environments/{{environment}}/{_act.name}", scope=("releases:read", "releases:operate"))(_show(_act))
    pages.post(f"/environments/{{environment}}/{_act.name}", scope=("releases:read", "releases:operate"))(
        _perform(_act)
    )
