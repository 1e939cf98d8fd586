"""Serve a platform with a tool of your own over HTTP.

python -m examples.serve_lookup
"""

from __future__ import annotations

import sys

import uvicorn

from examples.my_factory import build_platform
from kneo.service.app import create_app
from kneo.service.dependencies import set_platform_manager


def main(port: int = 8000) -> None:
    """Answer until somebody stops it."""
    with build_platform() as manager:
        set_platform_manager(manager)
        uvicorn.run(create_app(), host="127.0.0.1", port=port)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
