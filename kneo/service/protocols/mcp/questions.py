"""Open questions of a run for clients of MCP: as elicitations where the caller may answer, and as links."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import BaseModel, ConfigDict, ValidationError

from kneo.api.run_views import request_for_callers
from kneo.errors import Invalid
from kneo.records.run import Run
from kneo.records.task import DecisionKind, HumanTask

MAX_SUBJECT_CHARS = 4_000
"""Characters of a subject in an elicitation; a longer one is reviewed at the link."""

_DECISIONS = (
    DecisionKind.APPROVED,
    DecisionKind.REJECTED,
    DecisionKind.EDITED,
    DecisionKind.SELECTED,
    DecisionKind.PROVIDED,
)


class Elicited(BaseModel):
    """The state of an elicitation, which the client sends back with the answer: the question as it was shown."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    task_id: str
    request_id: str
    subject_digest: str | None

    @classmethod
    def read(cls, state: str) -> Elicited:
        """Read the state that a client sends back.

        Raises:
            Invalid: it is not one of these.
        """
        try:
            return cls.model_validate_json(state)
        except ValidationError as error:
            msg = "The request state is not one of this server."
            raise Invalid(msg, code="invalid_request_state") from error


def link_of(task: HumanTask, address: str) -> str:
    """Return the link at which people answer a question."""
    return f"{address}/console/inbox/{task.id}"


def elicitation(run: Run, tasks: Sequence[HumanTask], address: str) -> InputRequiredResult | None:
    """Return the first question that fits a flat form; ``None`` where none does: those with forms, long subjects or other
    decisions are answered at their links.
    """
    for task in tasks:
        subject = task.subject or ""
        decisions = [kind for kind in _DECISIONS if kind in task.decisions]
        if task.answer_schema is not None or task.multiple or not decisions or len(subject) > MAX_SUBJECT_CHARS:
            continue
        request = request_for_callers(task)
        shown = request["subject"]
        value = shown.get("value") if isinstance(shown, Mapping) else None
        prompt = "\n\n".join(str(part) for part in (request["prompt"] or request["title"], value) if part)
        form = ElicitRequestFormParams(
            message=f"{prompt}\n\n{link_of(task, address)}", requested_schema=_form(task, decisions)
        )
        state = Elicited(run_id=run.id, task_id=task.id, request_id=task.request_id, subject_digest=task.subject_digest)
        return InputRequiredResult(
            input_requests={task.id: ElicitRequest(params=form)}, request_state=state.model_dump_json()
        )
    return None


def _form(task: HumanTask, decisions: Sequence[DecisionKind]) -> dict[str, object]:
    fields: dict[str, object] = {"decision": {"type": "string", "enum": [str(kind) for kind in decisions]}}
    if DecisionKind.EDITED in decisions or DecisionKind.PROVIDED in decisions:
        fields["content"] = {"type": "string", "description": "The text, where the decision is edited or provided."}
    if DecisionKind.SELECTED in decisions:
        fields["selected_option"] = {"type": "string", "enum": list(task.options or ())}
    return {"type": "object", "properties": fields, "required": ["decision"]}


def decision_of(state: Elicited, responses: Mapping[str, object] | None) -> dict[str, object] | None:
    """Return the decision that a client answers with, for the question as it was shown; ``None`` where the person declined."""
    response = (responses or {}).get(state.task_id)
    if not isinstance(response, ElicitResult) or response.action != "accept":
        return None
    answer = {name: value for name, value in (response.content or {}).items() if value not in {None, ""}}
    return {**answer, "request_id": state.request_id, "expect_digest": state.subject_digest}


def as_text(data: Mapping[str, object]) -> str:
    """Return a structured result as text, for clients that read only texts."""
    return json.dumps(data, ensure_ascii=False)
