"""One object for programs that embed Kneo: start runs, answer people, look back. The engine behind it is the usual one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property, partial
from pathlib import Path
from typing import Self, TypedDict, Unpack

from kneo import registry
from kneo.errors import Conflict, Invalid, NotFound, Usage
from kneo.maintenance import LockAcquisitionError, RetentionManager, RetentionPolicy, RetentionReport, make_retention
from kneo.platform.result import RunResult, result_of
from kneo.project import read_config
from kneo.records.audit import SealedEvent
from kneo.records.run import Checkpoint, Run, RunStatus, TraceEvent
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.runtime.engine import views
from kneo.runtime.engine.assemble import StepWorker, drive_or_wait, working
from kneo.runtime.engine.cancel import cancel_run
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, continue_run, fork, read_record
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.timers import end_overdue_runs
from kneo.runtime.engine.wait import RunSettled, find_run, wait_until_settled
from kneo.runtime.engine.worker import Worker
from kneo.runtime.interpreter.program import Program
from kneo.runtime.program.compiler import compile_program
from kneo.settings import Settings, from_env
from kneo.spec.compiler import SpecCompiler, refusal, require_valid
from kneo.spec.coverage.policy_report import policy_report
from kneo.spec.lint import check
from kneo.spec.models.environment_gates import read_spec
from kneo.spec.policy_flags import PolicyFlags
from kneo.spec.reading.load import LoadedSpec, SourceFile
from kneo.spec.reading.validate import check_model
from kneo.store import audit, policies, runs, tasks
from kneo.store.engine import Store
from kneo.store.migrate import Database
from kneo.store.run_filter import RunFilter
from kneo.store.service_key import find_service_key
from kneo.store.task_filter import TaskFilter
from kneo.tasks.deadlines import process_due
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide, find

WAIT_SECONDS = 3600.0

_looking_only: ContextVar[bool] = ContextVar("looking_only", default=False)


class SpecWanted(TypedDict, total=False):
    """Which spec: a map or a file, with the files and the map that are laid over it."""

    spec: Mapping[str, object] | None
    spec_path: str | Path | None
    overlays: Sequence[str | Path]
    overrides: Mapping[str, object] | None


class What(SpecWanted, total=False):
    """What to run: a spec, or a bundle that an environment serves; and how."""

    bundle: str | None
    target: str
    environment: str | None
    timeout_seconds: int | None
    metadata: Mapping[str, object] | None
    requester: str


@contextmanager
def looking_only() -> Iterator[None]:
    """Within this block ``start_worker`` starts nothing: somebody wants to know what a platform brings."""
    token = _looking_only.set(True)
    try:
        yield
    finally:
        _looking_only.reset(token)


class PlatformManager:
    """Kneo inside another program.

    Args:
        compiler: How specs are checked, with the program's own tools; left out: without any.
        run_state_store: The database; left out: the one that the environment and the project name.
        continuation_store: Accepted for programs that have one; human tasks live beside the runs.
        settings: What the process environment says; left out: it is read.
    """

    def __init__(
        self,
        compiler: SpecCompiler | None = None,
        run_state_store: Database | None = None,
        continuation_store: Database | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or from_env()
        self.compiler = compiler or SpecCompiler()
        self.database = run_state_store or Database(
            self.settings.database_url, partial(find_service_key, self.settings)
        )
        if continuation_store is not None and continuation_store is not self.database:
            msg = "Runs and human tasks are kept in one database."
            raise Invalid(msg, hint="Pass what create_persistence_stores() returned, both times from the same call.")
        self._working = ExitStack()
        self._worker: StepWorker | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the worker finish its steps, and close the database."""
        self.stop_worker()
        self.database.close()

    @property
    def store(self) -> Store:
        return self.database.store

    @cached_property
    def starter(self) -> Starter:
        """What starts runs here, whoever asks."""
        return Starter(
            self.store,
            self.compiler.compile,
            pin=self.settings.trust_root,
            hmac_key=self.settings.spec_signing_key,
            max_queue=self.settings.execution.max_queue_depth,
            project=read_config(self.settings),
        )

    @cached_property
    def _programs(self) -> ProgramLoader:
        return ProgramLoader(self.store)

    # ---- runs -------------------------------------------------------------------------------------------------

    def run_from_spec(self, input_text: str, **what: Unpack[What]) -> RunResult:
        """Start a run and wait until it pauses or ends; takes what ``start_run_from_spec`` does."""
        mark = self.store.notifier.mark()
        return self._settled(RunSettled(self.start_run_from_spec(input_text, **what).id), since=mark)

    def start_run_from_spec(self, input_text: str, **what: Unpack[What]) -> Run:
        """Record a run, which a worker will find.

        Raises:
            Forbidden, Untrusted, NotFound, Invalid, Usage, Transient: it may not run, or not now.
        """
        bundle, path = what.get("bundle"), what.get("spec_path")
        order = StartRequest(
            input=input_text,
            requester=what.get("requester", "embedded"),
            target=what.get("target", "workflow"),
            environment=what.get("environment"),
            bundle=bundle,
            spec=None if bundle is not None else self._tree(what),
            timeout_seconds=what.get("timeout_seconds"),
            metadata=what.get("metadata") or {},
            origin={"spec_path": str(path) if path else None, "inline_spec": what.get("spec") is not None},
        )
        return self.starter.start(order)

    def execute_run(self, run_id: str) -> RunResult:
        """Drive a run to its next pause or end, or wait for whoever executes steps to do it."""
        return self._settled(RunSettled(run_id))

    def _settled(self, settling: RunSettled, since: int | None = None) -> RunResult:
        if self._worker is None:
            return result_of(drive_or_wait(self.settings, self.store, settling.run_id, WAIT_SECONDS))
        return result_of(wait_until_settled(self.store, settling, WAIT_SECONDS, since))

    def dispatch_run(self, run_id: str) -> Run:
        """Have a run driven beside this thread; a worker is started unless there is one."""
        with suppress(LockAcquisitionError):  # Another process executes steps, and will find it.
            self.start_worker()
        return self.get_run(run_id)

    def get_run(self, run_id: str) -> Run:
        return find_run(self.store, run_id)

    def list_runs(self, *, status: str | None = None, limit: int = 100, offset: int = 0) -> Sequence[Run]:
        wanted = RunStatus(status) if status is not None else None
        with self.store.read() as tx:
            return runs.list_runs(tx, RunFilter(status=wanted), limit=limit, offset=offset)

    def cancel_run(self, run_id: str, *, actor: str = "embedded") -> Run:
        return cancel_run(self.store, run_id, actor=actor)

    def continue_run(self, run_id: str, *, actor: str = "embedded") -> RunResult:
        """Try a failed run again; what had succeeded is not repeated."""
        run = continue_run(self.store, self._programs, run_id, actor=actor)
        return self.execute_run(run.id)

    def fork_run(self, run_id: str, step: str, *, input_text: str | None = None, actor: str = "embedded") -> RunResult:
        """Start another run from a point in this one's past."""
        order = ForkRequest(run_id=run_id, step=step, input=input_text, requester=actor)
        run = fork(self.starter, self._programs, order)
        return self.execute_run(run.id)

    # ---- looking back -----------------------------------------------------------------------------------------

    def list_checkpoints(self, run_id: str) -> Sequence[Checkpoint]:
        with self.store.read() as tx:
            return runs.list_checkpoints(tx, run_id)

    def get_trace(self, run_id: str) -> Sequence[TraceEvent]:
        with self.store.read() as tx:
            return runs.list_trace(tx, run_id)

    def replay_view(self, run_id: str) -> Mapping[str, object]:
        return views.replay_view(read_record(self.store, run_id))

    def recovery_context(self, run_id: str) -> Mapping[str, object]:
        return views.recovery_view(read_record(self.store, run_id))

    def checkpoint_diff(
        self, run_id: str, from_sequence: int | None = None, to_sequence: int | None = None
    ) -> Mapping[str, object]:
        record = read_record(self.store, run_id)
        return views.checkpoint_diff(record.run, record.checkpoints, from_sequence, to_sequence)

    def record_audit_event(self, event_type: str, *, actor: str | None = None, **metadata: object) -> None:
        self.store.transact(lambda tx: audit.record(tx, event_type, actor=actor, metadata=metadata))

    def list_audit_events(
        self, *, event_type: str | None = None, run_id: str | None = None, limit: int = 100
    ) -> Sequence[SealedEvent]:
        with self.store.read() as tx:
            return audit.events(tx, event_type=event_type, run_id=run_id, limit=limit)

    # ---- people -----------------------------------------------------------------------------------------------

    def list_human_tasks(self, *, run_id: str | None = None, limit: int = 100) -> Sequence[HumanTask]:
        with self.store.read() as tx:
            return tasks.list_tasks(tx, TaskFilter(run_id=run_id), limit=limit)

    def get_human_task(self, continuation_id: str) -> HumanTask:
        with self.store.read() as tx:
            return find(tx, continuation_id)

    def resume_human_task(
        self,
        continuation_id: str,
        *,
        request_id: str,
        decision: str,
        content: str | None = None,
        selected_option: str | None = None,
        actor: str = "embedded",
    ) -> RunResult:
        """Answer a task and go on with its run.

        Raises:
            NotFound, Invalid: there is no such task, or the answer does not fit it.
            Conflict: somebody was quicker, or the task is not what it was.
        """
        answer = DecisionRequest(
            request_id=request_id,
            decision=DecisionKind(decision),
            content=content,
            selected_option=selected_option,
        )
        mark = self.store.notifier.mark()
        task = decide(self.store, continuation_id, answer, actor=actor)
        # A vote that does not decide wakes nobody, so nobody will tell.
        since = mark if task.status not in UNRESOLVED else None
        return self._settled(RunSettled(task.run_id, answered=task.id), since)

    # ---- specs ------------------------------------------------------------------------------------------------

    def validate_spec(self, **what: Unpack[SpecWanted]) -> LoadedSpec:
        """Load a spec with everything that is wrong with it.

        Raises:
            Usage, NotFound: none is named, or it is not there.
        """
        return self._load(what)

    def compile_spec(self, *, target: str = "workflow", **what: Unpack[SpecWanted]) -> Program:
        """Return what a spec would execute.

        Raises:
            Usage, NotFound: none is named, or it is not there.
            Invalid: it could not run here.
        """
        return compile_program(require_valid(self._load(what)), target)

    def policy_report(self, **what: Unpack[SpecWanted]) -> Mapping[str, object]:
        """Say of a spec what somebody who approves it wants to know."""
        loaded = self._load(what)
        return policy_report(loaded.spec, loaded.diagnostics).flat()

    def policy_report_for_run(self, run_id: str) -> Mapping[str, object]:
        """Say the same of the spec that a run executes."""
        with self.store.read() as tx:
            body = runs.load_spec(tx, find_run(self.store, run_id).spec_digest)
        assert body is not None
        spec = read_spec(body)
        return policy_report(spec, check(spec)).flat()

    def _load(self, what: SpecWanted) -> LoadedSpec:
        spec, path = what.get("spec"), what.get("spec_path")
        overlays, overrides = what.get("overlays") or (), what.get("overrides")
        if path is not None and spec is None:
            laid = [SourceFile(str(overlay), self._find(overlay).read_bytes()) for overlay in overlays]
            return self.compiler.load(self._find(path).read_bytes(), str(path), overlays=laid, overrides=overrides)
        if spec is None or path is not None or overlays:
            msg = "Name a spec or its file, and lay files over a file only."
            raise Usage(msg, hint='spec={...}, or spec_path="agent.yaml" with overlays=["agent.prod.yaml"].')
        return self.compiler.load_tree(spec, overrides=overrides)

    def _tree(self, what: SpecWanted) -> Mapping[str, object]:
        spec = what.get("spec")
        is_plain = what.get("spec_path") is None and not what.get("overlays") and what.get("overrides") is None
        # Whoever starts a run checks the spec; one that is nothing but itself need not be loaded before.
        return spec if spec is not None and is_plain else self._load(what).tree

    def _find(self, path: str | Path) -> Path:
        found = self.settings.project_root / path
        if not found.is_file():
            msg = f"There is no spec at {path}."
            raise NotFound(msg, hint=f"Relative paths start at {self.settings.project_root}.")
        return found

    # ---- policies ---------------------------------------------------------------------------------------------

    def list_environment_policies(self) -> Mapping[str, PolicyFlags]:
        """Return what was set here, by environment; Git and the project may ask for more."""
        with self.store.read() as tx:
            return policies.listed(tx)

    def get_environment_policy(self, environment: str) -> PolicyFlags | None:
        return self.list_environment_policies().get(environment)

    def set_environment_policy(self, environment: str, *, actor: str = "embedded", **flags: object) -> PolicyFlags:
        """Set what an environment asks of specs; what is left out has its default.

        Raises:
            Invalid: there is no such flag, or it takes another value.
        """
        wanted = check_model(PolicyFlags, flags)
        if isinstance(wanted, tuple):
            raise refusal(wanted)
        self.store.transact(lambda tx: registry.change_policy(tx, environment, wanted, actor=actor))
        return wanted

    # ---- keeping house ----------------------------------------------------------------------------------------

    def start_worker(self, concurrency: int = Worker.DEFAULT_CONCURRENCY) -> None:
        """Execute steps and bring deadlines in this process until ``stop_worker``.

        Raises:
            LockAcquisitionError: another process does on this SQLite file.
        """
        if self._worker is not None or _looking_only.get():
            return
        retain = make_retention(self.settings, self.store)
        try:
            self._worker = self._working.enter_context(working(self.settings, self.store, concurrency, retain))
        except Conflict as error:
            raise LockAcquisitionError(error.message, hint=error.hint) from error

    def stop_worker(self) -> None:
        """Let steps that are under way end, and begin no further ones."""
        self._worker = None
        self._working.close()

    def prune_retention(self, policy: RetentionPolicy | None = None) -> RetentionReport:
        """Delete what has been kept long enough; left out: what the project and the environment say."""
        if policy is None:
            return make_retention(self.settings, self.store)()
        return RetentionManager(self.store).prune(policy)

    def prune_expired_human_tasks(self) -> int:
        """Do what overdue tasks say should happen at their deadline; return how many there were."""
        return process_due(self.store)

    def prune_timed_out_runs(self) -> int:
        """End runs whose own deadline has passed; return how many there were."""
        return end_overdue_runs(self.store)
