"""Rules of access in the controller: wider ones and larger quotas wait for approval, narrower ones are in force at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from controller_bench import Bench

from kneo import registry
from kneo.api.operation import Principal
from kneo.roles import ROLES
from kneo.store.engine import Store

ANN = {"who": {"users": ["ann"]}, "may": ["viewer"]}
BEN = {"who": {"users": ["ben"]}, "may": ["viewer"]}
APPROVALS = {"required": 1, "roles": ["approver"]}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def declare(bench: Bench, **rules: object) -> str:
    bench.repo.environment("prod", {}, approvals=APPROVALS, **rules)
    bench.repo.commit("Declare")
    return bench.reconcile().outcomes["prod"].state


def readers(bench: Bench) -> set[str]:
    with bench.store.read() as tx:
        return {
            name
            for name in ("ann", "ben")
            if "prod" in (registry.find_reach(tx, Principal(name, ROLES["viewer"]), ["runs:read"]) or {"prod"})
        }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"access": [ANN]}, {"access": [ANN, BEN]}),
        ({"access": [ANN]}, {}),
        ({"access": [], "admins": False}, {"access": []}),
        ({"quotas": {"queued": 5}}, {"quotas": {"queued": 6}}),
        ({"quotas": {"running": 5}}, {"quotas": {"running": 6}}),
        ({"quotas": {"queued": 5}}, {}),
    ],
)
def test_wider_rules_wait_for_approval(bench: Bench, before: Mapping[str, object], after: Mapping[str, object]) -> None:
    declare(bench, **before)
    allowed = readers(bench)
    assert declare(bench, **after) == "AwaitingApproval"
    assert readers(bench) == allowed


def test_narrower_rules_are_in_force_with_their_commit(bench: Bench) -> None:
    assert declare(bench, access=[ANN, BEN]) == "Ready"
    assert readers(bench) == {"ann", "ben"}
    assert declare(bench, access=[ANN]) == "Ready"
    assert readers(bench) == {"ann"}
    assert declare(bench, access=[]) == "Ready"
    assert readers(bench) == set()
