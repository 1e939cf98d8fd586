"""Webhooks are signed as Standard Webhooks says, by the examples that its libraries are tested with."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kneo.clock import SystemClock
from kneo.errors import Invalid
from kneo.notify.delivery import signed_headers
from kneo.settings import Settings, from_env

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def settings(folder: Path, **variables: str) -> Settings:
    env = {"KNEO_SERV_CHANNEL_OPS": "https://hooks.example", "KNEO_SERV_CHANNEL_CHAT": "slack:https://chat.example"}
    return from_env({**env, **{f"KNEO_SERV_{name}": value for name, value in variables.items()}}, cwd=folder)


@pytest.mark.parametrize("secret", [SECRET, SECRET.removeprefix("whsec_")])
def test_the_published_example(tmp_path: Path, secret: str) -> None:
    keys = settings(tmp_path, CHANNEL_OPS_SECRET=secret).webhook_keys["ops"]
    assert signed_headers(keys, MESSAGE_ID, TIMESTAMP, BODY) == {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": str(TIMESTAMP),
        "webhook-signature": SIGNATURE,
    }


def test_two_secrets_are_two_signatures(tmp_path: Path) -> None:
    other = base64.b64encode(bytes(64)).decode()
    keys = settings(tmp_path, CHANNEL_OPS_SECRET=f"whsec_{other} {SECRET}").webhook_keys["ops"]
    first, second = signed_headers(keys, MESSAGE_ID, TIMESTAMP, BODY)["webhook-signature"].split(" ")
    assert (first != SIGNATURE, second) == (True, SIGNATURE)


def test_the_secret_of_release_notices(tmp_path: Path) -> None:
    known = settings(tmp_path, NOTIFY_WEBHOOK="https://hooks.example", NOTIFY_WEBHOOK_SECRET=SECRET)
    assert signed_headers(known.notify_webhook_keys, MESSAGE_ID, TIMESTAMP, BODY)["webhook-signature"] == SIGNATURE
    assert SECRET not in repr(known)
    assert repr(known.notify_webhook_keys[0]) not in repr(known)


@pytest.mark.parametrize("text", ["hunter2", "whsec_", "whsec_!!!!", "whsec_" + base64.b64encode(b"short").decode()])
def test_a_secret_that_is_none_stops_the_start_and_is_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid) as caught:
        settings(tmp_path, CHANNEL_OPS_SECRET=text)
    assert caught.value.code == "invalid_setting"
    assert "KNEO_SERV_CHANNEL_OPS_SECRET" in caught.value.message
    assert text not in caught.value.message.replace("whsec_ and", "")


@pytest.mark.parametrize("name", ["CHANNEL_CHAT_SECRET", "CHANNEL_NOWHERE_SECRET", "NOTIFY_WEBHOOK_SECRET"])
def test_a_secret_without_a_webhook_stops_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match=f"KNEO_SERV_{name} is the secret of a webhook"):
        settings(tmp_path, **{name: SECRET})


def test_the_receiver_in_the_guide_takes_what_is_sent_and_nothing_else() -> None:
    page = (Path(__file__).parents[3] / "docs" / "guides" / "people" / "notify.md").read_text()
    example = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert example is not None
    guide: dict[str, Callable[..., bool]] = {}
    exec(example[1], guide)
    is_genuine = guide["is_genuine"]
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    now = int(SystemClock().now().timestamp())
    sent = dict(signed_headers([bytes(32), key], MESSAGE_ID, now, BODY))
    assert is_genuine(sent, BODY, SECRET)
    assert not is_genuine(sent, BODY + b" ", SECRET)
    assert not is_genuine({**sent, "webhook-id": "msg_other"}, BODY, SECRET)
    assert not is_genuine(sent, BODY, "whsec_" + base64.b64encode(b"x" * 24).decode())
    late = dict(signed_headers([key], MESSAGE_ID, now - 3600, BODY))
    assert not is_genuine(late, BODY, SECRET)
