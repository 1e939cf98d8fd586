"""A notification channel that appends each notification to a file, one line of JSON each, for a program that reads the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kneo.errors import Invalid
from kneo.notify.channel_kinds import ChannelContext, ChannelKind
from kneo.notify.channels import words
from kneo.notify.outbox import Outcome
from kneo.store.outbox import Message


@dataclass(frozen=True)
class FileChannel:
    """A channel of one file."""

    path: Path

    def deliver(self, message: Message, seconds: float) -> Outcome:  # noqa: ARG002 - a line is written at once
        """Append a message. Readers skip ids that they know: after a crash a message can be there twice."""
        line = json.dumps({"id": message.id, "text": words(message.payload)}, ensure_ascii=False)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            return Outcome(problem=f"the file cannot be written: {error.strerror}")
        return Outcome()


def open_channel(context: ChannelContext) -> FileChannel:
    """Open the file that an address names.

    Raises:
        Invalid: the address is no absolute path.
    """
    path = Path(context.address)
    if not path.is_absolute():
        msg = f"The address of the channel {context.name} is no absolute path."
        raise Invalid(msg, code="invalid_setting", hint="Write file:/PATH.")
    return FileChannel(path)


KIND = ChannelKind(open_channel)
