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
