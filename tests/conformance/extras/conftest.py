from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fresh-environments", action="store_true", help="Install Kneo into environments of their own.")
