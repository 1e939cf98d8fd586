"""Reading of environment files: the model, and the rules for releases, windows, names and gates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kneo.digest import Digest, digest_of_json
from kneo.errors import Invalid
from kneo.roles import ROLES, SCOPES
from kneo.spec.base import suggest
from kneo.spec.coverage.gates import (
    DEFAULT_HUMAN,
    UNSIGNED_HINT,
    effective_human,
    human_strength,
    named_human,
    unsigned_timeout,
)
from kneo.spec.documents import Diagnostic, Document, Path, ReadLimits, error, locate
from kneo.spec.expression import STEP_FACTS, call_facts
from kneo.spec.gates import POSITIONS
from kneo.spec.lint.gates import condition_findings, expression_findings, form_findings
from kneo.spec.lint.texts import environment_names, gate_names
from kneo.spec.models import environment
from kneo.spec.models.human import NOT_HONOURED, Candidates, Gate, Human
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import InvalidDeclaration, parse_model

ENVIRONMENT_LIMITS = ReadLimits(max_bytes=8 * 1_048_576, max_nodes=500_000)
"""Room for twenty thousand releases, each with a version and a digest."""

CODE = "E_ENVIRONMENT"

DEFAULT_REVIEWERS = Human(candidates=Candidates(roles=("reviewer",)))
"""The human of a gate without ``human``, in an environment without a human called ``default``."""

AFTER_KINDS = ("agent", "function", "workflow", "guardrail", "steps", "parallel", "router")
"""Kinds of steps with a result that a gate after them can review."""

UNGUARDED = ("else", "continue")
"""The effects of a rejection after which what a person rejected can still run."""


def parse_environment(data: bytes, *, file: str, accepted: bool = False) -> environment.Environment:
    """Read an environment file, YAML or JSON by its name.

    Args:
        data: The file.
        file: Its path.
        accepted: Whether the file was accepted earlier. Its names and windows were accepted with it, also those that a new
            file cannot have.

    Raises:
        Unreadable: the bytes are not a document.
        InvalidDeclaration: the document is not an environment; the findings carry file and line.
    """
    document = read(data, file=file, limits=ENVIRONMENT_LIMITS)
    declaration = parse_model(environment.EnvironmentFile, document)
    spec, name = declaration.spec, declaration.metadata.name
    findings = list(_findings(name, spec, accepted=accepted))
    if not accepted:
        findings += _names(spec)
    if findings:
        raise InvalidDeclaration([locate(finding, [document]) for finding in findings])
    windows = tuple(rule.window(accepted=accepted) for rule in spec.windows)
    gates = tuple(_with_human(gate, spec.humans) for gate in spec.gates)
    if spec.retired:  # a retired environment releases nothing, even where its list is not empty
        spec = spec.model_copy(update={"releases": ()})
    return environment.Environment(name, spec, windows, gates, _policy_digest(document), file)


def _policy_digest(document: Document) -> Digest:
    content = dict(document.value) if isinstance(document.value, dict) else {}
    spec = content.get("spec")
    if isinstance(spec, dict):
        content["spec"] = {key: value for key, value in spec.items() if key not in {"releases", "suspend"}}
    return digest_of_json(content)


def _with_human(added: environment.EnvironmentGate, humans: Mapping[str, Human]) -> environment.EnvironmentGate:
    """Write out the human of each gate: a person of the environment, never one that a spec declares."""
    known = _known(humans)
    return added.model_copy(
        update={
            position: gate.model_copy(update={"human": named_human(gate, known)})
            for position, gate in added.gates().items()
        }
    )


def _known(humans: Mapping[str, Human]) -> dict[str, Human]:
    return {DEFAULT_HUMAN: DEFAULT_REVIEWERS, **humans}


def _findings(name: str, spec: environment.EnvironmentSpec, *, accepted: bool) -> Iterator[Diagnostic]:
    bundles: set[str] = set()
    for index, release in enumerate(spec.releases):
        if release.bundle in bundles:
            message = f"The bundle {release.bundle} is listed twice; an environment runs one version of a bundle."
            yield error(CODE, message, ("spec", "releases", index, "bundle"))
        bundles.add(release.bundle)
        if release.canary is not None and spec.atomic:
            message = (
                f"atomic changes all releases at once, and the canary of {release.bundle} changes one step by step."
            )
            yield error(CODE, message, ("spec", "releases", index, "canary"))
    for index, rule in enumerate(spec.windows):
        try:
            rule.window(accepted=accepted)
        except Invalid as refusal:
            yield error(CODE, refusal.message, ("spec", "windows", index), suggestion=refusal.hint)
    yield from _humans_and_gates(spec)
    yield from _expressions(spec)
    yield from _evidence(name, spec)
    yield from _access(spec)
    if spec.promote_from == name:
        yield error(CODE, "An environment cannot promote from itself.", ("spec", "promoteFrom"))
    if spec.soak and spec.promote_from is None:
        message = "soak says how long another environment must have served a bundle, and promoteFrom names none."
        yield error(CODE, message, ("spec", "soak"), suggestion="Add promoteFrom, or drop soak.")


def _expressions(spec: environment.EnvironmentSpec) -> Iterator[Diagnostic]:
    """Report the flaws of expressions. The arguments of tools are unknown here: they are those of each released bundle."""
    rules: list[tuple[Path, str | None]] = [
        *(
            (("tools", "deny", at, "when"), each.when)
            for at, each in enumerate(spec.tools.deny)
            if not isinstance(each, str)
        ),
        *((("tools", "unattended", at, "when"), each.when) for at, each in enumerate(spec.tools.unattended)),
        *((("grants", at, "when"), each.when) for at, each in enumerate(spec.grants)),
    ]
    found = [
        flaw
        for path, text in rules
        if text is not None
        for flaw in expression_findings(text, ("spec", *path), call_facts({}))
    ]
    for index, added in enumerate(spec.gates):
        is_at_calls, is_at_steps = "tool" in added.match.kinds, set(added.match.kinds) != {"tool"}
        # A gate at calls and at steps may compare the facts of either; the others are unknown there, so it asks.
        facts = {} if is_at_calls and is_at_steps else call_facts({}) if is_at_calls else STEP_FACTS
        for position, gate in added.gates().items():
            found += condition_findings(gate.when, ("spec", "gates", index, position, "when"), facts)
    yield from (error(CODE, each.message, each.path) for each in found)


def _evidence(name: str, spec: environment.EnvironmentSpec) -> Iterator[Diagnostic]:
    names: set[str] = set()
    for index, rule in enumerate(spec.evidence):
        if rule.name in names:
            yield error(CODE, f"Two evidence rules are called {rule.name}.", ("spec", "evidence", index, "name"))
        names.add(rule.name)
        if rule.type == "canary" and rule.environment == name:
            message = "A release cannot need a canary in the environment that it is not released to."
            yield error(CODE, message, ("spec", "evidence", index, "environment"))


def _names(spec: environment.EnvironmentSpec) -> Iterator[Diagnostic]:
    yield from environment_names(spec.people, spec.humans, spec.questions)
    for index, added in enumerate(spec.gates):
        for position, gate in added.gates().items():
            yield from gate_names(gate, ("spec", "gates", index, position))


def _access(spec: environment.EnvironmentSpec) -> Iterator[Diagnostic]:
    if spec.access is None and not spec.admins:
        message = "Without access, every caller with the scopes has access, administrators included."
        yield error(CODE, message, ("spec", "admins"), suggestion="Add access, or drop admins.")
    for index, rule in enumerate(spec.access or ()):
        path: Path = ("spec", "access", index)
        if rule.who == environment.Who():
            message = "A rule of access names no caller."
            yield error(CODE, message, (*path, "who"), suggestion="Write at least one of users, groups, roles.")
        for number, word in enumerate(rule.may):
            if word not in ROLES and word not in SCOPES:
                message = f"{word[:60]!r} is neither a role nor a scope."
                yield error(CODE, message, (*path, "may", number), suggestion=suggest(word, (*ROLES, *SCOPES)))
        for number, role in enumerate(rule.who.roles):
            if role not in ROLES:
                message = f"{role[:60]!r} is not a role of API keys."
                yield error(CODE, message, (*path, "who", "roles", number), suggestion=suggest(role, tuple(ROLES)))


def _humans_and_gates(spec: environment.EnvironmentSpec) -> Iterator[Diagnostic]:
    for name, human in spec.humans.items():
        yield from form_findings(human, ("spec", "humans", name))
    names: set[str] = set()
    for index, added in enumerate(spec.gates):
        path: Path = ("spec", "gates", index)
        if added.name in names:
            yield error(CODE, f"Two gates are called {added.name}.", (*path, "name"))
        names.add(added.name)
        if added.match == environment.Match():
            hint = (
                "Write at least one of capabilities, kinds, refs, tools, steps, workflows; steps: ['*'] is every step."
            )
            yield error(CODE, f"The gate {added.name} matches nothing.", (*path, "match"), suggestion=hint)
        if not added.gates():
            yield error(CODE, f"The gate {added.name} asks nothing.", path, suggestion="Write before or after.")
        for position, gate in added.gates().items():
            yield from _gate(spec, added, position, gate, (*path, position))


def _gate(
    spec: environment.EnvironmentSpec,
    added: environment.EnvironmentGate,
    position: environment.EnvironmentGatePosition,
    gate: Gate,
    path: Path,
) -> Iterator[Diagnostic]:
    if isinstance(gate.human, str) and gate.human not in spec.humans:
        hint = suggest(gate.human, tuple(spec.humans)) or "Declare it under humans of this environment."
        message = f"The gate {added.name} asks {gate.human}, which is not under humans of this environment."
        yield error(CODE, message, (*path, "human"), suggestion=hint)
        return
    yield from form_findings(gate, path)
    if isinstance(gate.human, Human):
        yield from form_findings(gate.human, (*path, "human"))
    wrong = [kind for kind in added.match.kinds if position == "after" and kind not in AFTER_KINDS]
    if wrong:
        message = f"after means nothing for steps of kind {', '.join(wrong)}."
        yield error(CODE, message, path, suggestion=f"Here the kinds are {', '.join(AFTER_KINDS)}; or ask before.")
    human = effective_human(gate, _known(spec.humans))
    yield from _effects(gate, human, _Legal.at(added.match, position), path)
    yield from _candidates(human, spec.people.values(), path)


@dataclass(frozen=True, slots=True)
class _Legal:
    """What is possible at a gate that an environment adds."""

    position: environment.EnvironmentGatePosition
    decisions: tuple[str, ...]
    rejections: tuple[str, ...]
    default_rejection: str

    @classmethod
    def at(cls, match: environment.Match, position: environment.EnvironmentGatePosition) -> _Legal:
        """Return what is possible at everything that a gate matches: tool calls, steps, or both."""
        matched = {"tool" if kind == "tool" else position for kind in match.kinds} or {position}
        rows = [POSITIONS[name] for name in sorted(matched, key=list(POSITIONS).index)]
        decisions, rejections = (
            [each for each in getattr(rows[0], name) if all(each in getattr(row, name) for row in rows)]
            for name in ("decisions", "rejections")
        )
        return cls(
            position,
            tuple(decisions),
            tuple(each for each in rejections if each not in UNGUARDED),
            rows[0].rejections[0],
        )


def _effects(gate: Gate, human: Human, legal: _Legal, path: Path) -> Iterator[Diagnostic]:
    position, default = legal.position, legal.default_rejection
    wrong = [decision for decision in human.decisions or () if decision not in legal.decisions]
    if wrong:
        message = f"{position} cannot be answered with {', '.join(wrong)}."
        yield error(
            CODE, message, (*path, "decisions"), suggestion=f"Here the answers are {', '.join(legal.decisions)}."
        )
    ignored = [name for name in NOT_HONOURED if getattr(human, name)]
    ignored += [f"a secret field ({field.name})" for field in human.fields if field.secret]
    if ignored:
        message = f"Every run here would be refused: {', '.join(ignored)} is not supported."
        yield error(CODE, message, path, suggestion="Leave it out.")
    if gate.key is not None:
        message = "The key of an environment's gate is its position and name."
        yield error(CODE, message, (*path, "key"), suggestion="Leave key out.")
    if human.on_reject is not None and human.on_reject not in legal.rejections:
        message = f"on_reject: {human.on_reject} means nothing {position} what this gate matches."
        hint = f"Here a rejection does one of {', '.join(legal.rejections)}; left out: {default}."
        yield error(CODE, message, (*path, "on_reject"), suggestion=hint)
        return
    unsigned = unsigned_timeout(human, default)
    if unsigned is not None:
        yield error(CODE, unsigned, (*path, "on_timeout"), suggestion=UNSIGNED_HINT)
    strength = human_strength(human, position, default)
    if strength.weakness is not None and not wrong:
        message = f"This is no gate: it {strength.weakness}."
        hint = "Allow a rejection, and let a timeout fail, cancel, reject, skip or escalate."
        yield error(CODE, message, path, suggestion=hint)


def _candidates(human: Human, people: Iterable[environment.Person], path: Path) -> Iterator[Diagnostic]:
    candidates = human.candidates
    if candidates is None or candidates.users or human.assignee or not (candidates.groups or candidates.roles):
        return
    if not any(
        set(person.groups) & set(candidates.groups) or set(person.roles) & set(candidates.roles) for person in people
    ):
        message = f"No person under people is a candidate: {', '.join((*candidates.groups, *candidates.roles))}."
        hint = "Give a person the role or group, or name a human that this environment declares."
        yield error(CODE, message, path, suggestion=hint)
