"""The commands about releases, as people type them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from config_repo import ConfigRepo, announcement
from kneo_process import Desk, Machine

pytestmark = pytest.mark.e2e

PEOPLE = {"bob": {"roles": ["approver"]}}
RULE = {"required": 1, "roles": ["approver"]}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Desk(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}")
    yield made
    made.stop()


@pytest.fixture
def repo(tmp_path: Path) -> ConfigRepo:
    return ConfigRepo(tmp_path / "repo")


def test_a_plan_says_where_an_environment_asks_and_what_it_stops_asking(machine: Machine, repo: ConfigRepo) -> None:
    gates = [
        {"name": "out", "match": {"refs": ["publish"]}, "before": {"human": {"candidates": {"users": ["ann"]}}}},
        {"name": "idle", "match": {"steps": ["nowhere"]}, "before": {"human": {"candidates": {"users": ["ann"]}}}},
    ]
    repo.bundle("mail", "1.0.0")
    repo.environment("prod", {"mail": "1.0.0"}, approvals=RULE, people=PEOPLE, gates=gates)
    repo.commit("Ask more")
    plan = ("plan", "--repo", str(repo.folder), "--trust-root", repo.pin, "--env", "prod")
    [prod] = machine.json(*plan, "--base", "HEAD~1")["environments"]
    told = [{"gate": "out", "steps": {"mail": ["publish"]}}, {"gate": "idle", "steps": {}}]
    assert (prod["added_gates"], prod["rules"]["easier"]) == (told, ["bob gets approver"])
    words = machine.kneo(*plan, "--base", "HEAD~1", "--markdown").stdout
    assert "✓ The gate out asks at mail: publish." in words
    assert "⚠ The gate idle applies to no step of the releases here." in words
    repo.environment("prod", {"mail": "1.0.0"}, approvals=RULE, people=PEOPLE, gates=gates[:1])
    repo.commit("Ask less")
    [prod] = machine.json(*plan, "--base", "HEAD~1")["environments"]
    assert prod["rules"]["easier"] == ["the gate idle is removed"]
    assert [gate["reason"] for gate in prod["gates"]] == ["AwaitingApproval"]


def test_a_plan_that_removes_an_environment_names_its_open_questions(machine: Machine, repo: ConfigRepo) -> None:
    repo.release("prod", "mail", "1.0.0")
    machine.kneo("controller", "run", "--once", "--repo", str(repo.folder), "--trust-root", repo.pin)
    run = machine.json("run", "--bundle", "mail", "--env", "prod", "--input", "hello")
    (repo.folder / "environments/prod.yaml").unlink()
    repo.commit("Remove prod")
    plan = ("plan", "--repo", str(repo.folder), "--trust-root", repo.pin, "--base", "HEAD~1")
    prod = next(item for item in machine.json(*plan, expect=1)["environments"] if item["name"] == "prod")
    assert prod["problem"]["reason"] == "EnvironmentRemoved"
    [task] = prod["open_tasks"]["first"]
    assert (task["run_id"], task["key"], prod["open_tasks"]["count"]) == (run["run_id"], "approve.step", 1)
    words = machine.kneo(*plan, "--markdown", "--exit-code", expect=1).stdout
    assert task["continuation_id"].replace("_", "\\_") in words
    (machine.folder / "kneo.sqlite").unlink()
    assert "open tasks are unknown here" in machine.kneo(*plan, expect=1).stdout


def test_from_a_plan_to_a_proof(machine: Machine, repo: ConfigRepo) -> None:
    bob = repo.person("bob", "approver")
    key = machine.folder / "bob.pem"
    key.write_bytes(bob.dump())
    key.chmod(0o600)
    repo.commit("Trust bob")
    repo.release("prod", "mail", "1.0.0")
    once = ("controller", "run", "--once", "--repo", str(repo.folder), "--trust-root", repo.pin)
    machine.kneo(*once)
    repo.bundle("mail", "1.1.0", repo.other_spec())
    repo.environment("prod", {"mail": "1.1.0"}, approvals=RULE, people=PEOPLE)
    repo.commit("Release 1.1.0")

    plan = machine.json("plan", "--repo", str(repo.folder), "--trust-root", repo.pin, "--base", "HEAD~1")
    prod = next(item for item in plan["environments"] if item["name"] == "prod")
    assert [(a["kind"], a["from"], a["to"]) for a in prod["actions"]] == [("promote", "1.0.0", "1.1.0")]
    assert [gate["reason"] for gate in prod["gates"]] == ["AwaitingApproval"]
    words = machine.kneo(
        "plan",
        "--repo",
        str(repo.folder),
        "--trust-root",
        repo.pin,
        "--base",
        "HEAD~1",
        "--markdown",
        "--exit-code",
        expect=10,
    )
    assert "Another question?" in words.stdout
    same = ("plan", "--repo", str(repo.folder), "--trust-root", repo.pin, "--base", "HEAD", "--exit-code")
    assert machine.kneo(*same, expect=None).returncode in {0, 10}

    machine.kneo(*once, expect=1)
    why = machine.json("why", "prod/mail")
    assert (why["gate"], why["who"]) == ("approvals", ["ann", "bob"][1:])
    machine.kneo("approve", "prod/mail", expect=2)
    machine.kneo("approve", "prod/nothing", "--key", str(key), expect=4)
    machine.kneo("approve", "prod/mail", "--key", str(key), expect=2)
    approved = machine.json("approve", "prod/mail@1.1.0", "--key", str(key), "--reason", "read it")
    assert (approved["approval"]["principal"], approved["approval"]["reason"]) == ("bob", "read it")
    machine.kneo(*once)
    status = machine.json("status", "prod")
    assert [item["version"] for item in status["releases"]] == ["1.1.0"]

    digest = status["releases"][0]["digest"]
    trace = machine.json("trace", digest)
    assert [item["principal"] for item in trace["promotions"][0]["approvals"]] == ["bob"]
    seq = trace["promotions"][0]["audit"]["seq"]
    assert machine.json("audit", "prove", str(seq))["seq"] == seq
    assert "kneo/audit" in machine.kneo("audit", "checkpoint").stdout
    machine.kneo("audit", "verify")

    machine.kneo("hold", "prod/mail", "--reason", "conference", "--until", "4h")
    machine.kneo("unhold", "prod/mail")
    machine.kneo("suspend", "prod", "--reason", "freeze")
    assert machine.json("status", "prod")["suspension"]["reason"] == "freeze"
    machine.kneo("unsuspend", "prod")
    machine.kneo("rollback", "prod/mail", "--reason", "no controller", expect=75)
    machine.kneo("source", "show")


def test_the_two_ways_out_of_a_refused_commit_take_a_key(machine: Machine, repo: ConfigRepo) -> None:
    once = ("controller", "run", "--once", "--repo", str(repo.folder), "--trust-root", repo.pin)
    repo.release("prod", "mail", "1.0.0")
    machine.kneo(*once)
    machine.kneo("source", "accept-rewrite", "--key", str(_key(machine, repo)), expect=4)
    repo.git("commit", "-q", "--amend", "-m", "Another past")
    machine.kneo(*once, expect=1)
    assert machine.json("source", "show")["refused_code"] == "HistoryRewritten"
    machine.kneo("source", "accept-rewrite", "--key", str(_key(machine, repo)), expect=2)
    new = repo.head()
    # Another commit with the same first digits is made within seconds.
    for shortened in (new[:12], new[:39], ""):
        refused = ("--key", str(_key(machine, repo)), "--commit", shortened)
        machine.kneo("source", "accept-rewrite", *refused, expect=3)
    machine.kneo("source", "accept-rewrite", "--key", str(_key(machine, repo)), "--commit", new)
    machine.kneo(*once)
    assert machine.json("source", "show")["refused_code"] is None

    repo.environment("prod", {}, inlineSpecs=False)
    repo.commit("Empty prod")
    assert machine.json(*once, expect=1)["environments"]["prod"] == "MassPruneBlocked"
    refused = machine.kneo("approve", "prod", "--prune", "--key", str(_key(machine, repo)), expect=2)
    assert "--yes" in refused.stderr
    assert "up-to-date clone" not in refused.stderr
    machine.kneo("approve", "prod", "--prune", "--key", str(_key(machine, repo)), "--yes")
    assert machine.json(*once)["environments"]["prod"] == "Ready"
    assert machine.json("status", "prod")["releases"] == []


def test_promoting_writes_one_line_and_commits_it(machine: Machine, repo: ConfigRepo) -> None:
    repo.bundle("mail", "1.0.0")
    repo.environment("dev", {"mail": "1.0.0"})
    repo.commit("Release to dev")
    done = machine.kneo("promote", "mail", "--from", "dev", "--to", "prod", "--json", cwd=repo.folder)
    assert json.loads(done.stdout)["version"] == "1.0.0"
    assert repo.git("diff", "--stat", "HEAD~1", "--", "environments/prod.yaml") != ""
    assert "mail" in (repo.folder / "environments/prod.yaml").read_text()
    machine.kneo("promote", "mail", "--from", "dev", "--to", "prod", cwd=repo.folder, expect=5)
    machine.kneo("promote", "other", "--from", "dev", "--to", "prod", cwd=repo.folder, expect=4)


def test_a_promotion_that_cannot_be_pushed_is_not_committed(machine: Machine, repo: ConfigRepo) -> None:
    repo.bundle("mail", "1.0.0")
    repo.environment("dev", {"mail": "1.0.0"})
    before = repo.commit("Release to dev")
    promote = ("promote", "mail", "--from", "dev", "--to", "prod", "--push")
    for more in ((), ("--branch", "promote-mail")):
        refused = machine.kneo(*promote, *more, cwd=repo.folder, expect=5)
        assert "git remote add origin" in refused.stderr
        assert (repo.head(), repo.git("status", "--porcelain"), repo.git("branch", "--list", "promote-mail")) == (
            before,
            "",
            "",
        )
    repo.git("init", "--bare", "--quiet", str(repo.folder.parent / "origin.git"))
    repo.git("remote", "add", "origin", str(repo.folder.parent / "origin.git"))
    repo.git("switch", "--quiet", "--detach")
    assert "--branch" in machine.kneo(*promote, cwd=repo.folder, expect=5).stderr
    assert (repo.head(), repo.git("status", "--porcelain")) == (before, "")
    machine.kneo(*promote, "--branch", "promote-mail", cwd=repo.folder)
    assert repo.git("ls-remote", "origin", "promote-mail").startswith(repo.head())


def _key(machine: Machine, repo: ConfigRepo) -> Path:
    path = machine.folder / "ann.pem"
    path.write_bytes(repo.key.dump())
    path.chmod(0o600)
    return path


def test_a_bundle_of_the_older_format_runs_where_the_key_is_known(tmp_path: Path, repo: ConfigRepo) -> None:
    secret = "KNEO_SERV_SPEC_SIGNING_KEY"
    machine = Desk(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}", **{secret: "shared"})
    accepting = {"accept": ["hmac-v1"], "roles": ["release"], "threshold": 1}
    repo.environment("prod", {}, signatures=accepting)
    repo.commit("Accept the older format")
    spec = repo.folder / "specs/mail.json"
    spec.parent.mkdir()
    spec.write_text(json.dumps(announcement()))
    output = repo.folder / "bundles/mail/1.0.0.json"
    output.parent.mkdir(parents=True)
    signing = ("--output", str(output), "--approved-by", "ann", "--env", "prod")
    machine.kneo("spec", "bundle", "sign", str(spec), *signing, cwd=repo.folder)
    repo.environment("prod", {"mail": "1.0.0"}, signatures=accepting)
    repo.commit("Release in the older format")
    machine.kneo("controller", "run", "--once", "--repo", str(repo.folder), "--trust-root", repo.pin)

    running = ("run", "--bundle", "mail", "--env", "prod", "--input", "hello")
    run = machine.json(*running, expect=None)
    assert run["status"] == "paused", run
    assert run["metadata"]["release"]["version"] == "1.0.0"
    for value, reason in (("", "PolicyDenied"), ("another", "SignatureInvalid")):
        machine.env[secret] = value
        refused = machine.json(*running, expect=3)
        assert refused["error"] == reason, refused
