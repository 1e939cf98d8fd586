"""``kneo plan`` on real repositories: what would be refused, who gains which role, which rules change, what it compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_repo import ConfigRepo
from kneo_process import Machine

from kneo.clock import SystemClock
from kneo.store.migrate import open_store

CHANGES = 10


@pytest.fixture
def repo(tmp_path: Path) -> ConfigRepo:
    made = ConfigRepo(tmp_path / "repo")
    made.release("prod", "mail", "1.0.0")
    return made


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}")


def _plan(repo: ConfigRepo, *more: str) -> tuple[str, ...]:
    return ("plan", "--repo", str(repo.folder), "--trust-root", repo.pin, *(more or ("--base", "HEAD~1")))


def _of(answer: Any, name: str = "prod") -> Any:
    return next(item for item in answer["environments"] if item["name"] == name)


def _broken_file(repo: ConfigRepo) -> None:
    repo.write("environments/prod.yaml", b"x: [\n")


def _missing_bundle(repo: ConfigRepo) -> None:
    repo.environment("prod", {"mail": "9.0.0"})


def _touched_bundle(repo: ConfigRepo) -> None:
    repo.bundle("mail", "1.1.0")
    repo.tamper("mail", "1.1.0")
    repo.environment("prod", {"mail": "1.1.0"})


def _refused_root(repo: ConfigRepo) -> None:
    repo.write("environments/trust.json", b"{}")


def _removed_file(repo: ConfigRepo) -> None:
    (repo.folder / "environments/prod.yaml").unlink()


@pytest.mark.parametrize("break_it", [_broken_file, _missing_bundle, _touched_bundle, _refused_root, _removed_file])
def test_what_would_be_refused_exits_1_however_asked(machine: Machine, repo: ConfigRepo, break_it: Any) -> None:
    break_it(repo)
    repo.commit("Break it")
    for options in ((), ("--exit-code",), ("--markdown",), ("--json",)):
        machine.kneo(*_plan(repo), *options, expect=1)
    assert machine.json(*_plan(repo), expect=1)["ok"] is False


def test_what_changes_exits_10_when_asked_and_nothing_exits_0(machine: Machine, repo: ConfigRepo) -> None:
    repo.release("prod", "mail", "1.1.0", repo.other_spec())
    machine.kneo(*_plan(repo))
    machine.kneo(*_plan(repo), "--exit-code", expect=CHANGES)
    machine.kneo(*_plan(repo, "--base", "HEAD"), "--exit-code")


def test_who_gains_and_loses_a_role_stands_first(machine: Machine, repo: ConfigRepo) -> None:
    repo.person("mallory", "approver")
    repo.commit("Trust mallory")
    answer = machine.json(*_plan(repo))
    trust = answer["trust"]
    assert (trust["from"], trust["to"], trust["signed_by"]) == (1, 2, ["ann"])
    assert [(key["principal"], key["roles"]) for key in trust["keys_added"]] == [("mallory", ["approver"])]
    assert [(item["role"], item["gained"], item["lost"]) for item in trust["roles"]] == [("approver", ["mallory"], [])]
    lines = machine.kneo(*_plan(repo)).stdout.splitlines()
    assert "mallory gains the role approver (weakens protection)" in lines[2]
    assert "→" not in "".join(lines[:4])
    words = machine.kneo(*_plan(repo), "--markdown").stdout
    assert words.startswith("<!-- kneo-plan -->\n")
    assert words.index("mallory gains the role approver") < words.index("#### prod")
    machine.kneo(*_plan(repo), "--exit-code", expect=CHANGES)
    repo.drop("mallory")
    repo.commit("Trust mallory no more")
    answer = machine.json(*_plan(repo))
    assert [key["principal"] for key in answer["trust"]["keys_removed"]] == ["mallory"]
    assert answer["trust"]["roles"][0]["lost"] == ["mallory"]


def test_a_revoked_key_is_named(machine: Machine, repo: ConfigRepo) -> None:
    repo.person("bob", "approver")
    repo.commit("Trust bob")
    repo.revoke("bob")
    repo.commit("Bob lost his key")
    (item,) = machine.json(*_plan(repo))["trust"]["revoked"]
    assert (item["principal"], item["reason"]) == ("bob", "lost")


def test_a_trust_root_that_would_be_refused_shows_whom_it_would_trust(machine: Machine, repo: ConfigRepo) -> None:
    mine, repo.key = repo.key, repo.stranger
    repo.person("mallory", "approver")
    repo.commit("Signed by a stranger")
    repo.key = mine
    answer = machine.json(*_plan(repo), expect=1)
    assert answer["trust"]["roles"][0]["gained"] == ["mallory"]
    assert answer["trust"]["signed_by"] == []
    assert "problem" in answer


def test_rules_that_are_tightened_or_loosened_are_told_with_their_direction(machine: Machine, repo: ConfigRepo) -> None:
    repo.environment(
        "prod", {"mail": "1.0.0"}, approvals={"required": 1}, windows=[{"deny": "Fri 16:00 - Mon 08:00"}], atomic=True
    )
    repo.commit("Tighten")
    prod = _of(machine.json(*_plan(repo)))
    assert {(item["field"], item["direction"]) for item in prod["policy"]} == {
        ("approvals", "tightened"),
        ("windows", "tightened"),
        ("atomic", "tightened"),
    }
    assert prod["windows"]["rules"] == [{"deny": "Fri 16:00 - Mon 08:00", "timezone": "UTC"}]
    machine.kneo(*_plan(repo), "--exit-code", expect=CHANGES)
    repo.environment(
        "prod",
        {"mail": "1.0.0"},
        approvals={"required": 1, "expires": "9d"},
        windows=[{"deny": "Fri 16:00 - Mon 08:00"}],
        atomic=False,
        prune={"maxPercent": 10},
    )
    repo.commit("Some of both")
    prod = _of(machine.json(*_plan(repo)))
    assert {item["field"]: (item["to"], item["direction"]) for item in prod["policy"]} == {
        "approvals.expires": ("P9D", "loosened"),
        "atomic": (False, "loosened"),
        "prune.maxPercent": (10, "tightened"),
    }
    assert "atomic changes from true to false (weakens protection)" in machine.kneo(*_plan(repo)).stdout


def test_a_repaired_file_is_compared_with_what_was_good_before(machine: Machine, repo: ConfigRepo) -> None:
    _broken_file(repo)
    repo.commit("Break it")
    repo.release("prod", "mail", "1.1.0")
    (action,) = _of(machine.json(*_plan(repo)))["actions"]
    assert (action["from"], action["to"]) == ("1.0.0", "1.1.0")


def test_a_revert_is_a_rollback_and_is_not_refused(machine: Machine, repo: ConfigRepo) -> None:
    repo.release("prod", "mail", "1.1.0")
    repo.git("revert", "--no-edit", "HEAD")
    repo.bundle("mail", "1.1.0")
    (action,) = _of(machine.json(*_plan(repo)))["actions"]
    assert (action["kind"], action["from"], action["to"], action["allowed"]) == ("rollback", "1.1.0", "1.0.0", True)


def test_one_commit_through_two_environments_is_judged_in_their_order(machine: Machine, repo: ConfigRepo) -> None:
    repo.bundle("mail", "1.1.0")
    repo.environment("dev", {"mail": "1.1.0"}, inlineSpecs=True)
    repo.environment("prod", {"mail": "1.1.0"}, promoteFrom="dev")
    repo.commit("Release 1.1.0 to both")
    (action,) = _of(machine.json(*_plan(repo)))["actions"]
    assert action["allowed"] is True


def test_one_change_is_one_change(machine: Machine, repo: ConfigRepo) -> None:
    repo.release("prod", "mail", "1.1.0", repo.other_spec())
    assert "mail: 1 change<" in machine.kneo(*_plan(repo), "--markdown").stdout


# ---- beside a registry ---------------------------------------------------------------------------------------------


def test_holds_of_the_database_beside_it_count_and_the_plan_says_where_it_looked(
    machine: Machine, repo: ConfigRepo
) -> None:
    machine.kneo("controller", "run", "--once", "--repo", str(repo.folder), "--trust-root", repo.pin)
    machine.kneo("hold", "prod/mail", "--reason", "an incident")
    repo.release("prod", "mail", "1.1.0")
    answer = machine.json(*_plan(repo, "--env", "prod"))
    (action,) = _of(answer)["actions"]
    assert (answer["source"]["kind"], action["allowed"]) == ("database", False)
    assert "an incident" in _of(answer)["gates"][0]["message"]
    assert "compared with what the database serves" in machine.kneo(*_plan(repo, "--env", "prod")).stdout
    against = machine.json(*_plan(repo))
    assert (against["source"]["kind"], _of(against)["actions"][0]["allowed"]) == ("git", True)
    machine.kneo("unhold", "prod/mail")
    machine.kneo("suspend", "prod", "--reason", "a freeze")
    assert "a freeze" in _of(machine.json(*_plan(repo, "--env", "prod")))["gates"][0]["message"]


def test_a_database_that_follows_another_repository_says_nothing(
    machine: Machine, repo: ConfigRepo, tmp_path: Path
) -> None:
    other = ConfigRepo(tmp_path / "other")
    machine.kneo("controller", "run", "--once", "--repo", str(other.folder), "--trust-root", other.pin)
    answer = machine.json(*_plan(repo, "--env", "prod"))
    assert answer["source"]["kind"] == "git"


def test_an_empty_database_says_nothing(machine: Machine, repo: ConfigRepo, tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}", SystemClock()).close()
    assert machine.json(*_plan(repo, "--env", "prod"))["source"]["kind"] == "git"


def test_a_shallow_clone_is_refused_with_the_command_that_completes_it(
    machine: Machine, repo: ConfigRepo, tmp_path: Path
) -> None:
    repo.release("prod", "mail", "1.1.0", repo.other_spec())
    repo.git("clone", "--quiet", "--depth=1", f"file://{repo.folder}", str(tmp_path / "shallow"))
    answer = machine.json("plan", "--repo", str(tmp_path / "shallow"), "--trust-root", repo.pin, expect=1)
    assert answer["error"] == "shallow_repository"
    assert "git fetch --unshallow" in answer["hint"]
