"""What flows from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kneo.spec.gates import Facts


@dataclass(frozen=True, kw_only=True)
class ReviewFeedback:
    """What a reviewer said about an earlier try, for the next one."""

    previous_output: str
    feedback: str


@dataclass(frozen=True, kw_only=True)
class Value:
    """A text, and how it came about.

    ``status`` is ``completed``, ``failed`` (a step failed and its input goes on) or ``skipped``. Variables flow with the
    value, so that what a parallel branch saves reaches what comes after the branches are joined, in their order.
    """

    text: str
    status: str = "completed"
    metadata: Mapping[str, object] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    """What each of several parallel steps said, by its id."""
    review: ReviewFeedback | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    """What people filled in since the last step did something."""

    @property
    def facts(self) -> Facts:
        return Facts(text=self.text, status=self.status, metadata=self.metadata, variables=self.variables)

    def passed_on(self, status: str) -> Value:
        """Go on as if the step had not been there, and say so."""
        return replace(self, status=status, metadata={}, outputs={}, review=None)

    def as_json(self) -> dict[str, object]:
        """Return what a frame keeps; what has its default is left out."""
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


def read_value(kept: object) -> Value:
    """Read what ``as_json`` wrote."""
    assert isinstance(kept, Mapping)
    review = kept.get("review")
    return Value(
        text=kept["text"],
        status=kept.get("status", "completed"),
        metadata=kept.get("metadata", {}),
        variables=kept.get("variables", {}),
        outputs=kept.get("outputs", {}),
        review=ReviewFeedback(**review) if review else None,
        values=kept.get("values", {}),
    )
