"""Tools of your own: functions from a map of arguments to text."""

from __future__ import annotations

from collections.abc import Mapping

DIRECTORY = {
    "u-001": "alice@example.com",
    "u-002": "bob@example.com",
    "u-003": "carol@example.com",
}


TRANSFERS: dict[str, str] = {}
"""Transfers by their idempotency key: a repeated call finds the first one."""


def lookup_user(arguments: Mapping[str, object]) -> str:
    """Return a person's address by their id, or say that nobody has that id."""
    user_id = arguments.get("user_id")
    if not isinstance(user_id, str) or not user_id:
        return "unknown: user_id is missing"
    return DIRECTORY.get(user_id, f"unknown: {user_id}")


def transfer(arguments: Mapping[str, object], key: str) -> str:
    """Transfer money once for each key, however often the call is repeated."""
    return TRANSFERS.setdefault(key, f"{arguments.get('amount')} to {arguments.get('to')}")
