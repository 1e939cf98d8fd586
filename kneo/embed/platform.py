"""Kneo inside another program: one object that starts runs, answers human tasks and reads the records."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Self, TypedDict, TypeVar, Unpack

from kneo import registry
from kneo.agents.function_tools import ToolRegistry
from kneo.agents.providers import OperatorConnections
from kneo.agents.sandboxes import SandboxHost
from kneo.errors import Conflict, Invalid, NotFound, Usage
from kneo.maintenance import LockAcquisitionError, RetentionManager, RetentionPolicy, RetentionReport, make_retention
from kneo.project import read_config
from kneo.project.files import SpecFiles
from kneo.records.audit import SealedEvent
from kneo.records.run import Checkpoint, Run, RunStatus, TraceEvent
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.runtime.engine import views
from kneo.runtime.engine.assemble import drive_or_wait, working
from kneo.runtime.engine.calls import StatedCall, join_key
from kneo.runtime.engine.calls import start as start_call
from kneo.runtime.engine.dispatchers import StepWorker
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, cancel_run, continue_run, fork, read_record
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.timers import end_overdue_runs
from kneo.runtime.engine.wait import RunSettled, SettledRun, find_run, wait_until_settled
from kneo.runtime.engine.worker import Worker
from kneo.runtime.interpreter.program import Program
from kneo.runtime.program.compiler import compile_program
from kneo.runtime.steps import modules
from kneo.settings import Settings, from_env
from kneo.spec.compiler import SpecCompiler, refusal, require_valid
from kneo.spec.coverage.policy import policy_report
from kneo.spec.lint import check
from kneo.spec.models.environment import read_spec
from kneo.spec.policy import PolicyFlags
from kneo.spec.reading.load import LoadedSpec, SourceFile
from kneo.spec.reading.validate import check_model
from kneo.store import audit, history, idempotency, project_metadata, runs, tasks
from kneo.store.engine import Store
from kneo.store.migrate import Database
from kneo.store.run_filter import RunFilter
from kneo.store.service_key import find_service_key
from kneo.store.task_filter import TaskFilter
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide, find
from kneo.tasks.lifecycle import process_due
from kneo.trust.sealing import DataKeys

E = TypeVar("E", bound=StrEnum)

WAIT_SECONDS = 3600.0

_without_worker: ContextVar[bool] = ContextVar("without_worker", default=False)
"""Whether ``start_worker`` starts nothing: a factory is called for its tools and its database."""


class SpecSource(TypedDict, total=False):
    """The source of a spec: a map or a file, with overlay files and overrides."""

    spec: Mapping[str, object] | None
    spec_path: str | Path | None
    overlays: Sequence[str | Path]
    overrides: Mapping[str, object] | None


class RunParameters(SpecSource, total=False):
    """The parameters of a run: a spec, or a bundle that an environment serves, and the conditions of the run."""

    bundle: str | None
    target: str
    environment: str | None
    timeout_seconds: int | None
    metadata: Mapping[str, object] | None
    requester: str


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run that is paused or has ended. ``error`` has ``type`` and ``message``."""

    run_id: str
    status: str
    output_text: str | None
    human_intervention_required: bool
    continuation_id: str | None
    error: Mapping[str, str] | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, settled: SettledRun) -> RunResult:
        run, task = settled.run, settled.task
        request = {"pending_human_request": {"request_id": task.request_id, "prompt": task.prompt}} if task else {}
        return cls(
            run_id=run.id,
            status=run.status.value,
            output_text=run.output_text,
            human_intervention_required=task is not None,
            continuation_id=task.id if task else None,
            error={"type": run.error.type, "message": run.error.message} if run.error else None,
            metadata={**run.metadata, **request},
        )


class PlatformManager:
    """Kneo inside another program.

    Args:
        compiler: The compiler of specs, with the program's own tools; the default has no tools.
        run_state_store: The database; the default is the one of the process environment and the project.
        continuation_store: The same database, for programs that pass one for human tasks.
        settings: The settings; the default is the process environment.
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
            self.settings.database_url,
            partial(find_service_key, self.settings),
            data_keys=DataKeys.read(self.settings.data_keys),
            migrates=self.settings.migrate == "auto",
            checks_macs=self.settings.record_macs == "check",
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
        """Finish the running steps, and close the database."""
        self.stop_worker()
        self.database.close()

    @property
    def store(self) -> Store:
        return self.database.store

    @property
    def tools(self) -> ToolRegistry | None:
        """The tools that agents of this program may use without a declaration in their spec."""
        registry = self.compiler.tool_registry
        return registry if isinstance(registry, ToolRegistry) else None

    @cached_property
    def starter(self) -> Starter:
        """The component that checks and records new runs."""
        project = read_config(self.settings)
        return Starter(
            self.store,
            self.compiler.compile,
            pin=self.settings.trust_root,
            hmac_key=self.settings.spec_signing_key,
            max_queue=self.settings.execution.max_queue_depth,
            project=project,
            operator=lambda: OperatorConnections.of(self.settings, project),
            host=SandboxHost.of(self.settings),
        )

    @cached_property
    def _programs(self) -> ProgramLoader:
        return ProgramLoader(self.store, self.settings.trust_root)

    # ---- runs -------------------------------------------------------------------------------------------------

    def run_from_spec(self, input_text: str, **parameters: Unpack[RunParameters]) -> RunResult:
        """Start a run and wait until it pauses or ends; takes the parameters of ``start_run_from_spec``."""
        mark = self.store.notifier.mark()
        return self._settled(RunSettled(self.start_run_from_spec(input_text, **parameters).id), since=mark)

    def start_run_from_spec(self, input_text: str, **parameters: Unpack[RunParameters]) -> Run:
        """Record a run for a worker.

        Raises:
            Forbidden, Untrusted, NotFound, Invalid, Usage, Transient: the run is refused, or cannot start now.
        """
        bundle, path = parameters.get("bundle"), parameters.get("spec_path")
        order = StartRequest(
            input=input_text,
            requester=parameters.get("requester", "embedded"),
            target=parameters.get("target", "workflow"),
            environment=parameters.get("environment"),
            bundle=bundle,
            spec=None if bundle is not None else self._tree(parameters),
            timeout_seconds=parameters.get("timeout_seconds"),
            metadata=parameters.get("metadata") or {},
            origin={"spec_path": str(path) if path else None, "inline_spec": parameters.get("spec") is not None},
        )
        return self.starter.start(order)

    def call_tool(
        self,
        tool: str,
        arguments: Mapping[str, object],
        *,
        environment: str,
        bundle: str,
        requester: str = "embedded",
        session_id: str | None = None,
    ) -> RunResult:
        """Make one call of a tool that an environment serves to the requester, and wait until people are asked or it has ended.

        ``output_text`` of a call that has ended is the JSON of ``outcome`` and ``result``. The same call, made again before it has
        ended, is that call.

        Raises:
            NotFound: ``call_not_served`` or ``tool_not_found``.
            InvalidValue: ``invalid_arguments``.
            Forbidden, Untrusted, Transient: the run is refused, or cannot start now.
        """
        stated = StatedCall(
            environment=environment,
            bundle=bundle,
            tool=tool,
            arguments=arguments,
            session_id=session_id,
            protocol="python",
        )
        run, _ = start_call(self.starter, requester, stated)
        result = self._settled(RunSettled(run.id))
        if RunStatus(result.status).is_final:
            self.store.transact(partial(idempotency.release, key=join_key(run), subject=run.id))
        return result

    def execute_run(self, run_id: str) -> RunResult:
        """Execute a run to its next pause or end, or wait for the process that executes steps."""
        return self._settled(RunSettled(run_id))

    def _settled(self, settled: RunSettled, since: int | None = None) -> RunResult:
        if self._worker is None:
            return RunResult.of(drive_or_wait(self.settings, self.store, settled.run_id, WAIT_SECONDS, self.tools))
        return RunResult.of(wait_until_settled(self.store, settled, WAIT_SECONDS, since))

    def dispatch_run(self, run_id: str) -> Run:
        """Execute a run in the background; start a worker if this process has none."""
        with suppress(LockAcquisitionError):  # another process executes steps, this run included
            self.start_worker()
        return self.get_run(run_id)

    def get_run(self, run_id: str) -> Run:
        return find_run(self.store, run_id)

    def list_runs(self, *, status: str | None = None, limit: int = 100, offset: int = 0) -> Sequence[Run]:
        """List runs, the latest first.

        Raises:
            Invalid: the status does not exist.
        """
        statuses = {_member(RunStatus, status, "status")} if status is not None else ()
        with self.store.read() as tx:
            return runs.list_runs(tx, RunFilter(statuses=statuses), limit=limit, offset=offset)

    def cancel_run(self, run_id: str, *, actor: str = "embedded") -> Run:
        return cancel_run(self.store, run_id, actor=actor)

    def continue_run(self, run_id: str, *, actor: str = "embedded") -> RunResult:
        """Retry a failed run; successful steps are not repeated."""
        run = continue_run(self.store, self._programs, run_id, actor=actor)
        return self.execute_run(run.id)

    def fork_run(self, run_id: str, step: str, *, input_text: str | None = None, actor: str = "embedded") -> RunResult:
        """Start a new run from a step of this run."""
        order = ForkRequest(run_id=run_id, step=step, input=input_text, requester=actor)
        run = fork(self.starter, self._programs, order)
        return self.execute_run(run.id)

    # ---- records ----------------------------------------------------------------------------------------------

    def list_checkpoints(self, run_id: str) -> Sequence[Checkpoint]:
        with self.store.read() as tx:
            return history.list_checkpoints(tx, run_id)

    def get_trace(self, run_id: str) -> Sequence[TraceEvent]:
        with self.store.read() as tx:
            return history.list_trace(tx, run_id)

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

    # ---- human tasks ------------------------------------------------------------------------------------------

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
        """Answer a human task and continue its run.

        Raises:
            NotFound, Invalid: the task does not exist, or does not accept the answer.
            Conflict: the task is decided, or its subject changed.
        """
        answer = DecisionRequest(
            request_id=request_id,
            decision=_member(DecisionKind, decision, "decision"),
            content=content,
            selected_option=selected_option,
        )
        mark = self.store.notifier.mark()
        task = decide(self.store, continuation_id, answer, actor=actor)
        # A vote below the quorum commits no change of the run, so there is no notification to wait for.
        since = mark if task.status not in UNRESOLVED else None
        return self._settled(RunSettled(task.run_id, answered=task.id), since)

    # ---- specs ------------------------------------------------------------------------------------------------

    def validate_spec(self, **parameters: Unpack[SpecSource]) -> LoadedSpec:
        """Load a spec with its diagnostics.

        Raises:
            Usage, NotFound: no spec is named, or the file does not exist.
        """
        return self._load(parameters)

    def compile_spec(self, *, target: str = "workflow", **parameters: Unpack[SpecSource]) -> Program:
        """Return the program of a spec.

        Raises:
            Usage, NotFound: no spec is named, or the file does not exist.
            Invalid: the spec cannot run here.
        """
        return compile_program(require_valid(self._load(parameters)), target)

    def policy_report(self, **parameters: Unpack[SpecSource]) -> Mapping[str, object]:
        """Return the report of a spec for its approvers."""
        loaded = self._load(parameters)
        return policy_report(loaded.spec, loaded.diagnostics).flat()

    def policy_report_for_run(self, run_id: str) -> Mapping[str, object]:
        """Return the report of the spec that a run executes."""
        with self.store.read() as tx:
            body = runs.load_spec(tx, find_run(self.store, run_id).spec_digest)
        if body is None:
            msg = f"The spec of {run_id} is not kept."
            raise NotFound(msg, code="spec_not_found")
        spec = read_spec(body)
        return policy_report(spec, check(spec)).flat()

    def _load(self, parameters: SpecSource) -> LoadedSpec:
        spec, path = parameters.get("spec"), parameters.get("spec_path")
        overlays, overrides = parameters.get("overlays") or (), parameters.get("overrides")
        if path is not None and spec is None:
            laid = [SourceFile(str(overlay), self._find(overlay).read_bytes()) for overlay in overlays]
            found = self._find(path)
            files = SpecFiles(found.parent, self.settings.project_root)
            return self.compiler.load(found.read_bytes(), str(path), overlays=laid, overrides=overrides, files=files)
        if spec is None or path is not None or overlays:
            msg = "Pass either a spec or its file; overlays need a file."
            raise Usage(msg, hint='spec={...}, or spec_path="agent.yaml" with overlays=["agent.prod.yaml"].')
        return self.compiler.load_tree(spec, overrides=overrides)

    def _tree(self, parameters: SpecSource) -> Mapping[str, object]:
        spec = parameters.get("spec")
        is_plain = (
            parameters.get("spec_path") is None
            and not parameters.get("overlays")
            and parameters.get("overrides") is None
        )
        # The start of a run checks the spec, so a plain map is not loaded here.
        if spec is not None and is_plain:
            return spec
        loaded = self._load(parameters)
        require_valid(loaded)
        return loaded.tree

    def _find(self, path: str | Path) -> Path:
        file = self.settings.project_root / path
        if not file.is_file():
            msg = f"The spec {path} does not exist."
            raise NotFound(msg, hint=f"Relative paths start at {self.settings.project_root}.")
        return file

    # ---- policies ---------------------------------------------------------------------------------------------

    def list_environment_policies(self) -> Mapping[str, PolicyFlags]:
        """Return the policies set here by environment; Git and the project may be stricter."""
        with self.store.read() as tx:
            return project_metadata.list_policies(tx)

    def get_environment_policy(self, environment: str) -> PolicyFlags | None:
        return self.list_environment_policies().get(environment)

    def set_environment_policy(self, environment: str, *, actor: str = "embedded", **flags: object) -> PolicyFlags:
        """Set the policy of an environment; omitted flags have their defaults.

        Raises:
            Invalid: a flag does not exist, or takes another value.
        """
        policy = check_model(PolicyFlags, flags)
        if isinstance(policy, tuple):
            raise refusal(policy)
        self.store.transact(lambda tx: registry.change_policy(tx, environment, policy, actor=actor))
        return policy

    # ---- worker and maintenance -------------------------------------------------------------------------------

    def start_worker(self, concurrency: int = Worker.DEFAULT_CONCURRENCY) -> None:
        """Execute steps and process deadlines in this process until ``stop_worker``.

        Raises:
            LockAcquisitionError: another process executes steps on this SQLite file.
        """
        if self._worker is not None or _without_worker.get():
            return
        retain = make_retention(self.settings, self.store)
        try:
            self._worker = self._working.enter_context(
                working(self.settings, self.store, concurrency, retain, self.tools)
            )
        except Conflict as error:
            raise LockAcquisitionError(error.message, hint=error.hint) from error

    def stop_worker(self) -> None:
        """Finish the running steps, and start no others."""
        self._worker = None
        self._working.close()

    def prune_retention(self, policy: RetentionPolicy | None = None) -> RetentionReport:
        """Delete data past its retention; the default policy is the one of the project and the environment."""
        if policy is None:
            return make_retention(self.settings, self.store)()
        return RetentionManager(self.store).prune(policy)

    def prune_expired_human_tasks(self) -> int:
        """Apply the timeout policy of overdue human tasks; return their number."""
        return process_due(self.store)

    def prune_timed_out_runs(self) -> int:
        """End runs whose deadline has passed; return their number."""
        return end_overdue_runs(self.store)


def _member(kind: type[E], word: str, name: str) -> E:
    try:
        return kind(word)
    except ValueError:
        msg = f"{word[:100]!r} is not a {name}; use one of: {', '.join(kind)}."
        raise Invalid(msg) from None


def load_platform(settings: Settings) -> PlatformManager | None:
    """Call the factory that ``KNEO_SERV_PLATFORM`` names, once per process; return None without one.

    The platform's tools and database are used. A worker that the factory starts is not started: the command decides
    which process executes steps.

    Raises:
        Invalid: ``invalid_setting``: the factory does not exist, failed, or returned another type.
    """
    factory = settings.execution.platform
    return _load(factory, settings.import_roots) if factory else None


@cache
def _load(factory: str, roots: tuple[Path, ...]) -> PlatformManager:
    module, _, attribute = factory.partition(":")
    modules.make_importable(roots)
    token = _without_worker.set(True)
    try:
        with modules.lock:
            # The factory may import modules that specs name: environments may pin the digests of their bytes.
            modules.accept(modules.closure(module, roots))
        platform = getattr(importlib.import_module(module), attribute)()
    except Exception as error:
        msg = f"KNEO_SERV_PLATFORM={factory} does not make a platform: {type(error).__name__}: {error}"
        raise Invalid(msg, code="invalid_setting", hint="Write module:factory.") from error
    finally:
        _without_worker.reset(token)
    if not isinstance(platform, PlatformManager):
        msg = f"KNEO_SERV_PLATFORM={factory} makes a {type(platform).__name__}, not a PlatformManager."
        raise Invalid(msg, code="invalid_setting")
    return platform
