from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--published-clients", action="store_true", help="Make environments for the published clients and drive them."
    )
