"""Waiting for a run to pause or end, from a process that may not be the one that drives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kneo.errors import NotFound
from kneo.records.run import Run, RunStatus
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.store import history, runs, tasks
from kneo.store.change_feed import ChangeFeed, Subscription
from kneo.store.engine import Store, Tx
from kneo.store.run_filter import RunFilter


@dataclass(frozen=True)
class SettledRun:
    """A run that is paused or has ended, and its open tasks, the oldest first.

    The commit that settles a run notifies of it under the run's id; with ``None`` where the committer does not know all tasks.
    """

    run: Run
    tasks: Sequence[HumanTask] = ()

    @property
    def task(self) -> HumanTask | None:
        return next(iter(self.tasks), None)


@dataclass(frozen=True)
class RunSettled(Subscription[SettledRun]):
    """A run is paused or has ended.

    Attributes:
        run_id: The run.
        epoch: The run's epoch; a notification of an earlier one is about an earlier pause.
        answered: A task that was answered before; so is a notification of a run that still has it open.
    """

    run_id: str
    epoch: int = 0
    answered: str | None = None
    passed: list[runs.RunProgress] = field(default_factory=list, init=False, repr=False, compare=False)
    """The progress of the run when it was read last and did not end the wait: it is read again once that has changed."""

    @property
    def topic(self) -> str:
        return self.run_id

    def accept(self, change: object) -> SettledRun | None:
        if not isinstance(change, SettledRun) or change.run.epoch < self.epoch:
            return None
        is_new = all(task.id != self.answered for task in change.tasks)
        return change if is_new and self.ends_with(change) else None

    def ends_with(self, settled: SettledRun) -> bool:  # noqa: ARG002 - some waits end with some of these states alone
        """Return whether the wait ends with this state of the run, which is paused or has ended."""
        return True

    @classmethod
    def find_changed(cls, tx: Tx, subscriptions: Sequence[RunSettled]) -> Sequence[RunSettled]:
        progress = runs.progress(tx, [item.run_id for item in subscriptions])
        found = ((item, progress.get(item.run_id)) for item in subscriptions)
        return [item for item, now in found if now and now.status is not RunStatus.RUNNING and now not in item.passed]

    @classmethod
    def read(cls, tx: Tx, subscriptions: Sequence[RunSettled]) -> Sequence[SettledRun | None]:
        return [item.ending(_settled(tx, item.run_id)) for item in subscriptions]

    def ending(self, settled: SettledRun | None) -> SettledRun | None:
        """Return a state of the run if it ends the wait, and remember it if not."""
        if settled is None or self.ends_with(settled):
            return settled
        self.passed[:] = [runs.RunProgress(status=settled.run.status, trace_count=settled.run.trace_count)]
        return None


@dataclass(frozen=True)
class CallSettled(RunSettled):
    """A run with the target call has ended, or its caller is to make the call itself; people do not end the wait."""

    def ends_with(self, settled: SettledRun) -> bool:
        return settled.run.status.is_final or any(task.is_for_caller for task in settled.tasks)


@dataclass(frozen=True)
class CallAsks(CallSettled):
    """As ``CallSettled``; a question that the caller was not shown ends the wait, too.

    Attributes:
        shown: The tasks that the caller was shown.
    """

    shown: frozenset[str] = frozenset()

    def ends_with(self, settled: SettledRun) -> bool:
        return super().ends_with(settled) or any(task.id not in self.shown for task in settled.tasks)


def _settled(tx: Tx, run_id: str) -> SettledRun | None:
    run = runs.get(tx, run_id)
    if run is None or run.status is RunStatus.RUNNING:
        return None
    return SettledRun(runs.check(tx, run), open_tasks(tx, run))


def list_settled_runs(store: Store, where: RunFilter, *, limit: int, offset: int) -> tuple[Sequence[SettledRun], int]:
    """Read a page of runs with their open tasks, the most recently changed first, and the number of runs on all pages."""
    with store.read() as tx:
        page = runs.list_runs(tx, where, limit=limit, offset=offset)
        settled = [SettledRun(run, _listed_tasks(tx, run)) for run in page]
        return settled, runs.count_runs(tx, where)


def _listed_tasks(tx: Tx, run: Run) -> Sequence[HumanTask]:
    """Read the open tasks of a listed run. A list shows rows as they are: one that was changed must not hide the others."""
    return tasks.unchecked_of_run(tx, run.id, UNRESOLVED) if run.status is RunStatus.PAUSED else ()


def open_tasks(tx: Tx, run: Run) -> Sequence[HumanTask]:
    """Read the open tasks of a paused run."""
    return tasks.of_run(tx, run.id, UNRESOLVED) if run.status is RunStatus.PAUSED else ()


def find_run(store: Store, run_id: str) -> Run:
    """Read a run.

    Raises:
        NotFound: there is no such run.
        Untrusted, Invalid: something other than Kneo wrote it; see ``kneo.store.runs.check``.
    """
    with store.look() as tx:
        run = _find(tx, run_id)
    if run.status is not RunStatus.RUNNING:
        return run
    with store.look() as tx:
        return _with_steps(tx, run)


def _find(tx: Tx, run_id: str) -> Run:
    run = runs.get(tx, run_id)
    if run is None:
        msg = f"There is no run {run_id[:80]}."
        raise NotFound(msg, run_id=run_id[:80])
    return runs.check(tx, run)


def _with_steps(tx: Tx, run: Run) -> Run:
    return replace(run, visited_steps=history.visited(tx, run)) if run.status is RunStatus.RUNNING else run


def read_settled_run(store: Store, run_id: str) -> SettledRun:
    """Read a run with its open tasks, whether it has settled or not.

    Raises:
        NotFound: there is no such run.
        Untrusted, Invalid: as ``find_run``.
    """
    with store.read() as tx:
        run = _with_steps(tx, _find(tx, run_id))
        return SettledRun(run, open_tasks(tx, run))


def wait_until_settled(
    store: Store, settled: RunSettled, timeout_seconds: float, since: int | None = None
) -> SettledRun:
    """Wait until a run is paused or has ended, at most this long; return the run as it then is.

    Args:
        store: The database.
        settled: The change to wait for.
        timeout_seconds: The longest time to wait.
        since: A mark of ``Store.notifier`` from before the change was possible. Without it the database is read first.

    Raises:
        NotFound: there is no such run.
    """
    with ChangeFeed(store) as feed:
        found = feed.wait_for(settled, timeout_seconds, since)
    return found if found is not None else read_settled_run(store, settled.run_id)
