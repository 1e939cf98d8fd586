"""Values: the data that passes from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kneo.spec.gates import Facts


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

    @property
    def facts(self) -> Facts:
        return Facts(text=self.text, status=self.status, metadata=self.metadata, variables=self.variables)

    def passed_on(self, status: str) -> Value:
        """Return the value for the following step where a step has no result, with the reason as its status."""
        return replace(self, status=status, metadata={}, outputs={}, review=None)

    def as_json(self) -> dict[str, object]:
        """Return the value's part of a frame; defaults are left out."""
        values: dict[str, object] = {"text": self.text}
        if self.status != "completed":
            values["status"] = self.status
        for name in ("metadata", "variables", "outputs", "values"):
            content = getattr(self, name)
            if content:
                values[name] = dict(content)
        if self.review is not None:
            values["review"] = {"previous_output": self.review.previous_output, "feedback": self.review.feedback}
        return values


def read_value(content: object) -> Value:
    """Read the JSON of ``as_json``."""
    assert isinstance(content, Mapping)
    review = content.get("review")
    return Value(**{**content, "review": ReviewFeedback(**review) if review else None})
