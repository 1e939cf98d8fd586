"""``kneo rehearse`` as a person types it: on the local database and on a service, without a key of a model."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from config_repo import ConfigRepo, announcement
from installation_key import SERVICE_KEY
from service_bench import serving

from kneo.cli import compose
from kneo.cli.serve.controller import Repository, make_controller
from kneo.settings import from_env
from kneo.trust.dsse import parse_envelope
from kneo.trust.result import parse_result

Kneo = Callable[..., Any]

CONSENT = {"use": ["rehearsal"]}


def _mail() -> dict[str, Any]:
    """Return the spec of the tour, with a second question, whose function says that it reaches outside."""
    spec = copy.deepcopy(announcement())
    spec["components"]["functions"]["publish"]["capabilities"] = ["network"]  # type: ignore[index]
    spec["workflow"]["steps"].insert(2, {"id": "confirm", "kind": "human", "ref": "editor"})  # type: ignore[index]
    return spec


def _release(repo: ConfigRepo) -> None:
    settings = from_env()
    store = compose.make_store(settings)
    source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
    for _ in range(2):
        make_controller(settings, store, source).run_once()
    store.close()


@pytest.fixture
def repo(tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch, kneo: Kneo) -> ConfigRepo:
    """A repository whose prod serves mail 1.0.0 and has one ended run of it."""
    repo = ConfigRepo(tmp_path / "repo")
    (tmp_path / "eva.pem").write_bytes(repo.person("eva", "evaluator").dump())
    repo.bundle("mail", "1.0.0", _mail())
    repo.environment("prod", {"mail": "1.0.0"}, recordings=CONSENT)
    repo.commit("Release mail")
    monkeypatch.chdir(repo.folder)
    monkeypatch.syspath_prepend(str(repo.folder))
    monkeypatch.delitem(sys.modules, "test_functions", raising=False)
    for name, value in {
        "TRUST_ROOT": repo.pin,
        "DATABASE_URL": migrated_url,
        "IMPORT_ALLOW": "test_functions",
        "IMPORT_ROOTS": str(repo.folder),
        "STATE_DIR": str(tmp_path / "state"),
        "SERVICE_KEY": SERVICE_KEY.dump().decode(),
    }.items():
        monkeypatch.setenv(f"KNEO_SERV_{name}", value)
    _release(repo)
    started = kneo("run", "--env", "prod", "--bundle", "mail", "--input", "Dear bo@example.com", "--json")
    assert started.status == 0, started.err
    for _ in ("approve", "confirm"):
        task = json.loads(kneo("task", "list", "--json").out)["tasks"][0]["id"]
        assert kneo("task", "decide", task, "--approve").status == 0
    assert (repo.folder / "published.jsonl").read_text().count("\n") == 1
    return repo


def _candidate(repo: ConfigRepo, change: Callable[[dict[str, Any]], object]) -> None:
    spec = _mail()
    change(spec)
    repo.bundle("mail", "1.1.0", spec)


def test_the_same_steps_match_and_are_signed(repo: ConfigRepo, kneo: Kneo, tmp_path: Path) -> None:
    _candidate(repo, lambda spec: spec.update(targets=["workflow"]))
    output = "bundles/mail/1.1.0.evidence/rehearsal.dsse.json"
    options = ["--key", str(tmp_path / "eva.pem"), "--output", output, "--json"]
    done = kneo("rehearse", "mail@1.1.0", "--against", "prod", *options)
    assert done.status == 0, done.out + done.err
    names = ("ok", "environment", "runs", "matched", "diverged_safe", "unsafe", "unknown", "new_calls", "gates_lost")
    assert [done.json[name] for name in names] == [True, "prod", 1, 1, 0, 0, 0, 0, 0], done.json
    statement = parse_result(parse_envelope((repo.folder / output).read_bytes()).payload)
    assert (statement.facts.type, statement.facts.environment, statement.facts.scripted) == ("rehearsal", "prod", False)
    assert statement.facts.metrics.keys() == {"matched", "unsafe", "unknown", "gates_lost"}
    assert (repo.folder / "published.jsonl").read_text().count("\n") == 1, "nothing is published again"
    assert kneo("evidence", "verify", output).status == 0


def test_a_version_that_asks_no_more_is_unsafe(repo: ConfigRepo, kneo: Kneo) -> None:
    def drop(spec: dict[str, Any]) -> None:
        spec["workflow"]["steps"] = [step for step in spec["workflow"]["steps"] if step["id"] != "confirm"]

    _candidate(repo, drop)
    done = kneo("rehearse", "mail@1.1.0", "--against", "prod")
    assert done.status == 1, done.out + done.err
    assert "The question confirm.step was not asked." in done.out + done.err
    assert (repo.folder / "published.jsonl").read_text().count("\n") == 1


def test_what_cannot_be_rehearsed_has_its_exit_status(repo: ConfigRepo, kneo: Kneo) -> None:
    _candidate(repo, lambda _spec: None)
    assert kneo("rehearse", "mail@1.1.0", "--against", "prod", "--key", "x.pem").status == 2
    assert kneo("rehearse", "mail@9.9.9", "--against", "prod").status == 4
    assert kneo("rehearse", "mail@1.1.0", "--against", "nowhere").status == 4
    assert kneo("rehearse", "mail@1.1.0", "--against", "prod", "--since", "1s").status in {0, 4}
    refused = kneo("rehearse", "mail@1.1.0", "--against", "dev")
    assert (refused.status, "does not allow its recordings" in refused.out + refused.err) == (1, True)


def test_a_service_answers_those_who_may_read_contents(
    repo: ConfigRepo, kneo: Kneo, tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _candidate(repo, lambda _spec: None)
    with serving(tmp_path / "house", migrated_url, KNEO_SERV_SERVICE_KEY=SERVICE_KEY.dump().decode()) as bench:
        assert bench.ask("GET", "/environments/prod/recordings", role="viewer").status_code == 403
        body = bench.get("/environments/prod/recordings", limit=5, role="auditor")
        assert [set(item) >= {"run_id", "bundle", "calls", "questions"} for item in body["recordings"]] == [True]
        assert "example.com" not in json.dumps(body)
        monkeypatch.setenv("KNEO_SERV_API_KEY", "admin-key")
        done = kneo("rehearse", "mail@1.1.0", "--against", "prod", "--service-url", bench.url, "--json")
        assert (done.status, done.json["matched"]) == (0, 1), done.err
