"""What a controller counts about itself, in Prometheus' words."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

MINUTE, HOUR, DAY = 60, 3_600, 86_400

RECONCILE_SECONDS = Histogram("kneo_reconcile_duration_seconds", "How long a look took, by what it was.", ["loop"])
RECONCILES = Counter("kneo_reconcile_total", "Looks by how they ended.", ["result"])
GIT_REQUESTS = Counter("kneo_git_requests_total", "Questions to the repository's host.", ["op", "result"])
MIRROR_REBUILT = Counter("kneo_mirror_rebuilt", "Damaged mirrors that were made again.")
FETCH_BYTES = Counter("kneo_git_fetch_bytes", "Bytes of objects that fetches brought.")
LAST_SUCCESS = Gauge("kneo_source_last_success_timestamp", "When the repository was last looked at, Unix time.")
HOOKS_MISSED = Counter("kneo_webhook_missed", "Commits found by the interval that no webhook announced.")
VERIFIED = Counter("kneo_bundle_verify_total", "Bundles judged, by the reason of a refusal.", ["result", "reason"])
READY = Gauge("kneo_environment_ready", "Whether an environment serves what Git says.", ["environment"])
CHANGES = Counter("kneo_promotion_total", "Changes of what is served.", ["environment", "result"])
LEAD_SECONDS = Histogram(
    "kneo_promotion_lead_seconds",
    "Time from the commit, by its own clock, until what it names was served.",
    ["environment"],
    buckets=(1, 2, 5, 10, 30, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY),
)
DRIFT = Gauge("kneo_drift_objects", "Releases that are served and would not be accepted today.", ["environment"])
ROOT_EXPIRY = Gauge("kneo_trust_root_expiry_timestamp", "From when on the trust root admits nothing new, Unix time.")
