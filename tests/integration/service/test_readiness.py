"""Whether a service says that it can serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from service_bench import Bench, Json, serving

from kneo.service.readiness import Readiness
from kneo.settings import HttpSettings


def checks(bench: Bench) -> Json:
    return bench.get("/readyz")["metadata"]["checks"]


def test_every_check_has_a_name_and_says_how_it_is(bench: Bench) -> None:
    bench.paused()
    found = checks(bench)
    assert {name: check["ok"] for name, check in found.items()} == dict.fromkeys(
        (
            "api",
            "run_state_store",
            "continuation_store",
            "queue",
            "dispatcher",
            "controller",
            "disk",
            "runtime_registry",
            "source",
            "tool_registry",
            "providers",
            "mcp",
        ),
        True,
    )
    assert all(check["name"] == name for name, check in found.items())
    assert (found["queue"]["durable"], found["queue"]["queued"]) == (True, 0)
    assert (found["controller"]["running"], found["providers"]["configured"]) == (False, False)
    assert found["disk"]["free_bytes"] > found["disk"]["least_bytes"]


def test_a_run_that_nobody_drives_is_seen(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0) as bench:
        bench.start(expect=202, async_mode=True)
        found = checks(bench)
    assert found["queue"]["queued"] == 1
    assert found["dispatcher"]["oldest_seconds"] > 0


@pytest.mark.parametrize(
    ("http", "failing"),
    [
        (HttpSettings(health_providers=("acme",)), "providers"),
        (HttpSettings(health_mcp_secrets=("NO_SUCH_SECRET_HERE",)), "mcp"),
        (HttpSettings(health_free_bytes=2**62), "disk"),
    ],
)
def test_what_must_be_there_and_is_not_makes_it_unready(tmp_path: Path, http: HttpSettings, failing: str) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", http=http, workers=0) as bench:
        answer = bench.ask("GET", "/readyz")
        assert (answer.status_code, answer.json()["error"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
        found = answer.json()["metadata"]["checks"]
        assert [name for name, check in found.items() if not check["ok"]] == [failing]
        assert bench.get("/livez")["ok"]


def test_a_database_that_is_away_is_said_without_saying_where_it_is(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0) as bench:
        # Nothing can be opened there any more.
        bench.store.disconnect()
        (tmp_path / "kneo.sqlite").rename(tmp_path / "moved")
        (tmp_path / "kneo.sqlite").mkdir()
        answer = bench.ask("GET", "/readyz")
        assert answer.status_code == 503
        assert answer.json()["metadata"]["checks"]["run_state_store"]["error"] == "check_failed"
        assert str(tmp_path) not in answer.text
        (tmp_path / "kneo.sqlite").rmdir()
        (tmp_path / "moved").rename(tmp_path / "kneo.sqlite")


def test_nothing_is_kept_in_a_folder_that_is_not_there_yet(bench: Bench, tmp_path: Path) -> None:
    settings = replace(bench.settings, state_dir=tmp_path / "later")
    assert Readiness(settings, bench.store, None, frozenset()).checks()["disk"]["ok"]
