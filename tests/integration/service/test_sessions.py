"""Sessions over HTTP: whose are listed and deleted, and what the audit log says."""

from __future__ import annotations

import pytest
from service_bench import Bench

from kneo.records.agent_session import FinishedTurn, SessionKey
from kneo.store import agent_sessions


@pytest.fixture(autouse=True)
def sessions(bench: Bench) -> None:
    """Sessions of two requesters, as their runs leave them."""
    with bench.store.write() as tx:
        for environment, requester, name in [
            ("", "operator", "trip"),
            ("prod", "operator", "trip"),
            ("prod", "operator", "other/ä"),
            ("prod", "ann", "trip"),
        ]:
            key = SessionKey(environment=environment, requester=requester, session_id=name)
            agent_sessions.delete_session(tx, key)
            agent_sessions.append(tx, key, "run_1", [FinishedTurn(agent="chat", user="hi", assistant="hello")])


def listed(bench: Bench, role: str = "operator", **query: str) -> list[tuple[str, str | None, int]]:
    page = bench.client(role).get(f"{bench.url}/v1/sessions", params=query).json()
    return sorted(
        ((each["session_id"], each["environment"], each["message_count"]) for each in page["sessions"]), key=str
    )


def test_a_caller_lists_the_own_sessions(bench: Bench) -> None:
    assert listed(bench) == [("other/ä", "prod", 2), ("trip", "prod", 2), ("trip", None, 2)]
    assert listed(bench, environment="prod") == [("other/ä", "prod", 2), ("trip", "prod", 2)]
    assert listed(bench, requester="ann") == [("trip", "prod", 2)]
    page = bench.client("operator").get(f"{bench.url}/v1/sessions", params={"limit": 1, "offset": 2}).json()
    assert (page["count"], page["total"], page["limit"], page["offset"]) == (1, 3, 1, 2)
    assert "hello" not in str(page)


def test_a_session_is_deleted_in_one_environment_or_in_all(bench: Bench) -> None:
    operator, address = bench.client("operator"), f"{bench.url}/v1/sessions/trip"
    gone = operator.delete(address, params={"environment": "prod"})
    assert gone.json() == {
        "session_id": "trip",
        "requester": "operator",
        "environments": ["prod"],
        "message_count": 2,
    }
    assert listed(bench) == [("other/ä", "prod", 2), ("trip", None, 2)]
    assert operator.delete(address).json()["environments"] == [None]
    again = operator.delete(address)
    assert (again.status_code, again.json()["error"]) == (404, "session_not_found")
    assert listed(bench, requester="ann") == [("trip", "prod", 2)]
    events = bench.client("operator").get(
        f"{bench.url}/v1/audit-events", params={"event_type": "session.deleted", "limit": 2}
    )
    [last, _] = events.json()["events"]
    assert last["actor"] == "operator"
    assert last["metadata"]["message_count"] == 2
    assert "hello" not in events.text


def test_who_may_not_delete_a_session(bench: Bench) -> None:
    address = f"{bench.url}/v1/sessions/trip"
    assert bench.client("viewer").delete(address).status_code == 403
    refused = bench.client("operator").delete(address, params={"requester": "ann"})
    assert (refused.status_code, refused.json()["required_scope"]) == (403, "*")
    assert listed(bench, requester="ann") == [("trip", "prod", 2)]
    assert bench.client("admin").delete(address, params={"requester": "ann"}).status_code == 200
    assert listed(bench, requester="ann") == []


def test_the_messages_of_a_session_are_read_by_its_requester(bench: Bench) -> None:
    operator, address = bench.client("operator"), f"{bench.url}/v1/sessions/trip/messages"
    page = operator.get(address, params={"environment": "prod"}).json()
    assert [(each["role"], each["text"]) for each in page["messages"]] == [("user", "hi"), ("assistant", "hello")]
    assert (page["environment"], page["requester"], page["total"], page["truncated"]) == ("prod", "operator", 2, False)
    second = operator.get(address, params={"limit": 1, "offset": 1, "agent": "chat"}).json()
    assert ([each["text"] for each in second["messages"]], second["total"]) == (["hello"], 2)
    assert operator.get(address).json()["environment"] is None, "the session of runs without an environment"
    missing = operator.get(f"{bench.url}/v1/sessions/nothing/messages")
    assert (missing.status_code, missing.json()["error"]) == (404, "session_not_found")


def test_who_may_not_read_a_session(bench: Bench) -> None:
    address = f"{bench.url}/v1/sessions/trip/messages"
    assert bench.client("viewer").get(address).json()["required_scope"] == "runs:content"
    refused = bench.client("operator").get(address, params={"requester": "ann"})
    assert (refused.status_code, refused.json()["required_scope"]) == (403, "*")
    shown = bench.client("admin").get(address, params={"requester": "ann"})
    assert [each["text"] for each in shown.json()["messages"]] == ["hi", "hello"]


def test_a_session_of_several_environments_needs_the_name_of_one(bench: Bench) -> None:
    with bench.store.write() as tx:
        for environment in ("dev", "prod"):
            key = SessionKey(environment=environment, requester="operator", session_id="both")
            agent_sessions.append(tx, key, "run_1", [FinishedTurn(agent="chat", user="hi", assistant=environment)])
    operator, address = bench.client("operator"), f"{bench.url}/v1/sessions/both/messages"
    refused = operator.get(address)
    assert (refused.status_code, "dev, prod" in refused.json()["message"]) == (422, True)
    assert operator.get(address, params={"environment": "dev"}).json()["messages"][1]["text"] == "dev"
    operator.delete(f"{bench.url}/v1/sessions/both")


@pytest.mark.parametrize("name", ["other/ä", "other%2F%C3%A4"])
def test_a_name_with_a_slash_is_part_of_the_path(bench: Bench, name: str) -> None:
    operator, address = bench.client("operator"), f"{bench.url}/v1/sessions/{name}"
    assert operator.get(f"{address}/messages").json()["session_id"] == "other/ä"
    assert operator.delete(address).json()["session_id"] == "other/ä"
    wrong = operator.get(address)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE")


def test_secrets_in_a_session_are_not_shown(bench: Bench) -> None:
    key = SessionKey(environment="", requester="operator", session_id="secret")
    with bench.store.write() as tx:
        agent_sessions.append(
            tx, key, "run_1", [FinishedTurn(agent="chat", user="password=hunter2-long ada@example.org", assistant="ok")]
        )
    operator, address = bench.client("operator"), f"{bench.url}/v1/sessions/secret/messages"
    assert "example.org" not in operator.get(address).text
    whole = operator.get(address, params={"whole": "true"}).text
    assert ("ada@example.org" in whole, "hunter2" in whole) == (True, False)
