"""The sentences about a changed trust root: who gains and loses which role, where the role counts, and the direction of each change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import yaml

from kneo.controller.trust_difference import trust_difference
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment
from kneo.trust.dsse import TrustedKey, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.root import TRUST_ROOT_TYPE, RootDocument, root_payload
from kneo.trust.root_edit import add_key, first_root, next_root, remove_key, revoke_key, set_expiry, set_role

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ANN, BOB, EVE = (PrivateKey.generate() for _ in range(3))


def start() -> RootDocument:
    ann, bob = TrustedKey(ANN.public, "ann"), TrustedKey(BOB.public, "bob")
    roles = {"root": [ann, bob], "release": [ann, bob], "approver": [ann]}
    document = first_root(roles, expires=NOW + timedelta(days=365), paths={"release": ["bundles/*"]})
    return set_role(document, "release", threshold=2)


def environment(name: str, **rules: object) -> Environment:
    spec = {"policy": {"enabled": True}, "signatures": {"roles": ["release"], "threshold": 1}, **rules}
    tree = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": name}, "spec": spec}
    return parse_environment(yaml.safe_dump(tree).encode(), file=f"environments/{name}.yaml")


ENVIRONMENTS = [environment("dev"), environment("prod", approvals={"required": 1})]


def written(document: RootDocument) -> bytes:
    return serialise(sign(TRUST_ROOT_TYPE, root_payload(document), ANN))


def words(after: RootDocument) -> list[tuple[str, str]]:
    """Return the sentences about a change of the trust root, each with its direction."""
    found = trust_difference(written(start()), written(next_root(after)), ENVIRONMENTS)
    return [(each["direction"], each["message"]) for each in found["changes"]]


def test_who_is_added_and_where_the_role_counts() -> None:
    assert words(add_key(start(), EVE.public, principal="eve", roles=["release", "approver"])) == [
        ("loosened", "eve gains the role approver (its approvals count in prod)."),
        ("loosened", "eve gains the role release (its signatures of bundles count in dev, prod)."),
        ("loosened", f"The key {EVE.keyid} of eve is added with the role approver and release."),
    ]


def test_who_is_removed() -> None:
    after = remove_key(add_key(start(), EVE.public, principal="eve", roles=["release"]), BOB.keyid)
    found = words(after)
    assert ("tightened", "bob loses the role root (trust roots are signed by it).") in found
    assert ("tightened", f"The key {BOB.keyid} of bob is removed with the role release and root.") in found


def test_a_threshold_and_paths_are_words_with_a_direction() -> None:
    lower = set_role(start(), "release", threshold=1, paths=["bundles/*", "specs/*"])
    assert words(lower) == [
        ("loosened", "The role release asks for 1 signature in place of 2."),
        ("loosened", "The role release may sign specs/*."),
    ]
    assert words(set_role(start(), "release", paths=["bundles/mail/*"])) == [
        ("loosened", "The role release may sign bundles/mail/*."),
        ("tightened", "The role release may no longer sign bundles/*."),
    ]


def test_a_second_key_of_the_same_person_is_named() -> None:
    after = add_key(start(), EVE.public, principal="ann", roles=["approver"])
    assert words(after) == [("loosened", f"The key {EVE.keyid} of ann is added with the role approver.")]


def test_a_revoked_key_and_another_expiry_are_named() -> None:
    after = set_expiry(revoke_key(start(), BOB.keyid, at=NOW, reason="lost"), NOW + timedelta(days=400))
    found = words(after)
    assert ("tightened", f"The key {BOB.keyid} of bob is revoked as of 2026-11-21T12:00:00.000000+00:00: lost") in found
    assert any(text.startswith("The trust root expires at 2027-12-26") for _, text in found)


def test_an_unchanged_root_has_no_sentences() -> None:
    assert words(start()) == []
