"""The controller loop: reconcile on request, on a new commit and on an interval, with backoff after failures.

A watch on the branches of a local repository is a hint: the interval finds new commits too.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from kneo.clock import monotonic, new_id, parse_time
from kneo.controller import metrics
from kneo.controller.reconcile import Reconciler, ReconcileResult
from kneo.controller.source_tracker import UNREACHABLE
from kneo.controller.stages.report import Ready, Reconciling
from kneo.errors import Conflict, Invalid, KneoError, Transient
from kneo.store import requests
from kneo.store.engine import Store
from kneo.store.requests import ControllerRequest, Lease

log = logging.getLogger("kneo.controller")

LEASE = timedelta(seconds=15)
REQUEST_POLL_SECONDS = 0.2
"""Interval at which request rows are read where nothing announces them."""

ANNOUNCED_POLL_SECONDS = 2.0
"""The longest interval at which they are read where PostgreSQL announces them."""

SETTLE_SECONDS = 10.0
"""Interval at which the runs of canaries are settled."""

REQUEST_LIFE = timedelta(hours=1)
"""The age from which a request is not executed any more: a row that was answered could be put back as it was."""

FIRST_BACKOFF_SECONDS = 0.75
LAST_BACKOFF_SECONDS = 900.0
DEFAULT_INTERVAL = timedelta(seconds=60)
LATE, LATE_SECONDS = 5, 120.0
"""Intervals without success after which a controller is not alive, but never fewer than these seconds."""

JITTER = 0.1
"""Jitter of intervals and backoffs, so that controllers do not reconcile in step."""


def backoff_seconds(failures: int) -> float:
    """Return the pause after a number of failures in a row, before jitter."""
    return min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 20))


class Controller:
    """Reconciles one source. ``run`` blocks; ``poke`` and ``stop`` work from any thread."""

    def __init__(self, store: Store, reconciler: Reconciler, *, interval: timedelta = DEFAULT_INTERVAL) -> None:
        self.store = store
        self.reconciler = reconciler
        self.interval = interval
        self.owner = new_id("ctl", store.clock.now())
        self._announced = threading.Event()
        """Set by a possible new commit."""
        self._woken = threading.Event()
        """Set by anything that may be work; the loop waits for it."""
        self._stopping = threading.Event()
        self._failures = 0
        self._settled = False
        self._next = 0.0
        self._last_success = monotonic()
        self._settle_at = 0.0
        self._stepping = frozenset[tuple[str, int]]()
        self._held: Lease | None = None
        self._renew_at = 0.0
        self._lapses_at = 0.0

    def is_alive(self) -> bool:
        """Return whether this controller or the lease holder reached the repository in time."""
        return monotonic() - self._last_success <= max(LATE_SECONDS, LATE * self.interval.total_seconds())

    def poke(self) -> None:
        """Announce a possible new commit."""
        self._announced.set()
        self._woken.set()

    def stop(self) -> None:
        self._stopping.set()
        self._woken.set()

    def run(self) -> None:
        """Reconcile until ``stop``."""
        with requests.listen(self.store, self._woken.set) as listening:
            while not self._stopping.is_set():
                # Before the rows are read: what comes later is announced, or read soon.
                is_announced = listening.is_set()
                self._woken.clear()
                try:
                    self._turn()
                except Transient as error:
                    log.warning("%s", error)
                    if monotonic() >= self._lapses_at:
                        # The database did not answer for as long as the lease lasts: another controller may hold it.
                        self._forget_findings()
                if not self._stopping.is_set():
                    self._woken.wait(self._pause() if is_announced else REQUEST_POLL_SECONDS)
        self._forget_findings()
        with self.store.write() as tx:
            requests.drop_lease(tx, requests.CONTROLLER_LEASE, self.owner)

    def _pause(self) -> float:
        """Return the longest time until there may be work that nothing announces."""
        if self._held is None:
            return ANNOUNCED_POLL_SECONDS
        return max(REQUEST_POLL_SECONDS, min(ANNOUNCED_POLL_SECONDS, self._next - monotonic()))

    def run_once(self) -> ReconcileResult:
        """Reconcile once now.

        Raises:
            Transient: another controller is at work, or the repository or database did not answer.
            Invalid: the repository cannot be reconciled.
        """
        lease = self._lease()
        if lease is None:
            msg = "Another controller is at work on this database."
            raise Transient(msg, code="LeaseHeld")
        try:
            with self._renewing(lease):
                return self.reconciler.reconcile(lease)
        finally:
            with self.store.write() as tx:
                requests.drop_lease(tx, requests.CONTROLLER_LEASE, self.owner)

    def _turn(self) -> None:
        lease = self._lease()
        if lease is None:
            self._last_success = monotonic()
            return
        with self.store.look() as tx:
            rows = requests.open_requests(tx)
        announced = self._announced.is_set()
        due = self._canaries_due(lease)
        looks = [request for request in rows if request.kind not in self.reconciler.handlers]
        for request in rows:
            if request.kind in self.reconciler.handlers:
                self._finish([request], self._answer(request, lease))
        if not (looks or announced or due or monotonic() >= self._next or self.reconciler.drift_due()):
            return
        self._announced.clear()
        for request in looks:
            # A person who asks for one environment expects its evaluation; a webhook names none.
            self.reconciler.environments.settled.forget(str(request.payload.get("environment")))
        with self._renewing(lease):
            forced = bool(looks) or due or self.reconciler.drift_due()
            result = self._pass(lease, forced=forced, announced=announced or bool(looks))
        self._finish(looks, result)

    def _canaries_due(self, lease: Lease) -> bool:
        """Settle the canaries at their interval; return whether another one than before may step forward."""
        if monotonic() < self._settle_at:
            return False
        self._settle_at = monotonic() + SETTLE_SECONDS
        before, self._stepping = self._stepping, self.reconciler.settle_canaries(lease)
        return bool(self._stepping - before)

    def _answer(self, request: ControllerRequest, lease: Lease) -> Mapping[str, object]:
        """Execute a request row by its handler."""
        if parse_time(request.created_at) + REQUEST_LIFE < self.store.clock.now():
            message = (
                f"The request of {request.created_at} was not executed: it is more than an hour old. Send it again."
            )
            return {"error": "request_expired", "kind": Conflict.__name__, "message": message}
        try:
            with self._renewing(lease):
                return self.reconciler.handlers[request.kind](request, lease)
        except KneoError as error:
            return _error(error)
        except Exception as error:
            # The row would stay open, and end the controller again after each start.
            log.exception("a request could not be handled")
            return _error(error)

    def _finish(self, handled: Sequence[ControllerRequest], result: Mapping[str, object]) -> None:
        if not handled:
            return
        with self.store.write() as tx:
            for request in handled:
                requests.finish(tx, request.id, "done" if "error" not in result else "failed", result)

    @contextlib.contextmanager
    def _renewing(self, lease: Lease) -> Iterator[None]:
        """Renew the lease during a long block: a first fetch may take minutes, the lease lasts seconds."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(LEASE.total_seconds() / 3):
                try:
                    with self.store.write() as tx:
                        if requests.holds_lease(tx, lease):
                            requests.take_lease(tx, lease.name, lease.owner, LEASE)
                except Transient as error:
                    log.warning("the lease could not be renewed: %s", error)

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _pass(self, lease: Lease, *, forced: bool, announced: bool) -> dict[str, object]:
        """Reconcile, and schedule the next time. Errors are logged and returned, so that the loop continues."""
        try:
            if not forced and self._nothing_new():
                self._plan_next(failed=False)
                self._tidy()
                return {"revision": "unchanged"}
            before = self.reconciler.commit
            with metrics.RECONCILE_SECONDS.labels("pass").time():
                done = self.reconciler.reconcile(lease)
        except Transient as error:
            self._held = None
            self._plan_next(failed=True)
            log.warning("reconcile failed, next try in %.1f s: %s", self._next - monotonic(), error)
            return {"error": error.code, "message": str(error)}
        except Invalid as error:
            # Only another commit, which the interval detects, or another setting can help.
            self._plan_next(failed=error.code in UNREACHABLE)
            self._settled = True
            log.warning("the source cannot be reconciled: %s", error)
            return {"error": error.code, "message": str(error)}
        except Exception as error:
            self._plan_next(failed=True)
            log.exception("reconcile failed")
            return _error(error)
        self._plan_next(failed=done.has_failed, reached=True)
        if not (announced or done.has_failed) and before not in {None, self.reconciler.commit}:
            metrics.HOOKS_MISSED.inc()
        self._settled = not any(isinstance(outcome, Reconciling) for outcome in done.outcomes.values())
        if done.problem is None:
            metrics.report_ready({name: isinstance(outcome, Ready) for name, outcome in done.outcomes.items()})
        log.info("reconciled", extra={"revision": done.revision})
        return {
            "revision": done.revision,
            "environments": {name: outcome.state for name, outcome in done.outcomes.items()},
        }

    def _tidy(self) -> None:
        """Repack the mirror when idle: every push leaves a pack, and many packs make git slow."""
        try:
            self.reconciler.mirror.maintain()
        except KneoError as error:
            log.warning("the mirror could not be repacked: %s", error)

    def _nothing_new(self) -> bool:
        if not self._settled or self.reconciler.commit is None:
            return False
        with metrics.RECONCILE_SECONDS.labels("poll").time():
            return self.reconciler.is_current()

    def _plan_next(self, *, failed: bool, reached: bool = False) -> None:
        """Schedule the next reconciliation.

        Args:
            failed: Whether the last one failed.
            reached: Whether it reached the repository even so: a new process would not help.
        """
        metrics.RECONCILES.labels("failed" if failed else "done").inc()
        if reached or not failed:
            self._last_success = monotonic()
            metrics.LAST_SUCCESS.set(self.store.clock.now().timestamp())
        self._failures = self._failures + 1 if failed else 0
        pause = backoff_seconds(self._failures) if failed else self.interval.total_seconds()
        spread = 1.0 + random.uniform(-JITTER, JITTER)  # noqa: S311 - spreading load needs no secrecy
        self._next = monotonic() + pause * spread

    def _lease(self) -> Lease | None:
        """Take or keep the lease. Every write checks it, so it is not renewed at every turn."""
        if self._held is not None and monotonic() < self._renew_at:
            return self._held
        began = monotonic()
        self._renew_at = began + LEASE.total_seconds() / 3
        with self.store.write() as tx:
            fence = requests.take_lease(tx, requests.CONTROLLER_LEASE, self.owner, LEASE)
        self._held = Lease(requests.CONTROLLER_LEASE, self.owner, fence) if fence is not None else None
        if self._held is None:
            self._renew_at = 0.0
            self._forget_findings()
        else:
            self._lapses_at = began + LEASE.total_seconds()
        return self._held

    def _forget_findings(self) -> None:
        """Clear the gauges of findings; with the lease, this controller reconciles whole at once and sets them."""
        metrics.clear_findings()
        self._settled = False
        self._next = 0.0


def _error(error: Exception) -> dict[str, object]:
    """Return an error as the result of a request; the message of a defect may hold content of a file."""
    if isinstance(error, KneoError):
        return {"error": error.code, "kind": type(error).__name__, "message": str(error)}
    message = f"{type(error).__name__} in the controller; see its log."
    return {"error": "internal_error", "kind": KneoError.__name__, "message": message}


QUIET = frozenset({"opened", "closed_no_write"})
"""Events that reading causes; a fetch from the repository must not trigger the next one."""


class _OnRefChange(FileSystemEventHandler):
    def __init__(self, poke: Callable[[], None]) -> None:
        self.poke = poke

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in QUIET and not str(event.src_path).endswith(".lock"):
            self.poke()


def git_dir(repository: Path) -> Path | None:
    """Return the folder of refs of a local repository; ``None`` when it is not one."""
    for folder in (repository / ".git", repository):
        if (folder / "refs").is_dir() and (folder / "HEAD").is_file():
            return folder
    return None


@contextlib.contextmanager
def watching(repository: Path, poke: Callable[[], None]) -> Iterator[None]:
    """Call ``poke`` soon after a branch of a local repository moved."""
    folder = git_dir(repository)
    if folder is None:
        yield
        return
    observer = Observer()
    handler = _OnRefChange(poke)
    observer.schedule(handler, str(folder / "refs"), recursive=True)
    observer.start()
    try:
        yield
    finally:
        observer.stop()
        observer.join()
