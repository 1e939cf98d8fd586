"""Rules of access in the controller: wider ones and larger quotas wait for approval, narrower ones are in force at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from config_repo import ConfigRepo
from controller_bench import Bench

from kneo import registry
from kneo.api.operation import Principal
from kneo.roles import ROLES
from kneo.settings import process_environment
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
        ({"quotas": {"requests_per_minute": 5}}, {"quotas": {"requests_per_minute": 6}}),
        ({"quotas": {"stored": "900Mi"}}, {"quotas": {"stored": "1Gi"}}),
    ],
)
def test_wider_rules_wait_for_approval(bench: Bench, before: Mapping[str, object], after: Mapping[str, object]) -> None:
    declare(bench, **before)
    allowed = readers(bench)
    assert declare(bench, **after) == "AwaitingApproval"
    assert readers(bench) == allowed


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ({"access": [ANN]}, {"access": [ANN, BEN]}, "the user ben"),
        ({"access": [], "admins": False}, {"access": []}, "administrators"),
        ({"quotas": {"stored": "64Ki"}}, {"quotas": {"stored": "10Ti"}}, "quotas.stored"),
        ({"quotas": {"requests_per_minute": 5}}, {}, "quotas.requests_per_minute"),
    ],
)
def test_a_plan_calls_wider_rules_weaker_and_narrower_ones_not(
    tmp_path: Path, before: Mapping[str, object], after: Mapping[str, object], change: str
) -> None:
    repo = ConfigRepo(tmp_path / "repo")
    for name, rules in (("before", before), ("after", after), ("again", before)):
        repo.environment("prod", {}, approvals=APPROVALS, **rules)
        repo.commit(name)
    wider, narrower = (plan_of(repo, ref) for ref in ("HEAD~1", "HEAD"))
    assert [each for each in wider["rules"]["easier"] if change in str(each)], wider["rules"]
    assert narrower["rules"]["easier"] == []
    assert [gate["reason"] for gate in wider["gates"]] == ["AwaitingApproval"]


def plan_of(repo: ConfigRepo, ref: str) -> dict[str, Any]:
    """Return what the plan of a commit says about the environment, compared with the commit before it."""
    command = [sys.executable, "-m", "kneo.cli.main", "plan", "--repo", str(repo.folder), "--ref", ref]
    env = {"PATH": process_environment("PATH")["PATH"], "HOME": str(repo.folder.parent)}
    words = [*command, "--base", f"{ref}~1", "--trust-root", repo.pin, "--env", "prod", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False, cwd=repo.folder.parent)
    (found,) = json.loads(done.stdout)["environments"]
    return found


def test_narrower_rules_are_in_force_with_their_commit(bench: Bench) -> None:
    assert declare(bench, access=[ANN, BEN]) == "Ready"
    assert readers(bench) == {"ann", "ben"}
    assert declare(bench, access=[ANN]) == "Ready"
    assert readers(bench) == {"ann"}
    assert declare(bench, access=[]) == "Ready"
    assert readers(bench) == set()
