"""One tool call that a model asks for, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from typing import Literal, TypeAlias

from kneo.agents.arguments import Arguments
from kneo.digest import DigestLabel, digest_of_json
from kneo.spec.tool_kinds import ASK_QUESTION

Outcome: TypeAlias = Literal["success", "failed", "denied"]


@dataclass(frozen=True, kw_only=True)
class RequestedCall:
    """One tool call of a model reply.

    Attributes:
        key: ``<number of the reply>.<call id>``.
        name: The tool's name in the spec.
        arguments: The arguments; empty where ``misfit`` states why they cannot be read.
        nth: The calls of this tool so far in the conversation, this one included.
    """

    key: str
    number: int
    name: str
    arguments: Arguments
    nth: int
    misfit: str | None = None

    @property
    def task_key(self) -> str:
        """The name of the call's question in recorded answers; see ``CallQuestion.task_key``."""
        if self.name == ASK_QUESTION:
            question = str(self.arguments.get("question", ""))
            asked = sha1(question.encode(), usedforsecurity=False).hexdigest()
            return f"{ASK_QUESTION}:{self.nth}:{DigestLabel(asked)}"
        return f"{self.name}:{self.nth}:{DigestLabel(digest_of_json(self.arguments))}"


@dataclass(frozen=True)
class CallResult:
    """The result of a call, as the model is shown it."""

    content: object
    outcome: Outcome = "success"
