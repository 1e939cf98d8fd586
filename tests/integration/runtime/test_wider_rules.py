"""Rules of an environment that let more calls pass: each waits for the environment's approvals, and is in force after them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from grant_house import RULE, GrantHouse, grant_house

from kneo.clock import ManualClock
from kneo.errors import KneoError
from kneo.records.run import RunStatus
from kneo.runtime.engine.start import Starter
from kneo.spec.models.spec import Spec
from kneo.store import grants as rows
from kneo.store.engine import Store
from kneo.store.migrate import open_store

pytestmark = pytest.mark.both_databases

DENIED = {"tools": ["refund"], "when": "args.amount > 50"}
UNATTENDED = {"tools": ["refund"], "when": "args.amount <= 10"}
GRANT = {
    **RULE,
    "when": "args.amount <= 20",
    "uses": 5,
    "usesPerDay": 5,
    "usesPerRun": 5,
    "total": {"amount": 100},
    "expires": "7d",
}
STRICT: dict[str, object] = {"tools": {"deny": [DENIED], "unattended": [UNATTENDED]}, "grants": [GRANT]}
ASKED = {"uses": 5, "uses_per_day": 5, "uses_per_run": 5, "total": {"amount": 100}, "expires_in": timedelta(days=7)}


@pytest.fixture
def house(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrantHouse]:
    with grant_house(store, tmp_path, monkeypatch) as made:
        yield made


def _call(house: GrantHouse, amount: float) -> str:
    """Return what a call came to: ``asked``, ``made`` or ``denied``."""
    before = len(house.refunded())
    run = house.refunds(amount)
    if run.status is RunStatus.PAUSED:
        return "asked"
    return "made" if len(house.refunded()) > before else "denied"


def _create(house: GrantHouse, **changes: object) -> str:
    """Return ``created``, or the code of the refusal."""
    try:
        house.create(**{**ASKED, **changes})  # type: ignore[arg-type]
    except KneoError as error:
        return str(error.code)
    return "created"


def _merge(house: GrantHouse, **rules: object) -> object:
    """Merge rules for prod, and return the state of prod after the reconciliation."""
    merged = {**house.rules, **rules}
    house.repo.environment("prod", {"refunds": "1.1.0"}, prune={"maxPercent": 100}, **merged)
    house.repo.commit("Let more calls pass")
    return house.bench.reconcile().outcomes["prod"].state


def _check_waits(
    house: GrantHouse, strict: dict[str, object], wider: dict[str, object], probe: Callable[[], str], states: list[str]
) -> None:
    """Check what a probe finds before and after the approval of wider rules."""
    gate = {"before": {"when": "args.amount > 1000", "human": {"candidates": {"roles": ["finance"]}}}}
    house.release(house.spec(review=gate), **strict)
    house.serve("1.1.0", approvals={"required": 1, "roles": ["finance"]})
    assert probe() == states[0]
    assert _merge(house, **wider) == "AwaitingApproval"
    assert probe() == states[0], "the rules in force"
    house.bench.decide("ann")
    assert house.bench.reconcile().outcomes["prod"].state == "Ready"
    assert probe() == states[1]


@pytest.mark.parametrize("deny", [[], [{**DENIED, "when": "args.amount > 100"}], [{**DENIED, "tools": ["pay"]}]])
def test_a_narrower_denial_waits(house: GrantHouse, deny: list[object]) -> None:
    wider = {"tools": {"deny": deny, "unattended": [UNATTENDED]}}
    _check_waits(house, STRICT, wider, lambda: _call(house, 60), ["denied", "asked"])


@pytest.mark.parametrize(
    "unattended",
    [
        [UNATTENDED, {"tools": ["refund"], "when": "args.amount == 15"}],
        [{**UNATTENDED, "when": "args.amount <= 15"}],
        [UNATTENDED, {"tools": ["*"], "when": "has(args)"}],
    ],
)
def test_a_wider_rule_of_unattended_calls_waits(house: GrantHouse, unattended: list[object]) -> None:
    wider = {"tools": {"deny": [DENIED], "unattended": unattended}}
    _check_waits(house, STRICT, wider, lambda: _call(house, 15), ["asked", "made"])


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ({"uses": 6}, {"uses": 6}),
        ({"usesPerDay": None}, {"uses_per_day": None}),
        ({"usesPerDay": 6}, {"uses_per_day": 6}),
        ({"usesPerRun": None}, {"uses_per_run": None}),
        ({"usesPerRun": 6}, {"uses_per_run": 6}),
        ({"total": {"amount": 101}}, {"total": {"amount": 101}}),
        ({"total": {}}, {"total": {}}),
        ({"expires": "8d"}, {"expires_in": timedelta(days=8)}),
    ],
)
def test_a_larger_limit_of_grants_waits(house: GrantHouse, rule: dict[str, object], changes: dict[str, object]) -> None:
    limits = {name: value for name, value in {**GRANT, **rule}.items() if value is not None}
    states = ["grant_exceeds_rule", "created"]
    _check_waits(house, STRICT, {"grants": [limits]}, lambda: _create(house, **changes), states)


@pytest.mark.parametrize("before", [[], [{**GRANT, "tools": ["pay"], "total": {"amount": 50}}]])
def test_a_further_rule_of_grants_waits(house: GrantHouse, before: list[object]) -> None:
    strict = {**STRICT, "grants": before}
    _check_waits(house, strict, {"grants": [*before, GRANT]}, lambda: _create(house), ["grant_not_allowed", "created"])


def test_grants_without_signatures_wait(house: GrantHouse) -> None:
    states = ["signature_required", "created"]
    wider = {"grants": [{**GRANT, "signed": False}]}
    _check_waits(house, STRICT, wider, lambda: _create(house, signed=False), states)


@pytest.mark.parametrize(
    ("strict", "wider", "amount"),
    [({"spotChecks": 1}, {}, 12), ({}, {"when": "args.amount <= 30"}, 25), ({}, {"when": None}, 25)],
)
def test_rules_by_which_grants_cover_more_wait(
    house: GrantHouse, strict: dict[str, object], wider: dict[str, object], amount: float
) -> None:
    grants: list[object] = []

    def call() -> str:
        if not grants:
            grants.append(house.create(**{**ASKED, "when": "args.amount <= 40"}))  # type: ignore[arg-type]
        return _call(house, amount)

    after = {name: value for name, value in {**GRANT, **wider}.items() if value is not None}
    _check_waits(house, {**STRICT, "grants": [{**GRANT, **strict}]}, {"grants": [after]}, call, ["asked", "made"])


def test_a_registry_rebuilt_from_git_has_no_grant(
    house: GrantHouse, tmp_path: Path, migrated_file: Callable[[str], Path]
) -> None:
    house.release()
    house.active()
    assert _call(house, 20) == "made"
    other = open_store(f"sqlite:///{migrated_file('again.sqlite')}", ManualClock(house.store.clock.now()))
    again = copy.copy(house)
    again.bench = copy.copy(house.bench)
    again.store = again.bench.store = other
    again.bench.folder = tmp_path / "again"
    again.starter = Starter(other, Spec.model_validate, pin=None)
    assert again.bench.reconcile().outcomes["prod"].state == "Ready"
    with other.read() as tx:
        assert rows.list_grants(tx) == ()
    assert (_call(again, 20), _call(house, 20)) == ("asked", "made")
    other.close()
