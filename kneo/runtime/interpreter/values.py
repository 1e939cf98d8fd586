"""Values: the data that passes from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kneo.function_context import ChatMessage, messages_as_json, read_messages
from kneo.spec.conditions import Facts


@dataclass(frozen=True, kw_only=True)
class ReviewFeedback:
    """A reviewer's feedback on an earlier attempt, for the next one."""

    previous_output: str
    feedback: str


@dataclass(frozen=True, kw_only=True)
class Value:
    """A text and its origin.

    ``status`` is ``completed``, ``failed`` (a step failed and its input is passed on) or ``skipped``. Variables travel with
    the value: those that parallel branches save are joined in the branches' order.
    """

    text: str
    status: str = "completed"
    metadata: Mapping[str, object] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    """The outputs of parallel steps, by their ids."""
    review: ReviewFeedback | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    """Form values of people since the last step ran."""
    filled: Mapping[str, object] = field(default_factory=dict)
    """Form values of people since the run began, the newest of each name."""
    messages: tuple[ChatMessage, ...] = ()
    """The messages before the turn of a participant of a group chat or handoff."""

    def facts(self, run: Mapping[str, object]) -> Facts:
        """Return the facts for conditions; ``run`` has those of the run."""
        names = {
            "input": self.text,
            "output": self.text,
            "status": self.status,
            "metadata": self.metadata,
            "variables": self.variables,
            "values": self.filled,
            "run": run,
        }
        return Facts(text=self.text, status=self.status, metadata=self.metadata, variables=self.variables, names=names)

    def as_subject(self) -> Value:
        """Return the value as people decide about it: its text is everything that the next agent is given."""
        return replace(self, text=text_of_outputs(self.outputs)) if self.text in self.outputs.values() else self

    def passed_on(self, status: str) -> Value:
        """Return the value for the following step where a step has no result, with the reason as its status."""
        return replace(self, status=status, metadata={}, outputs={}, review=None)

    def as_json(self) -> dict[str, object]:
        """Return the value's part of a frame; defaults are left out."""
        values: dict[str, object] = {"text": self.text}
        if self.status != "completed":
            values["status"] = self.status
        for name in ("metadata", "variables", "outputs", "values", "filled"):
            content = getattr(self, name)
            if content:
                values[name] = dict(content)
        if self.messages:
            values["messages"] = messages_as_json(self.messages)
        if self.review is not None:
            values["review"] = {"previous_output": self.review.previous_output, "feedback": self.review.feedback}
        return values


def text_of_outputs(outputs: Mapping[str, str]) -> str:
    """Return the outputs of parallel steps as one text, each under the id of its step; a single one as it is."""
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return "\n\n".join(titled(name, output) for name, output in outputs.items())


def titled(name: str, text: str) -> str:
    """Return a text under the name of the step or participant that wrote it."""
    return f"[{name}]\n{text}"


def read_value(content: object) -> Value:
    """Read the JSON of ``as_json``."""
    assert isinstance(content, dict)
    review, messages = content.get("review"), content.get("messages")
    if review is None and messages is None:
        return Value(**content)
    read = {"messages": read_messages(messages or ()), "review": ReviewFeedback(**review) if review else None}
    return Value(**content | read)
