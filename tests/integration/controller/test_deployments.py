"""What people ask and decide over HTTP, with a controller that acts on it. On both databases."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from controller_bench import Bench, serving
from kneo_process import eventually

from kneo.controller.loop import Controller
from kneo.records.audit import verify_inclusion
from kneo.runtime.engine.start import Starter
from kneo.service.app import create_app
from kneo.settings import Settings, from_env
from kneo.store import audit
from kneo.store.engine import Store
from kneo.trust.checkpoint import read_checkpoint
from kneo.trust.dsse import serialise, sign
from kneo.trust.keys import PublicKey
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, build_approval

PEOPLE = {name: {"roles": ["approver"]} for name in ("bob", "cid", "olga")}
KEYS = (
    "bob:bobs-key:approver,operator;cid:cids-key:approver;eve:eves-key:approver,operator;"
    "vic:vics-key:viewer;olga:olgas-key:operator"
)


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


@pytest.fixture
def settings(bench: Bench, tmp_path: Path) -> Settings:
    env = {"KNEO_SERV_API_KEYS": KEYS, "KNEO_SERV_SERVICE_KEY": bench.service_key.dump().decode()}
    return replace(from_env(env, tmp_path), trust_root=bench.repo.pin)


@pytest.fixture
def http(bench: Bench, settings: Settings) -> Iterator[httpx.Client]:
    app = create_app(settings, bench.store, Starter(bench.store, lambda spec: spec, pin=bench.repo.pin))
    with serving(app) as client:
        yield client


@pytest.fixture
def following(bench: Bench) -> Iterator[Controller]:
    controller = Controller(bench.store, bench.reconciler(), interval=timedelta(hours=1))
    thread = threading.Thread(target=controller.run)
    thread.start()
    eventually(bench.followed)
    yield controller
    controller.stop()
    thread.join()


def _as(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}s-key"}


def _waiting_release(bench: Bench, **rule: object) -> None:
    bench.repo.bundle("mail", "1.0.0")
    approvals = {"required": 1, "roles": ["approver"], **rule}
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals=approvals, people=PEOPLE)
    bench.repo.commit("Release mail")


def test_an_approver_opens_a_gate_and_the_answer_says_so(
    bench: Bench, http: httpx.Client, following: Controller
) -> None:
    _waiting_release(bench)
    assert http.post("/v1/environments/prod/reconcile", headers=_as("bob")).status_code == 200
    (waits,) = http.get("/v1/promotions?phase=waiting", headers=_as("bob")).json()["promotions"]
    assert (waits["gate"], waits["who"]) == ("approvals", ["bob", "cid", "olga"])
    refused = http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("eve"))
    assert (refused.status_code, refused.json()["error"]) == (403, "not_an_approver")
    assert http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("vic")).status_code == 403
    why = http.get("/v1/environments/prod/why/mail", headers=_as("bob")).json()
    assert (why["gate"], why["command"]) == ("approvals", "kneo approve prod/mail --key FILE")
    done = http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("bob")).json()
    assert [item["bundle"] for item in done["environment"]["releases"]] == ["mail"]
    trace = http.get(f"/v1/trace/{waits['digest']}", headers=_as("bob")).json()
    (promotion,) = trace["promotions"]
    assert [item["principal"] for item in promotion["approvals"]] == ["bob"]
    assert trace["bundle"]["signers"] == ["ann"]
    assert promotion["commit"] == bench.repo.head()
    assert promotion["audit"]["seq"] is not None
    gone = http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("bob"))
    assert gone.status_code == 404


def test_approvers_approve_operators_operate_and_viewers_look(
    bench: Bench, http: httpx.Client, following: Controller
) -> None:
    _waiting_release(bench)
    assert http.post("/v1/environments/prod/reconcile", headers=_as("olga")).status_code == 200
    for who in ("cid", "vic", "olga"):
        for path in (
            "environments",
            "environments/prod",
            "environments/prod/why/mail",
            "environments/prod/history",
            "source",
        ):
            assert http.get(f"/v1/{path}", headers=_as(who)).status_code == 200, (who, path)
        (waits,) = http.get("/v1/promotions?phase=waiting", headers=_as(who)).json()["promotions"]
    approve = f"/v1/promotions/{waits['id']}/approve"
    for who in ("vic", "olga"):  # although the file names olga as an approver
        refused = http.post(approve, headers=_as(who))
        assert (refused.status_code, refused.json()["required_scope"]) == (403, "releases:decide")
    orders = {"hold": {"bundle": "mail", "reason": "x"}, "suspend": {"reason": "x"}, "reconcile": {}, "unsuspend": {}}
    for verb, order in orders.items():
        refused = http.post(f"/v1/environments/prod/{verb}", json=order or None, headers=_as("cid"))
        assert (refused.status_code, refused.json()["required_scope"]) == (403, "releases:operate")
    refused = http.put("/v1/policies/environment/prod", json={}, headers=_as("cid"))
    assert (refused.status_code, refused.json()["required_scope"]) == (403, "policies:write")
    assert http.post(approve, headers=_as("cid")).status_code == 200
    assert bench.served() == {"mail": "1.0.0"}


def test_a_scope_may_be_given_alone(bench: Bench, settings: Settings) -> None:
    keys = "one:one-key:releases:read;two:two-key:policies:read;three:three-key:human:read;four:four-key:receipts:read"
    alone = replace(settings, api_keys=keys)
    app = create_app(alone, bench.store, Starter(bench.store, lambda spec: spec, pin=bench.repo.pin))
    expected = {"one": (200, 403, 403), "two": (200, 200, 403), "three": (403, 403, 200), "four": (403, 403, 200)}
    with serving(app) as client:
        for name, statuses in expected.items():
            asked = ("/v1/environments", "/v1/policies/environment", "/v1/receipts/key")
            got = tuple(client.get(path, headers={"Authorization": f"Bearer {name}-key"}).status_code for path in asked)
            assert got == statuses, name


def test_where_people_must_sign_themselves_their_envelope_is_asked_for(
    bench: Bench, http: httpx.Client, following: Controller
) -> None:
    key = bench.repo.person("bob", "approver")
    bench.repo.commit("Trust bob")
    bench.reconcile_by(following)
    _waiting_release(bench, signed=True)
    http.post("/v1/environments/prod/reconcile", headers=_as("bob"))
    (waits,) = http.get("/v1/promotions?phase=waiting", headers=_as("bob")).json()["promotions"]
    refused = http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("bob"))
    assert refused.json()["error"] == "signature_required"
    for digest, expected in ((bench.repo.pin, 400), (waits["subject"], 200)):
        statement = build_approval(
            bundle_name="mail",
            bundle_digest=digest,
            environment="prod",
            policy_digest=waits["policy_digest"],
            decision=ApprovalDecision.APPROVE,
            issued_at=bench.store.clock.now(),
            expires=bench.store.clock.now() + timedelta(days=1),
        )
        envelope = serialise(sign(PAYLOAD_TYPE, statement.payload, key)).decode()
        answer = http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("bob"), json={"envelope": envelope})
        assert answer.status_code == expected, answer.text
    assert bench.served() == {"mail": "1.0.0"}


def test_a_rollback_stays_although_git_says_otherwise(bench: Bench, http: httpx.Client, following: Controller) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    http.post("/v1/environments/prod/reconcile", headers=_as("bob"))
    bench.repo.release("prod", "mail", "1.1.0")
    http.post("/v1/environments/prod/reconcile", headers=_as("bob"))
    order = {"bundle": "mail", "reason": "it shouts"}
    answer = http.post("/v1/environments/prod/rollback", json=order, headers=_as("bob"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"]["version"] == "1.0.0"
    bench.repo.commit("Another commit")
    after = http.post("/v1/environments/prod/reconcile", headers=_as("bob")).json()
    assert after["environment"]["releases"][0]["version"] == "1.0.0"
    assert after["environment"]["holds"][0]["actor"] == "bob"
    (event,) = bench.events("release.rolled_back")
    assert event["reason"] == "it shouts"
    unheld = http.post("/v1/environments/prod/unhold", json={"bundle": "mail"}, headers=_as("bob")).json()
    assert unheld["environment"]["releases"][0]["version"] == "1.1.0"
    again = http.post("/v1/environments/prod/rollback", json={**order, "to": "7.7.7"}, headers=_as("bob"))
    assert (again.status_code, again.json()["error"]) == (404, "never_served")


def test_a_rollback_to_an_earlier_version_needs_an_operator_alone(
    bench: Bench, http: httpx.Client, following: Controller
) -> None:
    for version in ("1.0.0", "1.1.0"):
        bench.repo.release("prod", "mail", version)
        bench.reconcile_by(following)
    rule = {"required": 2, "roles": ["approver"]}
    bench.repo.environment("prod", {"mail": "1.1.0"}, approvals=rule, people=PEOPLE)
    bench.repo.commit("Two people from now on")
    bench.reconcile_by(following)
    order = {"bundle": "mail", "reason": "it shouts"}
    answer = http.post("/v1/environments/prod/rollback", json=order, headers=_as("bob"))
    assert answer.status_code == 200, answer.text
    assert bench.served() == {"mail": "1.0.0"}
    # A later version needs what its release needs.
    forward = http.post("/v1/environments/prod/rollback", json={**order, "to": "1.1.0"}, headers=_as("bob"))
    assert (forward.status_code, forward.json()["error"]) == (409, "AwaitingApproval")
    assert bench.served() == {"mail": "1.0.0"}


def test_suspended_environments_stay_as_they_are(bench: Bench, http: httpx.Client, following: Controller) -> None:
    bench.reconcile_by(following)
    assert http.post("/v1/environments/prod/suspend", json={}, headers=_as("bob")).status_code == 422
    http.post("/v1/environments/prod/suspend", json={"reason": "incident"}, headers=_as("bob"))
    bench.repo.release("prod", "mail", "1.0.0")
    after = http.post("/v1/environments/prod/reconcile", headers=_as("bob")).json()["environment"]
    assert (after["releases"], after["suspension"]["reason"]) == ([], "incident")
    lifted = http.post("/v1/environments/prod/unsuspend", headers=_as("bob")).json()
    assert len(lifted["environment"]["releases"]) == 1


def test_another_spelling_of_a_name_is_the_same_person(bench: Bench, http: httpx.Client, following: Controller) -> None:
    people = {"Bob": {"roles": ["approver"]}, "cid": {"roles": ["approver"]}}
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals={"required": 1, "roles": ["approver"]}, people=people)
    bench.repo.commit("Release mail")
    bench.reconcile_by(following)
    (waits,) = http.get("/v1/promotions?phase=waiting", headers=_as("bob")).json()["promotions"]
    assert http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("eve")).status_code == 403
    done = http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("bob"))
    assert done.status_code == 200, done.text
    assert [item["bundle"] for item in done.json()["environment"]["releases"]] == ["mail"]


def test_operators_stop_changes_and_approvers_resume_them(
    bench: Bench, http: httpx.Client, following: Controller
) -> None:
    def answered(verb: str, order: object, who: str) -> tuple[int, str | None]:
        answer = http.post(f"/v1/environments/prod/{verb}", json=order, headers=_as(who))
        return answer.status_code, answer.json().get("error")

    hold, suspension = {"bundle": "mail", "reason": "x"}, {"reason": "x"}
    bench.reconcile_by(following)
    for rule in ({"required": 1}, {"required": 1, "signed": True}):
        bench.repo.environment("prod", {}, approvals=rule, people=PEOPLE)
        bench.repo.commit(f"Require approvals: {rule}")
        bench.reconcile_by(following)
        for verb, order, resume, what in (
            ("hold", hold, "unhold", {"bundle": "mail"}),
            ("suspend", suspension, "unsuspend", None),
        ):
            assert answered(verb, order, "vic") == (403, "forbidden")
            assert answered(verb, order, "eve") == (200, None)
            assert answered(resume, what, "eve") == (403, "not_an_approver")
            soon = (bench.store.clock.now() + timedelta(minutes=1)).isoformat()
            assert answered(verb, {**order, "until": soon}, "eve") == (403, "not_an_approver"), (
                "it ends before the other"
            )
            assert answered(verb, order, "eve") == (200, None)
            assert answered(verb, {**order, "until": soon}, "bob") == (200, None)
            assert answered(resume, what, "bob") == (200, None)


def test_operators_roll_back_and_approvers_go_forward_again(
    bench: Bench, http: httpx.Client, following: Controller
) -> None:
    rule = {"required": 1, "roles": ["approver"]}
    for version in ("1.0.0", "1.1.0"):
        bench.repo.bundle("mail", version)
        bench.repo.environment("prod", {"mail": version}, approvals=rule, people=PEOPLE)
        bench.repo.commit(f"Release mail {version}")
        http.post("/v1/environments/prod/reconcile", headers=_as("bob"))
        (waits,) = http.get("/v1/promotions?phase=waiting", headers=_as("bob")).json()["promotions"]
        http.post(f"/v1/promotions/{waits['id']}/approve", headers=_as("bob"))
    assert bench.served() == {"mail": "1.1.0"}

    def rolled_back(who: str, **order: str) -> tuple[int, str | None]:
        body = {"bundle": "mail", "reason": "it shouts", **order}
        answer = http.post("/v1/environments/prod/rollback", json=body, headers=_as(who))
        return answer.status_code, answer.json().get("error")

    assert rolled_back("eve") == (200, None)
    assert bench.served() == {"mail": "1.0.0"}
    assert bench.events("release.rolled_back")[0]["reason"] == "it shouts"
    # The version that was released before is the later one now.
    assert rolled_back("eve") == (403, "not_an_approver")
    assert rolled_back("eve", to="1.1.0") == (403, "not_an_approver")
    assert rolled_back("eve", to="7.7.7") == (404, "never_served")
    assert bench.served() == {"mail": "1.0.0"}
    assert rolled_back("bob", to="1.1.0") == (200, None)
    assert bench.served() == {"mail": "1.1.0"}


def test_a_first_environment_file_is_approved_over_http_by_people_of_the_others(
    bench: Bench, http: httpx.Client, following: Controller
) -> None:
    bench.repo.environment("prod", {}, approvals={"required": 1}, people=PEOPLE)
    bench.repo.commit("Require approvals")
    bench.reconcile_by(following)
    bench.repo.environment("new", {}, people={"eve": {"roles": ["approver"]}})
    bench.repo.commit("Add an environment")
    bench.reconcile_by(following)
    shown = http.get("/v1/environments/new", headers=_as("bob")).json()
    (waits,) = shown["pending"]
    assert (waits["gate"], waits["kind"], shown["releases"]) == ("policy", "policy", [])
    path = f"/v1/promotions/{waits['id']}/approve"
    refused = http.post(path, headers=_as("eve"))
    assert (refused.status_code, refused.json()["error"]) == (403, "not_an_approver")
    done = http.post(path, json={"reason": "We need it"}, headers=_as("bob")).json()
    assert done["approval"]["reason"] == "We need it"
    ready = next(item for item in done["environment"]["conditions"] if item["type"] == "Ready")
    assert ready["status"] is True


def test_without_a_controller_nothing_is_promised(bench: Bench, http: httpx.Client) -> None:
    bench.reconcile()
    bench.drop_lease()
    for path, body in (("suspend", {"reason": "x"}), ("reconcile", None), ("hold", {"bundle": "m", "reason": "x"})):
        answer = http.post(f"/v1/environments/prod/{path}", json=body, headers=_as("bob"))
        assert (answer.status_code, answer.json()["error"]) == (503, "no_controller")
    assert http.get("/v1/environments/prod/plan", headers=_as("bob")).status_code == 503


def test_a_plan_tells_what_a_branch_would_change(bench: Bench, http: httpx.Client, following: Controller) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile_by(following)
    before = bench.rows(but={"requests", "leases"})
    bench.repo.git("switch", "-q", "-c", "change")
    bench.repo.bundle("mail", "1.1.0", bench.repo.other_spec())
    bench.repo.environment("prod", {"mail": "1.1.0"}, approvals={"required": 1, "roles": ["approver"]}, people=PEOPLE)
    bench.repo.commit("Propose")
    plan = http.get("/v1/environments/prod/plan?ref=change", headers=_as("bob")).json()
    (environment,) = plan["environments"]
    (action,) = environment["actions"]
    assert (action["kind"], action["from"], action["to"], action["allowed"]) == ("promote", "1.0.0", "1.1.0", False)
    assert any("Another question?" in json.dumps(change) for change in action["diff"])
    assert [gate["gate"] for gate in environment["gates"]] == ["approvals"]
    assert bench.rows(but={"requests", "leases"}) == before


def test_bundles_are_listed_with_where_they_are_served(bench: Bench, http: httpx.Client) -> None:
    digest = bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    assert http.get("/v1/bundles", headers=_as("vic")).json()["bundles"][0]["served_in"] == ["prod"]
    one = http.get("/v1/bundles/mail/1.0.0", headers=_as("vic")).json()
    assert (one["digest"], one["spec"]["agent"]["name"]) == (digest, "announcer")
    assert http.get("/v1/bundles/mail/2.0.0", headers=_as("vic")).status_code == 404


def test_an_event_is_proved_without_trusting_the_service(bench: Bench, http: httpx.Client) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        bench.repo.release("prod", "mail", version)
        bench.reconcile()
    (promoted,) = [item for item in bench.sealed("release.promoted") if item.event.metadata["version"] == "1.1.0"]
    proof = http.get(f"/v1/audit/proof?seq={promoted.seq}", headers=_as("vic")).json()
    said = read_checkpoint(proof["checkpoint"], PublicKey.load(proof["key"]))
    assert proof["key"] == bench.service_key.public.pem
    assert (said.size, said.root) == (proof["size"], proof["root"])
    assert verify_inclusion(proof["leaf"], promoted.seq - 1, said.size, proof["path"], said.root)
    assert not verify_inclusion("0" * 64, promoted.seq - 1, said.size, proof["path"], said.root)
    assert audit.verify(bench.store).valid
    assert http.get("/v1/audit/proof?seq=999", headers=_as("vic")).status_code == 404
    again = http.get("/v1/audit/checkpoint", headers=_as("vic")).json()
    assert again["note"] == proof["checkpoint"]
