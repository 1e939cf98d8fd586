"""Buttons in Slack: a question with its whole subject, decided by the linked person through a signed request, where the environment allows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from config_repo import ConfigRepo
from integration.service.test_calls import ADDED, ORDER, asking, make, refunds, spec
from kneo_process import eventually
from service_bench import Bench, Json, serving
from slack_server import Slack, buttons, pressed, signed, slack_server

from kneo.cli.serve.controller import Repository, make_controller
from kneo.errors import Invalid
from kneo.extensions.slack import app, channel
from kneo.notify.channel_kinds import open_channels
from kneo.notify.delivery import Courier
from kneo.settings import from_env
from kneo.store.tables import outbox
from kneo.tasks.lifecycle import is_asked

SECRET, TOKEN = "8f742231b10e8888abcd99yyyzzz85a5", "xoxb-17-token"
ANN, BEN, CID, EVE = "T1/U1", "T1/U2", "T1/U3", "T1/U9"
PEOPLE: Json = {
    "ann": {"groups": ["finance"], "slack": ANN},
    "ben": {"groups": ["finance"], "slack": BEN},
    "cid": {"slack": CID},
    "admin": {"groups": ["finance"], "slack": EVE},
    "viewer": {"groups": ["finance"], "slack": "T1/U4"},
    "dan": {"groups": ["finance"], "slack": "T1/U5"},
    "don": {"groups": ["finance"], "slack": "T1/U5"},
}
VARIABLES = {
    "KNEO_SERV_CHANNEL_OPS": f"slack-app:{TOKEN}@C1",
    "KNEO_SERV_SLACK_SIGNING_SECRET": SECRET,
    "KNEO_SERV_PUBLIC_URL": "https://kneo.example",
}


def payments() -> Json:
    finance: Json = {"description": "May it be done?", "candidates": {"groups": ["finance"]}, "notify": ["ops"]}
    humans = {
        "finance": finance,
        "two": {**finance, "quorum": {"approvals": 2}},
        "form": {**finance, "fields": [{"name": "id"}]},
        "signed": {**finance, "receipt": "signed_by_reviewer"},
    }
    refund: Json = {
        "description": "Refund.",
        "implementation": "lab_functions.refund",
        "parameters": ORDER,
        "capabilities": ["privileged"],
    }
    tools = {name: {**refund, "review": {"before": {"human": name}}} for name in humans}
    agent = {"name": "payments", "tools": {"include": list(tools), "permissions": {}}}
    return spec(agent=agent, tools=tools, components={"humans": humans})


@contextmanager
def house_of(folder: Path, variables: dict[str, str], **rules: object) -> Iterator[Bench]:
    repo = ConfigRepo(folder / "repo")
    repo.bundle("payments", "1.0.0", payments())
    calls = {"calls": [{"bundle": "payments"}]}
    repo.environment("prod", {"payments": "1.0.0"}, protocols=calls, people=PEOPLE, **rules)
    repo.commit("Serve calls")
    source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
    with serving(folder / "house", f"sqlite:///{folder / 'kneo.sqlite'}", **variables) as house:
        functions = house.folder / "lab_functions.py"
        functions.write_text(functions.read_text() + ADDED)
        outcome = make_controller(house.settings, house.store, source).run_once().outcomes["prod"]
        assert outcome.state == "Ready", outcome
        yield house


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with house_of(tmp_path_factory.mktemp("slack"), VARIABLES, questions={"via": ["slack"]}) as made:
        yield made


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slack]:
    with slack_server() as made:
        monkeypatch.setattr(app, "API", made.url)
        yield made


def deliver(house: Bench) -> None:
    channels = open_channels(house.settings, house.store, is_asked)
    while Courier(house.store, house.settings, channels=channels, seconds=30).deliver_due():
        pass


def ask(house: Bench, slack: Slack, order: str, tool: str = "finance", role: str = "caller") -> tuple[Json, Json]:
    """Make a call that asks, and return it with the message about it."""
    call = asking(house, make(house, tool, role=role, wait="1s", id=order, amount=20))
    deliver(house)
    return call, slack.sent("chat.postMessage")[-1]


def press(
    house: Bench,
    message: Json,
    account: str,
    kind: str = "approved",
    *,
    at: float | None = None,
    secret: str = SECRET,
    **changes: Any,
) -> httpx.Response:
    button = {**buttons(message)[kind], **changes.pop("button", {})}
    body = pressed(message, button, account, **changes)
    now = house.store.clock.now().timestamp()
    return send(house, body, signed(body, secret, at if at is not None else now))


def send(house: Bench, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{house.url}/v1/chat/slack", content=body, headers=headers, timeout=240)


def status(house: Bench, call: Json, role: str = "caller") -> str:
    return str(house.get(f"/calls/{call['id']}", role=role)["status"])


def end(house: Bench, call: Json, role: str = "caller") -> None:
    assert status(house, call, role) == "waiting"
    house.post(f"/calls/{call['id']}/cancel", role=role)


def value_of(house: Bench, call: Json) -> str:
    """Return the value of a button that would decide the question of a call."""
    (question,) = call["questions"]
    detail = house.get(f"/human-tasks/{question['id']}")
    request = detail["request"]["request_id"]
    return json.dumps({"task": question["id"], "request": request, "digest": detail["request"]["subject_digest"]})


def test_a_button_decides_as_the_linked_person_and_the_receipt_says_how(house: Bench, slack: Slack) -> None:
    call, message = ask(house, slack, "b1")
    assert slack.received[0][1] == f"Bearer {TOKEN}"
    assert message["channel"] == "C1"
    shown = [block["text"]["text"] for block in message["blocks"] if block["type"] == "section"]
    assert json.loads(shown[1]) == {"tool": "finance", "arguments": {"id": "b1", "amount": 20}}
    assert all(block["text"]["type"] == "plain_text" for block in message["blocks"] if block["type"] == "section")
    assert f"https://kneo.example/console/inbox/{call['questions'][0]['id']}" in json.dumps(message)
    answer = press(house, message, ANN)
    assert (answer.status_code, answer.json()["text"].startswith("ann: approved.")) == (200, True)
    done = house.get(f"/calls/{call['id']}", role="caller", wait="30s")
    assert (done["outcome"], done["result"]) == ("success", {"refunded": 20})
    chain = house.get(f"/runs/{call['id']}/receipts")
    receipt = chain["receipts"][0]["receipt"]
    assert (receipt["actor"], [each["via"] for each in receipt["voters"]]) == ("ann", ["slack"])
    assert house.post("/receipts/verify", chain)["valid"]
    (updated,) = slack.sent("chat.update")
    assert (updated["channel"], updated["ts"], buttons(updated)) == ("C1", "17.1", {})


def test_a_rejection_by_a_button_denies_the_call(house: Bench, slack: Slack) -> None:
    call, message = ask(house, slack, "b2")
    press(house, message, BEN, "rejected")
    assert house.get(f"/calls/{call['id']}", role="caller", wait="30s")["outcome"] == "denied"


def test_requests_that_slack_did_not_sign_or_long_ago_are_refused(house: Bench, slack: Slack) -> None:
    call, message = ask(house, slack, "b3")
    now = house.store.clock.now().timestamp()
    body = pressed(message, buttons(message)["approved"], ANN)
    good = signed(body, SECRET, now)
    later = pressed(message, buttons(message)["approved"], BEN)
    refused = [
        press(house, message, ANN, secret="another"),
        press(house, message, ANN, at=now - 302),  # a replay
        press(house, message, ANN, at=now + 302),
        send(house, later, good),
        send(house, body, {**good, "X-Slack-Request-Timestamp": str(int(now) - 1)}),
        send(house, body, {**good, "X-Slack-Request-Timestamp": "soon"}),
        send(house, body, {**good, "X-Slack-Signature": "v0=é".encode()}),  # type: ignore[dict-item]
        send(house, body, {"Content-Type": good["Content-Type"]}),
    ]
    assert {(each.status_code, each.json()["error"]) for each in refused} == {(401, "hook_signature_invalid")}
    for wrong in (b"payload=%7B%7D", b"x", b"payload=[]&payload=1", b"\xff"):
        assert send(house, wrong, signed(wrong, SECRET, now)).json()["error"] == "invalid_payload"
    large = b"x" * 300_000
    assert send(house, large, signed(large, SECRET, now)).status_code == 413
    end(house, call)


@pytest.mark.parametrize(
    ("account", "changes", "why"),
    [
        ("T2/U1", {}, "no person"),
        ("T1/U7", {}, "no person"),
        ("T1/U5", {}, "not of one alone"),
        (ANN, {"user": {"id": "U1", "team_id": "T2"}}, "no person"),
        (CID, {}, "not among those"),
        (EVE, {}, "requester"),
        ("T1/U4", {}, "human:write"),
    ],
    ids=[
        "foreign team",
        "foreign user",
        "two people",
        "user of another team",
        "no candidate",
        "requester",
        "key without scope",
    ],
)
def test_other_accounts_decide_nothing(house: Bench, slack: Slack, account: str, changes: Json, why: str) -> None:
    role = "admin" if account == EVE else "caller"
    call, message = ask(house, slack, f"b4-{why}-{account}", role=role)
    answer = press(house, message, account, **changes)
    assert answer.status_code == 200
    assert answer.json()["text"].startswith("Nothing was decided")
    assert why in answer.json()["text"]
    (told,) = eventually(lambda: slack.sent("chat.postEphemeral"))
    assert told["user"] == account.partition("/")[2]
    end(house, call, role)


def test_a_button_of_another_subject_or_question_decides_nothing(house: Bench, slack: Slack) -> None:
    call, message = ask(house, slack, "b5")
    value = json.loads(buttons(message)["approved"]["value"])
    for changed in ({"digest": "sha256:" + "0" * 64}, {"request": "req_other"}, {"task": "cont_none"}):
        answer = press(house, message, ANN, button={"value": json.dumps({**value, **changed})})
        assert answer.json()["text"].startswith("Nothing was decided"), changed
    for wrong in ("{}", "x", json.dumps({**value, "decision": "approved"})):
        assert press(house, message, ANN, button={"value": wrong}).json()["error"] == "invalid_payload"
    assert press(house, message, ANN, button={"action_id": "other"}).json() == {}
    end(house, call)


def test_a_double_click_a_replay_and_a_late_click_decide_nothing_more(house: Bench, slack: Slack) -> None:
    call, message = ask(house, slack, "b6")
    body = pressed(message, buttons(message)["approved"], ANN)
    headers = signed(body, SECRET, house.store.clock.now().timestamp())
    first, *others = [send(house, body, headers) for _ in range(3)]
    others.append(press(house, message, BEN, "rejected"))
    assert first.json()["text"].startswith("ann: approved")
    assert all(each.json()["text"].startswith("Nothing was decided") for each in others)
    assert house.get(f"/calls/{call['id']}", role="caller", wait="30s")["outcome"] == "success"
    assert len([each for each in refunds(house) if each["id"] == "b6"]) == 1
    other, message = ask(house, slack, "b6-cancelled")
    end(house, other)
    assert press(house, message, ANN).json()["text"].startswith("Nothing was decided")


def test_of_two_people_at_once_one_decides(house: Bench, slack: Slack) -> None:
    call, message = ask(house, slack, "b7")
    presses = [(ANN, "approved"), (BEN, "rejected")] * 3
    with ThreadPoolExecutor(6) as threads:
        texts = [each.json()["text"] for each in threads.map(lambda one: press(house, message, *one), presses)]
    decided = [text for text in texts if not text.startswith("Nothing was decided")]
    assert len(decided) == 1, texts
    outcome = house.get(f"/calls/{call['id']}", role="caller", wait="30s")["outcome"]
    assert outcome == ("success" if decided[0].startswith("ann") else "denied")


def test_a_quorum_takes_the_buttons_of_two_people(house: Bench, slack: Slack) -> None:
    call, message = ask(house, slack, "b8", "two")
    for _ in range(2):
        assert "waits for further people" in press(house, message, ANN).json()["text"]
    assert status(house, call) == "waiting"
    assert slack.sent("chat.update") == []
    press(house, message, BEN)
    assert house.get(f"/calls/{call['id']}", role="caller", wait="30s")["outcome"] == "success"


@pytest.mark.parametrize(
    ("tool", "order"),
    [
        ("form", "order for a form"),
        ("signed", "order for a reviewer"),
        ("finance", "long " * 30),
        ("finance", "ghp_" + "a1B2c3D4e5" * 4),
    ],
    ids=["form", "signed by reviewer", "long subject", "secret in the subject"],
)
def test_a_question_whose_decision_a_message_does_not_show_whole_has_no_buttons(
    house: Bench, slack: Slack, tool: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert channel.MAX_SUBJECT_CHARS == 2_500
    monkeypatch.setattr(channel, "MAX_SUBJECT_CHARS", 140)
    made, message = ask(house, slack, order, tool)
    assert buttons(message) == {}
    (text,) = [block["text"]["text"] for block in message["blocks"] if block["type"] == "section"]
    assert '"arguments"' not in text, "the subject is not shown"
    assert tool != "finance" or order not in json.dumps(slack.received)
    _, other = ask(house, slack, f"b9-{tool}-{len(order)}")
    answer = press(house, other, ANN, button={"value": value_of(house, made)})
    assert "does not let buttons in Slack decide" in answer.json()["text"]
    end(house, made)


def test_without_the_environment_buttons_are_neither_shown_nor_accepted(
    house: Bench, slack: Slack, tmp_path: Path
) -> None:
    _, template = ask(house, slack, "b10")
    with house_of(tmp_path, VARIABLES) as off:
        call, message = ask(off, slack, "b10")
        assert buttons(message) == {}
        answer = press(off, template, ANN, button={"value": value_of(off, call)})
        assert "does not let buttons in Slack decide" in answer.json()["text"]
        end(off, call)


def test_without_the_secret_of_the_app_there_is_no_route(slack: Slack, tmp_path: Path) -> None:
    with serving(tmp_path / "house", f"sqlite:///{tmp_path / 'kneo.sqlite'}") as plain:
        body = b"payload=%7B%7D"
        assert send(plain, body, signed(body, "", plain.store.clock.now().timestamp())).status_code == 404
    assert slack.received == []


@pytest.mark.parametrize(
    ("code", "body", "problem"),
    [
        (200, b'{"ok": false, "error": "channel_not_found"}', "answered channel_not_found"),
        (500, b"x", "answered 500"),
        (200, b"[]", "answered 200"),
        (200, b"not json", "no answer: JSONDecodeError"),
        (200, b"x" * 200_000, "answered too much"),
    ],
)
def test_what_slack_refuses_is_sent_again_later(
    house: Bench, slack: Slack, code: int, body: bytes, problem: str
) -> None:
    slack.status, slack.body = code, body
    call, _ = ask(house, slack, f"b11-{problem}")
    with house.store.read() as tx:
        rows = tx.connection.execute(outbox.select().where(outbox.c.error == problem)).all()
    assert rows
    assert rows[-1].status == "waiting"
    assert TOKEN not in str(rows)
    end(house, call)


@pytest.mark.parametrize("address", ["", "xoxb-1@ops", "token@C1", "xoxb-s3cr3t", "xoxb-1@C1@evil", "xoxb-1 x@C1"])
def test_a_wrong_address_of_the_channel_is_refused_and_not_repeated(house: Bench, address: str, tmp_path: Path) -> None:
    settings = from_env({"HOME": str(tmp_path), "KNEO_SERV_CHANNEL_OPS": f"slack-app:{address}"}, tmp_path)
    with pytest.raises(Invalid, match="slack-app:TOKEN@CHANNEL") as refused:
        open_channels(settings, house.store, is_asked)
    assert not address or address not in str(refused.value)
