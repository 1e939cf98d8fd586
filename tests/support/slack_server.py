"""A server that answers like Slack's Web API, and the requests that Slack sends for buttons."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlencode

Json = dict[str, Any]


@dataclass
class Slack:
    """A workspace: what was sent to it, and its response."""

    url: str
    status: int = 200
    body: bytes = b'{"ok": true, "ts": "17.1"}'
    received: list[tuple[str, str, Json]] = field(default_factory=list)

    def sent(self, method: str) -> list[Json]:
        return [body for name, _, body in self.received if name == method]


@contextmanager
def slack_server() -> Iterator[Slack]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            slack.received.append((self.path.rpartition("/")[2], self.headers["Authorization"], body))
            self.send_response(slack.status)
            self.send_header("Content-Length", str(len(slack.body)))
            self.end_headers()
            self.wfile.write(slack.body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        slack = Slack(f"http://127.0.0.1:{server.server_address[1]}/api")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield slack
        finally:
            server.shutdown()
            thread.join()


def buttons(message: Json) -> dict[str, Json]:
    """Return the buttons of a message that decide, by what they decide."""
    elements = [each for block in message["blocks"] if block["type"] == "actions" for each in block["elements"]]
    return {each["action_id"].removeprefix("kneo."): each for each in elements if "action_id" in each}


def pressed(message: Json, button: Json, account: str, **changes: object) -> bytes:
    """Return the body that Slack sends when a person presses a button."""
    team, _, user = account.partition("/")
    payload = {
        "type": "block_actions",
        "team": {"id": team, "domain": "acme"},
        "user": {"id": user, "username": "somebody", "team_id": team},
        "channel": {"id": message["channel"], "name": "ops"},
        "message": {"ts": "17.1", "blocks": message["blocks"]},
        "actions": [{"type": "button", "action_id": button["action_id"], "value": button["value"]}],
        **changes,
    }
    return urlencode({"payload": json.dumps(payload)}).encode()


def signed(body: bytes, secret: str, at: float) -> dict[str, str]:
    """Return the headers by which Slack signs a body."""
    sent = str(int(at))
    signature = hmac.new(secret.encode(), f"v0:{sent}:".encode() + body, hashlib.sha256).hexdigest()
    return {
        "X-Slack-Request-Timestamp": sent,
        "X-Slack-Signature": f"v0={signature}",
        "Content-Type": "application/x-www-form-urlencoded",
    }
