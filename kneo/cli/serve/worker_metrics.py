"""Prometheus metrics of a worker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kneo.runtime.engine.assemble import LockedWorker


class WorkerMetrics(Collector):
    """The metrics of one worker."""

    def __init__(self, worker: LockedWorker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        worker = self._worker
        yield GaugeMetricFamily("kneo_worker_slots", "Runs that the worker drives at most.", value=worker.concurrency)
        yield GaugeMetricFamily("kneo_worker_busy_slots", "Runs that the worker drives.", value=worker.busy)
        ages = GaugeMetricFamily(
            "kneo_worker_heartbeat_age_seconds", "Time since the last turn of a loop of the worker.", labels=["loop"]
        )
        for loop, seconds in worker.heartbeats.ages().items():
            ages.add_metric([loop], seconds)
        yield ages


@contextlib.contextmanager
def measured(worker: LockedWorker, registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """Expose the metrics of a worker while a block runs."""
    metrics = WorkerMetrics(worker)
    registry.register(metrics)
    try:
        yield
    finally:
        registry.unregister(metrics)
