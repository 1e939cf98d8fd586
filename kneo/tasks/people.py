"""The people who may decide a task: the people of its environment, compared with its candidates."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial

from kneo import registry
from kneo.errors import Forbidden, Invalid, KneoError, Untrusted
from kneo.names import person_key, person_name
from kneo.records.task import Candidates, HumanTask
from kneo.store import oidc_people, project_metadata, releases, tasks
from kneo.store.engine import Tx
from kneo.tasks.schedule import TIMEOUT_POLICY

SELF = frozenset({"requester", "bundle_signer"})
"""Parts in a run that an environment may let people combine with approving it (``allowSelf``)."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person with the groups and roles of an environment."""

    name: str
    environment: str | None = None
    groups: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()

    @property
    def who(self) -> frozenset[str]:
        """The identities, in the format of ``task_candidates``."""
        return (
            user(self.name)
            | _named("group", self.environment, self.groups)
            | _named("role", self.environment, self.roles)
        )


def user(name: str) -> frozenset[str]:
    return frozenset({f"user:{person_key(name)}"})


def _named(kind: str, environment: str | None, names: frozenset[str]) -> frozenset[str]:
    return frozenset(f"{kind}:{environment or ''}/{name}" for name in names)


def find_person(tx: Tx, environment: str | None, name: str) -> Person:
    """Return a person of an environment.

    Roles are those of the environment's file. So are groups, for the people whom the file names; other people have the groups that
    the issuer of their tokens states.
    """
    declared = _declared(tx, environment).get(person_key(name))
    return replace(declared, name=name) if declared is not None else _issued_person(tx, environment, name)


def _issued_person(tx: Tx, environment: str | None, name: str) -> Person:
    issued = oidc_people.find(tx, name)
    return Person(name=name, environment=environment, groups=issued.groups if issued is not None else frozenset())


def identities_of(tx: Tx, name: str) -> frozenset[str]:
    """Return the identities of a person in all environments whose file can be read; another one names no people."""
    issued, environments = _issued_person(tx, None, name), releases.list_environments(tx)
    identities = user(name)
    for record in environments:
        try:
            person = _declared(tx, record.name).get(person_key(name)) or replace(issued, environment=record.name)
        except KneoError:
            continue
        identities |= person.who
    if issued.groups:
        undeclared = tasks.open_environments(tx) - {record.name for record in environments}
        identities = identities.union(*(replace(issued, environment=each).who for each in undeclared))
    return identities


def _declared(tx: Tx, environment: str | None) -> dict[str, Person]:
    """Return the people of an environment's file by their key, in the spelling of the file."""
    rules = registry.find_declared(tx, environment)
    if rules is None:
        return {}
    return {
        person_key(name): Person(
            name=name, environment=environment, groups=frozenset(one.groups), roles=frozenset(one.roles)
        )
        for name, one in rules.spec.people.items()
    }


def known_name(tx: Tx, environment: str | None, name: str) -> str | None:
    """Return how a person's name is declared, or ``None`` for a person whom nothing declares.

    Known are the people of the environment's file, the names of API keys, the principals of the trust root and the people of the
    issuer of tokens. Where the environment is not declared and the service needs no API key and no token, nothing says who is who,
    and each name is known.
    """
    key, people = person_key(name), _declared(tx, environment)
    if key in people:
        return people[key].name
    keys = project_metadata.read_key_names(tx)
    if not keys and registry.find_declared(tx, environment) is None and not project_metadata.has_issuer(tx):
        return name
    return keys.get(key) or _principals(tx).get(key) or _issued_name(tx, name)


def _issued_name(tx: Tx, name: str) -> str | None:
    issued = oidc_people.find(tx, name)
    return issued.name if issued is not None else None


def _principals(tx: Tx) -> dict[str, str]:
    """Return the owners of the keys that the accepted trust root vouches for."""
    try:
        document = registry.trust_root(tx, None).document
    except Untrusted:
        return {}
    revoked = {revocation.keyid for revocation in document.revoked}
    members = {keyid for role in document.roles.values() for keyid in role.keys} - revoked
    return {person_key(document.keys[keyid].principal): document.keys[keyid].principal for keyid in members}


class UnknownPerson(Invalid):
    """A name that neither the environment nor an API key declares."""

    http_status = 422
    default_code = "unknown_person"


def check_known(tx: Tx, environment: str | None, name: str) -> str:
    """Return the declared spelling of a name that one person gives for another.

    Raises:
        Invalid: ``invalid_name``: not the name of a person.
        UnknownPerson: nothing declares this person.
    """
    plain = person_name(name, "The person")
    known = known_name(tx, environment, plain)
    if known is None:
        where = f"environments/{environment}.yaml" if environment else "the file of the run's environment"
        msg = f"{plain} is not known here: neither the environment nor an API key has a person of this name."
        hint = f"Use the name of an API key, or of a person below people: in {where}."
        raise UnknownPerson(msg, hint=hint, person=plain)
    return known


def allows_self(tx: Tx, environment: str | None) -> bool:
    rules = registry.find_declared(tx, environment)
    return rules is not None and rules.spec.allow_self


def candidate_rows(task: HumanTask, refused: Iterator[str]) -> frozenset[str]:
    """Spell who may answer, and who may not, for the inbox to look up."""
    candidates = task.candidates
    may: set[str] = set()
    if task.is_restricted:
        names = {*candidates.users, *([task.assignee] if task.assignee else [])}
        may |= {one for name in names for one in user(name)}
        may |= _named("group", task.environment, frozenset(candidates.groups))
        may |= _named("role", task.environment, frozenset(candidates.roles))
    return frozenset(may) | {f"not:{person_key(name)}" for name in refused}


def widen_candidates(candidates: Candidates, to: str) -> Candidates:
    """Add a person, a group or a role to the candidates."""
    if candidates.is_open:
        return candidates
    return replace(
        candidates,
        users=(*candidates.users, to),
        groups=(*candidates.groups, to),
        roles=(*candidates.roles, to),
    )


def check_may_answer(tx: Tx, task: HumanTask, name: str) -> Person:
    """Return the person who decides, after a check that the person may.

    Raises:
        Forbidden: ``not_a_candidate`` or ``separation_of_duties``.
    """
    check_not_of_caller(task)
    person = find_person(tx, task.environment, name)
    if not _is_candidate(task, person):
        candidates = [*task.candidates.users, *task.candidates.groups, *task.candidates.roles]
        msg = f"{name} is not among those whom {task.id} asks: {', '.join(candidates)}."
        where = f"environments/{task.environment}.yaml" if task.environment else "an environment's file"
        raise Forbidden(msg, code="not_a_candidate", hint=f"Groups and roles of people stand under people: in {where}.")
    check_not_excluded(tx, task, name, "answer")
    return person


def check_not_of_caller(task: HumanTask) -> None:
    """Check that a task is for people, and not for the program that makes a call itself.

    Raises:
        Forbidden: ``not_a_candidate``.
    """
    if task.is_for_caller:
        msg = f"{task.id} is for {task.requester}, which makes the call itself and reports its result."
        hint = "POST /v1/calls/{id}/begin and /result answer it; people take over where no result is reported in time."
        raise Forbidden(msg, code="not_a_candidate", hint=hint)


def check_not_excluded(tx: Tx, task: HumanTask, name: str, what: str) -> None:
    """Check that the task does not exclude a person.

    Args:
        tx: An open transaction.
        task: The task.
        name: The person.
        what: What the person wants to do with the task.

    Raises:
        Forbidden: ``separation_of_duties``.
    """
    for part, other in excluded(tx, task):
        if person_key(other) == person_key(name):
            why = part if part != "name" else "one of those whom the gate excludes"
            msg = f"{name} is the {why.replace('_', ' ')} and may not {what} {task.id}."
            raise Forbidden(msg, code="separation_of_duties", excluded_as=part)


def may_still_answer(tx: Tx, task: HumanTask, name: str) -> bool:
    """Return whether a person who answered before could answer now: known, a candidate, and not excluded."""
    if known_name(tx, task.environment, name) is None:
        return False
    try:
        check_may_answer(tx, task, name)
    except Forbidden:
        return False
    return True


def _is_candidate(task: HumanTask, person: Person) -> bool:
    if not task.is_restricted:
        return True
    names = {person_key(name) for name in (*task.candidates.users, *([task.assignee] if task.assignee else []))}
    return (
        person_key(person.name) in names
        or bool(person.groups & set(task.candidates.groups))
        or bool(person.roles & set(task.candidates.roles))
    )


def excluded(tx: Tx, task: HumanTask) -> Iterator[tuple[str, str]]:
    """Yield who may not answer, each with their part: ``requester``, ``bundle_signer``, ``previous_reviewers`` or ``name``."""
    parts = frozenset(task.candidates.exclude)
    if parts & SELF and allows_self(tx, task.environment):
        parts -= SELF
    for part in sorted(parts):
        match part:
            case "requester":
                yield part, task.requester
            case "bundle_signer":
                bundle = releases.bundle(tx, task.bundle_digest) if task.bundle_digest else None
                yield from ((part, name) for name in (releases.check_bundle(tx, bundle).signers if bundle else ()))
            case "previous_reviewers":
                yield from ((part, name) for name in _reviewers(tx, task))
            case name:
                yield "name", name


PREVIOUS_REVIEWERS = "previous_reviewers"


def read_previous_reviewers(tx: Tx, page: Collection[HumanTask]) -> None:
    """Read who answered before in the runs of a page of tasks, in one statement rather than one for each task."""
    runs = {task.run_id for task in page if PREVIOUS_REVIEWERS in task.candidates.exclude}
    for run_id, answered in tasks.answered_of_runs(tx, runs).items():
        tx.once((PREVIOUS_REVIEWERS, run_id), partial(tuple, answered))


def _reviewers(tx: Tx, task: HumanTask) -> frozenset[str]:
    """Find who had a say in this run before, at this question or another."""
    run_id = task.run_id
    others = tx.once((PREVIOUS_REVIEWERS, run_id), lambda: tasks.answered_of_runs(tx, {run_id})[run_id])
    return frozenset(
        name
        for other in others
        if other.id != task.id
        for name in (
            *(vote.actor for vote in other.votes),
            *([other.decision.actor] if other.decision and other.decision.by != TIMEOUT_POLICY else []),
        )
    )
