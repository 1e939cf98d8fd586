"""Prometheus metrics: counters of this process, and the state of the database at the time of the scrape."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kneo import WIRE_VERSION, __version__
from kneo.clock import monotonic, parse_time
from kneo.errors import KneoError
from kneo.records.canary import Canary
from kneo.records.run import AgentUsage
from kneo.service.events import Streams
from kneo.store import audit, canaries, grants, metrics, project_metadata, requests, runs, usage
from kneo.store.engine import Store, Tx

COUNT_SHARE = 100
"""Counting rows that have ended takes at most this part of the time: at two million runs, half a second each minute."""


class Metrics:
    """The metrics of one application and its database."""

    def __init__(self, store: Store, streams: Streams) -> None:
        self.store = store
        self.registry = CollectorRegistry()
        self._hooks = Counter("kneo_webhook", "Deliveries of webhooks.", ["provider", "result"], registry=self.registry)
        Gauge("kneo_http_streams", "Open streams.", registry=self.registry).set_function(lambda: streams.open)
        self.registry.register(_DatabaseMetrics(store))

    def delivered(self, provider: str, result: str) -> None:
        """Count a delivery of a webhook: ``accepted``, ``duplicate``, ``refused``, ``too_large`` or ``limited``."""
        self._hooks.labels(provider, result).inc()

    def text(self, reach: frozenset[str] | None = None) -> bytes:
        """Return the metrics of this process in Prometheus's text format 0.0.4: all of them, or those of some environments."""
        if reach is not None:
            limited = CollectorRegistry()
            limited.register(_LimitedMetrics(self.store, reach))
            return generate_latest(limited)
        return generate_latest(self.registry) + generate_latest(REGISTRY)


class _LimitedMetrics(Collector):
    """Metrics of the database that name environments, of some environments."""

    def __init__(self, store: Store, reach: frozenset[str]) -> None:
        self.store = store
        self.reach = reach

    def collect(self) -> Iterator[Metric]:
        with self.store.read() as tx:
            used = usage.total_by_model(tx)
        yield from _usage({names: usage_of for names, usage_of in used.items() if names[0] in self.reach})


class _DatabaseMetrics(Collector):
    """Metrics of the database."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._ended: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._count_again = 0.0
        self._counting = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("kneo_build_info", "This build.", labels=["version", "wire"])
        build.add_metric([__version__, WIRE_VERSION], 1)
        yield build
        try:
            yield from self._read()
        except KneoError:
            yield GaugeMetricFamily("kneo_store_up", "Whether the database is reachable.", value=0)

    def _signs(self) -> bool:
        try:
            return self.store.find_key() is not None
        except KneoError:
            return False

    def _count_ended(self, tx: Tx) -> tuple[dict[str, int], dict[str, int]]:
        """Count what has ended; again only once a hundred times the duration of the last count has passed."""
        with self._counting:
            begun = monotonic()
            if begun >= self._count_again:
                self._ended = metrics.ended_by_status(tx)
                done = monotonic()
                self._count_again = done + (done - begun) * COUNT_SHARE
            return self._ended

    def _read(self) -> Iterator[Metric]:
        with self.store.read() as tx:
            active, ended = metrics.active_by_status(tx), self._count_ended(tx)
            waiting, oldest = metrics.queue(tx)
            pending = metrics.unsealed_events(tx)
            suspects = runs.count_suspects(tx)
            unsent = metrics.unsent_messages(tx)
            controller = requests.lease_holder(tx, requests.CONTROLLER_LEASE) is not None
            sealed, _ = audit.chain_head(tx)
            used = usage.total_by_model(tx)
            backup = project_metadata.last_backup(tx)
            waiting_calls, _ = metrics.waiting_calls(tx)
            active_grants, covered = grants.count_active(tx), grants.total_uses(tx)
            live, bad = canaries.list_live(tx), canaries.total_bad(tx)
            now = tx.now
        yield GaugeMetricFamily("kneo_store_up", "Whether the database is reachable.", value=1)
        yield GaugeMetricFamily("kneo_service_key", "Whether this process can sign receipts.", value=self._signs())
        yield _by("kneo_runs", "Runs by status.", "status", active[0] | ended[0])
        yield _by("kneo_human_tasks", "Human tasks by status.", "status", active[1] | ended[1])
        yield _by("kneo_notifications", "Notifications by status: pending or failed.", "status", unsent)
        yield GaugeMetricFamily("kneo_queue_depth", "Runs in the queue.", value=waiting)
        age = (now - parse_time(oldest)) / timedelta(seconds=1) if oldest is not None else 0.0
        yield GaugeMetricFamily("kneo_queue_oldest_seconds", "Age of the oldest run in the queue.", value=age)
        yield GaugeMetricFamily(
            "kneo_suspected_runs", "Runs during each of which workers died, running or ended for it.", value=suspects
        )
        yield from _usage(used)
        yield GaugeMetricFamily("kneo_audit_unsealed_events", "Audit events not yet in the chain.", value=pending)
        yield GaugeMetricFamily("kneo_audit_tree_size", "Audit events in the chain.", value=sealed)
        yield GaugeMetricFamily(
            "kneo_backup_last_success_timestamp",
            "Time of the last backup by kneo maintenance backup, Unix time; 0 without one.",
            value=backup.timestamp() if backup is not None else 0,
        )
        yield GaugeMetricFamily("kneo_calls_waiting", "Calls that wait for people.", value=waiting_calls)
        yield GaugeMetricFamily("kneo_grants_active", "Active standing grants.", value=active_grants)
        yield CounterMetricFamily("kneo_grant_uses_total", "Calls that standing grants covered.", value=covered)
        yield from _canaries(live, bad)
        yield GaugeMetricFamily("kneo_controller_running", "Whether a controller holds its lease.", value=controller)


def _canaries(live: Iterable[Canary], bad: Mapping[tuple[str, str, str, str], int]) -> Iterator[Metric]:
    """Yield the shares of the canaries that have not ended, and the bad runs that they and their releases had."""
    place = ["environment", "bundle"]
    share = GaugeMetricFamily("kneo_canary_share", "Share of new runs that a canary gets, from 0 to 1.", labels=place)
    for canary in live:
        share.add_metric([canary.environment, canary.bundle], canary.share)
    labels = [*place, "metric", "arm"]
    count = CounterMetricFamily(
        "kneo_canary_bad", "Bad runs that a canary compares: its own, and control.", labels=labels
    )
    for names, number in bad.items():
        count.add_metric(names, number)
    yield from (share, count)


def _usage(used: Mapping[tuple[str, str, str], AgentUsage]) -> Iterator[Metric]:
    """Yield the counters of model usage, which all processes of a database share."""
    labels = ["environment", "provider", "model"]
    requests = CounterMetricFamily("kneo_model_requests", "Requests that models answered.", labels=labels)
    tokens = CounterMetricFamily("kneo_model_tokens", "Tokens of requests and replies.", labels=[*labels, "direction"])
    cost = CounterMetricFamily(
        "kneo_model_cost_dollars", "Cost of the requests whose model has a price.", labels=labels
    )
    for names, usage_of in used.items():
        requests.add_metric(names, usage_of.requests)
        tokens.add_metric([*names, "input"], usage_of.input_tokens)
        tokens.add_metric([*names, "output"], usage_of.output_tokens)
        cost.add_metric(names, usage_of.cost_micros / 1_000_000)
    yield from (requests, tokens, cost)


def _by(name: str, help_text: str, label: str, counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
