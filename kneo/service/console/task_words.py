"""Tasks in words: consequences of decisions, deadlines, candidates, the place of a gate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kneo.api.task_views import HumanTaskView

VERBS: Mapping[str, str] = {
    "approved": "Approve",
    "selected": "Choose",
    "edited": "Edit",
    "provided": "Answer",
    "rejected": "Reject",
}
"""The decisions in the order of a form."""

DONE: Mapping[str, str] = {
    "approved": "approved",
    "selected": "chose",
    "edited": "edited",
    "provided": "answered",
    "rejected": "rejected",
}

KEYS: Mapping[str, str] = {"approved": "a", "selected": "c", "edited": "e", "provided": "w", "rejected": "r"}

SEND_BACK = "Send back"

EXCLUDED: Mapping[str, str] = {
    "requester": "the requester",
    "bundle_signer": "signers of the bundle",
    "previous_reviewers": "people who answered before in this run",
}

SILENCE: Mapping[str, str] = {
    "approve": "the task counts as approved",
    "cancel": "the run is cancelled",
    "fail": "the run fails",
    "reject": "the task counts as rejected",
    "skip": "the step is skipped",
}


NOT_COVERED: Mapping[str, str] = {
    "no_rule": "the environment allows no grant for the tool",
    "condition": "its condition, or that of the environment's rule, is not true for the call",
    "limits": "its limit for a day or a run is reached, or the environment allows less now",
    "used_up": "all its uses are taken",
    "total": "the call exceeds what is left of its total",
    "expired": "it has expired",
    "not_a_candidate": "a person who approved it may not decide this task",
    "separation_of_duties": "a person who approved it is excluded from this task",
    "quorum": "it has too few approvals",
    "signature": "the signatures of its approvals do not suffice",
    "never": "only people answer this gate",
    "spot_check": "a spot check asks people about this call",
}
"""Why a standing grant does not cover a call; see ``kneo.records.grant.NotCovered``."""


def verb(decision: str, on_reject: str) -> str:
    """Return the name of a decision on a button."""
    return SEND_BACK if decision == "rejected" and on_reject == "retry" else VERBS[decision]


def listed(names: Sequence[str], last: str = "and") -> str:
    """Return names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}" if names else ""


def consequence(value: object, decision: str = "", *, agent: str = "") -> str:
    """Return the consequence of a decision as a sentence without its end; empty where it is not known.

    Args:
        value: The consequence, as the task has it.
        decision: The decision.
        agent: The agent whose call the task is about; empty for every other task.
    """
    if not isinstance(value, Mapping):
        return ""
    if isinstance(value.get("options"), Mapping):
        return "the option decides what follows"
    branches = value.get("branches")
    if isinstance(branches, list | tuple):
        skipped = _texts(value.get("skips"))
        first = f"{listed(skipped)} does not run, then " if skipped else ""
        return f"{first}what follows depends on your answer: either {', or '.join(map(consequence, _items(branches)))}"
    following = _texts(value.get("next"))
    if value.get("effect") == "retry" and following:
        return f"{listed(following)} runs again with your reason"
    if agent:
        return _of_call(value, decision, agent)
    parts = []
    if skipped := _texts(value.get("skips")):
        parts.append(f"{listed(skipped)} does not run")
    if value.get("ends"):
        parts.append(f"the run ends: {value['ends']}")
    parts += [_question(each) for each in _items(value.get("asks"))]
    if following:
        parts.append(f"{listed(following)} {'runs' if len(following) == 1 else 'run'}")
    parts += _meanwhile(value)
    return ", then ".join(parts) or "the run continues"


def _of_call(value: Mapping[str, object], decision: str, agent: str) -> str:
    """Return the consequence of a decision about a call: what happens with the call, then how the agent continues."""
    if calls := _texts(value.get("calls")):
        first = f"{listed(calls)} is called with {'your' if decision == 'edited' else 'these'} arguments"
    elif skipped := _texts(value.get("skips")):
        first = f"{skipped[0].rpartition(' → ')[2]} is not called"
    else:
        first = ", then ".join(_question(each) for each in _items(value.get("asks")))
    if value.get("ends"):
        last = f"the run ends: {value['ends']}"
    elif value.get("asks"):
        last = ""
    elif not _texts(value.get("next")):
        last = f"the calling program gets {'your reason' if decision == 'rejected' else 'the result'}"
    else:
        last = f"{agent} reads your reason and continues" if decision == "rejected" else f"{agent} continues"
    return "; then ".join(part for part in (first, last) if part)


def _meanwhile(value: Mapping[str, object]) -> list[str]:
    parts = []
    if waits := _texts(value.get("waits")):
        parts.append(f"other questions stay open: {listed(waits)}")
    if running := _texts(value.get("running")):
        parts.append(f"{listed(running)} {'is' if len(running) == 1 else 'are'} still running")
    return parts


def _question(value: object) -> str:
    if not isinstance(value, Mapping):
        return f"a task opens at {value}"
    people = value.get("human") or "a person"
    return (
        f"{people} is asked: {value['prompt']}" if value.get("prompt") else f"{people} is asked at {value.get('key')}"
    )


def _items(value: object) -> Sequence[object]:
    return value[:10] if isinstance(value, list | tuple) else ()


def _texts(value: object) -> list[str]:
    return [str(each) for each in _items(value)]


def silence(timeout: Mapping[str, object] | None) -> str:
    """Return what happens at the deadline of a task as the end of a sentence."""
    if timeout is None:
        return ""
    effect, to = str(timeout["effect"]), timeout.get("to")
    if effect == "escalate":
        return f"it goes to {to}" if to else "it is escalated"
    if effect.startswith("select:"):
        return f"the option {effect.removeprefix('select:')} is taken"
    return SILENCE.get(effect, effect)


def candidates(task: HumanTaskView) -> str:
    """Return who may decide a task."""
    known = {name: _texts_all(task.candidates.get(name)) for name in ("users", "groups", "roles", "exclude")}
    users = [*known["users"], *([task.assignee] if task.assignee and task.assignee not in known["users"] else [])]
    names = users + [f"the group {name}" for name in known["groups"]] + [f"the role {name}" for name in known["roles"]]
    who = (
        listed(names, "or") if known["users"] or known["groups"] or known["roles"] else "everyone who may decide tasks"
    )
    excluded = [EXCLUDED.get(name, name) for name in known["exclude"]]
    return who + (f"; not {listed(excluded, 'or')}" if excluded else "")


def _texts_all(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else []


def event(kind: str, data: Mapping[str, object]) -> str:
    """Return an event of a task in words, after the name of its author."""
    to = data.get("to")
    known = {
        "human.requested": "opened the task by starting the run",
        "human.voted": f"voted: {data.get('decision')}",
        "human.decision": f"decided: {data.get('decision')}",
        "human.claimed": "claimed the task",
        "human.released": "released the task",
        "human.assigned": f"assigned the task to {to}",
        "human.delegated": f"delegated the task to {to}",
        "human.snoozed": "snoozed the task",
        "human.commented": "commented",
        "human.applied": "the decision took effect",
        "human.cancelled": "the task was cancelled",
        "human.expired": "the deadline passed",
        "human.escalated": f"the task was escalated to {to}" if to else "the task was escalated",
        "human.reminded": "a reminder was sent",
        "human.reused": "an earlier decision was used again",
        "human.link_made": f"a one-time link was made for {data.get('person')}",
        "human.link_revoked": f"the link of {data.get('person')} was revoked",
        "human.link_used": "answered with a one-time link",
    }
    return known.get(kind, kind.removeprefix("human.").replace("_", " "))
