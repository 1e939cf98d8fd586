"""The changes of a commit to the trust root, to rules and to releases, as JSON for reviewers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel

from kneo.clock import isoformat
from kneo.controller.stages.plan import Action, Retire, name_of
from kneo.errors import KneoError
from kneo.registry import PlannedChange, spec_in
from kneo.spec.diff import bounded_changes, compare_specs, whole_command
from kneo.spec.diff.rules import describe_rule
from kneo.spec.diff.weakening import weakenings
from kneo.spec.models.environment import Environment, EnvironmentSpec
from kneo.spec.policy import next_opening, windows_open
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.trust.dsse import Envelope, TrustedKey, find_signers, parse_envelope
from kneo.trust.keys import PublicKey
from kneo.trust.root import RootDocument, parse_root

Json = dict[str, object]
Model = TypeVar("Model", bound=BaseModel)

NOT_RULES = frozenset({"releases"})
"""Fields of an environment that declare its releases, not its rules."""


def trust_difference(before: bytes | None, after: bytes | None) -> Json:
    """Compare two trust roots as they are written, verified or not.

    Args:
        before: The envelope of the root in force; None without one.
        after: The envelope that a commit brings; None without one, or where it cannot be read.
    """
    old, new = _document(before), _document(after)
    keys_before, keys_after = (_keys(item[1]) if item else {} for item in (old, new))
    return {
        "from": old[1].version if old else None,
        "to": new[1].version if new else None,
        "keys_added": [keys_after[keyid] for keyid in sorted(keys_after.keys() - keys_before.keys())],
        "keys_removed": [keys_before[keyid] for keyid in sorted(keys_before.keys() - keys_after.keys())] if new else [],
        "roles": list(_roles(old[1] if old else None, new[1])) if new else [],
        "revoked": _revoked(old[1] if old else None, new[1]) if new else [],
        "signed_by": _signed_by(new[0], old[1] if old else None, new[1]) if new else [],
    }


def _document(data: bytes | None) -> tuple[Envelope, RootDocument] | None:
    try:
        envelope = parse_envelope(data) if data is not None else None
        return (envelope, parse_root(envelope.payload)) if envelope is not None else None
    except KneoError:
        return None


def _keys(document: RootDocument) -> dict[str, Json]:
    return {
        keyid: {
            "keyid": keyid,
            "principal": key.principal,
            "algorithm": str(key.algorithm),
            "roles": sorted(name for name, role in document.roles.items() if keyid in role.keys),
        }
        for keyid, key in document.keys.items()
    }


def _members(document: RootDocument | None, role: str) -> frozenset[str]:
    """Return the people who can sign for a role: those with a key of it that is not revoked."""
    if document is None or role not in document.roles:
        return frozenset()
    revoked = {item.keyid for item in document.revoked}
    return frozenset(document.keys[keyid].principal for keyid in document.roles[role].keys if keyid not in revoked)


def _roles(old: RootDocument | None, new: RootDocument) -> Iterator[Json]:
    names = sorted(new.roles.keys() | (old.roles.keys() if old else set()))
    for name in names:
        before, after = _members(old, name), _members(new, name)
        one = old.roles.get(name) if old else None
        other = new.roles.get(name)
        threshold = {"from": one.threshold if one else None, "to": other.threshold if other else None}
        paths = {"from": list(one.paths or ()) if one else None, "to": list(other.paths or ()) if other else None}
        if before == after and threshold["from"] == threshold["to"] and paths["from"] == paths["to"]:
            continue
        yield {
            "role": name,
            "gained": sorted(after - before),
            "lost": sorted(before - after),
            "threshold": threshold,
            "paths": paths,
        }


def _revoked(old: RootDocument | None, new: RootDocument) -> list[Json]:
    known = set(old.revoked) if old else set()
    return [
        {
            "keyid": item.keyid,
            "principal": new.keys[item.keyid].principal if item.keyid in new.keys else None,
            "at": isoformat(item.at),
            "reason": item.reason,
            "compromised_since": isoformat(item.compromised_since) if item.compromised_since else None,
        }
        for item in new.revoked
        if item not in known
    ]


def _signed_by(envelope: Envelope, old: RootDocument | None, new: RootDocument) -> list[str]:
    known = {**new.keys, **(old.keys if old else {})}
    keys = {keyid: TrustedKey(PublicKey.load(key.public), key.principal) for keyid, key in known.items()}
    return sorted({signer.principal for signer in find_signers(envelope, keys)})


# ---- an environment's rules ---------------------------------------------------------------------------------------


def policy_difference(before: Environment, after: Environment) -> list[Json]:
    """Compare an environment's rules field by field, with the direction of each change.

    A change that alone would weaken the rules in force is ``loosened``; any other tightens or replaces them.
    """
    return list(_fields(before, after, before.spec, after.spec, ()))


def _fields(
    before: Environment, after: Environment, old: BaseModel, new: BaseModel, path: tuple[str, ...]
) -> Iterator[Json]:
    for name, info in type(old).model_fields.items():
        if not path and name in NOT_RULES:
            continue
        was, becomes = getattr(old, name), getattr(new, name)
        if was == becomes:
            continue
        here = (*path, name)
        if isinstance(was, BaseModel) and type(was) is type(becomes):
            yield from _fields(before, after, was, becomes, here)
            continue
        path_text = ".".join((*(_alias(before.spec, path)), info.alias or name))
        loosens = bool(weakenings(before, _with(before, after, here, becomes)))
        if here == ("suspend",):
            loosens = not becomes
        values = _plain(old, name), _plain(new, name)
        words = describe_rule(path_text, *values, after.spec.humans)
        yield {
            "field": path_text,
            "from": values[0],
            "to": values[1],
            "direction": "loosened" if loosens else "tightened",
            "message": words.message,
            "lines": list(words.lines),
        }


def _alias(spec: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    for name in path:
        yield type(spec).model_fields[name].alias or name
        spec = getattr(spec, name)


def _with(before: Environment, after: Environment, path: tuple[str, ...], value: object) -> Environment:
    """Return the rules in force with one field of the new rules."""
    spec: EnvironmentSpec = _replaced(before.spec, path, value)
    windows = after.windows if path[0] == "windows" else before.windows
    gates = after.gates if path[0] in {"gates", "humans"} else before.gates
    return replace(before, spec=spec, windows=windows, gates=gates)


def _replaced(model: Model, path: tuple[str, ...], value: object) -> Model:
    name, *rest = path
    return model.model_copy(update={name: _replaced(getattr(model, name), tuple(rest), value) if rest else value})


def _plain(model: BaseModel, name: str) -> object:
    """Return a field as plain values, of the parts in it only what the file says."""
    value = getattr(model, name)
    unset = isinstance(value, dict | tuple | BaseModel)
    dumped: Mapping[str, object] = model.model_dump(mode="json", by_alias=True, include={name}, exclude_unset=unset)
    return next(iter(dumped.values()), None) if dumped else ({} if isinstance(value, dict) else [])


def window_state(environment: Environment, now: datetime) -> Json:
    """Return whether changes are allowed now, and the next opening."""
    opening = None if windows_open(environment.windows, now) else next_opening(environment.windows, now)
    rules = [rule.model_dump(mode="json", by_alias=True, exclude_none=True) for rule in environment.spec.windows]
    return {
        "open": windows_open(environment.windows, now),
        "next_opening": isoformat(opening) if opening is not None else None,
        "rules": rules,
    }


# ---- pending changes ----------------------------------------------------------------------------------------------


def plan_of_action(tx: Tx, action: Action, environment: Environment) -> PlannedChange:
    """Return the plan of a change of a release, with all lines of what changes."""
    current = action.current

    def content() -> Json:
        if isinstance(action, Retire):
            return _content(from_version=action.current.version, summary="The release is removed.")
        old = releases.bundle(tx, current.digest) if current is not None else None
        try:
            before = spec_in(old) if old is not None else None
        except KneoError:
            before = None  # a damaged release is compared with nothing; drift reports it
        command = whole_command(
            name_of(action), current.version if current is not None else None, action.bundle.version
        )
        found = compare_specs(before, spec_in(action.bundle.record), environment=environment, command=command)
        shown, more = bounded_changes(found)
        return _content(
            from_version=current.version if current is not None else None,
            signers=list(action.bundle.record.signers),
            summary=found.summary,
            changes=[change.as_json() for change in shown],
            more=more,
        )

    return PlannedChange(name_of(action), current.digest if current is not None else None, content)


def plan_of_rules(before: Environment | None, after: Environment, weakened: Sequence[str]) -> PlannedChange:
    """Return the plan of a change of an environment's rules.

    Args:
        before: The file in force.
        after: The file in the commit.
        weakened: What the change weakens, in sentences.
    """

    def content() -> Json:
        rules = policy_difference(before, after) if before is not None else []
        summary = f"{len(rules)} changed rules" if before is not None else "The first file of this environment"
        return _content(summary=summary, rules=rules, weakened=list(weakened))

    return PlannedChange(after.file, before.policy_digest if before is not None else None, content)


def _content(**values: object) -> Json:
    empty: Json = {
        "from_version": None,
        "signers": [],
        "summary": "",
        "changes": [],
        "more": 0,
        "rules": [],
        "weakened": [],
    }
    return empty | values
