"""The measured service, in a process of its own until its standard input ends: ``python -m benchmarks.streams.service FOLDER URL``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from service_bench import serving

from kneo.settings import HttpSettings

HTTP = HttpSettings(
    max_streams=400, max_streams_per_person=400, rate_per_minute=1_000_000, trusted_proxies=("127.0.0.1",)
)
"""Room for all clients under few names, and the addresses of callers as a proxy reports them."""


def main(folder: str, url: str) -> None:
    """Serve until the standard input ends."""
    with serving(Path(folder), url, http=HTTP) as bench:
        sys.stdout.write(f"{bench.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
