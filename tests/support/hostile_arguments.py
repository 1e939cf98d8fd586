"""Arguments of calls that no rule about small refunds in EUR accepts: some make its conditions unknown, the others false."""

from __future__ import annotations

from collections.abc import Mapping

UNKNOWN: tuple[Mapping[str, object], ...] = (
    {},
    {"amount": 50},
    {"currency": "EUR"},
    {"amount": None, "currency": "EUR"},
    {"amount": "50", "currency": "EUR"},
    {"amount": True, "currency": "EUR"},
    {"amount": [50], "currency": "EUR"},
    {"amount": {"value": 50}, "currency": "EUR"},
    {"amount": [], "currency": "EUR"},
    {"amount": {}, "currency": "EUR"},
    {"amount": 50, "currency": 7},
    {"amount": 50, "currency": ["EUR"]},
    {"amount": 50, "currency": {"code": "EUR"}},
    {"amount": 50, "currency": False},
    {"Amount": 50, "currency": "EUR"},
    {"amount ": 50, "currency": "EUR"},
    {"ämount": 50, "currency": "EUR"},
    {"аmount": 50, "currency": "EUR"},
)
OTHER: tuple[Mapping[str, object], ...] = (
    {"amount": -1, "currency": "EUR"},
    {"amount": 100.01, "currency": "EUR"},
    {"amount": 1e300, "currency": "EUR"},
    {"amount": -1e300, "currency": "EUR"},
    {"amount": 50, "currency": "eur"},
    {"amount": 50, "currency": "EUR "},
    {"amount": 50, "currency": "\u200bEUR"},
    {"amount": 50, "currency": "ЕUR"},
    {"amount": 50, "currency": "E\u0301UR"},
    {"amount": 50, "currency": ""},
    {"amount": 50, "currency": None},
)
