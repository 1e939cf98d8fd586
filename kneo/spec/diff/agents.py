"""What a change to an agent means: its prompt, its model, and above all what its tools may do."""

from __future__ import annotations

from kneo.spec.diff.locations import HIGH, LOW, MEDIUM, ChangeContext, Danger, Sentence, field, said, start, text
from kneo.spec.diff.tree import ABSENT
from kneo.spec.messages import quote

_GRANTS = {
    "allow_network": "use the network",
    "allow_filesystem_read": "read files",
    "allow_filesystem_write": "write files",
    "allow_shell": "run shell commands",
}

_AREAS: dict[str, tuple[Danger, str]] = {
    "name": (LOW, "agents"),
    "description": (LOW, "agents"),
    "strategy": (MEDIUM, "agents"),
    "runtime_preferences": (MEDIUM, "models"),
    "memory": (MEDIUM, "memory"),
    "skills": (MEDIUM, "skills"),
    "as_agent": (HIGH, "agents"),
    "defaults": (LOW, "agents"),
    "history": (LOW, "agents"),
    "middleware": (LOW, "agents"),
}


def agent(spot: ChangeContext) -> Sentence:
    """Speak of an agent."""
    match spot.place.rest:
        case ():
            words = Sentence(MEDIUM, "agents", f"{start(spot.name)} is {'gone' if spot.gone else 'new'}.")
        case ("system_prompt",):
            words = text(spot, MEDIUM, "prompts", "prompt")
        case ("model", *below):
            words = _answered(spot, below)
        case ("tools", "permissions", *below):
            words = _permission(spot, below)
        case ("tools", *below):
            words = _tools(spot, below)
        case ("guardrails", *_):
            words = _guardrail(spot)
        case rest:
            danger, area = _AREAS.get(rest[0], (MEDIUM, "agents"))
            words = field(spot, danger, area)
    return words


def _answered(spot: ChangeContext, below: list[str]) -> Sentence:
    if below[:1] == ["extra"]:
        return _endpoint(spot)
    if not below and not spot.gone:
        return Sentence(MEDIUM, "models", f"{start(spot.name)} is answered by {_model(spot.event.after)}.")
    return field(spot, LOW if spot.event.within else MEDIUM, "models")


def _model(value: object) -> str:
    given = value if isinstance(value, dict) else {}
    return quote(f"{given.get('provider')}/{given.get('name')}")


def _endpoint(spot: ChangeContext) -> Sentence:
    """Extras decide where a prompt goes and with whose key; their values are not repeated unless they are addresses."""
    key = spot.place.rest[-1]
    if key == "base_url":
        return said(spot, HIGH, "models", f"the address that {spot.name} sends everything to")
    verb = "is new" if spot.came else "is gone" if spot.gone else "changes"
    return Sentence(MEDIUM, "models", f"The model setting {key} of {spot.name} {verb}.")


def _tools(spot: ChangeContext, below: list[str]) -> Sentence:
    match below:
        case ["include", name]:
            if spot.gone:
                return Sentence(LOW, "tools", f"{start(spot.name)} no longer has the tool {name}.")
            return Sentence(HIGH, "tools", f"{start(spot.name)} gets the tool {name}.")
        case ["exclude", name]:
            if spot.gone:
                return Sentence(HIGH, "tools", f"The tool {name} is no longer kept from {spot.name}.")
            return Sentence(LOW, "tools", f"The tool {name} is kept from {spot.name}.")
        case _:
            return field(spot, LOW, "tools")


def _guardrail(spot: ChangeContext) -> Sentence:
    rest = spot.place.rest
    if len(rest) == 3 and spot.event.kind in {"added", "removed"}:
        if spot.gone:
            return Sentence(HIGH, "guardrails", f"{start(spot.name)} loses the {rest[1]} guardrail {rest[2]}.")
        return Sentence(MEDIUM, "guardrails", f"{start(spot.name)} gets the {rest[1]} guardrail {rest[2]}.")
    return field(spot, MEDIUM if spot.event.within else HIGH, "guardrails")


def _permission(spot: ChangeContext, below: list[str]) -> Sentence:
    match below:
        case []:
            what = "no longer states" if spot.gone else "states"
            words = Sentence(
                HIGH if spot.gone else LOW, "permissions", f"{start(spot.name)} {what} what its tools may do."
            )
        case [grant] if grant in _GRANTS:
            words = _grant(spot, grant)
        case ["allowed_domains", host]:
            words = _opened(spot, host) if spot.came else _closed(spot, host)
        case ["denied_domains", host]:
            verb = "no longer denied" if spot.gone else "denied"
            words = Sentence(HIGH if spot.gone else LOW, "domains", f"{host} is {verb} to the tools of {spot.name}.")
        case ["allowed_tools" | "denied_tools" as which, name]:
            words = _callable(spot, which, name)
        case _:
            words = field(spot, HIGH, "permissions")
    return words


def _grant(spot: ChangeContext, grant: str) -> Sentence:
    what = _GRANTS[grant]
    who = f"The tools of {spot.name}"
    if spot.event.after is True:
        everywhere = grant == "allow_network" and not spot.new("tools", "permissions", "allowed_domains")
        return Sentence(HIGH, "permissions", f"{who} may {what}{', to any host' if everywhere else ''}.")
    if spot.event.after is False:
        verb = "may no longer" if spot.event.before is True else "may not"
        return Sentence(LOW, "permissions", f"{who} {verb} {what}.")
    danger = HIGH if spot.event.before is False else MEDIUM
    return Sentence(danger, "permissions", f"It is no longer stated whether the tools of {spot.name} may {what}.")


_HOSTS = ("tools", "permissions", "allowed_domains")
_NETWORK = ("tools", "permissions", "allow_network")


def _opened(spot: ChangeContext, host: str) -> Sentence:
    was_open = spot.old(*_NETWORK) is True and not _listed(spot.old(*_HOSTS))
    if was_open:
        return Sentence(LOW, "domains", f"The tools of {spot.name} are held to hosts, {host} among them.")
    return Sentence(HIGH, "domains", f"The tools of {spot.name} may reach {host}.")


def _closed(spot: ChangeContext, host: str) -> Sentence:
    if spot.new(*_NETWORK) is True and not _listed(spot.new(*_HOSTS)):
        message = f"The tools of {spot.name} may reach any host; {host} was one of those they were held to."
        return Sentence(HIGH, "domains", message)
    return Sentence(LOW, "domains", f"The tools of {spot.name} may no longer reach {host}.")


def _listed(hosts: object) -> bool:
    return hosts is not ABSENT and bool(hosts)


def _callable(spot: ChangeContext, which: str, name: str) -> Sentence:
    """A list of tools that may be called opens by growing and by going away, one of those that may not by shrinking."""
    whole = ("tools", "permissions", which)
    if which == "denied_tools":
        opens, verb = spot.gone, "is no longer denied to" if spot.gone else "is denied to"
    elif spot.came:
        opens, verb = spot.old(*whole) is not ABSENT, "may be called by"
    else:
        opens, verb = spot.new(*whole) is ABSENT, "is no longer listed among those that may be called by"
    return Sentence(HIGH if opens else LOW, "permissions", f"The tool {name} {verb} {spot.name}.")
