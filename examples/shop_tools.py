"""Tools of a shop: one reads an order, one has an effect and takes the idempotency key of its call."""

from __future__ import annotations

from collections.abc import Mapping


def lookup_order(arguments: Mapping[str, object]) -> dict[str, object]:
    """Find an order."""
    return {"id": arguments["id"], "total": 20}


async def refund(arguments: Mapping[str, object], key: str) -> str:
    """Refund an order; the key is the same when the call is repeated after a crash."""
    return f"refunded {arguments['amount']} for {arguments['id']} with the key {key}"
