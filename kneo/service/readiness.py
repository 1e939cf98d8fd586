"""Whether this process can serve requests now, probe by probe."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from kneo import registry
from kneo.api.operation import Json
from kneo.clock import parse_time
from kneo.errors import KneoError
from kneo.project.secrets import Inventory, secret_inventory
from kneo.settings import Settings
from kneo.spec.project import ProjectConfig
from kneo.store import metrics, releases, requests
from kneo.store.engine import Store

log = logging.getLogger("kneo.service")

RUNTIMES = ("bridge", "native")
"""The published names of agent runtimes; specs choose by provider."""


class Readiness:
    """The checks of everything that a request may need.

    No check uses the network: a check that waits for another service fails together with it. A controller or worker that is
    away is reported and does not make this process unready.

    Args:
        settings: The settings, which name what is required.
        store: The database.
        project: The config of the project, which names variables.
        tools: Tools of this process.
    """

    def __init__(self, settings: Settings, store: Store, project: ProjectConfig | None, tools: frozenset[str]) -> None:
        self.settings = settings
        self.store = store
        self.project = project
        self.tools = tools

    def checks(self) -> Mapping[str, Json]:
        """Run the checks; each result has its name and ``ok``."""
        probes: Mapping[str, Callable[[], Json]] = {
            "api": lambda: {"status": "ready"},
            "run_state_store": self._database,
            "continuation_store": self._database,
            "queue": self._queue,
            "dispatcher": self._dispatcher,
            "controller": self._controller,
            "source": self._source,
            "disk": self._disk,
            "runtime_registry": lambda: {"count": len(RUNTIMES), "names": list(RUNTIMES)},
            "tool_registry": lambda: {"count": len(self.tools), "names": sorted(self.tools)},
            "providers": self._providers,
            "mcp": self._mcp,
        }
        return {name: {"name": name, "ok": True} | _probed(name, probe) for name, probe in probes.items()}

    def _database(self) -> Json:
        with self.store.read() as tx:
            requests.lease_holder(tx, requests.CONTROLLER_LEASE)
        return {}

    def _queue(self) -> Json:
        with self.store.read() as tx:
            waiting, _ = metrics.queue(tx)
            driven = metrics.driven(tx)
        limit = self.settings.execution.max_queue_depth
        kind = self.store.engine.dialect.name
        # A full queue refuses new runs and serves everything else.
        return {"kind": kind, "durable": True, "queued": waiting, "running": driven, "failed": 0, "limit": limit}

    def _dispatcher(self) -> Json:
        with self.store.read() as tx:
            _, since = metrics.queue(tx)
            oldest = (tx.now - parse_time(since)) / timedelta(seconds=1) if since is not None else 0.0
        return {"oldest_seconds": round(oldest, 3)}

    def _controller(self) -> Json:
        with self.store.read() as tx:
            return {"running": requests.lease_holder(tx, requests.CONTROLLER_LEASE) is not None}

    def _source(self) -> Json:
        """Check that a commit was accepted, where a config repository is configured; before that no run can start."""
        with self.store.read() as tx:
            pin = self.settings.trust_root
            if not registry.is_followed(tx, pin):
                return {"configured": False}
            if not releases.trust_chain(tx):
                return {"ok": False, "configured": True, "accepted": False}
            registry.trust_root(tx, pin)
            names = releases.environment_names(tx)
            # An environment whose first file waits for approvals counts: people approve it through this service.
            accepted = any(releases.environment(tx, name) or releases.pending(tx, name) for name in names)
        return {"ok": accepted, "configured": True, "accepted": accepted}

    def _disk(self) -> Json:
        free = shutil.disk_usage(self.settings.state_dir).free if self.settings.state_dir.is_dir() else None
        least = self.settings.http.health_free_bytes
        return {"ok": free is None or free >= least, "free_bytes": free, "least_bytes": least}

    def _providers(self) -> Json:
        providers = self.settings.http.health_providers
        if not providers:
            return {"configured": False}
        entries = self._secrets(providers=providers)["providers"]
        return _present({name: entry.present for name, entry in entries.items()})

    def _secrets(self, *, providers: Sequence[str] = (), extras: Sequence[str] = ()) -> Inventory:
        folder = self.settings.secrets_dir
        return secret_inventory(self.project, providers=providers, extras=extras, service_tokens=False, folder=folder)

    def _mcp(self) -> Json:
        names = self.settings.http.health_mcp_secrets
        if not names:
            return {"configured": False}
        entries = self._secrets(extras=names)["extra"]
        return _present({name: entry.present for name, entry in entries.items()})


def _present(items: Mapping[str, bool]) -> Json:
    return {"ok": all(items.values()), "configured": True, "items": dict(items)}


def _probed(name: str, probe: Callable[[], Json]) -> Json:
    try:
        return probe()
    except (KneoError, OSError) as error:
        # Probes need no key, so the error stands in the log alone.
        log.warning("the check %s failed: %s", name, error)
        return {"ok": False, "error": "check_failed"}
