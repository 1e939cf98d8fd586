"""The changes of a commit to the trust root, as facts and in sentences, for reviewers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kneo.clock import isoformat
from kneo.errors import KneoError
from kneo.names import visible
from kneo.spec.diff.texts import count
from kneo.spec.models.environment import Environment
from kneo.trust.dsse import Envelope, TrustedKey, find_signers, parse_envelope
from kneo.trust.keys import PublicKey
from kneo.trust.root import RootDocument, parse_root

Json = dict[str, Any]


def trust_difference(before: bytes | None, after: bytes | None, environments: Iterable[Environment]) -> Json:
    """Compare two trust roots as they are written, verified or not.

    Args:
        before: The envelope of the root in force; None without one.
        after: The envelope that a commit brings; None without one, or where it cannot be read.
        environments: The environments of the commit, whose rules name roles.
    """
    old, new = _document(before), _document(after)
    keys_before, keys_after = (_keys(item[1]) if item else {} for item in (old, new))
    found: Json = {
        "from": old[1].version if old else None,
        "to": new[1].version if new else None,
        "expires": {"from": _expiry(old), "to": _expiry(new)},
        "keys_added": [keys_after[keyid] for keyid in sorted(keys_after.keys() - keys_before.keys())],
        "keys_removed": [keys_before[keyid] for keyid in sorted(keys_before.keys() - keys_after.keys())] if new else [],
        "roles": list(_roles(old[1] if old else None, new[1])) if new else [],
        "revoked": _revoked(old[1] if old else None, new[1]) if new else [],
        "signed_by": _signed_by(new[0], old[1] if old else None, new[1]) if new else [],
    }
    moved = _moved_keys(keys_before, keys_after, found["roles"])
    return found | {"changes": [*_changes(found, tuple(environments)), *moved] if new else []}


def _document(data: bytes | None) -> tuple[Envelope, RootDocument] | None:
    try:
        envelope = parse_envelope(data) if data is not None else None
        return (envelope, parse_root(envelope.payload)) if envelope is not None else None
    except KneoError:
        return None


def _expiry(opened: tuple[Envelope, RootDocument] | None) -> str | None:
    return isoformat(opened[1].expires) if opened else None


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


# ---- sentences ----------------------------------------------------------------------------------------------------


def _changes(found: Json, environments: Sequence[Environment]) -> Iterator[Json]:
    """Yield the changes in sentences, each with whether it loosens or tightens protection."""
    for role in found["roles"]:
        yield from _role_changes(role, _meaning(role["role"], environments))
    for verb, direction, keys in (
        ("added", "loosened", found["keys_added"]),
        ("removed", "tightened", found["keys_removed"]),
    ):
        for key in keys:
            roles = f" with the role {' and '.join(key['roles'])}" if key["roles"] else " without a role"
            yield _sentence(f"The key {key['keyid']} of {key['principal']} is {verb}{roles}.", direction)
    for item in found["revoked"]:
        since = f", compromised since {item['compromised_since']}" if item["compromised_since"] else ""
        of = f" of {item['principal']}" if item["principal"] else ""
        yield _sentence(
            f"The key {item['keyid']}{of} is revoked as of {item['at']}{since}: {item['reason']}", "tightened"
        )
    was, becomes = found["expires"]["from"], found["expires"]["to"]
    if was is not None and becomes is not None and was != becomes:
        text = f"The trust root expires at {becomes} in place of {was}."
        yield _sentence(text, "loosened" if becomes > was else "tightened")


def _moved_keys(before: Mapping[str, Json], after: Mapping[str, Json], roles: Sequence[Json]) -> Iterator[Json]:
    """Yield the keys that get or lose a role which their owner has by another key."""
    named = {(role["role"], who) for role in roles for who in (*role["gained"], *role["lost"])}
    for keyid in sorted(before.keys() & after.keys()):
        was, becomes, who = before[keyid]["roles"], after[keyid]["roles"], after[keyid]["principal"]
        for role in sorted(set(was) ^ set(becomes)):
            if (role, who) not in named:
                verb, direction = ("gets", "loosened") if role in becomes else ("loses", "tightened")
                yield _sentence(f"The key {keyid} of {who} {verb} the role {role}.", direction)


def _role_changes(role: Json, meaning: str) -> Iterator[Json]:
    name = f"the role {role['role']}"
    yield from (_sentence(f"{who} gains {name}{meaning}.", "loosened") for who in role["gained"])
    yield from (_sentence(f"{who} loses {name}{meaning}.", "tightened") for who in role["lost"])
    was, becomes = role["threshold"]["from"], role["threshold"]["to"]
    if becomes is None:
        yield _sentence(f"The role {role['role']} is gone.", "tightened")
    elif was is None:
        yield _sentence(f"The role {role['role']} is new and asks for {count(becomes, 'signature')}.", "loosened")
    elif was != becomes:
        text = f"The role {role['role']} asks for {count(becomes, 'signature')} in place of {was}."
        yield _sentence(text, "loosened" if becomes < was else "tightened")
    before, after = (role["paths"][side] or [] for side in ("from", "to"))
    if more := [path for path in after if path not in before]:
        yield _sentence(f"The role {role['role']} may sign {' and '.join(more)}.", "loosened")
    if less := [path for path in before if path not in after]:
        yield _sentence(f"The role {role['role']} may no longer sign {' and '.join(less)}.", "tightened")


def _meaning(role: str, environments: Sequence[Environment]) -> str:
    """Return what a role permits in the environments, as the end of a sentence."""
    signs = [item.name for item in environments if role in item.spec.signatures.roles]
    approves = [item.name for item in environments if item.spec.approvals and role in item.spec.approvals.roles]
    parts = ["trust roots are signed by it"] if role == "root" else []
    parts += [f"its signatures of bundles count in {', '.join(signs)}"] if signs else []
    parts += [f"its approvals count in {', '.join(approves)}"] if approves else []
    return f" ({'; '.join(parts)})" if parts else ""


def _sentence(text: str, direction: str) -> Json:
    return {"message": visible(text), "direction": direction}
