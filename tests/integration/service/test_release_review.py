"""What people read before they decide about a change: its plan, the rules of its environment, and who may decide."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from config_repo import ConfigRepo, announcement
from service_bench import Bench, Json, serving

from kneo.cli.serve.controller import Repository, make_controller
from kneo.store import releases
from kneo.trust.keys import PrivateKey

PEOPLE = {"approver": {"roles": ["approver"]}, "admin": {"roles": ["approver"]}}
RULES: Json = {
    "people": PEOPLE,
    "promoteFrom": "dev",
    "approvals": {"required": 1, "roles": ["approver"], "exclude": ["bundle_signer"]},
    "windows": [{"allow": "* 00:00 - 24:00"}],
}


@pytest.fixture(scope="module")
def repo(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> ConfigRepo:
    repo = ConfigRepo(tmp_path_factory.mktemp("review") / "repo")
    repo.release("dev", "announcement", "1.0.0")
    repo.environment("prod", {"announcement": "1.0.0"})
    repo.commit("Release to prod")
    return repo


@pytest.fixture(scope="module")
def bench(database_of_module: str, repo: ConfigRepo) -> Iterator[Bench]:
    """A service with a controller that looks all the time, over dev and prod; 2.0.0 waits for an approval in prod."""
    house, key = repo.folder.parent / "house", PrivateKey.generate().dump().decode()
    with serving(house, database_of_module, workers=0, KNEO_SERV_SERVICE_KEY=key) as made:
        source = Repository(str(repo.folder), "main", repo.pin, timedelta(hours=1))
        make_controller(made.settings, made.store, source).run_once()
        changed = announcement()
        changed["agent"] = {**changed["agent"], "system_prompt": "Say <b>more</b>."}  # type: ignore[dict-item]
        repo.release("dev", "announcement", "2.0.0", changed)
        repo.environment("prod", {"announcement": "2.0.0"}, **RULES)
        repo.commit("Release 2.0.0 to prod")
        make_controller(made.settings, made.store, source).run_once()
        controller = make_controller(made.settings, made.store, source)
        thread = threading.Thread(target=controller.run)
        thread.start()
        yield made
        controller.stop()
        thread.join()


def waiting(bench: Bench) -> Json:
    (found,) = bench.get("/promotions", role="viewer", environment="prod", phase="waiting")["promotions"]
    return found


def test_an_environment_shows_its_rules(bench: Bench) -> None:
    dev, prod = bench.get("/environments", role="viewer")["environments"]
    assert (dev["stage"], dev["promote_from"], dev["approvals"]) == (0, None, None)
    assert (prod["stage"], prod["promote_from"], prod["approvers"]) == (1, "dev", ["admin", "approver"])
    assert prod["approvals"]["required"] == 1
    assert (prod["windows_open"], prod["next_opening"]) == (True, None)
    assert prod["windows"] == [{"effect": "allow", "expression": "* 00:00 - 24:00", "timezone": "UTC"}]
    assert bench.get("/environments/prod", role="viewer") == prod


def test_a_pending_change_has_the_plan_of_the_controller(bench: Bench) -> None:
    item = waiting(bench)
    found = bench.get(f"/promotions/{item['id']}", role="approver")
    assert found["promotion"] == item
    assert (found["plan"]["from_version"], found["serving"]["version"]) == ("1.0.0", "1.0.0")
    assert found["plan"]["signers"] == ["ann"]
    change = next(one for one in found["plan"]["changes"] if "system_prompt" in one["path"])
    assert any("Say <b>more</b>." in line for line in change["lines"])
    assert found["may_answer"] == {"ok": True, "reason": None, "code": None, "signature": False}
    refused = bench.get(f"/promotions/{item['id']}", role="viewer")["may_answer"]
    assert (refused["ok"], refused["code"]) == (False, "forbidden")


def test_versions_of_a_bundle_are_compared(bench: Bench) -> None:
    found = bench.get("/bundles/announcement/diff", role="viewer", **{"from": "1.0.0", "to": "2.0.0"})
    assert found == bench.get("/bundles/announcement/diff", role="viewer")
    assert (found["from_version"], found["to_version"], found["more"]) == ("1.0.0", "2.0.0", 0)
    assert any("system_prompt" in change["path"] for change in found["changes"])
    first = bench.get("/bundles/announcement/diff", role="viewer", to="1.0.0")
    assert (first["from_version"], first["summary"] != "no changes") == (None, True)
    missing = bench.get("/bundles/announcement/diff", role="viewer", to="9.9.9", expect=404)
    assert missing["error"] == "bundle_not_found"


def test_a_decision_about_other_rules_than_those_reviewed_is_refused(bench: Bench) -> None:
    path = f"/promotions/{waiting(bench)['id']}/approve"
    refused = bench.post(path, {"expect_policy_digest": "sha256:other"}, role="approver", expect=409)
    assert refused["error"] == "subject_changed"


def test_an_approved_change_keeps_its_plan_and_its_decision(bench: Bench) -> None:
    item = waiting(bench)
    body = {"reason": "Read it.", "expect_policy_digest": item["policy_digest"]}
    decided = bench.post(f"/promotions/{item['id']}/approve", body, role="approver")["approval"]
    again = bench.post(f"/promotions/{item['id']}/approve", body, role="admin", expect=404)
    assert again["error"] == "promotion_not_found"
    newest = bench.get("/environments/prod/decisions", role="viewer")["decisions"][0]
    assert (newest["id"], newest["principal"], newest["reason"]) == (decided["id"], "approver", "Read it.")
    done = bench.get("/environments/prod/history", role="viewer")["promotions"][0]
    found = bench.get(f"/promotions/{done['id']}", role="viewer")
    assert (found["promotion"]["phase"], found["plan"]["from_version"]) == ("done", "1.0.0")
    assert [one["principal"] for one in found["decisions"]] == ["approver"]
    assert not found["may_answer"]["ok"]
    with bench.store.read() as tx:
        assert releases.plan_bases(tx, "prod") == {}
