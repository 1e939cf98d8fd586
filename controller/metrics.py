"""What a controller counts about itself, in Prometheus' words."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECONCILE_SECONDS = Histogram("kneo_reconcile_duration_seconds", "How long a pass took.")
RECONCILES = Counter("kneo_reconcile_total", "Passes by how they ended.", ["result"])
LAST_SUCCESS = Gauge("kneo_source_last_success_timestamp", "When the repository was last looked at, Unix time.")
READY = Gauge("kneo_environment_ready", "Whether an environment serves what Git says.", ["environment"])
CHANGES = Counter("kneo_promotion_total", "Changes of what is served.", ["environment"])
DRIFT = Gauge("kneo_drift_objects", "Releases that are served and would not be accepted today.", ["environment"])
ROOT_EXPIRY = Gauge("kneo_trust_root_expiry_timestamp", "From when on the trust root admits nothing new, Unix time.")
