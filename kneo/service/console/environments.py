"""The pages of environments: what runs where, what waits and for whom, and the review of one change."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from starlette.responses import Response

from kneo.api.bundles import list_bundles
from kneo.api.canaries import CanaryView, get_canary
from kneo.api.environments import (
    get_environment,
    get_environment_history,
    get_source,
    list_environment_decisions,
    list_environments,
    plan_environment,
    plan_environments,
)
from kneo.api.operation import Operation
from kneo.api.promotion_receipts import get_approval_receipt, list_promotion_receipts
from kneo.api.promotions import DecisionRequest, approve_promotion, get_promotion, reject_promotion
from kneo.api.release_views import ApprovalView, DecidedView, EnvironmentView, PromotionDetailView, SpecChangeView
from kneo.errors import Forbidden, InvalidValue, KneoError, NotFound
from kneo.names import reveal
from kneo.service.console.page import MenuEntry, Page, PageRequest, Pages, SeeOther, Shown, download
from kneo.service.console.release_words import (
    CHANGES,
    PendingNote,
    conditions_of,
    is_cut,
    matrix,
    parts_of,
    people,
    rule_of,
    rules_of,
    shown_changes,
    shown_rules,
    state_of,
)
from kneo.service.routing import JsonResponse
from kneo.spec.diff import shortened, whole_command
from kneo.spec.diff.rules import shown_rule

PLACE = MenuEntry("environments", "Environments", "/environments", "releases:read")

pages = Pages(PLACE)

HISTORY = 50
"""Past changes on a page."""

MAX_REASON = 500

DECISIONS = {"approved": approve_promotion, "rejected": reject_promotion}


@dataclass(frozen=True)
class Attention:
    """A change or a state that needs a person."""

    kind: str
    environment: str
    title: str
    message: str
    since: str
    href: str
    action: str
    mine: bool


def ordered(request: PageRequest) -> list[EnvironmentView]:
    """Return every environment, in the order of promotion."""
    return sorted(request.call(list_environments).environments, key=lambda item: (item.stage, item.name))


@pages.get("/environments", scope="releases:read")
def show_environments(request: PageRequest) -> Page:
    """Show what runs where, and what needs attention."""
    environments = ordered(request)
    newest = {}
    if request.may("specs:read"):
        newest = {item.name: (item.version, item.digest) for item in request.call(list_bundles).bundles}
    try:
        source = request.call(get_source)
    except NotFound:
        source = None
    columns = [
        {
            "name": item.name,
            "state": state_of(item),
            "rule": rule_of(item),
            "guarded": bool(item.approvals and item.approvals.required),
            "revision": item.revision,
            "conditions": conditions_of(item.conditions),
        }
        for item in environments
    ]
    values = {
        "source": source,
        "columns": columns,
        "rows": matrix(environments, newest),
        "attention": [one for item in environments for one in _attention(request, item)],
        "may_operate": request.may("releases:operate"),
        "may_read_bundles": request.may("specs:read"),
    }
    return Page("environments.html", values, live="environments")


def _attention(request: PageRequest, environment: EnvironmentView) -> list[Attention]:
    name = environment.name
    home = f"/console/environments/{quote(name, safe='')}"
    found = [
        Attention(
            kind=PendingNote.of(item).kind,
            environment=name,
            title=f"{item.bundle} {item.version} {'was refused' if item.gate == 'verify' else 'waits'}"
            if item.kind != "policy"
            else f"The rules of {name} wait",
            message=item.message,
            since=item.since,
            href=f"/console/promotions/{item.id}",
            action="Review" if item.subject else "Why",
            mine=request.may("releases:decide") and request.person in item.who,
        )
        for item in environment.pending
    ]
    suspension = environment.suspension
    if suspension is not None:
        title = f"{name} is suspended"
        message = f"{suspension.actor}: {suspension.reason}"
        found.append(
            Attention("hold", name, title, message, suspension.since, f"{home}/unsuspend", "Resume", mine=False)
        )
    for hold in environment.holds:
        href = f"{home}/unhold?bundle={quote(hold.bundle, safe='')}"
        message = f"{hold.actor}: {hold.reason}"
        found.append(Attention("hold", name, f"{hold.bundle} is held", message, hold.since, href, "Lift", mine=False))
    return found


@pages.get("/environments/{environment}", scope="releases:read")
def show_environment(request: PageRequest) -> Page:
    """Show one environment: rules, releases, conditions, decisions and history."""
    item = request.call(get_environment, request.path["environment"])
    history = request.call(get_environment_history, item.name, limit=HISTORY)
    decisions = request.call(list_environment_decisions, item.name, limit=HISTORY).decisions
    values = {
        "item": item,
        "state": state_of(item),
        "guarded": bool(item.approvals and item.approvals.required),
        "rules": list(rules_of(item)),
        "rows": matrix([item], {}),
        "pending": [(one, PendingNote.of(one)) for one in item.pending],
        "conditions": conditions_of(item.conditions),
        "history": history.promotions,
        "decisions": decisions,
        "receipt": _receipt(request, decisions),
        "may_operate": request.may("releases:operate"),
        "may_read_receipts": request.may("receipts:read"),
        "done": DONE.get(request.query.get("done"), ""),
    }
    return Page("environment.html", values, live="environments")


DONE = {
    "hold": "The release is held.",
    "unhold": "The hold is lifted; the release follows Git again.",
    "suspend": "The environment is suspended.",
    "unsuspend": "The environment follows Git again.",
    "rollback": "The controller rolled back and holds the release.",
    "reconcile": "The controller looked at the config repository.",
}
"""The results of acts, by the act."""


# ---- the review of a change -----------------------------------------------------------------------------------------


@pages.get("/environments/{environment}/{bundle}", scope="releases:read")
def show_release(request: PageRequest) -> Page:
    """Show a bundle in an environment: its release, the change that waits, and the history."""
    environment, bundle = request.path["environment"], request.path["bundle"]
    item, detail = _pending(request, environment, bundle)
    page = _page(request, item, bundle, detail)
    if detail is None and page.values["serving"] is None and not page.values["history"]:
        msg = f"{bundle[:200]} was never released to {environment[:80]}."
        raise NotFound(msg, code="bundle_not_found", hint=f"Declare it in environments/{environment[:80]}.yaml.")
    return page


@pages.get("/promotions/{promotion}", scope="releases:read")
def show_promotion(request: PageRequest) -> Page:
    """Show a change by the id of its promotion."""
    detail = request.call(get_promotion, request.path["promotion"])
    item = request.call(get_environment, detail.promotion.environment)
    return _page(request, item, detail.promotion.bundle, detail)


def _pending(
    request: PageRequest, environment: str, bundle: str, tries: int = 5
) -> tuple[EnvironmentView, PromotionDetailView | None]:
    """Return an environment, and the change of a bundle that waits in it."""
    item = request.call(get_environment, environment)
    pending = next((one for one in item.pending if one.bundle == bundle), None)
    if pending is None:
        return item, None
    try:
        return item, request.call(get_promotion, pending.id)
    except NotFound:  # the controller applied the change between the two reads
        if not tries:
            raise
        return _pending(request, environment, bundle, tries - 1)


def _page(
    request: PageRequest,
    item: EnvironmentView,
    bundle: str,
    detail: PromotionDetailView | None,
    problem: KneoError | None = None,
) -> Page:
    """Return the review page, with what was typed where a decision was refused."""
    whole, first = request.query.get("whole") == "1", _first(request)
    if whole and detail is not None:
        detail = request.call(get_promotion, detail.promotion.id, whole=True)
    change = detail.promotion if detail is not None else None
    plan = detail.plan if detail is not None else None
    history = request.call(get_environment_history, item.name, bundle=bundle, limit=HISTORY).promotions
    decisions = request.call(list_environment_decisions, item.name, limit=HISTORY).decisions
    waits = change is not None and change.phase == "waiting"
    what = f"{item.name}/{bundle}" if change is None or change.kind != "policy" else f"{item.name} --policy"
    values = {
        "item": item,
        "bundle": bundle,
        "guarded": bool(item.approvals and item.approvals.required),
        "change": change,
        "waits": waits,
        "detail": detail,
        "plan": plan,
        "changes": shown_changes(plan.changes[first : first + CHANGES]) if plan is not None else [],
        "ranges": parts_of(len(plan.changes), first) if plan is not None else [],
        "whole": whole,
        "is_cut": plan is not None and is_cut(plan),
        "whole_command": whole_command(bundle, plan.from_version, change.version or "") if plan and change else "",
        "rules": shown_rules(plan.rules) if plan is not None else [],
        "serving": next((one for one in item.releases if one.bundle == bundle), None),
        "hold": next((one for one in item.holds if one.bundle == bundle), None),
        "canary": _canary(request, item.name, bundle),
        "who": people(change.who) if change is not None and change.phase == "waiting" else "",
        "history": history,
        "receipt": _receipt(request, decisions),
        "command": f"kneo approve {what} --key FILE",
        "typed": {name: request.form.get(name) for name in ("decision", "reason")},
        "may_operate": request.may("releases:operate"),
        "may_read_receipts": request.may("receipts:read"),
    }
    return Page("release.html", values, live="environments", problem=problem)


def _canary(request: PageRequest, environment: str, bundle: str) -> CanaryView | None:
    """Return the newest canary of a bundle; None without one."""
    try:
        return request.call(get_canary, environment, bundle)
    except NotFound:
        return None


def _first(request: PageRequest) -> int:
    """Return the number of the first change of the part that is asked for."""
    text = request.query.get("from")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _receipt(request: PageRequest, decisions: list[ApprovalView]) -> ApprovalView | None:
    return next((one for one in decisions if one.id == request.query.get("decided")), None)


@pages.post("/environments/{environment}/{bundle}", scope="releases:decide")
def decide_release(request: PageRequest) -> Shown:
    """Record the decision of the person about the change of a bundle that the form names."""
    return _decide(request, request.form.get("promotion"), request.path["environment"], request.path["bundle"])


@pages.post("/promotions/{promotion}", scope="releases:decide")
def decide_promotion(request: PageRequest) -> Shown:
    """Record the decision of the person about a change."""
    return _decide(request, request.path["promotion"], request.form.get("environment"), request.form.get("bundle"))


def _decide(request: PageRequest, promotion: str, environment: str, bundle: str) -> Shown:
    try:
        decided = _record(request, promotion)
    except KneoError as error:
        return _refused(request, error, environment, bundle, promotion)
    name = decided.approval.environment
    where = "" if decided.approval.subject_name.startswith("environments/") else f"/{quote(bundle, safe='')}"
    return SeeOther(f"/console/environments/{quote(name, safe='')}{where}?decided={decided.approval.id}")


def _record(request: PageRequest, promotion: str) -> DecidedView:
    """Record a decision.

    Raises:
        KneoError: the form is incomplete, the person may not decide, or the change is not the one that was shown.
    """
    detail = request.call(get_promotion, promotion)
    if not detail.may_answer.ok:
        raise Forbidden(detail.may_answer.reason or "", code=detail.may_answer.code)
    decide: Operation[..., DecidedView] | None = DECISIONS.get(request.form.get("decision"))
    if decide is None:
        msg = "Choose Approve or Reject."
        raise InvalidValue(msg, code="decision_required")
    reason = request.reason(MAX_REASON, "A rejection needs a reason." if decide is reject_promotion else "")
    if reveal(reason) != reason:
        msg = "The reason has characters that cannot be printed, for example some that change the direction of text."
        raise InvalidValue(msg, code="invalid_reason")
    body = DecisionRequest(reason=reason or None, expect_policy_digest=request.form.get("policy_digest")[:100])
    return request.call(decide, promotion, body)


class _Moved(NotFound):
    """The change that a form is about is not pending any more."""

    http_status = 409


def _refused(request: PageRequest, error: KneoError, environment: str, bundle: str, promotion: str) -> Page:
    """Show the change again, as it stands now, with what was typed and why the decision was not recorded."""
    item, detail = _pending(request, environment, bundle)
    if isinstance(error, NotFound) and (detail is None or detail.promotion.id != promotion):
        last = request.call(list_environment_decisions, item.name, limit=1).decisions
        by = f" Last decision: {last[0].principal} ({last[0].decision})." if last else ""
        msg = f"This change is not pending any more; nothing was recorded.{by}"
        error = _Moved(msg, code="promotion_changed", hint="Read what stands here now; your words are kept below.")
    return _page(request, item, bundle, detail, error)


@pages.get("/approvals/{approval}/receipt", scope=("releases:read", "receipts:read"))
def download_receipt(request: PageRequest) -> Response:
    """Download the receipt of a decision, which ``kneo promotion receipt verify`` verifies."""
    view = request.call(get_approval_receipt, request.path["approval"])
    return download(JsonResponse(view), f"receipt-{view.unsigned['id']}.json")


@pages.get("/promotions/{promotion}/receipts", scope=("releases:read", "receipts:read"))
def download_receipts(request: PageRequest) -> Response:
    """Download the receipts of a promotion."""
    view = request.call(list_promotion_receipts, request.path["promotion"])
    return download(JsonResponse(view), f"receipts-{view.promotion_id}.json")


# ---- plans ------------------------------------------------------------------------------------------------------------

MAX_PLANNED = 20
"""Environments on the page of a plan."""


@pages.get("/plan", scope="releases:read")
def show_plan(request: PageRequest) -> Page:
    """Show what a commit would change in each environment."""
    names = [item.name for item in ordered(request)]
    ref, chosen = request.query.get("ref").strip(), request.query.get("environment")
    empty: dict[str, object] = {"plans": [], "head": None, "trust": [], "more": 0}
    values = {**empty, "names": names, "ref": ref, "chosen": chosen}
    if "ref" not in dict(request.query.fields):
        return Page("plan.html", values)
    revision = ref[:250] or None
    try:
        if chosen:
            plan = request.call(plan_environment, chosen, ref=revision)
        else:
            plan = request.call(plan_environments, ref=revision)
    except KneoError as error:
        return Page("plan.html", values, problem=error)
    shown = [_planned(one) for one in plan.environments[:MAX_PLANNED]]
    trust = plan.trust["changes"] if plan.trust is not None and plan.trust["changed"] else []
    assert isinstance(trust, list)
    values |= {"trust": shown_rules([{"field": "environments/trust.json", **each} for each in trust])}
    return Page("plan.html", {**values, "head": plan, "plans": shown, "more": len(plan.environments) - len(shown)})


def _planned(item: dict[str, object]) -> dict[str, object]:
    """Return the plan of an environment with its changes for a page; the controller's words are revealed by the template."""
    actions = item.get("actions")
    shown = []
    for action in actions if isinstance(actions, list) else []:
        items = [shortened(change, str(action["whole"])) for change in action["diff"][:CHANGES]]
        changes = [SpecChangeView(**item) for item in items]  # type: ignore[arg-type]  # the controller's
        shown.append({**action, "changes": shown_changes(changes), "more": len(action["diff"]) - len(changes)})
    empty: dict[str, object] = {
        "problem": None,
        "verdicts": [],
        "gates": [],
        "policy": [],
        "windows": None,
        "rules": None,
    }
    policy = item.get("policy")
    rules = [
        each | {"lines": shown_rule(tuple(each["lines"]))} for each in (policy if isinstance(policy, list) else ())
    ]
    return {**empty, **item, "actions": shown, "policy": shown_rules(rules), "name": reveal(str(item["name"]))}
