"""The push services that messages may be sent to."""

from __future__ import annotations

import pytest

from kneo.extensions.push.addresses import MAX_ENDPOINT_CHARS, push_service
from kneo.records.sign_in import PushSubscription
from kneo.settings import PUSH_HOSTS

TESTED = ("push.example.org:8443", "*.example.net", *PUSH_HOSTS)


@pytest.mark.parametrize(
    ("endpoint", "origin"),
    [
        ("https://fcm.googleapis.com/fcm/send/a:B-_c", "https://fcm.googleapis.com"),
        ("https://fcm.googleapis.com:443/x", "https://fcm.googleapis.com"),
        ("https://updates.push.services.mozilla.com/wpush/v2/gAA%3D", "https://updates.push.services.mozilla.com"),
        ("https://web.push.apple.com/QP", "https://web.push.apple.com"),
        ("https://wns2-par02p.notify.windows.com/w/?token=a%2Bb", "https://wns2-par02p.notify.windows.com"),
        ("https://push.example.org:8443/x", "https://push.example.org:8443"),
    ],
)
def test_allowed(endpoint: str, origin: str) -> None:
    assert push_service(endpoint, TESTED) == origin


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http://fcm.googleapis.com/x",
        "https://fcm.googleapis.com",
        "https://fcm.googleapis.com.evil.example/x",
        "https://evil.example/fcm.googleapis.com/",
        "https://fcm.googleapis.com@evil.example/x",
        "https://evil.example\\@fcm.googleapis.com/x",
        "https://fcm.googleapis.com\\@evil.example/x",
        "https://fcm.googleapis.com:8443/x",
        "https://FCM.googleapis.com/x",
        "https://fcm.googleapis.com./x",
        "https://push.example.org/x",
        "https://notify.windows.com/x",
        "https://.notify.windows.com/x",
        "https://evilnotify.windows.com/x",
        "https://169.254.169.254/x",
        "https://[::1]/x",
        "https://fcm.googleapis.com/a b",
        "https://fcm.googleapis.com/a\n",
        "https://fcm.googleapis.com/é",
        "https://fcm.googleapis.com/" + "x" * MAX_ENDPOINT_CHARS,
    ],
)
def test_not_allowed(endpoint: str) -> None:
    assert push_service(endpoint, TESTED) is None


def test_a_subscription_is_not_printed() -> None:
    secrets = {"endpoint": "https://a/SECRET", "p256dh": "SECRET", "auth": "SECRET"}
    one = PushSubscription(
        id="psh_1", browser_hash="b", session_hash="s", person="ann", key_hash=None, created_at="", **secrets
    )
    assert "SECRET" not in repr(one)
