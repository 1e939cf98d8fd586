"""What is shown of the calls of other programs: plan, status, why, metrics, doctor, lists of runs; and how long they are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from console_pages import Browser, signed_in
from integration.service.test_calls import ADDED, CALLS, asking, decide, make, spec
from served_agents import served_agents
from service_bench import Bench

from kneo.cli.main import run
from kneo.cli.serve.database_checks import check_calls
from kneo.clock import ManualClock
from kneo.maintenance import RetentionManager, RetentionPolicy, make_retention
from kneo.store.migrate import open_store

SEARCH = {"description": "Search the shop.", "parameters": {"type": "object"}, "mcp": {"server": "shop"}}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    tools = {**spec()["tools"], "search": SEARCH}
    agent = {**spec()["agent"], "tools": {"include": list(tools), "permissions": {"allow_network": True}}}
    server = {"transport": "http", "url": "https://shop.example/mcp"}
    with served_agents(
        tmp_path_factory.mktemp("reports"),
        {"payments": spec(tools=tools, agent=agent, mcp_servers={"shop": server})},
        calls=[*CALLS, {"bundle": "pay*", "callers": {"groups": ["support"]}, "tools": ["search"]}],
    ) as made:
        functions = made.folder / "lab_functions.py"
        functions.write_text(functions.read_text() + ADDED)
        yield made


def kneo(house: Bench, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run([*arguments]) == 0, capsys.readouterr()
    return capsys.readouterr().out


@pytest.fixture
def at_desk(house: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(house.folder))
    monkeypatch.setenv("KNEO_SERV_API_KEY", "admin-key")
    monkeypatch.chdir(house.folder.parent / "repo")


@pytest.mark.usefixtures("at_desk")
def test_a_plan_names_the_tools_that_are_served_their_callers_and_who_is_asked(
    house: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = kneo(house, capsys, "plan", "--env", "prod")
    assert "payments: serves lookup to caller, service, admin, viewer: asks no person" in shown
    assert "payments: serves refund to caller, service, admin: asks finance" in shown
    assert "serves search to caller, service, admin, group support: asks no person, has no pin" in shown
    served = json.loads(kneo(house, capsys, "plan", "--env", "prod", "--json"))["environments"][0]["served_calls"]
    assert served[0] == {
        "bundle": "payments",
        "tool": "lookup",
        "callers": ["caller", "service", "admin", "viewer"],
        "asks": [],
        "is_unpinned": False,
    }
    assert "serves refund to" in kneo(house, capsys, "plan", "--markdown")


@pytest.mark.usefixtures("at_desk")
def test_calls_that_wait_are_in_the_status_and_tools_without_pins_in_why(
    house: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = asking(house, make(house, "refund", wait="1s", id="1", amount=1))
    assert house.get("/environments/prod")["waiting_calls"] == 1
    assert house.get("/environments/dev")["waiting_calls"] == 0
    where = ("--service-url", house.url)
    assert "1 call waiting for people, the oldest since" in kneo(house, capsys, "status", *where)
    assert "search has no pin" in kneo(house, capsys, "why", "prod/payments", *where)
    assert house.get("/environments/prod/why/payments")["unpinned"] == ["search"]
    assert house.get("/environments/dev/why/payments")["unpinned"] == []
    assert "kneo_calls_waiting 1.0" in metrics(house)
    decide(house, waiting, decision="approved")
    done = house.get(f"/calls/{waiting['id']}", role="caller", wait="30s")
    assert done["outcome"] == "success"
    assert house.get("/environments/prod")["calls_wait_since"] is None
    counted = 'kneo_calls_total{bundle="payments",environment="prod",outcome="success",tool="refund"}'
    assert counted in metrics(house)
    assert 'kneo_call_seconds_count{bundle="payments",environment="prod"}' in metrics(house)


def test_what_the_caller_is_to_do_does_not_wait_for_people(house: Bench) -> None:
    call = asking(house, make(house, "delete_branch", wait="1s", branch="x"))
    decide(house, call, decision="approved")
    assert house.get(f"/calls/{call['id']}", role="caller", wait="30s")["status"] == "allowed"
    assert house.get("/environments/prod")["waiting_calls"] == 0
    house.post(f"/calls/{call['id']}/cancel", role="caller")


def metrics(house: Bench) -> str:
    return house.client("admin").get(house.url + "/metrics").text


def test_runs_are_filtered_to_calls(house: Bench) -> None:
    call = make(house, "lookup", id="filtered")
    listed = {kind: house.get("/runs", workflow_kind=kind)["runs"] for kind in ("call", "agent", "workflow")}
    assert call["id"] in [each["run_id"] for each in listed["call"]]
    assert listed["agent"] == listed["workflow"] == []
    browser = signed_in(house.url, "admin")
    assert call["id"] in browser.get("/console/runs?kind=call").html
    assert call["id"] not in browser.get("/console/runs?kind=agent").html
    Browser.close_all()


def test_doctor_names_keys_that_do_more_calls_without_a_report_and_a_missing_address(house: Bench) -> None:
    found = check_calls(house.settings, house.store)
    assert found.level == "warning"
    assert "admin, service" in found.message
    assert "viewer" not in found.message
    assert "caller" not in found.message.partition("calls: ")[2].partition(";")[0].split(", ")
    assert "KNEO_SERV_PUBLIC_URL is not set" in found.message


def test_calls_without_a_decision_are_deleted_after_thirty_days(house: Bench) -> None:
    plain, asked = make(house, "lookup", id="old"), asking(house, make(house, "refund", wait="1s", id="old", amount=1))
    decide(house, asked, decision="approved")
    house.get(f"/calls/{asked['id']}", role="caller", wait="30s")
    later = ManualClock(house.store.clock.now() + timedelta(days=31))
    store = open_store(house.settings.database_url, later)
    assert make_retention(house.settings, store).args[0].calls_days == 30
    assert RetentionManager(store).prune(RetentionPolicy(calls_days=60)).runs == 0
    assert RetentionManager(store).prune(RetentionPolicy(calls_days=30)).runs >= 1
    store.close()
    house.get(f"/runs/{plain['id']}", expect=404)
    assert house.get(f"/runs/{asked['id']}")["status"] == "succeeded"
    assert make(house, "lookup", id="old")["outcome"] == "success"
