"""What counts as asking for less: every part of an environment's file, one at a time."""

from __future__ import annotations

import json

import pytest

from kneo.spec.diff.weakening import weakenings
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Approvals, Environment, EnvironmentSpec, Signatures

DIGEST = "sha256:" + "1" * 64
STRICT: dict[str, object] = {
    "policy": {"enabled": True, "require_guardrails": True, "fail_on_warnings": True, "blocked_diagnostic_codes": ["W_X"]},
    "signatures": {"accept": ["dsse"], "roles": ["release"], "threshold": 2},
    "approvals": {"required": 2, "roles": ["approver"], "exclude": ["bundle_signer", "author"], "expires": "7d", "signed": True},
    "people": {"ann": {"roles": ["editor"], "groups": ["editors"]}},
    "windows": [{"deny": "Fri 16:00 - Mon 08:00"}, {"allow": "* 06:00 - 20:00"}],
    "promoteFrom": "staging",
    "soak": "24h",
    "prune": {"maxPercent": 20},
    "atomic": True,
    "inlineSpecs": False,
    "allowSelf": False,
    "questions": {"approvals": 2, "exclude": ["requester"], "denyOnTimeout": ["approve"], "receipt": "signed_by_reviewer"},
    "implementations": {"acme.mail": DIGEST},
    "humans": {"finance": {"description": "Pay?", "candidates": {"users": ["ann"]}}},
    "gates": [{"name": "money", "match": {"capabilities": ["network"]}, "before": {"human": "finance"}}],
}  # fmt: skip

LOOSER: dict[str, list[object]] = {
    "policy": [{"enabled": False}, {"enabled": True}],
    "signatures": [
        {"accept": ["dsse"], "roles": ["release"], "threshold": 1},
        {"accept": ["dsse"], "roles": ["release", "intern"], "threshold": 2},
        {"accept": ["dsse", "hmac-v1"], "roles": ["release"], "threshold": 2},
    ],
    "approvals": [
        None,
        {"required": 0},
        {**dict(STRICT["approvals"]), "required": 1},  # type: ignore[call-overload]
        {**dict(STRICT["approvals"]), "roles": ["approver", "intern"]},  # type: ignore[call-overload]
        {**dict(STRICT["approvals"]), "exclude": ["author"]},  # type: ignore[call-overload]
        {**dict(STRICT["approvals"]), "expires": "8d"},  # type: ignore[call-overload]
        {**dict(STRICT["approvals"]), "signed": False},  # type: ignore[call-overload]
    ],
    "people": [{"ann": {"roles": ["editor", "approver"], "groups": ["editors"]}}, {"bob": {"groups": ["approvers"]}}],
    "windows": [
        [],
        [{"allow": "* 06:00 - 20:00"}],
        [{"deny": "Fri 16:00 - Mon 08:00"}],
        [{"allow": "* 00:00 - 24:00"}],
    ],
    "promoteFrom": [None, "dev"],
    "soak": ["1h"],
    "prune": [{"maxPercent": 21}],
    "atomic": [False],
    "inlineSpecs": [True],
    "allowSelf": [True],
    "implementations": [{}, {"acme.mail": "sha256:" + "2" * 64}],
    "questions": [
        {},
        {**dict(STRICT["questions"]), "approvals": 1},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "exclude": ["bundle_signer"]},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "denyOnTimeout": ["skip"]},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "receipt": None},  # type: ignore[call-overload]
        {**dict(STRICT["questions"]), "receipt": "signed"},  # type: ignore[call-overload]
    ],
    "humans": [{"finance": {"description": "Pay?", "candidates": {"users": ["ann", "bob"]}}}],
    "gates": [
        [],
        [{"name": "money", "match": {"capabilities": ["network"], "refs": ["p*"]}, "before": {"human": "finance"}}],
        [{"name": "money", "match": {"capabilities": ["network"]}, "after": {"human": "finance"}}],
        [{"name": "coin", "match": {"capabilities": ["network"]}, "before": {"human": "finance"}}],
    ],
}

FREE = {"releases", "suspend", "retired"}
"""What a commit changes without anybody's leave: it is what commits are for."""


def environment(**changes: object) -> Environment:
    spec = {name: value for name, value in (STRICT | changes).items() if value is not None}
    said = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"}, "spec": spec}
    return parse_environment(json.dumps(said).encode(), file="environments/prod.json")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in LOOSER.items() for value in values])
def test_every_way_to_ask_for_less_is_told(name: str, value: object) -> None:
    # Without an environment that it comes from, nothing can soak there.
    soak = {"soak": None} if name == "promoteFrom" else {}
    assert weakenings(environment(**soak), environment(**soak | {name: value}))


@pytest.mark.parametrize("name", list(LOOSER))
def test_asking_for_the_same_or_for_more_passes(name: str) -> None:
    assert weakenings(environment(), environment()) == ()
    if name != "signatures":
        loose = environment(
            **{"soak": None, name: LOOSER[name][0]} if name == "promoteFrom" else {name: LOOSER[name][0]}
        )
        # Windows that were moved and humans cannot be compared, and whoever is added may do more.
        assert not weakenings(loose, environment()) or name in {"people", "windows", "humans"}


def test_no_part_of_an_environment_is_forgotten() -> None:
    parts = {field.alias or name for name, field in EnvironmentSpec.model_fields.items()}
    assert parts == {*LOOSER, *FREE}
    assert set(Approvals.model_fields) == set(dict(STRICT["approvals"]))  # type: ignore[call-overload]
    assert set(Signatures.model_fields) == set(dict(STRICT["signatures"]))  # type: ignore[call-overload]
