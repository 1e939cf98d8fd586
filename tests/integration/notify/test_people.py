"""What people hear of a question: from the transaction that asks it to a real receiver."""

from __future__ import annotations

import base64
import hmac
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from email.header import decode_header, make_header
from pathlib import Path

import pytest
from engine import Engine
from kneo_process import eventually
from receivers import MailReceiver, Received, WebReceiver, dripping_receiver, mail_receiver, web_receiver
from sqlalchemy import insert, select, text, update

from kneo.clock import ManualClock
from kneo.errors import Forbidden
from kneo.notify import delivery
from kneo.notify.delivery import Courier, Reply
from kneo.notify.outbox import ATTEMPTS
from kneo.records.task import DecisionKind
from kneo.runtime.engine.timers import tick
from kneo.settings import Settings, from_env
from kneo.store import metrics, prune
from kneo.store.engine import Store, Tx
from kneo.store.tables import metadata
from kneo.tasks import links
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.notifications import deliver_notifications

STEPS = "def publish(text): return text\n"


@pytest.fixture
def web() -> Iterator[WebReceiver]:
    with web_receiver() as receiver:
        yield receiver


@pytest.fixture
def post() -> Iterator[MailReceiver]:
    with mail_receiver() as receiver:
        yield receiver


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "steps", STEPS)


@pytest.fixture
def courier(store: Store, tmp_path: Path) -> Callable[..., Courier]:
    def make(
        public_url: str = "",
        make_link: Callable[[Tx, str, str], str] | None = None,
        seconds: float = 240,
        **channels: str,
    ) -> Courier:
        env = {f"KNEO_SERV_CHANNEL_{name.upper()}": address for name, address in channels.items()}
        settings: Settings = from_env(env, cwd=tmp_path)
        return Courier(store, replace(settings, public_url=public_url), make_link, seconds=seconds)

    return make


def ask(engine: Engine, **human: object) -> object:
    asked = {"description": "Release?", "assignee": "ann@example.com", "notify": ["ops"], **human}
    return engine.run([{"id": "q", "kind": "human", "ref": "asked"}], "the secret plan", asked=asked)


def mail_at(post: MailReceiver, **more: str) -> str:
    rest = "".join(f"&{name}={value}" for name, value in more.items())
    return f"smtp://127.0.0.1:{post.port}?from=kneo@example.com{rest}"


def rows(store: Store) -> list[tuple[str, str, int, str | None]]:
    with store.read() as tx:
        found = tx.connection.execute(text("SELECT channel, status, attempts, error FROM outbox ORDER BY id"))
        return [tuple(row) for row in found]


def test_one_process_delivers_a_batch_however_long_it_takes(
    engine: Engine, courier: Callable[..., Courier], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        ask(engine)
    mine, other = courier(ops="http://receiver.test"), courier(ops="http://receiver.test")
    sent: list[str] = []

    def post(_url: str, _body: bytes, headers: Mapping[str, str], _seconds: float) -> Reply:
        sent.append(headers["Idempotency-Key"])
        clock.advance(timedelta(seconds=100))
        other.deliver_due()
        return Reply(200, None)

    monkeypatch.setattr(delivery, "post", post)
    assert mine.deliver_due() == 5
    assert len(sent) == len(set(sent)) == 5


def test_a_webhook_is_told_what_is_asked_and_not_what_is_judged(engine: Engine, courier, web: WebReceiver) -> None:
    run = ask(engine)
    [task] = engine.open(run)
    assert courier(ops=web.url).deliver_due() == 1
    [received] = web.received
    told = received.body
    assert (told["event"], told["continuation_id"], told["title"]) == ("human.requested", task.id, "Release?")
    assert (told["subject_digest"], told["people"]) == (task.subject_digest, ["ann@example.com"])
    assert "the secret plan" not in str(told)
    assert received.headers["Idempotency-Key"].startswith("msg_")
    assert courier(ops=web.url).deliver_due() == 0


def test_a_receiver_that_drips_its_head_is_given_up_in_time(engine: Engine, courier, web: WebReceiver) -> None:
    ask(engine, notify=["slow"])
    ask(engine)
    with dripping_receiver() as url:
        assert courier(slow=url, ops=web.url, seconds=1).deliver_due() == 2
    assert [each.path for each in web.received] == ["/"]
    [slow] = [row for row in rows(engine.store) if row[0] == "slow"]
    assert slow[1:] == ("waiting", 1, "no answer in 1 s")


def test_a_secret_in_a_question_is_not_told(engine: Engine, courier, web: WebReceiver) -> None:
    ask(engine, prompt="Use password=hunter22hunter22 ?")
    courier(ops=web.url).deliver_due()
    assert "hunter22" not in str(web.received[0].body)


def test_slack_cannot_be_made_to_mention_everybody(engine: Engine, courier, web: WebReceiver) -> None:
    ask(engine, prompt="<!channel> & <https://evil.example|fine>")
    courier(ops=f"slack:{web.url}/T/B").deliver_due()
    [received] = web.received
    assert received.path == "/T/B"
    assert received.body.keys() == {"text"}
    assert "&lt;!channel&gt; &amp; &lt;https" in received.body["text"]


def test_a_mail_goes_to_whoever_is_asked(engine: Engine, courier, post: MailReceiver) -> None:
    run = ask(engine, description="Release\n to prod?")
    [task] = engine.open(run)
    mail = courier(ops=mail_at(post))
    while mail.deliver_due():
        pass
    [(address, message)] = post.received
    assert (address, message["To"], message["From"]) == ("ann@example.com", "ann@example.com", "kneo@example.com")
    assert message["Subject"] == "Release to prod?"
    assert message["Message-ID"].startswith("<msg_")
    body = message.get_payload()
    assert task.subject_digest in body
    assert f"kneo task get {task.id}" in body
    assert "the secret plan" not in body


def test_each_of_several_people_has_a_mail_of_their_own(
    engine: Engine, courier, post: MailReceiver, clock: ManualClock
) -> None:
    ask(engine, assignee=None, candidates={"users": ["ann", "bob", "cy@else.example"], "exclude": ["bob"]})
    post.refuse.add("cy@else.example")
    mail = courier(ops=mail_at(post, domain="example.com"))
    while mail.deliver_due():
        pass
    assert [address for address, _ in post.received] == ["ann@example.com"]
    post.refuse.clear()
    clock.advance(timedelta(seconds=16))
    while mail.deliver_due():
        pass
    assert [address for address, _ in post.received] == ["ann@example.com", "cy@else.example"]


def test_a_mail_that_nobody_could_get_is_given_up(engine: Engine, courier, post: MailReceiver) -> None:
    ask(engine, assignee="ann")
    courier(ops=mail_at(post)).deliver_due()
    assert rows(engine.store) == [("ops", "failed", 1, "no person of the task is known and has an address")]


def test_links_are_for_one_person_and_made_when_they_are_sent(engine: Engine, courier, post: MailReceiver) -> None:
    made: list[tuple[str, str]] = []

    def make_link(_tx: Tx, task: str, person: str) -> str:
        made.append((task, person))
        return f"token-of-{person}"

    run = ask(engine, links=True, assignee=None, candidates={"users": ["ann", "bob"]})
    [task] = engine.open(run)
    mail = courier("https://kneo.example", make_link, ops=mail_at(post, domain="example.com"))
    while mail.deliver_due():
        pass
    assert made == [(task.id, "ann"), (task.id, "bob")]
    assert "Answer: https://kneo.example/h/token-of-ann" in post.received[0][1].get_payload()
    with engine.store.read() as tx:
        kept = str(tx.connection.execute(text("SELECT payload FROM outbox")).all())
    assert "token-of" not in kept


def test_a_link_from_a_mail_answers_as_whoever_got_it(engine: Engine, courier, post: MailReceiver) -> None:
    def make_link(tx: Tx, task: str, person: str) -> str:
        return links.make_link(tx, task, person, actor="notifications")[1]

    run = ask(engine, links=True)
    [task] = engine.open(run)
    mail = courier("https://kneo.example", make_link, ops=mail_at(post))
    while mail.deliver_due():
        pass
    token = post.received[0][1].get_payload(decode=True).decode().rpartition("/h/")[2].strip()
    said = DecisionRequest(request_id=task.request_id, decision=DecisionKind.APPROVED)
    assert links.answer(engine.store, token, said).decision.actor == "ann@example.com"


def test_a_link_is_mailed_to_no_address_but_the_persons_own(engine: Engine, courier, post: MailReceiver) -> None:
    """A person who can write to the database changes the address of a mail that waits, and adds one."""

    def make_link(tx: Tx, task: str, person: str) -> str:
        return links.make_link(tx, task, person, actor="notifications")[1]

    ask(engine, links=True)
    mail = courier("https://kneo.example", make_link, ops=mail_at(post))
    assert mail.deliver_due() == 1, "the message is split into one for each person"
    with engine.store.write() as tx:
        messages = metadata.tables["outbox"]
        (row,) = tx.connection.execute(select(messages).where(messages.c.status == "waiting")).mappings()
        forged = {**row["payload"], "to": "eve@example.com"}
        tx.connection.execute(update(messages).where(messages.c.id == row["id"]).values(payload=forged))
        tx.connection.execute(
            insert(messages).values(**{**row, "id": "msg_forged", "dedupe_key": "forged", "payload": forged})
        )
    while mail.deliver_due():
        pass
    assert [to for to, _ in post.received] == []
    assert {(status, error) for _, status, _, error in rows(engine.store)[1:]} == {
        ("failed", "the settings give another address")
    }


def test_a_link_is_mailed_to_no_person_but_those_whom_the_task_asks(
    engine: Engine, store: Store, tmp_path: Path, post: MailReceiver
) -> None:
    """A person who can write to the database names another person in a message, who may answer as everyone may."""
    ask(engine, links=True, assignee=None)
    with store.write() as tx:
        messages = metadata.tables["outbox"]
        (row,) = tx.connection.execute(select(messages)).mappings()
        forged = {**row["payload"], "people": ["eve@example.com"]}
        tx.connection.execute(update(messages).values(payload=forged))
    env = {"KNEO_SERV_CHANNEL_OPS": mail_at(post), "KNEO_SERV_PUBLIC_URL": "https://kneo.example"}
    with deliver_notifications(from_env(env, cwd=tmp_path), store):
        eventually(lambda: post.received, seconds=20)
    [(to, mail)] = post.received
    assert (to, "/h/" in mail.get_payload()) == ("eve@example.com", False)


def test_who_may_not_answer_is_told_without_a_link(engine: Engine, courier, post: MailReceiver) -> None:
    def make_link(_tx: Tx, _task: str, _person: str) -> str:
        raise Forbidden("not yours", code="not_a_candidate")

    ask(engine, links=True)
    mail = courier("https://kneo.example", make_link, ops=mail_at(post))
    while mail.deliver_due():
        pass
    assert "kneo task get" in post.received[0][1].get_payload()


def test_what_executes_steps_delivers_too(engine: Engine, store: Store, tmp_path: Path, web: WebReceiver) -> None:
    ask(engine)
    settings = from_env({"KNEO_SERV_CHANNEL_OPS": web.url}, cwd=tmp_path)
    with deliver_notifications(settings, store):
        eventually(lambda: web.received)
    assert [each.body["event"] for each in web.received] == ["human.requested"]


@contextmanager
def raw_receiver(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answers each request with these bytes, and keeps the connection open."""
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as held:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection = held.enter_context(listener.accept()[0])
                    heads.append(connection.recv(65_536))
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        listener.shutdown(socket.SHUT_RDWR)


def test_a_redirect_of_a_receiver_is_not_followed(
    engine: Engine, store: Store, tmp_path: Path, web: WebReceiver
) -> None:
    ask(engine)
    answer = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {web.url}/inside\r\nContent-Length: 0\r\n\r\n".encode()
    with raw_receiver(answer) as (url, heads):
        settings = from_env({"KNEO_SERV_CHANNEL_OPS": url}, cwd=tmp_path)
        with deliver_notifications(settings, store):
            assert eventually(lambda: rows(store)[0][3])
    assert rows(store) == [("ops", "waiting", 1, "answered 307")]
    assert (len(heads), web.received) == (1, [])


def test_an_answer_of_a_receiver_that_never_ends_is_not_read(engine: Engine, store: Store, courier) -> None:
    ask(engine)
    with raw_receiver(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\nx") as (url, _):
        assert courier(ops=url).deliver_due() == 1
    assert rows(store) == [("ops", "sent", 1, None)]


def test_messages_to_groups_carry_no_link(engine: Engine, courier, post: MailReceiver, web: WebReceiver) -> None:
    def make_link(_tx: Tx, _task: str, _person: str) -> str:
        raise AssertionError("nobody asked for it")

    ask(engine, links=True, notify=["ops", "team"])
    both = courier("https://kneo.example", make_link, ops=web.url, team=mail_at(post, to="team@example.com"))
    while both.deliver_due():
        pass
    assert len(web.received) == len(post.received) == 1
    assert "/h/" not in str(web.received[0].body) + post.received[0][1].get_payload()


def test_reminders_and_escalations_are_told_once_each(
    engine: Engine, courier, web: WebReceiver, clock: ManualClock
) -> None:
    ask(engine, remind=["1h", "2h"], escalate=[{"after": "3h", "to": "cto@example.com", "notify": ["pager"]}])
    channels = courier(ops=f"{web.url}/ops", pager=f"{web.url}/pager")
    for _ in range(5):
        while channels.deliver_due():
            pass
        clock.advance(timedelta(hours=1))
        tick(engine.store)
        tick(engine.store)
    assert [(each.path, each.body["event"]) for each in web.received] == [
        ("/ops", "human.requested"),
        ("/ops", "human.reminded"),
        ("/ops", "human.reminded"),
        ("/ops", "human.escalated"),
        ("/pager", "human.escalated"),
    ]
    assert web.received[-1].body["assignee"] == "cto@example.com"
    assert web.received[-1].body["text"].startswith("Escalated: Release?")


def test_what_fails_is_tried_later_and_later_and_then_given_up(
    engine: Engine, courier, web: WebReceiver, clock: ManualClock
) -> None:
    ask(engine)
    web.status = 500
    hook = courier(ops=web.url)
    assert (hook.deliver_due(), hook.deliver_due()) == (1, 0)
    assert rows(engine.store) == [("ops", "waiting", 1, "answered 500")]
    for _ in range(12):
        clock.advance(timedelta(hours=1))
        hook.deliver_due()
    assert rows(engine.store) == [("ops", "failed", 10, "answered 500")]
    assert len({each.headers["Idempotency-Key"] for each in web.received}) == 1


def test_one_receiver_that_is_down_does_not_hold_up_another(engine: Engine, courier, web: WebReceiver) -> None:
    ask(engine, notify=["gone", "ops"])
    courier(gone="http://127.0.0.1:9", ops=web.url).deliver_due()
    assert len(web.received) == 1
    assert [(channel, status) for channel, status, _, _ in rows(engine.store)] == [("gone", "waiting"), ("ops", "sent")]


def test_what_is_answered_meanwhile_is_not_told(engine: Engine, courier, web: WebReceiver) -> None:
    run = ask(engine)
    [task] = engine.open(run)
    engine.answer(task, "approved")
    courier(ops=web.url).deliver_due()
    assert web.received == []
    assert rows(engine.store) == [("ops", "dropped", 1, None)]


def test_a_channel_this_process_does_not_know_waits_for_one_that_does(
    engine: Engine, courier, web: WebReceiver
) -> None:
    ask(engine, notify=["Slack_Ops"])
    assert courier(other=web.url).deliver_due() == 0
    assert rows(engine.store) == [("Slack_Ops", "waiting", 0, None)]
    assert courier(slack_ops=web.url).deliver_due() == 1
    assert len(web.received) == 1


@pytest.mark.parametrize(
    "address", ["ftp://x", "smtp://host", "smtp://host?from=nobody", "slack:nothing", "smtp://:x@?from=a@b"]
)
def test_an_address_that_is_none_is_said_without_repeating_it(engine: Engine, courier, address: str) -> None:
    ask(engine)
    courier(ops=address).deliver_due()
    [(_, status, _, error)] = rows(engine.store)
    assert (status, address in error, "ops" in error) == ("waiting", False, True)


@pytest.mark.parametrize("what", [prune.prune_tasks, prune.prune_runs])
def test_messages_are_kept_as_long_as_what_they_are_about(
    engine: Engine, courier, web: WebReceiver, clock: ManualClock, what: Callable[[Store, timedelta], int]
) -> None:
    run = ask(engine, notify=["ops", "nowhere"])
    ask(engine)
    courier(ops=web.url).deliver_due()
    engine.answer(engine.open(run)[0], "approved")
    engine.drive(run)
    clock.advance(timedelta(days=10))
    assert what(engine.store, timedelta(days=5)) == 1
    assert [channel for channel, *_ in rows(engine.store)] == ["ops"]


BAD_NAME = "x@evil.test\r\nBcc: all@corp.test"


def test_a_name_that_no_mail_can_carry_holds_up_nobody_else(
    engine: Engine, courier, post: MailReceiver, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    ask(engine, assignee=BAD_NAME)
    ask(engine, assignee=None, candidates={"users": ["ann@example.com", BAD_NAME, "ben@example.com"]})
    ask(engine, assignee="cy@example.com")
    mail = courier(ops=mail_at(post))
    for _ in range(ATTEMPTS):
        while mail.deliver_due():
            pass
        clock.advance(timedelta(hours=1))
    assert sorted(address for address, _ in post.received) == ["ann@example.com", "ben@example.com", "cy@example.com"]
    assert not any(line.startswith("Bcc") for _, message in post.received for line in message.as_string().splitlines())
    given_up = [(attempts, error) for _, status, attempts, error in rows(engine.store) if status == "failed"]
    assert given_up == [(ATTEMPTS, "the name of the person makes no single mail address")] * 2
    told = [record for record in caplog.records if getattr(record, "event", "") == "notification_failed"]
    assert len(told) == 2
    assert all(record.channel == "ops" and record.continuation_id.startswith("cont_") for record in told)
    with engine.store.read() as tx:
        assert metrics.unsent_messages(tx) == {"waiting": 0, "failed": 2}


@pytest.mark.parametrize(
    "name",
    [
        "ann@example.com, eve@evil.test",
        "ann <eve@evil.test>",
        "ann<eve@evil.test>",
        "eve@evil.test;ann@example.com",
        "ann(the other)",
        "ann <eve",
        '"ann"',
        "ann\u200b@example.com",
    ],
)
def test_a_name_is_mailed_to_one_address_that_is_its_own(
    engine: Engine, courier, post: MailReceiver, name: str
) -> None:
    ask(engine, assignee=None, candidates={"users": [name, "ben"]})
    mail = courier(ops=mail_at(post, domain="example.com"))
    while mail.deliver_due():
        pass
    assert [address for address, _ in post.received] == ["ben@example.com"]
    assert {error for _, status, _, error in rows(engine.store) if status == "waiting"} == {
        "the name of the person makes no single mail address"
    }


@pytest.mark.parametrize("name", ["github", "gitlab", "gitea", "bitbucket", "slack", "webhook"])
def test_a_channel_of_releases_takes_no_tasks_and_holds_up_nobody(
    engine: Engine, store: Store, tmp_path: Path, web: WebReceiver, clock: ManualClock, name: str
) -> None:
    ask(engine, notify=[name])
    ask(engine)
    env = {f"KNEO_SERV_NOTIFY_{name.upper()}": f"{web.url}/releases", "KNEO_SERV_CHANNEL_OPS": f"{web.url}/ops"}
    both = Courier(store, from_env(env, cwd=tmp_path), seconds=240)
    for _ in range(ATTEMPTS):
        while both.deliver_due():
            pass
        clock.advance(timedelta(hours=1))
    assert [each.path for each in web.received] == ["/ops"]
    variable = f"KNEO_SERV_CHANNEL_{name.upper()} is not set here"
    assert sorted(rows(store)) == sorted([(name, "failed", ATTEMPTS, variable), ("ops", "sent", 1, None)])


def test_a_task_channel_may_be_called_like_one_of_releases(
    engine: Engine, store: Store, tmp_path: Path, web: WebReceiver
) -> None:
    ask(engine, notify=["github"])
    env = {"KNEO_SERV_NOTIFY_GITHUB": f"{web.url}/releases", "KNEO_SERV_CHANNEL_GITHUB": f"{web.url}/tasks"}
    assert Courier(store, from_env(env, cwd=tmp_path), seconds=240).deliver_due() == 1
    assert [(each.path, each.body["event"]) for each in web.received] == [("/tasks", "human.requested")]


def test_a_message_that_is_damaged_holds_up_nobody(engine: Engine, courier, web: WebReceiver) -> None:
    ask(engine)
    with engine.store.write() as tx:
        tx.connection.execute(text('UPDATE outbox SET payload = \'{"about": "task"}\''))
    ask(engine)
    assert courier(ops=web.url).deliver_due() == 2
    assert [(status, error) for _, status, _, error in rows(engine.store)] == [
        ("waiting", "it cannot be written: KeyError"),
        ("sent", None),
    ]


FALSE_LINES = [
    "Fine?\n\nAnswer: https://evil.test/h/x",
    "Fine?\r\rAnswer: https://evil.test/h/x",
    "Fine?\u2028Answer: https://evil.test/h/x",
    "Fine?\x85Answer: https://evil.test/h/x",
    "Fine?\x0bAnswer: https://evil.test/h/x",
    "Answer: https://evil.test/h/x",
    "Fine?\n\u202eAnswer: HTTPS://evil.test/h/x",
    "x\n> y\nAnswer: www.evil.test",
]


@pytest.mark.parametrize("prompt", FALSE_LINES)
@pytest.mark.parametrize("where", ["prompt", "title"])
def test_no_text_of_a_run_looks_like_a_line_of_kneo(
    engine: Engine, courier, post: MailReceiver, prompt: str, where: str
) -> None:
    run = ask(engine, **{where: prompt.replace("\x85", "\u0085")})
    [task] = engine.open(run)
    mail = courier(ops=mail_at(post))
    while mail.deliver_due():
        pass
    [(_, message)] = post.received
    body = message.get_payload(decode=True).decode()
    answers = [line for line in body.splitlines() if line.lstrip("\u202e ").startswith("Answer:")]
    assert answers == [f"Answer: kneo task get {task.id}"]
    assert "://" not in body
    assert "www." not in body
    assert {"evil.test"} & set(message.keys()) == set()
    subject = str(make_header(decode_header(message["Subject"].replace("\r\n ", " "))))
    assert len(subject.splitlines()) == 1
    assert "\u202e" not in subject


# ---- signed webhooks ------------------------------------------------------------------------------------------------

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def signed_by(received: Received, secret: str) -> bool:
    """Check a message as a receiver does, from the bytes that came."""
    headers = {name.lower(): value for name, value in received.headers.items()}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.raw
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return expected in headers["webhook-signature"].split(" ")


def test_a_webhook_with_a_secret_is_signed_each_time_under_one_id(
    engine: Engine, courier, web: WebReceiver, clock: ManualClock
) -> None:
    ask(engine, prompt="\u00dc\u2264?")
    hook = courier(ops=web.url, ops_secret=SECRET)
    web.status = 500
    hook.deliver_due()
    clock.advance(timedelta(minutes=1))
    web.status = 200
    hook.deliver_due()
    first, second = web.received
    assert signed_by(first, SECRET)
    assert signed_by(second, SECRET)
    assert not signed_by(second, OTHER)
    ids = {name: [each.headers[name] for each in web.received] for name in ("webhook-id", "Idempotency-Key")}
    assert len({*ids["webhook-id"], *ids["Idempotency-Key"]}) == 1
    assert [int(each.headers["webhook-timestamp"]) for each in web.received] == [
        int(moment.timestamp()) for moment in (clock.now() - timedelta(minutes=1), clock.now())
    ]


def test_a_channel_is_signed_with_its_own_secrets(engine: Engine, courier, web: WebReceiver) -> None:
    ask(engine, notify=["one", "two", "plain"])
    courier(
        one=f"{web.url}/one",
        one_secret=f"{SECRET} {OTHER}",
        two=f"{web.url}/two",
        two_secret=OTHER,
        plain=f"{web.url}/plain",
    ).deliver_due()
    came = {each.path: each for each in web.received}
    assert (signed_by(came["/one"], SECRET), signed_by(came["/one"], OTHER)) == (True, True)
    assert (signed_by(came["/two"], SECRET), signed_by(came["/two"], OTHER)) == (False, True)
    assert "webhook-signature" not in {name.lower() for name in came["/plain"].headers}


def test_what_did_not_happen_is_not_told(engine: Engine, store: Store) -> None:
    run = engine.start([{"id": "q", "kind": "human", "ref": "asked"}], asked={"description": "?", "notify": ["ops"]})
    assert rows(store) == []
    engine.drive(run)
    assert len(rows(store)) == 1
