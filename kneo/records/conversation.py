"""The journal of an agent, and deltas.

A journal has one entry per model reply and per tool call, from which a turn continues after a crash. Deltas are pieces of a
model's reply on their way to readers; they are never stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class EntryKind(StrEnum):
    MODEL = "model"
    TOOL = "tool"
    MEMORY = "memory"
    GUARD = "guard"
    ARTIFACT = "artifact"
    """The whole of a result that the model was shown cut; in a conversation that no turn loads."""


class EntryStatus(StrEnum):
    BEGUN = "begun"
    """The call may have happened; written before a call with effects."""
    WAITING = "waiting"
    """The tool asked for an answer and is called again with it; or the provider of a model asked to be asked again later."""
    DONE = "done"
    FAILED = "failed"
    DENIED = "denied"


EDITED_BY = "edited_by"
"""The fact of a tool call with the person who changed its arguments; the body has those with which the call was made."""

DECISIONS = "decisions"
"""The fact of a tool call with the decisions of people about it, in order: ``{by, decision}`` each, never their texts."""


@dataclass(frozen=True, kw_only=True)
class ConversationEntry:
    """One entry. ``(run, conversation, name)`` identifies it; a later entry of the same name replaces an earlier one.

    Attributes:
        conversation: ``<location of the step>~<reviews>``; of an agent behind a tool: ``<conversation of the caller>><call key>``.
        name: ``model:<n>``, ``tool:<call key>``, ``memory:0``, ``guard:<stage>:<id>:<n>``, ``plan:0``, ``output:<n>``.
        number: The number of model replies so far; orders the entries.
        body: Messages of a reply; arguments and result of a call. JSON.
        facts: Tool, provider, model, finish reason, tokens, cost, tries, milliseconds. Never content.
        started_at: ISO-8601.
        completed_at: ISO-8601; ``None`` while the call is under way.
    """

    conversation: str
    name: str
    number: int
    kind: EntryKind
    status: EntryStatus
    body: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    started_at: str
    completed_at: str | None = None

    @property
    def edited_arguments(self) -> Mapping[str, object] | None:
        """The arguments of a tool call that was made as a person changed them; ``None`` for every other entry."""
        arguments = self.body.get("arguments")
        return arguments if EDITED_BY in self.facts and isinstance(arguments, Mapping) else None

    @property
    def location(self) -> str:
        """The location of the step, also of an agent behind a tool."""
        found = _CONVERSATION.fullmatch(self.conversation)
        return found["location"] if found else self.conversation


_CONVERSATION = re.compile(r"(?P<location>.*?)~\d+(?:>[\w.-]+)*")


@dataclass(frozen=True, kw_only=True)
class ModelDelta:
    """A piece of a reply.

    Attributes:
        step_id: The path of the step.
        request: The number of the request in its conversation.
        offset: The characters of the reply before this piece. A higher one than expected shows that pieces were lost; 0 begins
            a reply anew.
    """

    run_id: str
    step_id: str
    request: int
    offset: int
    text: str
