from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--temporal", action="store_true", help="Start a Temporal server and workers that it hands runs to."
    )
