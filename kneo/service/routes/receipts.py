"""Proof of what people decided."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field

from kneo.api.context import Principal
from kneo.service import responses
from kneo.service.auth import require
from kneo.service.context import ServiceDep
from kneo.service.receipts import answer_to_sign, public_key, receipt_of_task, receipts_of_run, verify_receipts
from kneo.service.router import Router, responds
from kneo.service.routes.inbox import HumanAnswer
from kneo.service.wire import Json

router = Router(tags=["receipts"])

Reader = Annotated[Principal, Depends(require("receipts:read"))]
Writer = Annotated[Principal, Depends(require("human:write"))]


class ReceiptsToVerify(BaseModel):
    """One receipt as it was handed out, its envelope alone, or all of a run; what nobody signed may stand beside."""

    model_config = ConfigDict(extra="forbid")

    envelope: dict[str, object] | None = Field(default=None, description="A DSSE envelope.")
    receipt: dict[str, object] | None = Field(default=None, description="What it is said to say.")
    receipts: list[dict[str, object]] | None = Field(default=None, description="All receipts of a run, in order.")
    key: str | None = Field(default=None, description="PEM of the public key; left out: this service's own.")
    statements: list[dict[str, object]] | None = None
    unsigned: dict[str, object] | None = None
    run_id: str | None = None
    count: int | None = None


class AnswerToSign(HumanAnswer):
    """The answer to sign, as it is then sent to `resume`."""

    expires_in: str = Field(default="15m", max_length=20, description="Until when it can be sent.", examples=["15m"])


@router.get("/human-tasks/{continuation_id}/receipt", operation_id="get_receipt", responses=responds(responses.Receipt))
def get_receipt(continuation_id: str, service: ServiceDep, _principal: Reader) -> Json:
    """Return the signed receipt of a decision."""
    return receipt_of_task(service.store, continuation_id)


@router.get("/runs/{run_id}/receipts", operation_id="list_receipts", responses=responds(responses.ReceiptList))
def list_receipts(run_id: str, service: ServiceDep, _principal: Reader) -> Json:
    """Return all receipts of a run; each names the one before it. They outlive the run."""
    return receipts_of_run(service.store, run_id)


@router.get("/receipts/key", operation_id="get_receipt_key", responses=responds(responses.ReceiptKey))
def get_receipt_key(service: ServiceDep, _principal: Reader) -> Json:
    """Return the public key that checks this service's receipts. Keep it elsewhere."""
    return public_key(service.settings)


@router.post("/receipts/verify", operation_id="verify_receipts", responses=responds(responses.ReceiptVerdict))
def post_verify(body: ReceiptsToVerify, service: ServiceDep, _principal: Reader) -> Json:
    """Check receipts: signatures, fields, and the chain where a run's are given. Names each field that was changed."""
    handed = body.model_dump(exclude_none=True, exclude={"key"})
    return verify_receipts(service.store, service.settings, handed, body.key)


@router.post(
    "/human-tasks/{continuation_id}/statement",
    operation_id="get_answer_to_sign",
    responses=responds(responses.AnswerToSign),
)
def get_answer_to_sign(continuation_id: str, body: AnswerToSign, service: ServiceDep, principal: Writer) -> Json:
    """Return the bytes that sign an answer as you; changes nothing. The same answer is then sent with the envelope."""
    limit = service.settings.limits.human_content_chars
    return answer_to_sign(service.store, continuation_id, body.model_dump(), actor=principal.name, limit=limit)
