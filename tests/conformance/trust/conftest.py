from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--other-tools", action="store_true", help="Fetch other people's verifiers and let them check ours."
    )
