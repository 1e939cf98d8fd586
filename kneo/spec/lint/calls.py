"""Rules for calls of tools: names for models, effects, interruptions, requests, and the people who are asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.coverage.gates import LocatedGate, all_gates, effective_human
from kneo.spec.diagnostics import Diagnostic, Severity, error, warning
from kneo.spec.documents import Path
from kneo.spec.hosts import host_of, within
from kneo.spec.index import SpecIndex
from kneo.spec.lint.implementations import parameters_of
from kneo.spec.models.agent import ASK_QUESTION
from kneo.spec.models.spec import HttpTool, RemoteAgent, Tool, Verify
from kneo.spec.tool_names import RESERVED, model_name

KEYS = frozenset({"key", "context"})
"""The parameters of a Python tool with which it receives the idempotency key of a call."""

PUBLIC_KEYS = frozenset({"OKP", "EC", "RSA"})
"""The types of JSON Web Keys that have a public half."""

_ORIGIN = re.compile(r"https?://[^/?#{}\\\s@]+(?=[/?#]|$)", re.IGNORECASE)
_SECRET = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]{0,200}\}")


def tool_names(index: SpecIndex) -> Iterator[Diagnostic]:
    """Tools have different names for models, and none has the name of a built-in tool."""
    for name in index.spec.tools:
        if model_name(name) in RESERVED:
            message = f"The tool {name} has the name of the built-in tool {model_name(name)}."
            yield error("E_TOOL_NAME_CLASH", message, ("tools", name), suggestion="Give it another name.")
    for at in index.agents:
        first: dict[str, str] = {}
        for name in at.agent.tools.include if at.agent.tools else ():
            other = first.setdefault(model_name(name), name)
            if other != name:
                message = f"The tools {other} and {name} are both called {model_name(name)} for models."
                hint = "Rename one: models accept letters, digits, _ and -, at most 64; any other character becomes _."
                yield error("E_TOOL_NAME_CLASH", message, (*at.path, "tools"), suggestion=hint)


def effects(index: SpecIndex) -> Iterator[Diagnostic]:
    """Calls with effects are not repeated unseen, and can be recognised by what they change."""
    for name, tool in index.spec.tools.items():
        if not tool.has_effects:
            continue
        path: Path = ("tools", name)
        if tool.on_interrupted == "repeat":
            message = f"An interrupted call of {name} is repeated, and may take effect twice."
            hint = "Write on_interrupted: ask, or {verify: …} with a function that finds out."
            yield warning("W_TOOL_INTERRUPTED_REPEAT", message, (*path, "on_interrupted"), suggestion=hint)
        if tool.retries:
            message = f"A failed call of {name} has effects and is never repeated; retries has to be 0."
            hint = "Leave retries out, or write effects: false where a call over the network changes nothing."
            yield error("E_TOOL_RETRIES", message, (*path, "retries"), suggestion=hint)
        yield from _key(index, name, tool, path)


def _key(index: SpecIndex, name: str, tool: Tool, path: Path) -> Iterator[Diagnostic]:
    if tool.implementation is None or isinstance(tool.on_interrupted, Verify):
        return
    parameters = parameters_of(tool.implementation, index.context)
    if parameters is not None and not KEYS & parameters:
        message = f"The tool {name} has effects, and {tool.implementation} takes no idempotency key."
        hint = "Add the parameter key, and pass it to what the call changes: calls with equal keys are one call."
        yield warning("W_TOOL_EFFECTS_NO_KEY", message, (*path, "implementation"), suggestion=hint)


def requests(index: SpecIndex) -> Iterator[Diagnostic]:
    """HTTP tools and remote agents have a host that no argument changes, and secrets only in their own headers."""
    for name, tool in index.spec.tools.items():
        if tool.http is not None:
            yield from _request(tool.http, name)
        if tool.a2a is not None:
            yield from _remote_agent(index, tool.a2a, name)
    for at in index.agents:
        permissions = at.agent.tools.permissions if at.agent.tools else None
        for name in callable_tools(at.agent):
            called = index.spec.tools.get(name)
            to = (called.http or called.a2a) if called is not None else None
            host = host_of(to.url) if to is not None else None
            allowed = permissions.allowed_domains if permissions else ()
            if host is None or (
                within(host, allowed) and not within(host, permissions.denied_domains if permissions else ())
            ):
                continue
            message = f"The tool {name} calls {host}, which {at.agent.name} does not allow its tools."
            hint = f"Add {host} to tools.permissions.allowed_domains, or leave the tool out."
            yield warning("W_TOOL_HOST_DENIED", message, (*at.path, "tools", "permissions"), suggestion=hint)


def _request(http: HttpTool, name: str) -> Iterator[Diagnostic]:
    path: Path = ("tools", name, "http")
    if _ORIGIN.match(http.url) is None:
        message = f"The url of {name} needs a scheme and a host of its own, without arguments and credentials."
        hint = "Write https://host/path/{argument}."
        yield error("E_TOOL_HTTP", message, (*path, "url"), suggestion=hint)
    yield from _secrets(http, path)


def _remote_agent(index: SpecIndex, agent: RemoteAgent, name: str) -> Iterator[Diagnostic]:
    path: Path = ("tools", name, "a2a")
    if _ORIGIN.match(agent.url) is None or "?" in agent.url or "#" in agent.url:
        message = f"The url of {name} needs a scheme and a host, without credentials, query and fragment."
        hint = "Write https://host/path: the agent's card is at that address with /.well-known/agent-card.json."
        yield error("E_TOOL_A2A", message, (*path, "url"), suggestion=hint)
    yield from _secret_headers("E_TOOL_A2A", agent.secret_headers, path)
    for number, key in enumerate(agent.keys):
        if key.get("kty") not in PUBLIC_KEYS or "d" in key:
            message = f"Key {number + 1} of {name} is no public key."
            hint = "Copy it from the JSON Web Key Set of the service: kty is OKP, EC or RSA, and d is private."
            yield error("E_TOOL_A2A", message, (*path, "keys", number), suggestion=hint)
    if index.context.a2a_installed is False:
        message = f"The library of Agent2Agent is not installed here: a run that needs the tool {name} is refused."
        yield Diagnostic("I_A2A_EXTRA", Severity.INFO, message, path, "Install it: pip install 'kneo[a2a]'.")


def _secret_headers(code: str, headers: Mapping[str, str], path: Path) -> Iterator[Diagnostic]:
    for header, text in headers.items():
        if _SECRET.search(text) is None:
            message = f"The header {header} names no secret."
            hint = "Write ${NAME} for the secret" + (
                ", or move the header to headers." if code == "E_TOOL_HTTP" else "."
            )
            yield error(code, message, (*path, "secret_headers", header), suggestion=hint)


def _secrets(http: HttpTool, path: Path) -> Iterator[Diagnostic]:
    yield from _secret_headers("E_TOOL_HTTP", http.secret_headers, path)
    parts: Mapping[str, Mapping[str, str]] = {"headers": http.headers, "query": http.query}
    for part, texts in parts.items():
        for name, text in texts.items():
            if _SECRET.search(text) is not None:
                message = f"{part}.{name} names a secret, which only secret_headers can hold."
                yield error("E_TOOL_HTTP", message, (*path, part, name), suggestion="Move it to secret_headers.")


def tool_people(index: SpecIndex) -> Iterator[Diagnostic]:
    """Questions of agents, and gates at tools, have a person who can answer."""
    humans = index.spec.components.humans
    for at in index.agents:
        name, includes = at.agent.ask_question, at.agent.tools is not None and ASK_QUESTION in at.agent.tools.include
        path = (*at.path, "ask_question")
        if name is not None and name not in humans:
            message = f"The agent {at.agent.name} asks {name}, which is not in components.humans."
            yield index.undeclared("E_TOOL_GATE_NO_HUMAN", message, path, name, humans, "components.humans")
        elif name is not None and not includes:
            message = f"ask_question has no effect: {at.agent.name} does not include the tool {ASK_QUESTION}."
            hint = f"Add {ASK_QUESTION} to tools.include, or leave it out."
            yield warning("W_FIELD_NO_EFFECT", message, path, suggestion=hint)
    for gate in all_gates(index):
        if gate.tool is not None and _nobody(index, gate):
            message = f"Nobody can answer the gate at the tool {gate.tool}: everybody whom it asks is excluded."
            hint = "Ask a person or a group who is not under exclude."
            yield error("E_TOOL_GATE_NO_HUMAN", message, gate.path, suggestion=hint)


def _nobody(index: SpecIndex, gate: LocatedGate) -> bool:
    human = effective_human(gate.gate, index.spec.components.humans)
    candidates = human.candidates
    if candidates is None or candidates.groups or candidates.roles:
        return False
    people = {*candidates.users, *([human.assignee] if human.assignee else [])}
    return bool(people) and people <= set(candidates.exclude)
