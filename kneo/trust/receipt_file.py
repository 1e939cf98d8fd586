"""Receipts as they are handed over: one envelope, one with what it says beside it, or all of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from kneo.errors import Invalid
from kneo.spec.documents import ReadLimits
from kneo.spec.reading.reader import read_json
from kneo.trust.dsse import Envelope, read_envelope
from kneo.trust.receipt_check import PresentedReceipt

LIMITS = ReadLimits(max_bytes=16 * 1_048_576, max_nodes=1_000_000)
"""Room for the receipts of some thousand decisions."""

RECEIPTS = 5_000

STATEMENTS = 1_000
"""Most statements of reviewers beside one receipt; each costs looking at the voters."""


@dataclass(frozen=True)
class ReceiptFile:
    """What somebody hands over.

    Attributes:
        receipts: In the order in which they stand.
        is_chain: Whether they are said to be those of a run, from the first on.
    """

    receipts: tuple[PresentedReceipt, ...]
    is_chain: bool


def read_receipts(data: bytes, *, file: str) -> ReceiptFile:
    """Read a file of receipts without believing any of it.

    Raises:
        Invalid: it is not JSON, too large, or holds no receipts.
    """
    return find_receipts(read_json(data, file=file, limits=LIMITS).value, file=file)


def find_receipts(value: object, *, file: str) -> ReceiptFile:
    """Find the receipts in a JSON value: an envelope, ``{"envelope", "receipt"}`` or ``{"receipts": [...]}``.

    Raises:
        Invalid: it holds none, or too many.
    """
    if isinstance(value, dict) and isinstance(listed := value.get("receipts"), list):
        if not 0 < len(listed) <= RECEIPTS:
            msg = f"{file}: {len(listed)} receipts; from 1 to {RECEIPTS} are read at once."
            raise Invalid(msg, code="Malformed")
        found = tuple(_one(item, f"{file}: receipts[{index}]") for index, item in enumerate(listed))
        return ReceiptFile(found, is_chain=True)
    return ReceiptFile((_one(value, file),), is_chain=False)


def wrap_envelope(value: object) -> dict[str, object]:
    """Put an envelope that stands alone where one beside its words would stand.

    Raises:
        Invalid: it is not a JSON object.
    """
    if not isinstance(value, dict):
        msg = "A receipt is a JSON object."
        raise Invalid(msg, code="Malformed", hint="kneo human receipt show --json writes one.")
    return {"envelope": value} if "payloadType" in value else value


def _one(value: object, where: str) -> PresentedReceipt:
    if not isinstance(value, dict):
        msg = f"{where}: a receipt is a JSON object."
        raise Invalid(msg, code="Malformed", hint="kneo human receipt show --json writes one.")
    if "envelope" not in value:
        return PresentedReceipt(envelope=read_envelope(value, file=where))
    envelope = read_envelope(value["envelope"], file=f"{where}: envelope")
    view, statements = value.get("receipt"), value.get("statements")
    return PresentedReceipt(
        envelope=envelope,
        view=_view(view, where) if view is not None else None,
        statements=_statements(statements, where) if statements is not None else None,
    )


def _statements(value: object, where: str) -> tuple[Envelope, ...]:
    if not isinstance(value, list) or len(value) > STATEMENTS:
        msg = f"{where}: statements must be a list of at most {STATEMENTS} envelopes."
        raise Invalid(msg, code="Malformed")
    return tuple(read_envelope(item, file=f"{where}: statements[{index}]") for index, item in enumerate(value))


def _view(value: object, where: str) -> Mapping[str, JsonValue]:
    if not isinstance(value, dict):
        msg = f"{where}: receipt must be a JSON object."
        raise Invalid(msg, code="Malformed")
    return value
