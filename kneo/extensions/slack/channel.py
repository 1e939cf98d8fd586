"""The channel ``slack-app``: questions in a channel of Slack, with buttons where the environment lets them decide.

A button has the task, the request and the digest of the subject that stands above it, and is shown only where the whole subject is.
"""

from __future__ import annotations

from dataclasses import dataclass

from kneo import registry
from kneo.digest import canonical_json
from kneo.extensions.slack.app import SlackApp
from kneo.names import reveal
from kneo.notify.channel_kinds import ChannelContext, ChannelKind
from kneo.notify.channels import words
from kneo.notify.outbox import Outcome
from kneo.records.task import DecisionKind, HumanTask
from kneo.redaction import redact
from kneo.store.engine import Store, Tx
from kneo.store.outbox import Message
from kneo.tasks import inbox

VIA = "slack"

MAX_SUBJECT_CHARS = 2_500
"""Characters of a subject that a message shows; a longer one is decided elsewhere."""

MAX_TEXT_CHARS = 3_000
"""Characters of a text of a message, as Slack limits them."""

DECISIONS = {DecisionKind.APPROVED: "Approve", DecisionKind.REJECTED: "Reject"}

Block = dict[str, object]


@dataclass(frozen=True)
class SlackChannel:
    """Posts questions.

    Attributes:
        app: The app and its channel.
        store: The database.
        public_url: The address of the service; empty where it has none.
    """

    app: SlackApp
    store: Store
    public_url: str

    def deliver(self, message: Message, seconds: float) -> Outcome:
        """Post one message."""
        text = words(message.payload)[:MAX_TEXT_CHARS]
        with self.store.read() as tx:
            task = inbox.find(tx, str(message.payload["continuation_id"]))
            can_decide = allows_buttons(tx, task)
        blocks = [_section(text)]
        if can_decide:
            blocks += [
                _section(shown_subject(task)),
                {"type": "actions", "elements": [_button(task, kind) for kind in DECISIONS]},
            ]
        if self.public_url:
            link = f"{self.public_url.rstrip('/')}/console/inbox/{task.id}"
            blocks.append({"type": "actions", "elements": [{"type": "button", "text": _plain("Open"), "url": link}]})
        # Slack parses <, > and & in the text of the notification.
        plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return Outcome(problem=self.app.request("chat.postMessage", {"text": plain, "blocks": blocks}, seconds).problem)


def allows_buttons(tx: Tx, task: HumanTask) -> bool:
    """Return whether buttons in Slack may decide a task: its environment allows it, and a message shows all that is decided."""
    rules = registry.find_declared(tx, task.environment)
    if rules is None or VIA not in rules.spec.questions.via or task.plan.receipt == "signed_by_reviewer":
        return False
    has_form = task.answer_schema is not None or task.options is not None or not DECISIONS.keys() <= set(task.decisions)
    subject = task.subject or ""
    return not has_form and 0 < len(shown_subject(task)) <= MAX_SUBJECT_CHARS and redact(subject) == subject


def shown_subject(task: HumanTask) -> str:
    """Return the subject as a message shows it, with invisible characters made visible."""
    return reveal(task.subject or "")


def _button(task: HumanTask, kind: DecisionKind) -> Block:
    value = {"task": task.id, "request": task.request_id, "digest": task.subject_digest}
    return {
        "type": "button",
        "action_id": f"kneo.{kind}",
        "text": _plain(DECISIONS[kind]),
        "value": canonical_json(value).decode(),
        "style": "primary" if kind is DecisionKind.APPROVED else "danger",
    }


def _section(text: str) -> Block:
    return {"type": "section", "text": _plain(text)}


def _plain(text: str) -> Block:
    return {"type": "plain_text", "text": text, "emoji": False}


def open_channel(context: ChannelContext) -> SlackChannel:
    """Return the channel of an address.

    Raises:
        Invalid: ``invalid_setting``.
    """
    return SlackChannel(SlackApp.read(context.name, context.address), context.store, context.settings.public_url)


KIND = ChannelKind(open_channel)
