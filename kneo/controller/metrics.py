"""Prometheus metrics of a controller."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

MINUTE, HOUR, DAY = 60, 3_600, 86_400

RECONCILE_SECONDS = Histogram(
    "kneo_reconcile_duration_seconds", "Duration of a reconciliation or poll, by kind.", ["loop"]
)
RECONCILES = Counter("kneo_reconcile_total", "Reconciliations and polls by result.", ["result"])
GIT_REQUESTS = Counter("kneo_git_requests_total", "Requests to the repository's host.", ["op", "result"])
MIRROR_REBUILT = Counter("kneo_mirror_rebuilt", "Damaged mirrors that were rebuilt.")
FETCH_BYTES = Counter("kneo_git_fetch_bytes", "Bytes of fetched objects.")
LAST_SUCCESS = Gauge(
    "kneo_source_last_success_timestamp", "Time of the last successful poll of the repository, Unix time."
)
HOOKS_MISSED = Counter("kneo_webhook_missed", "Commits that the interval found and no webhook announced.")
VERIFIED = Counter(
    "kneo_bundle_verify_total", "Verified and rejected bundles, by the reason of a rejection.", ["result", "reason"]
)
READY = Gauge(
    "kneo_environment_ready", "Whether the releases of an environment are those that Git declares.", ["environment"]
)
CHANGES = Counter("kneo_promotion_total", "Promotions by result.", ["environment", "result"])
LEAD_SECONDS = Histogram(
    "kneo_promotion_lead_seconds",
    "Time from the commit, by its own date, until its release.",
    ["environment"],
    buckets=(1, 2, 5, 10, 30, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY),
)
DRIFT = Gauge("kneo_drift_objects", "Releases that would fail verification today.", ["environment"])
ROOT_EXPIRY = Gauge(
    "kneo_trust_root_expiry_timestamp", "Expiry of the trust root, Unix time; 0 where this controller is not at work."
)


def report_ready(ready: Mapping[str, bool]) -> None:
    """Set which environments are ready, and remove the gauges of all others: an environment that is gone alerts for good.

    Args:
        ready: Every environment of the repository and the registry.
    """
    for gauge in (READY, DRIFT):
        names = {sample.labels["environment"] for family in gauge.collect() for sample in family.samples}
        for gone in names - ready.keys():
            gauge.remove(gone)
    for name, is_ready in ready.items():
        READY.labels(name).set(is_ready)


def clear_findings() -> None:
    """Remove what a controller found: another one may have found something else since.

    An alert takes the highest value of all controllers, so an old value would hide the present one, or outlive what it is about.
    """
    READY.clear()
    DRIFT.clear()
    ROOT_EXPIRY.set(0)
