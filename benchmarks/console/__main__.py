"""How long the service takes for each page of the console with 10,000 runs and 2,000 open tasks, on both databases.

    python -m benchmarks.console --turns 25

Every page is shown with its budget. Exit status 1 says that a budget was exceeded.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import databases
import httpx
from console_load import fill, multiply, pages, statements
from console_pages import HtmlPage
from service_bench import Bench, serving

from kneo.records.run import Run
from kneo.settings import HttpSettings

BUDGETS_MS = {"inbox": 50, "task": 50, "environments": 100, "release": 100, "promotion": 100, "runs": 50, "run": 50}
"""Milliseconds of a page; another page has that of the inbox."""

BUDGET_BYTES = 10_000

LONG_PLAN_BYTES = {"release": 25_000, "promotion": 25_000}
"""Budgets of pages with a plan of a hundred changes of forty lines each."""

FIRST_BYTES, FIRST_REQUESTS = 30_000, 4


@dataclass(frozen=True, kw_only=True)
class PageCost:
    """The cost of a page.

    Attributes:
        name: The page.
        median_ms: The median time of a request on a connection that is open, everything of HTTP included.
        late_ms: The 95th percentile.
        own_ms: The processor time of the process, of which the client of this benchmark is a part.
        wire_bytes: The body as it is sent.
        statements: The statements that read.
    """

    name: str
    median_ms: float
    late_ms: float
    own_ms: float
    wire_bytes: int
    statements: int

    @property
    def budget_ms(self) -> int:
        return BUDGETS_MS.get(self.name, BUDGETS_MS["inbox"])

    def exceeded(self) -> Iterator[str]:
        """Return each budget that the page exceeds. A busy machine is late for everyone: the processor time counts there."""
        if min(self.median_ms, self.own_ms) > self.budget_ms:
            yield f"{self.name}: {self.median_ms:.0f} ms, the budget is {self.budget_ms} ms"
        budget = LONG_PLAN_BYTES.get(self.name, BUDGET_BYTES)
        if self.wire_bytes > budget:
            yield f"{self.name}: {self.wire_bytes} bytes, the budget is {budget}"


def measure(bench: Bench, client: httpx.Client, name: str, path: str, turns: int) -> PageCost:
    """Request a page several times, after the first requests, which compile its template and its statements."""
    for _ in range(2):
        size = transfer(client, f"/console{path}")
    with statements(bench.store) as found:
        transfer(client, f"/console{path}")
    taken, busy = [], time_used()
    for _ in range(turns):
        begun = perf_counter()
        transfer(client, f"/console{path}")
        taken.append((perf_counter() - begun) * 1_000)
    taken.sort()
    return PageCost(
        name=name,
        median_ms=taken[len(taken) // 2],
        late_ms=taken[min(len(taken) - 1, round(len(taken) * 0.95))],
        own_ms=(time_used() - busy) / turns * 1_000,
        wire_bytes=size,
        statements=len(found),
    )


def time_used() -> float:
    """Return the processor time of this process, in seconds."""
    used = os.times()
    return used.user + used.system


def transfer(client: httpx.Client, path: str) -> int:
    """Request a page or a file; return the bytes of its body on the wire."""
    with client.stream("GET", path) as response:
        for _ in response.iter_bytes():
            pass
        if response.status_code != httpx.codes.OK:
            msg = f"{path} was answered with {response.status_code}."
            raise RuntimeError(msg)
        return response.num_bytes_downloaded


def first_page(client: httpx.Client) -> tuple[int, int]:
    """Return the requests and the bytes of the first page with everything that it loads."""
    page = HtmlPage(client.get("/console/inbox").text)
    loaded = [each["href"] for each in page.having("rel") if each["rel"] in {"stylesheet", "icon"}]
    loaded += [each["src"] for each in page.having("src")]
    return 1 + len(loaded), sum(transfer(client, path) for path in ("/console/inbox", *loaded))


def report(database: str, costs: list[PageCost], first: tuple[int, int]) -> list[str]:
    """Print the costs of pages on a database; return the exceeded budgets."""
    write = sys.stdout.write
    write(f"\n{database}, load {os.getloadavg()[0]:.1f}\n")
    write(f"{'page':<16}{'budget':>8}{'median':>9}{'p95':>9}{'processor':>11}{'bytes':>8}{'statements':>12}\n")
    for each in costs:
        times = f"{each.median_ms:>6.1f} ms{each.late_ms:>6.1f} ms{each.own_ms:>8.1f} ms"
        write(f"{each.name:<16}{each.budget_ms:>5} ms{times}{each.wire_bytes:>8}{each.statements:>12}\n")
    requests, size = first
    write(f"the first page: {size} bytes, {requests} requests\n")
    exceeded = [f"{database}: {line}" for each in costs for line in each.exceeded()]
    if size > FIRST_BYTES or requests > FIRST_REQUESTS:
        exceeded.append(f"{database}: the first page has {size} bytes and {requests} requests")
    return exceeded


def measure_database(url: str, folder: Path, turns: int, repeats: int) -> tuple[list[PageCost], tuple[int, int]]:
    """Fill a database and measure the pages of a service on it."""
    limits = HttpSettings(rate_per_minute=1_000_000)
    with serving(folder, url, http=limits, workers=0) as bench:
        run: Run = fill(bench.store, repeats)
        multiply(bench.store)
        with httpx.Client(base_url=bench.url, timeout=240, headers={"accept-encoding": "gzip"}) as client:
            form = {"key": "admin-key"}
            client.post("/console/login", data=form, headers={"sec-fetch-site": "same-origin"})
            costs = [measure(bench, client, name, path, turns) for name, path in pages(bench.store, run).items()]
            return costs, first_page(client)


def main() -> int:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=200, help="length of the texts of steps, in ten characters")
    parser.add_argument("--databases", default="sqlite,postgresql")
    arguments = parser.parse_args()
    exceeded: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        server = databases.start_server() if "postgresql" in arguments.databases else None
        try:
            for name in arguments.databases.split(","):
                url = server.url(server.create()) if server and name == "postgresql" else f"sqlite:///{folder}/k.sqlite"
                exceeded += report(
                    name, *measure_database(url, Path(folder) / name, arguments.turns, arguments.repeats)
                )
        finally:
            if server is not None:
                server.stop()
    for line in exceeded:
        sys.stderr.write(f"exceeded: {line}\n")
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
