"""An app in Slack: its token, its channel, and requests of Slack's Web API."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from kneo.errors import Invalid
from kneo.json_text import parse_json
from kneo.notify.delivery import Reply
from kneo.settings import Settings

API = "https://slack.com/api"

MAX_REPLY_BYTES = 100_000
"""Bytes of a response of Slack that are read."""

KIND_NAME = "slack-app"

_ADDRESS = re.compile(r"(?P<token>xox[a-z]-[A-Za-z0-9-]{1,200})@(?P<channel>[CDG][A-Z0-9]{1,30})")


@dataclass(frozen=True, kw_only=True)
class SlackApp:
    """An app that posts to one channel.

    Attributes:
        token: The token of the app's bot.
        channel: The id of the channel.
    """

    token: str = field(repr=False)
    channel: str

    @classmethod
    def read(cls, name: str, address: str) -> SlackApp:
        """Read the address of a channel, ``TOKEN@CHANNEL``.

        Raises:
            Invalid: ``invalid_setting``.
        """
        found = _ADDRESS.fullmatch(address)
        if found is None:
            msg = f"The address of the channel {name} is not slack-app:TOKEN@CHANNEL, with the id of the channel."
            raise Invalid(
                msg, code="invalid_setting", hint="The token begins with xoxb-, the id of the channel with C."
            )
        return cls(token=found["token"], channel=found["channel"])

    def request(self, method: str, fields: Mapping[str, object], seconds: float) -> Reply:
        """Call a method of the Web API in the channel; a problem repeats no token and no text of the response but its code."""
        try:
            return asyncio.run(self._send(method, {"channel": self.channel, **fields}, seconds))
        except TimeoutError:
            return Reply(None, f"no answer in {seconds:g} s")
        except (httpx.HTTPError, ValueError) as error:
            return Reply(None, f"no answer: {type(error).__name__}")

    async def _send(self, method: str, fields: Mapping[str, object], seconds: float) -> Reply:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json; charset=utf-8"}
        body, content = json.dumps(fields, ensure_ascii=False).encode(), b""
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=seconds, follow_redirects=False) as http,
            http.stream("POST", f"{API}/{method}", content=body, headers=headers) as response,
        ):
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_REPLY_BYTES:
                    return Reply(response.status_code, "answered too much")
        reply = parse_json(content.decode()) if response.status_code == 200 else None
        if isinstance(reply, dict) and reply.get("ok") is True:
            return Reply(200, None)
        code = str(reply.get("error"))[:60] if isinstance(reply, dict) else response.status_code
        return Reply(response.status_code, f"answered {code}")


def find_app(settings: Settings, channel: str) -> SlackApp | None:
    """Find the app that posts to a channel."""
    for name, text in settings.channels.items():
        kind, _, address = text.partition(":")
        if kind == KIND_NAME and (app := SlackApp.read(name, address)).channel == channel:
            return app
    return None
