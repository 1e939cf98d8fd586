"""The whole product in one piece: a commit deploys a signed bundle, the service runs it, a person approves.

Separate processes over real HTTP and real Git, on both databases.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from config_repo import GIT_ENV
from kneo_process import Machine, Process, eventually
from sqlalchemy import create_engine, select, text

from kneo.store.tables import bundles, promotions, releases, runs, specs, steps, tasks

pytestmark = pytest.mark.e2e

NAME = "announcement"


class Tour:
    """A machine with a config repository made by ``kneo init``."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.machine = Machine(folder, database_url)
        self.database_url = database_url
        self.made = self.machine.json("init", "acme")
        self.repo = Path(str(self.made["directory"]))
        self.key = Path(str(self.made["key"]))
        self.approver = str(self.made["keys"]["approver"])
        self.pin = str(self.made["trust_root"])

    def up(self) -> Process:
        # Nothing but the watch and explicit requests can be what notices a commit: the interval is an hour.
        return self.machine.up("--repo", str(self.repo), "--trust-root", self.pin, "--interval", "1h")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.repo), *arguments], check=True, capture_output=True, text=True, env=GIT_ENV
        )
        return done.stdout.strip()

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def sign(self, version: str, *, key: Path | None = None) -> Path:
        """Change the spec's words, lint it and sign it as a new version."""
        spec = self.repo / f"specs/{NAME}.yaml"
        content = yaml.safe_load(spec.read_text())
        content["metadata"] = {"note": f"words of {version}"}
        spec.write_text(yaml.safe_dump(content, sort_keys=False))
        self.machine.kneo("spec", "lint", str(spec))
        path = self.repo / f"bundles/{NAME}/{version}.dsse.json"
        options = ["--output", str(path), "--approved-by", "ann", "--key", str(key or self.key)]
        self.machine.kneo("spec", "bundle", "sign", str(spec), *options, cwd=self.repo)
        return path

    def name_release(self, version: str, environment: str = "prod") -> None:
        file = self.repo / f"environments/{environment}.yaml"
        content = yaml.safe_load(file.read_text())
        content["spec"]["releases"] = [{"bundle": NAME, "version": version}]
        file.write_text(yaml.safe_dump(content, sort_keys=False))

    def release(self, version: str) -> None:
        self.sign(version)
        self.name_release(version)
        self.commit(f"Release {NAME} {version} to prod")

    def approve(self, up: Process, version: str) -> None:
        """Approve a release that waits, as the README says: in the clone, with the key of another person."""
        eventually(lambda: [item for item in prod(up, "pending") if item["version"] == version])
        words = ["--key", self.approver, "--reason", "Read the diff", "--service-url", up.url]
        self.machine.kneo("approve", f"prod/{NAME}@{version}", *words, cwd=self.repo)

    def deploy(self, up: Process, version: str) -> None:
        """Release a version to prod, approve it, and wait until it is served."""
        self.release(version)
        self.approve(up, version)
        eventually(lambda: served(up, version))

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        """Everything the registry and the engine hold, as it is stored."""
        engine = create_engine(self.database_url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as connection:
            tables = (bundles, releases, promotions, runs, steps, tasks, specs)
            found = {
                t.name: [tuple(row) for row in connection.execute(select(t).order_by(*t.primary_key))] for t in tables
            }
        engine.dispose()
        return found

    def published(self) -> list[dict[str, str]]:
        path = self.machine.folder / "published.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def tour(tmp_path: Path, database_url: str) -> Iterator[Tour]:
    made = Tour(tmp_path / "work", database_url)
    yield made
    made.machine.stop()


def prod(up: Process, what: str) -> list[dict[str, object]]:
    """What is known of prod; nothing before the first commit was looked at."""
    found = [item for item in up.get("/environments")["environments"] if item["name"] == "prod"]
    return found[0][what] if found else []


def served(up: Process, version: str) -> list[dict[str, object]]:
    return [item for item in prod(up, "releases") if item["version"] == version]


def condition(up: Process, kind: str) -> dict[str, object] | None:
    return next((item for item in prod(up, "conditions") if item["type"] == kind), None)


def start_run(up: Process, text: str = "We ship on Friday") -> dict[str, object]:
    run = up.post("/runs", {"bundle": NAME, "environment": "prod", "input": text})
    assert run["status"] == "paused", run
    return run


def approve(up: Process, run: dict[str, object]) -> dict[str, object]:
    request = run["metadata"]["pending_human_request"]
    body = {"request_id": request["request_id"], "decision": "approved"}
    return up.post(f"/human-tasks/{run['continuation_id']}/resume", body)


def refused_by_http(up: Process, body: dict[str, object]) -> dict[str, object]:
    answer = up.post("/runs", {"input": "x", "environment": "prod", **body}, expect=403)
    assert answer["error"] == "bundle_not_approved"
    assert answer["detail"]["error"] == "bundle_not_approved"
    return answer


def audited(up: Process, kind: str) -> list[dict[str, object]]:
    return up.get("/audit-events", event_type=kind)["events"]


def test_a_commit_deploys_and_a_person_approves(tour: Tour) -> None:
    assert not tour.key.is_relative_to(tour.repo)
    assert tour.key.stat().st_mode & 0o777 == 0o600
    assert tour.git("status", "--porcelain") == ""
    up = tour.up()
    eventually(lambda: served(up, "1.0.0"))
    assert condition(up, "Ready")["status"]

    tour.release("1.1.0")
    waiting = eventually(lambda: prod(up, "pending"))
    assert (waiting[0]["reason"], waiting[0]["who"]) == ("AwaitingApproval", ["approver"])
    assert served(up, "1.0.0")
    release_key = ["--key", str(tour.key), "--service-url", up.url]
    tour.machine.kneo("approve", f"prod/{NAME}@1.1.0", *release_key, cwd=tour.repo)
    assert served(up, "1.0.0"), "whoever signed the bundle does not approve it"
    tour.approve(up, "1.1.0")
    eventually(lambda: served(up, "1.1.0"))
    (approval,) = up.get("/environments/prod/history")["promotions"][0]["decisions"]
    assert (approval["principal"], approval["reason"]) == ("approver", "Read the diff")
    run = start_run(up)
    release = run["metadata"]["release"]
    assert release["version"] == "1.1.0"
    assert release["digest"] == served(up, "1.1.0")[0]["digest"]
    assert release["revision"].endswith(tour.git("rev-parse", "HEAD"))
    waiting = up.get("/human-tasks")["tasks"]
    assert [task["run_id"] for task in waiting] == [run["run_id"]]
    assert tour.published() == []
    done = approve(up, run)
    assert done["status"] == "succeeded"
    assert [line["run_id"] for line in tour.published()] == [run["run_id"]]
    assert up.get("/human-tasks")["tasks"] == []


def test_commands_do_what_the_routes_do(tour: Tour) -> None:
    up = tour.up()
    eventually(lambda: served(up, "1.0.0"))
    at = ["--service-url", up.url]
    kneo = tour.machine.json
    run = kneo("run", "--bundle", NAME, "--env", "prod", "--input", "by command", *at)
    assert run["status"] == "paused"
    task = kneo("human", "list", *at)["tasks"][0]
    shown = kneo("human", "get", task["continuation_id"], *at)
    request = shown["request"]["request_id"]
    done = kneo("human", "resume", task["continuation_id"], "--request-id", request, "--approve", *at)
    assert done["status"] == "succeeded"
    assert kneo("runs", "get", run["run_id"], *at)["status"] == "succeeded"
    trace = kneo("runs", "trace", run["run_id"], *at)["events"]
    steps_done = [event["step_id"] for event in trace if event["type"] == "step_completed"]
    assert steps_done == ["draft", "publish"]
    assert [item["run_id"] for item in kneo("runs", "list", *at)["runs"]] == [run["run_id"]]
    tour.release("2.0.0")
    answer = kneo("reconcile", "prod", *at)
    assert answer["environment"]["pending"][0]["gate"] == "approvals"
    assert kneo("why", f"prod/{NAME}", *at)["who"] == ["approver"]
    approved = kneo("approve", f"prod/{NAME}@2.0.0", "--key", tour.approver, *at, cwd=tour.repo)
    assert approved["environment"]["releases"][0]["version"] == "2.0.0"
    assert kneo("status", "prod", *at)["releases"][0]["version"] == "2.0.0"
    # The same, from the database beside the process: a local run is driven by the process that executes steps.
    local = kneo("run", "--bundle", NAME, "--env", "prod", "--input", "beside")
    assert local["status"] == "paused"
    assert kneo("status", "prod")["releases"][0]["version"] == "2.0.0"
    assert len(tour.published()) == 1


def test_what_is_not_approved_is_refused_and_changes_nothing(tour: Tour, tmp_path: Path) -> None:
    up = tour.up()
    eventually(lambda: served(up, "1.0.0"))
    waiting = start_run(up)
    before = tour.rows()

    # One byte of a signed bundle changed.
    path = tour.sign("1.1.0")
    envelope = json.loads(path.read_text())
    payload = base64.b64decode(envelope["payload"])
    assert b"No promises" in payload
    envelope["payload"] = base64.b64encode(payload.replace(b"No promises", b"So promises")).decode()
    path.write_text(json.dumps(envelope))
    tour.name_release("1.1.0")
    tour.commit("Release a bundle that somebody touched")
    stalled = eventually(lambda: condition(up, "Stalled"))
    assert stalled["reason"] == "SignatureInvalid"
    assert refused_by_http(up, {"bundle": f"{NAME}@1.1.0"})["reason"] == "SignatureInvalid"
    rejected = audited(up, "bundle.rejected")
    assert [event["metadata"]["reason"] for event in rejected] == ["SignatureInvalid"]
    assert served(up, "1.0.0")

    # A signer nobody knows.
    stranger = tmp_path / "stranger.pem"
    tour.machine.kneo("keys", "generate", "--output", str(stranger))
    tour.sign("1.2.0", key=stranger)
    tour.name_release("1.2.0")
    tour.commit("Release a bundle of a stranger")
    eventually(lambda: len(audited(up, "bundle.rejected")) == 2)
    unknown = condition(up, "Stalled")["reason"]
    assert unknown in {"SignatureInvalid", "ThresholdNotMet"}
    assert refused_by_http(up, {"bundle": f"{NAME}@1.2.0"})["reason"] == unknown

    # A version the environment does not name, and a spec that a request brings along.
    answer = refused_by_http(up, {"bundle": f"{NAME}@9.9.9"})
    assert answer["approved"] == [f"{NAME}@1.0.0"]
    spec = yaml.safe_load((tour.repo / f"specs/{NAME}.yaml").read_text())
    refused_by_http(up, {"spec": spec})
    assert len(audited(up, "run.refused")) == 4

    assert tour.rows() == before
    assert served(up, "1.0.0")
    assert approve(up, waiting)["status"] == "succeeded"


@pytest.mark.both_databases
def test_a_killed_process_loses_nothing(tour: Tour) -> None:
    up = tour.up()
    eventually(lambda: served(up, "1.0.0"))
    run = start_run(up)
    up.kill()

    again = tour.up()
    assert approve(again, run)["status"] == "succeeded"
    assert len(tour.published()) == 1
    again.terminate()

    proof = tour.machine.json("audit", "verify")
    assert proof["valid"]
    assert proof["size"] > 5
    assert proof["pending"] == 0
    edit_one_audit_row(tour.database_url)
    found = tour.machine.json("audit", "verify", expect=3)
    assert not found["valid"]
    assert found["broken_at"] == 2


def edit_one_audit_row(url: str) -> None:
    """Do what somebody with the database's own password could do."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE audit_events DISABLE TRIGGER ALL"))
        else:
            connection.execute(text("DROP TRIGGER audit_events_no_update"))
        which = "(SELECT event_id FROM audit_chain WHERE seq = 2)"
        changed = connection.execute(text(f"UPDATE audit_events SET actor = 'somebody else' WHERE id = {which}"))
        assert changed.rowcount == 1
    engine.dispose()


def test_a_revert_serves_the_previous_release_again(tour: Tour) -> None:
    up = tour.up()
    eventually(lambda: served(up, "1.0.0"))
    first = served(up, "1.0.0")[0]["digest"]
    tour.deploy(up, "1.1.0")
    run = start_run(up)
    second = run["metadata"]["release"]["digest"]
    assert second != first

    tour.git("revert", "--no-edit", "HEAD")
    eventually(lambda: served(up, "1.0.0"))
    assert served(up, "1.0.0")[0]["digest"] == first
    assert up.get("/environments/prod/history")["promotions"][0]["kind"] == "rollback"

    done = approve(up, run)
    assert done["status"] == "succeeded"
    assert done["metadata"]["release"]["digest"] == second
    assert start_run(up)["metadata"]["release"]["digest"] == first


@pytest.mark.both_databases
def test_the_roles_work_as_processes_of_their_own(tour: Tour) -> None:
    """Service, worker and controller meet in the database and nowhere else."""
    machine = tour.machine
    follow = ["--repo", str(tour.repo), "--trust-root", tour.pin, "--interval", "1h"]
    controller = machine.start("controller", "run", *follow, answers=False)
    # Functions are found beside the project: a worker runs where they are.
    worker = machine.start("worker", answers=False, cwd=tour.repo)
    service = machine.start("service", "serve", "--port", "0", "--workers", "0")
    eventually(lambda: served(service, "1.0.0"))
    run = start_run(service)
    assert approve(service, run)["status"] == "succeeded"
    tour.deploy(service, "1.1.0")
    assert [process.terminate() for process in (service, worker, controller)] == [0, 0, 0]
