"""``why``, ``status``, ``history`` and ``source show`` name what is so: broken and removed files, holds, rollbacks, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_repo import ConfigRepo
from controller_bench import Bench
from kneo_process import Machine

from kneo.api.release_views import WhyView
from kneo.controller.rollback import parse_rollback, roll_back
from kneo.controller.stages.verify import TrustConfig
from kneo.registry import explain
from kneo.store import releases
from kneo.store.engine import Store


@pytest.fixture
def repo(tmp_path: Path) -> ConfigRepo:
    made = ConfigRepo(tmp_path / "repo")
    made.release("prod", "mail", "1.0.0")
    return made


@pytest.fixture
def machine(tmp_path: Path, repo: ConfigRepo) -> Machine:
    made = Machine(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}")
    _follow(made, repo)
    return made


def _follow(machine: Machine, repo: ConfigRepo) -> None:
    machine.kneo("controller", "run", "--once", "--repo", str(repo.folder), "--trust-root", repo.pin, expect=None)


def test_a_broken_file_and_a_removed_one_are_not_served_as_git_says(machine: Machine, repo: ConfigRepo) -> None:
    assert machine.json("why", "prod/mail")["blocked"] is False
    text = (repo.folder / "environments/prod.yaml").read_bytes()
    repo.write("environments/prod.yaml", b"x: [\n")
    repo.commit("Break it")
    _follow(machine, repo)
    why = machine.json("why", "prod/mail")
    assert (why["blocked"], why["reason"], why["command"]) == (True, "PolicyInvalid", "kneo plan --env prod")
    (repo.folder / "environments/prod.yaml").unlink()
    repo.commit("Remove it")
    _follow(machine, repo)
    assert machine.json("why", "prod/mail")["reason"] == "EnvironmentRemoved"
    repo.write("environments/prod.yaml", text)
    repo.commit("Put it back")
    _follow(machine, repo)
    assert machine.json("why", "prod/mail")["blocked"] is False


def test_a_hold_is_named_by_why_and_status_also_while_git_agrees(machine: Machine, repo: ConfigRepo) -> None:
    machine.kneo("hold", "prod/mail", "--reason", "an incident")
    machine.kneo("suspend", "prod", "--reason", "a freeze")
    why = machine.json("why", "prod/mail")
    assert [item["gate"] for item in why["gates"]] == ["suspend", "hold"]
    assert "kneo unhold prod/mail" in machine.kneo("why", "prod/mail").stdout
    words = machine.kneo("status", "prod").stdout
    assert "an incident" in words
    assert "a freeze" in words


def test_every_closed_gate_is_named(store: Store, tmp_path: Path) -> None:
    bench = Bench(store, tmp_path)
    bench.repo.environment("staging", {})
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment(
        "prod",
        {"mail": "1.0.0"},
        promoteFrom="staging",
        approvals={"required": 1},
        windows=[{"deny": "Mon 00:00 - Sun 24:00"}],
    )
    bench.repo.commit("Ask a lot")
    bench.reconcile()
    (waits,) = bench.pending()
    assert (waits.kind, waits.reason) == ("promote", "DependencyNotReady")
    for gate in ("windows:", "approvals: mail 1.0.0 is waiting for approval (0 of 1)"):
        assert gate in waits.message
    with store.read() as tx:
        found = WhyView.of(explain.why(tx, "prod", "mail"))
    promote = "kneo promote mail --from prod --to staging"
    assert [(gate.gate, gate.reason, gate.command) for gate in found.gates] == [
        ("promoteFrom", "DependencyNotReady", promote),
        ("windows", "WindowClosed", None),
        ("approvals", "AwaitingApproval", "kneo approve prod/mail --key FILE"),
    ]
    assert not [gate.message for gate in found.gates if "Also closed" in gate.message]
    assert (found.command, found.way_back) == (promote, None)


def test_each_closed_gate_is_printed_with_its_command(machine: Machine, repo: ConfigRepo) -> None:
    repo.environment("staging", {})
    repo.bundle("mail", "2.0.0", environments=("prod", "staging"))
    repo.environment("prod", {"mail": "2.0.0"}, promoteFrom="staging", approvals={"required": 1})
    repo.commit("Ask for more")
    _follow(machine, repo)
    first, second = machine.json("why", "prod/mail")["gates"]
    assert (first["gate"], first["command"]) == ("promoteFrom", "kneo promote mail --from prod --to staging")
    assert (second["gate"], second["command"]) == ("approvals", "kneo approve prod/mail --key FILE")
    words = machine.kneo("why", "prod/mail").stdout
    assert words.index(first["command"]) < words.index("approvals: AwaitingApproval") < words.index(second["command"])
    assert "None" not in words


def test_a_rollback_names_its_own_revision_and_waits_for_nothing(store: Store, tmp_path: Path) -> None:
    bench = Bench(store, tmp_path)
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    first = bench.release("mail").revision
    bench.repo.release("prod", "mail", "1.1.0")
    bench.reconcile()
    bench.repo.environment("prod", {"mail": "1.0.0"}, windows=[{"deny": "Mon 00:00 - Sun 24:00"}])
    bench.repo.commit("Back, when it is not allowed")
    bench.reconcile()
    with store.read() as tx:
        found = WhyView.of(explain.why(tx, "prod", "mail"))
    assert found.way_back == "kneo rollback prod/mail --to 1.0.0 --reason TEXT"
    going = parse_rollback({"environment": "prod", "bundle": "mail", "to": "1.0.0", "reason": "it failed"}, "bob")
    roll_back(store, going, bench.lease(), TrustConfig(bench.repo.pin))
    assert bench.pending() == ()
    with store.read() as tx:
        newest = releases.list_promotions(tx, "prod", "mail")[0]
    assert (newest.actor, newest.reason, newest.revision) == ("bob", "it failed", first)


def test_history_shows_who_and_why(machine: Machine) -> None:
    words = machine.kneo("history", "prod").stdout
    assert "Approved by" in words
    assert "controller" in words


def test_a_refused_trust_root_is_shown_and_its_commit_is_not_accepted(machine: Machine, repo: ConfigRepo) -> None:
    accepted = repo.head()
    repo.write("environments/trust.json", b"{}")
    repo.commit("Spoil the trust root")
    _follow(machine, repo)
    source = machine.json("source", "show")
    assert (source["accepted_commit"], source["refused_commit"]) == (accepted, repo.head())
    assert source["refused_code"]
    assert "was refused" in machine.kneo("status").stdout


def test_status_says_that_fetching_fails(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}")
    gone = tmp_path / "gone"
    repo = ConfigRepo(gone)
    address, pin = str(gone), repo.pin
    gone.rename(tmp_path / "elsewhere")
    gone.mkdir()
    machine.kneo("controller", "run", "--once", "--repo", address, "--trust-root", pin, expect=None)
    words = machine.kneo("status").stdout
    assert "cannot be fetched" in words
    assert "No environments found" not in words
