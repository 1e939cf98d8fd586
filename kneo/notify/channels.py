"""Notification channels: their addresses, and the texts and request bodies of messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from kneo.digest import digest_of_json
from kneo.errors import Invalid
from kneo.names import reveal
from kneo.settings import WEB_PUSH, Settings

Fields = Mapping[str, object]

_STATES: Mapping[str, str] = {
    "promoted": "success",
    "rolled_back": "success",
    "retired": "success",
    "waiting": "pending",
}
_GITLAB: Mapping[str, str] = {"failure": "failed"}
_BITBUCKET: Mapping[str, str] = {"success": "SUCCESSFUL", "pending": "INPROGRESS", "failure": "FAILED"}
_STATUS_CHARS = 140
_BITBUCKET_KEY_CHARS = 40


@dataclass(frozen=True, kw_only=True)
class Http:
    """A channel that accepts JSON."""

    url: str = field(repr=False)
    body: Callable[[str, Fields], tuple[str, Fields]]
    token: str = field(default="", repr=False)
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    """Secrets that sign each message; without any it is sent unsigned."""


@dataclass(frozen=True, kw_only=True)
class Mail:
    """A mail server.

    Attributes:
        security: ``tls`` from the first byte, ``starttls``, or ``none``, accepted for this machine only.
        to: The recipients of every mail; empty: the people of the task.
        domain: The domain that completes a name without ``@`` to an address.
    """

    host: str
    port: int
    security: str
    sender: str
    to: tuple[str, ...] = ()
    domain: str = ""
    user: str = ""
    password: str = field(default="", repr=False)

    def addresses(self, people: tuple[str, ...]) -> tuple[str, ...]:
        """Return the people who have an address on this channel."""
        names = (name if "@" in name else f"{name}@{self.domain}" for name in people if "@" in name or self.domain)
        return tuple(dict.fromkeys(names))


Channel: TypeAlias = Http | Mail


def find_release_channel(settings: Settings, name: str) -> Channel | None:
    """Find a channel for notices of releases, ``KNEO_SERV_NOTIFY_…``."""
    if name not in settings.notify:
        return None
    token = settings.notify_token if name in _STATUS_CHANNELS else ""
    keys = settings.notify_webhook_keys if name == "webhook" else ()
    return Http(url=settings.notify[name].rstrip("/"), body=_BODIES[name], token=token, keys=keys)


def find_task_channel(settings: Settings, name: str) -> Channel | None:
    """Find a channel for notices of tasks, ``KNEO_SERV_CHANNEL_…``.

    Raises:
        Invalid: ``invalid_setting``: its address is not valid.
    """
    plain = plain_name(name)
    address = settings.channels.get(plain)
    return _parsed(plain, address, settings.webhook_keys.get(plain, ())) if address else None


def plain_name(name: str) -> str:
    """Normalise a channel's name: ``Slack_Ops`` is ``slack-ops``."""
    return name.strip().lower().replace("_", "-")


def known_channels(settings: Settings) -> tuple[str, ...]:
    """List the channels that this process delivers to."""
    return (*settings.notify, *settings.channels, *([WEB_PUSH] if settings.push.private_key else ()))


def _parsed(name: str, address: str, keys: tuple[bytes, ...]) -> Channel:
    kind, _, rest = address.partition(":")
    if kind == "slack":
        return Http(url=_https(name, rest), body=_slack)
    if kind in {"smtp", "smtps"}:
        return _mail(name, urlsplit(address))
    return Http(url=_https(name, address), body=_webhook, keys=keys)


def _https(name: str, url: str) -> str:
    if not url.startswith(("https://", "http://")):
        raise _bad(
            name, "is none of https://…, slack:https://…, smtp://…, smtps://… and the kinds that installed packages add"
        )
    return url


LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _mail(name: str, parts: SplitResult) -> Mail:
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    if not parts.hostname or "@" not in query.get("from", ""):
        raise _bad(name, "has no host, or no from=ADDRESS")
    try:
        port = parts.port or (465 if parts.scheme == "smtps" else 587)
    except ValueError as error:
        raise _bad(name, "has no such port") from error
    plain = "none" if parts.hostname in LOOPBACK else "starttls"
    return Mail(
        host=parts.hostname,
        port=port,
        security="tls" if parts.scheme == "smtps" else plain,
        sender=query["from"],
        to=tuple(each for each in query.get("to", "").split(",") if each),
        domain=query.get("domain", ""),
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _bad(name: str, what: str) -> Invalid:
    # Without the address, which may contain a password.
    return Invalid(f"The address of the channel {name} {what}.", code="invalid_setting")


# ---- bodies -----------------------------------------------------------------------------------------------------


def words(notice: Fields) -> str:
    """Return a notice as a short text."""
    return task_words(notice) if notice.get("about") == "task" else release_words(notice)


def _webhook(address: str, notice: Fields) -> tuple[str, Fields]:
    event = f"human.{notice['what']}" if notice.get("about") == "task" else f"release.{notice['phase']}"
    return address, {"event": event, **notice, "text": words(notice)}


def _slack(address: str, notice: Fields) -> tuple[str, Fields]:
    # Slack parses <, > and & as markup: a message must not mention everyone or disguise a link.
    text = words(notice).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return address, {"text": text}


def _status(address: str, notice: Fields) -> tuple[str, Fields]:
    commit = str(notice["revision"]).rpartition(":")[2]
    state = _STATES.get(str(notice["phase"]), "failure")
    body = {"state": state, "context": f"kneo/{notice['environment']}", "description": words(notice)[:_STATUS_CHARS]}
    return f"{address}/statuses/{commit}", body


def _gitlab(address: str, notice: Fields) -> tuple[str, Fields]:
    url, body = _status(address, notice)
    return url, {**body, "state": _GITLAB.get(str(body["state"]), body["state"]), "name": body["context"]}


def _bitbucket(address: str, notice: Fields) -> tuple[str, Fields]:
    _, body = _status(address, notice)
    commit = str(notice["revision"]).rpartition(":")[2]
    name = str(body["context"])
    # A longer key is refused; two environments must not share a key.
    key = name if len(name) <= _BITBUCKET_KEY_CHARS else f"kneo/{digest_of_json(name).removeprefix('sha256:')[:32]}"
    said = {
        "key": key,
        "name": name,
        "state": _BITBUCKET[str(body["state"])],
        "description": body["description"],
        # Required by the API, and shown as a link: the commit itself, as a URL of the host.
        "url": f"{address}/commit/{commit}",
    }
    return f"{address}/commit/{commit}/statuses/build", said


_BODIES: Mapping[str, Callable[[str, Fields], tuple[str, Fields]]] = {
    "webhook": _webhook,
    "slack": _slack,
    "github": _status,
    "gitea": _status,
    "gitlab": _gitlab,
    "bitbucket": _bitbucket,
}
_STATUS_CHANNELS = frozenset({"github", "gitea", "gitlab", "bitbucket"})
"""Channels that require a token."""


DONE = ("promoted", "rolled_back", "retired")

_VERBS = {"waiting": "waits", "refused": "was refused", "drifted": "is served, but should not be"}

PROMPT_CHARS = 1_000
"""Characters of a prompt that a message shows; the inbox has all of it."""

QUOTE = "> "
"""Prefix of each line that a spec or a run's input wrote, so that no line passes for one of Kneo's."""


def one_line(value: object) -> str:
    """Return a text as one line of visible characters."""
    return " ".join(reveal(str(value)).split())


def quoted(text: str) -> list[str]:
    """Return the lines of a text from outside, marked as quoted, with links disabled."""
    plain = [reveal(line) for line in text.splitlines()]
    return [f"{QUOTE}{line}".rstrip() for line in unlinked("\n".join(plain)).split("\n")]


def unlinked(text: str) -> str:
    """Return a text in which mail and chat programs recognise no address to link."""
    return re.sub(r"(?i)\b(www)\.", r"\1[.]", text.replace("://", "[:]//"))


def release_words(notice: Fields) -> str:
    """Describe a change of a release in one line."""
    what = f"{notice['bundle']} {notice['version']}"
    if notice["phase"] in DONE:
        why = f": {notice['message']}" if notice["message"] else "."
        return one_line(f"{notice['environment']}: {what} was {str(notice['phase']).replace('_', ' ')}{why}")
    verb = _VERBS[str(notice["phase"])]
    return one_line(f"{notice['environment']}: {what} {verb}: {notice['reason']}: {notice['message']}")


def task_subject(notice: Fields) -> str:
    """Describe a task in one line."""
    begin = {"requested": "", "reminded": "Reminder: ", "escalated": "Escalated: "}[str(notice["what"])]
    return unlinked(one_line(f"{begin}{notice['title']}"))[:200]


def task_words(notice: Fields) -> str:
    """Describe a task: the question, who is asked, until when, and where to answer."""
    where = " / ".join(str(part) for part in (notice.get("environment"), notice.get("workflow_name")) if part)
    # The title and the prompt come from a spec and, through templates, from the person who started the run.
    prompt = str(notice["prompt"])[:PROMPT_CHARS]
    first = task_subject(notice) if notice["what"] != "requested" else f"Question: {task_subject(notice)}"
    lines = [first, "", "The question, as the workflow asks it:", *quoted(prompt), ""]
    recipients = notice.get("assignee") or ", ".join(_texts(notice.get("people")))
    fields = {
        "Where": f"{where} ({notice['step_path']})" if where else str(notice["step_path"]),
        "Asked": recipients,
        "Until": notice.get("deadline_at"),
        "Answers": ", ".join(_texts(notice.get("decisions"))),
        "Shown": notice["subject_digest"],
    }
    lines += [f"{name}: {unlinked(one_line(value))}" for name, value in fields.items() if value]
    answer = notice.get("link") or f"kneo task get {notice['continuation_id']}"
    return "\n".join([*lines, f"Answer: {answer}"])


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else []
