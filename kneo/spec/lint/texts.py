"""Rules for texts: parts, options, people and channels have readable and distinct names, and no text has a credential.

A spec is signed, kept in Git and shown to all reviewers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from kneo.names import name_problem, person_key, person_problem, shown
from kneo.spec.coverage.gates import all_gates
from kneo.spec.documents import Diagnostic, Path, error
from kneo.spec.index import SpecIndex
from kneo.spec.models.environment import QuestionPolicy
from kneo.spec.models.human import Gate, Human
from kneo.spec.models.workflow import RouterStep

CODE = "E_NAME"

CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
"""Names of channels: the end of the name of a variable, ``slack-ops`` as ``KNEO_SERV_CHANNEL_SLACK_OPS``."""


def names(index: SpecIndex) -> Iterator[Diagnostic]:
    """Check the names of agents, workflows, steps, components, options, people and channels."""
    yield from _declared(index)
    yield from _parts(index)
    for name, human in index.spec.components.humans.items():
        yield from human_names(human, ("components", "humans", name))
    for gate in all_gates(index):
        yield from gate_names(gate.gate, gate.path)
        if gate.gate.key is not None:
            yield from _name(gate.gate.key, (*gate.path, "key"))


def _parts(index: SpecIndex) -> Iterator[Diagnostic]:
    for agent in index.agents:
        yield from _name(agent.agent.name, (*agent.path, "name"))
    for workflow in index.workflows:
        if workflow.workflow.name is not None:
            yield from _name(workflow.workflow.name, (*workflow.path, "name"))
    for at in index.steps:
        yield from _name(at.step.id, (*at.path, "id"))
        if isinstance(at.step, RouterStep):
            yield from _keys(at.step.choices, (*at.path, "choices"))
        if at.key is not None:
            yield from _key(at.key, at.path)


def _declared(index: SpecIndex) -> Iterator[Diagnostic]:
    spec = index.spec
    for kind in ("agents", "workflows", "functions", "humans"):
        yield from _keys(getattr(spec.components, kind), ("components", kind))
    for kind in ("tools", "skills", "mcp_servers"):
        yield from _keys(getattr(spec, kind), (kind,))


def gate_names(gate: Gate, path: Path) -> Iterator[Diagnostic]:
    """Check the names of a gate and of the human that is written out in it."""
    yield from human_names(gate, path)
    if isinstance(gate.human, Human):
        yield from human_names(gate.human, (*path, "human"))


def human_names(human: Human, path: Path) -> Iterator[Diagnostic]:
    """Check the names in a question: of people, groups, roles, options, fields and channels."""
    if human.assignee is not None:
        yield from _person(human.assignee, (*path, "assignee"))
    if human.candidates is not None:
        below = (*path, "candidates")
        yield from _people(human.candidates.users, (*below, "users"))
        yield from _people(human.candidates.exclude, (*below, "exclude"))
        yield from _names(human.candidates.groups, (*below, "groups"))
        yield from _names(human.candidates.roles, (*below, "roles"))
    for number, step in enumerate(human.escalate):
        yield from _person(step.to, (*path, "escalate", number, "to"))
        yield from _channels(step.notify, (*path, "escalate", number, "notify"))
    yield from _names(human.options or (), (*path, "options"))
    for number, field in enumerate(human.fields):
        yield from _name(field.name, (*path, "fields", number, "name"))
    yield from _channels(human.notify, (*path, "notify"))


def environment_names(
    people: Iterable[str], humans: Mapping[str, Human], questions: QuestionPolicy
) -> Iterator[Diagnostic]:
    """Check the names in an environment file: of its people, each once, and of its humans."""
    first_names: dict[str, str] = {}
    for name in people:
        path = ("spec", "people", name)
        problems = [replace(found, at_key=True) for found in _person(name, path)]
        yield from problems
        first = first_names.setdefault(person_key(name), name)
        if first != name and not problems:
            message = f"{shown(name)} and {shown(first)} are two spellings of one name."
            yield replace(error(CODE, message, path, suggestion="Write each person once."), at_key=True)
    yield from _keys(humans, ("spec", "humans"))
    for name, human in humans.items():
        yield from human_names(human, ("spec", "humans", name))
    yield from _people(questions.exclude, ("spec", "questions", "exclude"))


def _keys(parts: Iterable[str], path: Path) -> Iterator[Diagnostic]:
    for name in parts:
        yield from _key(name, (*path, name))


def _key(name: str, path: Path) -> Iterator[Diagnostic]:
    yield from (replace(found, at_key=True) for found in _name(name, path))


def _names(several: Iterable[str], path: Path) -> Iterator[Diagnostic]:
    for number, name in enumerate(several):
        yield from _name(name, (*path, number))


def _name(name: str, path: Path) -> Iterator[Diagnostic]:
    yield from _finding(name_problem(name), path)


def _people(several: Iterable[str], path: Path) -> Iterator[Diagnostic]:
    for number, name in enumerate(several):
        yield from _person(name, (*path, number))


def _person(name: str, path: Path) -> Iterator[Diagnostic]:
    yield from _finding(person_problem(name), path)


def _channels(several: Iterable[str], path: Path) -> Iterator[Diagnostic]:
    for number, name in enumerate(several):
        if not CHANNEL.fullmatch(name):
            message = f"{shown(name)} is no name of a channel: letters, digits, dashes and underscores."
            hint = "Name the end of a KNEO_SERV_CHANNEL_… variable: slack-ops for KNEO_SERV_CHANNEL_SLACK_OPS."
            yield error(CODE, message, (*path, number), suggestion=hint)


def _finding(problem: str | None, path: Path) -> Iterator[Diagnostic]:
    if problem is not None:
        yield error(CODE, f"The name {problem}", path, suggestion="Write a name of visible characters.")


_SHAPES = (
    ("a private key", r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY-----"),
    ("an Anthropic key", r"\bsk-ant-[A-Za-z0-9_-]{16,200}"),
    ("an API key", r"\bsk-(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{20,200}"),
    ("a Stripe key", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,200}"),
    ("an AWS access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{30,200}|github_pat_[A-Za-z0-9_]{30,200})"),
    ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,200}"),
    ("a Google key", r"\bAIza[A-Za-z0-9_-]{35}\b"),
    ("a Slack token", r"\bxox[abeprs]-[A-Za-z0-9-]{10,200}"),
    ("a Slack webhook", r"hooks\.slack\.com/services/T[A-Za-z0-9]{6,20}/B[A-Za-z0-9]{6,20}/[A-Za-z0-9]{16,40}"),
    ("a Hugging Face token", r"\bhf_[A-Za-z0-9]{30,60}\b"),
    ("a JSON web token", r"\beyJ[A-Za-z0-9_-]{10,500}\.eyJ[A-Za-z0-9_-]{10,500}\.[A-Za-z0-9_-]{10,500}"),
    (
        "a password in an address",
        r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@$<{]{1,100}:(?![$<{]|(?:pass|password|pw|secret|token)@)[^\s/@]{3,200}@",
    ),
)
"""Patterns of credentials of well-known issuers; each is unambiguous and bounded."""

_SHAPE = re.compile("|".join(f"(?P<s{number}>{pattern})" for number, (_, pattern) in enumerate(_SHAPES)))

_HINTS = (
    *("-----BEGIN", "sk-", "k_live_", "k_test_", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    *("glpat-", "AIza", "xox", "hooks.slack", "hf_", "eyJ", "://"),
)
"""Every shape contains one of these; texts without are not searched."""

_SECRET_WORDS = frozenset(
    {"password", "passwd", "passphrase", "secret", "token", "apikey", "credential", "credentials", "authorization"}
)
_SECRET_PAIRS = frozenset({("api", "key"), ("access", "key"), ("private", "key"), ("signing", "key"), ("auth", "key")})
_REFERENCE_ENDINGS = frozenset({"ref", "refs", "env", "var", "name", "file", "path", "url", "uri", "id", "type"})

MIN_DISTINCT = 10
"""Different characters in a credential with its prefix; documentation writes sk-xxxxxxxxxxxxxxxxxxxx."""

_SCHEME = re.compile(r"^(?:bearer|basic|token|digest) +", re.IGNORECASE)
_ENV_NAME = re.compile(r"[A-Z]{2,20}|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_PLACEHOLDER = re.compile(
    r"""
      \$\{.*\} | \$[a-z_][a-z0-9_]*     # ${NAME}, ${{ secrets.NAME }}, $NAME
    | [<{%\[].*[>}%\]]                  # <your key>, {{ key }}, %KEY%, [REDACTED]
    | (?:env|secrets?|vault|ref|file|op|ssm|arn|keyring|sops|k8s):.*
    | (?:~|\.{1,2})?/[\w./ -]*          # a file
    | [*x.…-]+ | none | null | true | false
    | (?:change|replace|your|insert|example|dummy|placeholder|todo|redacted)[a-z_. -]*
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def inline_secrets(index: SpecIndex) -> Iterator[Diagnostic]:
    """No text in the spec is a credential."""
    tree = index.spec.model_dump(by_alias=True, exclude_unset=True)
    for path, text in _texts(tree, ()):
        what = _known_shape(text) or _by_name(path, text)
        if what is not None:
            yield _inline(what, path)
    for name, server in index.spec.mcp_servers.items():
        for number, (option, value) in enumerate(pairwise(server.args)):
            named = option.startswith("-") and "=" not in option and _names_secret(option.lstrip("-"))
            if named and not value.startswith("-") and not _is_reference(value) and _known_shape(value) is None:
                yield _inline("a credential", ("mcp_servers", name, "args", number + 1))


def _inline(what: str, path: Path) -> Diagnostic:
    message = f"This looks like {what}, written into the spec."
    hint = "Keep it in an environment variable or a secret store and name that here; revoke this one."
    return error("E_SECRET_INLINE", message, path, suggestion=hint)


def _texts(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*path, number))


def _known_shape(text: str) -> str | None:
    if not any(hint in text for hint in _HINTS):
        return None
    for found in _SHAPE.finditer(text):
        made_up = "EXAMPLE" in found[0] or len(set(found[0])) < MIN_DISTINCT
        if found.lastgroup is not None and not made_up:
            return _SHAPES[int(found.lastgroup[1:])][0]
    return None


def _by_name(path: Path, text: str) -> str | None:
    """Find credentials by the key of a text, or by the command line option before it."""
    key = path[-1]
    if path[:1] == ("mcp_servers",) and len(path) == 4 and path[2] == "args":
        option, _, value = text.partition("=")
        named = option.startswith("-") and bool(value) and _names_secret(option.lstrip("-"))
        return "a credential" if named and not _is_reference(value) else None
    if not isinstance(key, str) or not _may_hold(path) or not _names_secret(key):
        return None
    return "a credential" if not _is_reference(text) else None


def _may_hold(path: Path) -> bool:
    """Tell whether keys at a path are names of settings rather than prose, schemas or names that people chose."""
    if path[0] in {"metadata", "policies"} or (path[0] == "mcp_servers" and path[2:3] in {("env",), ("headers",)}):
        return True
    return any(part in {"extra", "config", "defaults", "context"} for part in path[:-1])


def _names_secret(key: str) -> bool:
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower().replace("-", "_").split("_")
    if words[-1] in _REFERENCE_ENDINGS:
        return False
    pairs = frozenset(pairwise(words))
    return bool(_SECRET_WORDS & frozenset(words) or _SECRET_PAIRS & pairs)


def _is_reference(text: str) -> bool:
    bare = _SCHEME.sub("", text.strip())
    return len(bare) < 4 or _ENV_NAME.fullmatch(bare) is not None or _PLACEHOLDER.fullmatch(bare) is not None
