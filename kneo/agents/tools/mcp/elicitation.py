"""Elicitations: what a server asks people before it finishes a call, one question after the other.

A server that asks returns its requests and a state of its own. The call is made again with the answers and that state, by any
process, to any process of the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mcp_types import (
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    InputResponses,
)

from kneo.agents.secrets import CallSecrets
from kneo.agents.tools.mcp.failures import McpToolFailed
from kneo.agents.tools.middleware import MAX_PROMPT_CHARS
from kneo.agents.turn import AnswerRequired
from kneo.records.task import Decision

MAX_REQUESTS = 20
"""Requests in one result of a server."""


@dataclass(frozen=True, kw_only=True)
class Elicitation:
    """The requests of a server, the answers so far, and the server's state.

    Attributes:
        requests: Prompt and JSON Schema by the server's key.
        answers: Results as the protocol writes them, by the same keys.
    """

    server_state: str | None
    requests: Mapping[str, Mapping[str, object]]
    answers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @classmethod
    def of(cls, result: InputRequiredResult, secrets: CallSecrets) -> Elicitation:
        """Read the requests of a result, which are kept without the secrets of the call.

        Raises:
            McpToolFailed: it asks for something else than a form, or for too much.
        """
        requests = result.input_requests or {}
        if len(requests) > MAX_REQUESTS:
            msg = f"The MCP server asks {len(requests)} questions at once; at most {MAX_REQUESTS} are possible."
            raise McpToolFailed(msg)
        return cls(
            server_state=result.request_state, requests={key: _form(each, secrets) for key, each in requests.items()}
        )

    @classmethod
    def restore(cls, state: Mapping[str, object]) -> Elicitation:
        """Read the state of an ``AnswerRequired``."""
        server_state, requests, answers = state["server_state"], state["requests"], state["answers"]
        assert isinstance(server_state, str | None)
        assert isinstance(requests, Mapping)
        assert isinstance(answers, Mapping)
        return cls(server_state=server_state, requests=requests, answers=answers)

    def answered(self, decision: Decision) -> Elicitation:
        """Return the elicitation with the answer to the question that is asked now."""
        key = self._current()
        assert key is not None
        return replace(self, answers={**self.answers, key: _answer(decision)})

    def question(self, *, restarted: bool = False) -> AnswerRequired | None:
        """Return the next question, or ``None`` where all are answered."""
        key = self._current()
        if key is None:
            return None
        state = {"server_state": self.server_state, "requests": dict(self.requests), "answers": dict(self.answers)}
        prompt, schema = self.requests[key]["prompt"], self.requests[key]["schema"]
        assert isinstance(schema, Mapping)
        return AnswerRequired(str(prompt), schema, state, restarted=restarted)

    def responses(self) -> InputResponses | None:
        """Return the answers as the protocol sends them."""
        return {key: ElicitResult.model_validate(answer) for key, answer in self.answers.items()} or None

    def _current(self) -> str | None:
        return next((key for key in self.requests if key not in self.answers), None)


def _form(request: InputRequest, secrets: CallSecrets) -> Mapping[str, object]:
    if not isinstance(request, ElicitRequest) or not isinstance(request.params, ElicitRequestFormParams):
        msg = f"The MCP server asks for {request.method}, which is refused: a tool may ask people for a form only."
        raise McpToolFailed(msg)
    prompt = secrets.hide_text(request.params.message)[:MAX_PROMPT_CHARS]
    return {"prompt": prompt, "schema": secrets.hide_fields(request.params.requested_schema)}


def _answer(decision: Decision) -> Mapping[str, object]:
    if decision.kind not in {"approved", "edited", "provided", "selected"}:
        return {"action": "decline"}
    values = decision.values if decision.values is not None else decision.data
    if values is None and decision.content:
        values = json.loads(decision.content)
    return {"action": "accept", "content": dict(values) if isinstance(values, Mapping) else {}}
