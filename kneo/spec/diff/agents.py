"""What a change to an agent means: its prompt, its model, and above all what its tools may do."""

from __future__ import annotations

from kneo.spec.diff.locations import (
    ABSENT,
    HIGH,
    LOW,
    MEDIUM,
    ChangeContext,
    Danger,
    Sentence,
    field,
    start,
    text,
    value_change,
)
from kneo.spec.diff.summary import GRANTS, guardrail_words
from kneo.spec.diff.texts import NOT_SHOWN
from kneo.spec.models.agent import Guardrail

_AREAS: dict[str, tuple[Danger, str]] = {
    "name": (LOW, "agents"),
    "description": (LOW, "agents"),
    "strategy": (MEDIUM, "agents"),
    "runtime_preferences": (MEDIUM, "models"),
    "memory": (MEDIUM, "memory"),
    "skills": (MEDIUM, "skills"),
    "as_agent": (HIGH, "agents"),
    "output_schema": (MEDIUM, "agents"),
    "ask_question": (HIGH, "humans"),
    "defaults": (LOW, "agents"),
    "history": (LOW, "agents"),
    "middleware": (HIGH, "tools"),
}


def agent(change: ChangeContext) -> Sentence:
    """Describe a change of an agent."""
    match change.location.rest:
        case ():
            words = Sentence(MEDIUM, "agents", f"{start(change.name)} is {'gone' if change.removed else 'new'}.")
        case ("system_prompt",):
            words = text(change, MEDIUM, "prompts", "prompt")
        case ("model", *below):
            words = _answered(change, below)
        case ("tools", "permissions", *below):
            words = _permission(change, below)
        case ("tools", *below):
            words = _tools(change, below)
        case ("guardrails", *_):
            words = _guardrail(change)
        case rest:
            danger, area = _AREAS.get(rest[0], (MEDIUM, "agents"))
            words = field(change, danger, area)
    return words


def _answered(change: ChangeContext, below: list[str]) -> Sentence:
    if below[:1] == ["extra"]:
        return _endpoint(change)
    if below[:1] == ["fallbacks"]:
        elsewhere = "base_url" in str(change.difference.after)
        return field(change, HIGH if elsewhere and not change.removed else MEDIUM, "models")
    if not below and not change.removed:
        return Sentence(MEDIUM, "models", f"{start(change.name)} is answered by {_model(change.difference.after)}.")
    return field(change, LOW if change.difference.within else MEDIUM, "models")


def _model(value: object) -> str:
    given = value if isinstance(value, dict) else {}
    return repr(f"{given.get('provider')}/{given.get('name')}")


def _endpoint(change: ChangeContext) -> Sentence:
    """Extras decide where a prompt goes and with whose key; their values are not repeated unless they are addresses."""
    key = change.location.rest[-1]
    if key == "base_url":
        return value_change(change, HIGH, "models", f"the address that {change.name} sends everything to")
    if key.endswith("_ref"):
        return value_change(change, MEDIUM, "models", f"the model setting {key} of {change.name}")
    verb = "is new" if change.added else "is gone" if change.removed else "changes"
    return Sentence(HIGH, "models", f"The model setting {key} of {change.name} {verb}; its value {NOT_SHOWN[1:-1]}.")


def _tools(change: ChangeContext, below: list[str]) -> Sentence:
    match below:
        case ["include", name]:
            if change.removed:
                return Sentence(LOW, "tools", f"{start(change.name)} no longer has the tool {name}.")
            return Sentence(HIGH, "tools", f"{start(change.name)} gets the tool {name}.")
        case ["exclude", name]:
            if change.removed:
                return Sentence(HIGH, "tools", f"The tool {name} is no longer kept from {change.name}.")
            return Sentence(LOW, "tools", f"The tool {name} is kept from {change.name}.")
        case _:
            return field(change, LOW, "tools")


def _guardrail(change: ChangeContext) -> Sentence:
    rest = change.location.rest
    if change.added and (change.difference.within or len(rest) < 3):
        return field(change, LOW, "guardrails")  # a check that is added only keeps back more
    if len(rest) == 3 and change.removed:
        return Sentence(HIGH, "guardrails", f"{start(change.name)} loses the {rest[1]} guardrail {rest[2]}.")
    if len(rest) == 3 and change.added:
        words = guardrail_words(Guardrail.model_validate(change.difference.after), rest[1])
        return Sentence(LOW, "guardrails", f"{start(change.name)} gets the guardrail {words}.")
    match rest[3:]:
        case ["config", "keywords" | "patterns", *_] if change.added:
            return field(change, MEDIUM, "guardrails")
        case ["action"] if _strength(change.difference.after) > _strength(change.difference.before):
            return field(change, MEDIUM, "guardrails")
        case _:
            return field(change, HIGH, "guardrails")


_STRENGTH = ("warn", "redact", "revise", "retry", "escalate", "human_review", "block")


def _strength(action: object) -> int:
    """Return how much an action keeps back; left out it is block."""
    return _STRENGTH.index(action) if isinstance(action, str) and action in _STRENGTH else _STRENGTH.index("block")


def _permission(change: ChangeContext, below: list[str]) -> Sentence:
    match below:
        case []:
            what = "no longer states" if change.removed else "states"
            words = Sentence(
                HIGH if change.removed else LOW, "permissions", f"{start(change.name)} {what} what its tools may do."
            )
        case [grant] if grant in GRANTS:
            words = _grant(change, grant)
        case ["allowed_domains", host]:
            words = _opened(change, host) if change.added else _closed(change, host)
        case ["denied_domains", host]:
            verb = "no longer denied" if change.removed else "denied"
            words = Sentence(
                HIGH if change.removed else LOW, "domains", f"{host} is {verb} to the tools of {change.name}."
            )
        case ["allowed_tools" | "denied_tools" as which, name]:
            words = _callable(change, which, name)
        case _:
            words = field(change, HIGH, "permissions")
    return words


def _grant(change: ChangeContext, grant: str) -> Sentence:
    what = GRANTS[grant]
    who = f"The tools of {change.name}"
    if change.difference.after is True:
        everywhere = grant == "allow_network" and not change.new("tools", "permissions", "allowed_domains")
        return Sentence(HIGH, "permissions", f"{who} may {what}{', to any host' if everywhere else ''}.")
    if change.difference.after is False:
        verb = "may no longer" if change.difference.before is True else "may not"
        return Sentence(LOW, "permissions", f"{who} {verb} {what}.")
    danger = HIGH if change.difference.before is False else MEDIUM
    return Sentence(danger, "permissions", f"It is no longer stated whether the tools of {change.name} may {what}.")


_HOSTS = ("tools", "permissions", "allowed_domains")
_NETWORK = ("tools", "permissions", "allow_network")


def _opened(change: ChangeContext, host: str) -> Sentence:
    was_open = change.old(*_NETWORK) is True and not _listed(change.old(*_HOSTS))
    if was_open:
        return Sentence(LOW, "domains", f"The tools of {change.name} are held to hosts, {host} among them.")
    return Sentence(HIGH, "domains", f"The tools of {change.name} may reach {host}.")


def _closed(change: ChangeContext, host: str) -> Sentence:
    if change.new(*_NETWORK) is True and not _listed(change.new(*_HOSTS)):
        message = f"The tools of {change.name} may reach any host; {host} was one of those they were held to."
        return Sentence(HIGH, "domains", message)
    return Sentence(LOW, "domains", f"The tools of {change.name} may no longer reach {host}.")


def _listed(hosts: object) -> bool:
    return hosts is not ABSENT and bool(hosts)


def _callable(change: ChangeContext, which: str, name: str) -> Sentence:
    """A list of tools that may be called opens by growing and by going away, one of those that may not by shrinking."""
    whole = ("tools", "permissions", which)
    if which == "denied_tools":
        opens, verb = change.removed, "is no longer denied to" if change.removed else "is denied to"
    elif change.added:
        opens, verb = change.old(*whole) is not ABSENT, "may be called by"
    else:
        opens, verb = change.new(*whole) is ABSENT, "is no longer listed among those that may be called by"
    return Sentence(HIGH if opens else LOW, "permissions", f"The tool {name} {verb} {change.name}.")
