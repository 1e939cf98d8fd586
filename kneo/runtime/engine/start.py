"""The start of a run: the only place that decides whether a spec may run, for every caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

from kneo import registry
from kneo.agents.providers import OperatorConnections
from kneo.agents.sandboxes import NO_FILES, SandboxHost, check_sandboxes
from kneo.agents.start_check import check_agents
from kneo.clock import isoformat, new_id
from kneo.digest import Digest
from kneo.errors import Forbidden, Invalid, InvalidValue, KneoError, Transient, Usage
from kneo.names import check_environment_name, name_problem
from kneo.records.run import STATE_VERSION, NewTrace, ReleaseRef, Run, RunStatus, ending
from kneo.runtime.engine import record
from kneo.runtime.engine.programs import CheckSpec, FrozenSpec, SpecFreezer
from kneo.runtime.engine.questions import input_digest, run_facts, sampling_seed
from kneo.runtime.engine.quotas import StartQuotas
from kneo.runtime.interpreter.node import DecisionContext, RunEnded
from kneo.runtime.interpreter.program import begin
from kneo.settings import ExecutionSettings
from kneo.spec.coverage.policy import check_code, check_policy
from kneo.spec.lint import check as check_rules
from kneo.spec.models.environment import Environment, EnvironmentGate, GatedSpec, read_spec
from kneo.spec.models.spec import Spec
from kneo.spec.modules import NOTHING_KNOWN
from kneo.spec.policy import PolicyFlags
from kneo.spec.project import ProjectConfig
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import audit, history, idempotency, releases, requests, runs
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits, History, NewCheckpoint
from kneo.store.idempotency import AlreadyExecuted
from kneo.telemetry import span


@dataclass(frozen=True, kw_only=True)
class StartRequest:
    """A request to run a bundle that an environment serves, or an inline spec."""

    input: str
    requester: str
    target: str = "workflow"
    environment: str | None = None
    bundle: str | None = None
    spec: Mapping[str, object] | None = None
    timeout_seconds: int | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    origin: Mapping[str, object] = field(default_factory=dict)
    """The source of the spec (``spec_path``, ``inline_spec``), for the audit log and the run."""
    content: Mapping[str, object] = field(default_factory=dict)
    """Further metadata of the run alone: content does not belong into the audit log."""


TARGETS = frozenset({"workflow", "agent", CALL_TARGET})


@dataclass(frozen=True)
class _ResolvedSpec:
    """The frozen spec of a run, and its release."""

    frozen: FrozenSpec
    release: ReleaseRef | None = None
    approved: registry.ResolvedRelease | None = None
    code: Digest | None = None
    gates: tuple[EnvironmentGate, ...] = ()

    def added_gates(self) -> dict[str, object]:
        """Return the names of the environment's gates for the audit log."""
        return {"environment_gates": [one.name for one in self.gates]} if self.gates else {}


def no_connections() -> None:
    """Return no connections to models: another machine executes the runs."""


def no_extra_writes(_tx: Tx, _run: Run) -> None:
    """Add no writes to the transaction that records a run."""


class Starter:
    """Starts runs on one database.

    Args:
        store: The database.
        check_spec: Validates specs that do not come from the registry.
        pin: The digest of this process's first trust root; ``None`` uses the controller's.
        hmac_key: The shared secret of bundles in the older format, where an environment accepts them.
        max_queue: Runs that may wait for a worker; further ones are refused until some have begun.
        project: The project's config, whose policies apply too.
        operator: Returns the connections to models of this machine; ``None`` where another machine executes the run, which
            then checks them.
        host: What sandboxes of this machine may have.
    """

    def __init__(
        self,
        store: Store,
        check_spec: CheckSpec,
        *,
        pin: Digest | None,
        hmac_key: str = "",
        max_queue: int = ExecutionSettings.max_queue_depth,
        project: ProjectConfig | None = None,
        operator: Callable[[], OperatorConnections | None] = no_connections,
        host: SandboxHost = NO_FILES,
    ) -> None:
        self.store = store
        self._operator, self._host = operator, host
        self.project = project
        self.quotas = StartQuotas(store, max_queue)
        self.check_spec = check_spec
        self.freezer = SpecFreezer(check_spec)
        self.pin = pin
        self.hmac_key = hmac_key

    def start(self, order: StartRequest, also: Callable[[Tx, Run], None] = no_extra_writes) -> Run:
        """Record a new run; a worker will find it.

        Args:
            order: The request.
            also: Writes in the transaction that records the run.

        Raises:
            Forbidden, Untrusted, NotFound, Invalid, Usage: the spec may not run; audited as ``run.refused``, nothing ran.
            Transient: ``queue_full``: too many runs wait for a worker.
        """
        _check_names(order)
        try:
            # Validation may take long; it must not hold a write transaction.
            inline = self._check_inline(order)
            return self._dispatch(order, inline, also)
        except (Transient, AlreadyExecuted):
            raise
        except KneoError as error:
            self._audit_refusal(order, error)
            raise

    def _dispatch(self, order: StartRequest, inline: FrozenSpec | None, also: Callable[[Tx, Run], None]) -> Run:
        operator = self._operator()

        def work(tx: Tx) -> Run:
            run = self._start(tx, order, inline, operator)
            also(tx, run)
            return run

        with span("kneo.queue.dispatch", kind="producer", kneo_environment=order.environment) as dispatching:
            run = self.quotas.transact(work)
            dispatching.note(kneo_run__id=run.id, kneo_workflow=run.workflow_name)
        return run

    def _check_inline(self, order: StartRequest) -> FrozenSpec | None:
        """Validate an inline spec, where the environment allows inline specs."""
        if order.spec is None or order.bundle is not None:
            return None
        with self.store.look() as tx:
            is_followed = registry.is_followed(tx, self.pin)
        if is_followed:
            with self.store.read() as tx:
                self._check_inline_allowed(tx, order.environment)
        return self.freezer.inline(order.spec)

    def _start(
        self, tx: Tx, order: StartRequest, inline: FrozenSpec | None, operator: OperatorConnections | None
    ) -> Run:
        run_id = new_id("run", tx.now)
        idempotency.bind(tx, run_id)
        rules = find_rules(tx, order.environment)
        self.quotas.check(tx, rules, order.input)
        chosen = self._freeze(tx, order, inline, rules, run_id)
        program, digest = chosen.frozen.program(order.target), chosen.frozen.digest
        models = rules.spec.models if rules is not None else None
        used = {ref or program.agent_name: program.agents[ref] for ref in program.used_agents}
        check_agents(program.spec, used, operator, models, asks_models=not program.is_call)
        sandbox = rules.spec.tools.sandbox if rules is not None else None
        check_sandboxes(program.spec, sandbox, order.environment, self._host, here=operator is not None)
        case = sampling_seed(digest, order.environment, order.target, input_digest(order.input), tx.at)
        facts = run_facts(order.requester, order.environment, program.workflow_name)
        context = DecisionContext(now=tx.now, seed=run_id, sampling_seed=case, run=facts)
        state = begin(program, order.input, context)
        ended = state if isinstance(state, RunEnded) else None
        deadline = isoformat(tx.now + timedelta(seconds=order.timeout_seconds)) if order.timeout_seconds else None
        run = Run(
            id=run_id,
            status=ended.status if ended else RunStatus.RUNNING,
            target=order.target,
            spec_digest=digest,
            release=chosen.release,
            environment=order.environment,
            agent_name=program.agent_name,
            workflow_name=program.workflow_name,
            workflow_type=program.workflow_type,
            input_text=order.input,
            output_text=ended.output if ended else None,
            error=ended.error if ended else None,
            state={} if isinstance(state, RunEnded) else state,
            state_version=STATE_VERSION,
            visited_steps=(),
            requester=order.requester,
            metadata=_metadata(order, chosen, rules),
            deadline_at=deadline,
            created_at=tx.at,
            updated_at=tx.at,
            started_at=tx.at,
            completed_at=tx.at if ended else None,
        )
        runs.insert_spec(tx, digest, chosen.frozen.body)
        begun_with = {
            "target": order.target,
            "environment": order.environment,
            "timeout_seconds": order.timeout_seconds,
            "deadline_at": deadline,
        }
        begun = NewCheckpoint(type="run_started", step_id=None, state=record.snapshot(run, tx), metadata=begun_with)
        started = NewTrace(type="workflow_started", data={"input_preview": record.preview(order.input)})
        first = History(checkpoints=[begun], trace=[started])
        if ended is not None:
            error = asdict(ended.error) if ended.error else None
            last = {"output_preview": record.preview(ended.output), "error": error}
            first.trace.append(NewTrace(type=ending(ended.status), data=last))
        runs.insert_run(tx, history.counted(run, first))
        history.append(tx, run, first, CheckpointLimits())
        audit.record(
            tx,
            "run.created",
            actor=order.requester,
            run_id=run.id,
            environment=order.environment,
            metadata=begun_with
            | dict(order.origin)
            | {
                "bundle": chosen.release.bundle if chosen.release else None,
                "version": chosen.release.version if chosen.release else None,
                "digest": chosen.release.digest if chosen.release else None,
                "spec_digest": digest,
            }
            | chosen.added_gates(),
        )
        if ended is not None:
            record.record_end(tx, run)
        return run

    def _freeze(
        self, tx: Tx, order: StartRequest, inline: FrozenSpec | None, rules: Environment | None, run_id: str
    ) -> _ResolvedSpec:
        """Return the exact spec that a run executes."""
        chosen = self._choose(tx, order, inline, rules, run_id)
        _check_target(chosen.frozen.spec, order.target, chosen.release)
        if rules is not None and rules.gates:
            chosen = replace(chosen, frozen=self.freezer.with_gates(chosen.frozen, rules.gates), gates=rules.gates)
        policy = registry.policy_in_force(tx, order.environment, self.project, approved=chosen.approved)
        require_policy(chosen.frozen.spec, policy, order.environment, order.target)
        if rules is not None and rules.spec.tools.mcp.pinned:
            _require_pins(chosen.frozen.spec, rules.name)
        return chosen

    def _choose(
        self, tx: Tx, order: StartRequest, inline: FrozenSpec | None, rules: Environment | None, run_id: str
    ) -> _ResolvedSpec:
        if order.bundle is not None and order.spec is not None:
            msg = "A run takes a bundle or a spec, not both."
            raise Usage(msg)
        if order.bundle is not None:
            session = order.origin.get("session_id")
            new = registry.NewRun(
                run_id=run_id, requester=order.requester, session=session if isinstance(session, str) else None
            )
            return self._freeze_bundle(tx, order.bundle, order.environment, rules, new)
        if inline is None:
            msg = "A run needs a bundle or a spec."
            raise Usage(msg, hint='Send {"bundle": NAME, "environment": ENV} or a spec.')
        self._check_inline_allowed(tx, order.environment)
        return _ResolvedSpec(inline)

    def _freeze_bundle(
        self, tx: Tx, reference: str, environment: str | None, rules: Environment | None, new: registry.NewRun
    ) -> _ResolvedSpec:
        if environment is None:
            msg = f"The run of {reference[:200]} names no environment."
            raise Usage(msg, hint="Name it: --env E, or environment in the request.")
        approved = registry.resolve(
            tx, reference, environment, pin=self.pin, hmac_key=self.hmac_key, rules=rules, new=new
        )
        release = approved.release
        ref = ReleaseRef(
            bundle=release.bundle,
            version=release.version,
            digest=release.digest,
            environment=environment,
            revision=release.revision,
            promotion_id=release.promotion_id,
        )
        frozen, statement = self.freezer.released(approved.bundle), approved.bundle.statement
        code = statement.code.digest if statement is not None and statement.code is not None else None
        rules = rules if rules is not None else registry.declared(tx, environment)
        check_code(frozen.spec, code is not None, rules, f"{ref.bundle}@{ref.version}")
        return _ResolvedSpec(frozen, ref, approved, code)

    def check_still_allowed(self, tx: Tx, run: Run) -> None:
        """Check that a run could be started today.

        Raises:
            Forbidden, Untrusted, NotFound: it could not be started.
        """
        approved = None
        if run.release is None:
            self._check_inline_allowed(tx, run.environment)
        else:
            release = run.release
            approved = registry.resolve(
                tx, release.digest, release.environment, pin=self.pin, hmac_key=self.hmac_key, running=True
            )
        policy = registry.policy_in_force(tx, run.environment, self.project, approved=approved)
        body = runs.load_spec(tx, run.spec_digest)
        if body is not None:
            spec = read_spec(body)
            _require_gates(run, spec, find_rules(tx, run.environment))
            _check_target(spec, run.target, run.release)
            require_policy(spec, policy, run.environment, run.target)

    def _check_inline_allowed(self, tx: Tx, environment: str | None) -> None:
        """Check that an inline spec may run: where Git declares environments, only in one that allows inline specs."""
        if not registry.is_followed(tx, self.pin):
            return
        declared = releases.list_environments(tx)
        if requests.is_rebuilding(tx):
            msg = "The registry is being rebuilt from Git; the approved specs are not known yet."
            raise Transient(
                msg, code="registry_rebuilding", hint="Try again later; kneo source show shows the progress."
            )
        if not declared:
            msg = "Git decides which specs run, and no commit with an environment has been accepted yet: no run can start."
            hint = "Run kneo source show and kneo status for the reason. "
            if registry.is_followed(tx, None):
                hint += (
                    "A controller has used this database: to run specs without a config repository, name another one in "
                    "KNEO_SERV_DATABASE_URL."
                )
            else:
                hint += (
                    "A trust root is pinned, and no controller has used this database: start one with kneo controller run, "
                    "or, to run specs without a config repository, unset KNEO_SERV_TRUST_ROOT."
                )
            raise Forbidden(msg, code="bundle_not_approved", hint=hint, approved=[])
        if environment is None:
            msg = "Git declares environments here, so a run must name one of them."
            raise Forbidden(msg, code="bundle_not_approved", hint="List them: kneo status", approved=[])
        rules = registry.declared(tx, environment)
        registry.check_not_retired(tx, rules)
        if not rules.spec.inline_specs:
            served = [f"{item.bundle}@{item.version}" for item in registry.list_served(tx, environment)]
            msg = f"{environment} runs released bundles only; inline specs are disabled."
            released = f"Released: {', '.join(served) or 'none'}."
            hint = f"{released} Release the spec, or use an environment with inlineSpecs: true."
            raise Forbidden(msg, code="bundle_not_approved", hint=hint, environment=environment, approved=served)

    def _audit_refusal(self, order: StartRequest, error: KneoError) -> None:
        if isinstance(error, Invalid) and order.bundle is None:
            return
        error.recorded = True
        with self.store.write() as tx:
            audit.record(
                tx,
                "run.refused",
                actor=order.requester,
                environment=order.environment,
                metadata=dict(order.origin)
                | {"bundle": order.bundle, "error": error.code, "message": error.message, **_reason(error)},
            )


def find_rules(tx: Tx, environment: str | None) -> Environment | None:
    """Read the declaration of an environment, where Git ever declared it.

    Its pinned code and added gates are kept with each run: a later declaration changes no run that has started.
    """
    return registry.find_declared(tx, environment)


def _require_gates(run: Run, spec: GatedSpec, rules: Environment | None) -> None:
    """Check that a run has every gate that its environment requires today.

    Raises:
        Forbidden: ``gates_changed``.
    """
    missing = [one.name for one in (rules.gates if rules else ()) if one not in spec.environment_gates]
    if missing:
        msg = (
            f"{run.environment} requires gates that it did not require when {run.id} was started: {', '.join(missing)}."
        )
        hint = "Start a new run: it gets the gates of today."
        raise Forbidden(msg, code="gates_changed", hint=hint, environment=run.environment, gates=missing)


def _check_target(spec: Spec, target: str, release: ReleaseRef | None) -> None:
    """Check that a released bundle is run with a target that its spec allows: the workflow, whose gates were approved with it.

    Raises:
        Usage: the target is unknown.
        Forbidden: ``target_not_allowed``.
    """
    if target not in TARGETS:
        msg = f"{target[:80]!r} is no target; it is workflow, agent or call."
        raise Usage(msg)
    if release is None or spec.allows(target):
        return
    allowed = ", ".join(spec.targets or ("workflow",))
    msg = f"{release.bundle}@{release.version} is not released to be run with target {target}; it allows: {allowed}."
    hint = "Leave the target out, or release a version whose spec names it under targets."
    raise Forbidden(msg, code="target_not_allowed", hint=hint, target=target, bundle=release.bundle)


def require_policy(spec: Spec, policy: PolicyFlags, environment: str | None, target: str = "workflow") -> None:
    """Check that a spec satisfies the policy of an environment.

    Raises:
        Forbidden: ``environment_policy_blocked``; the violations are in its details.
    """
    if not policy.enabled:
        return
    violations = check_policy(spec, check_rules(spec, NOTHING_KNOWN), policy, target=target)
    if violations:
        more = f" And {len(violations) - 1} more." if len(violations) > 1 else ""
        raise Forbidden(
            f"The policy of {environment} does not accept this spec. {violations[0].code}: {violations[0].message}{more}",
            code="environment_policy_blocked",
            hint=violations[0].suggestion,
            environment=environment,
            diagnostics=[found.as_json() for found in violations],
        )


def _require_pins(spec: Spec, environment: str) -> None:
    """Check that a spec pins its tools of MCP servers.

    Raises:
        Forbidden: ``environment_policy_blocked``.
    """
    unpinned = spec.unpinned_tools()
    if unpinned:
        more = f" and {len(unpinned) - 1} more have" if len(unpinned) > 1 else " has"
        msg = f"{environment} requires pinned tools of MCP servers, and {unpinned[0]}{more} no pin."
        hint = "Release a version that was signed with kneo spec bundle sign --pin-tools."
        raise Forbidden(msg, code="environment_policy_blocked", hint=hint, environment=environment)


def _reason(error: KneoError) -> dict[str, object]:
    reason = error.details.get("reason")
    return {"reason": reason} if reason is not None else {}


def _check_names(order: StartRequest) -> None:
    """Check the environment and session names of a run before anything is recorded under them.

    Raises:
        InvalidValue: ``invalid_name``.
    """
    if order.environment is not None:
        check_environment_name(order.environment)
    session = order.origin.get("session_id")
    problem = name_problem(session) if isinstance(session, str) else None
    if problem is not None:
        msg = f"The name of the session {problem}"
        raise InvalidValue(msg, code="invalid_name", field="session_id")


def _metadata(order: StartRequest, chosen: _ResolvedSpec, rules: Environment | None) -> Mapping[str, object]:
    values: dict[str, object] = {
        "target": order.target,
        "environment": order.environment,
        "timeout_seconds": order.timeout_seconds,
        "caller_metadata": dict(order.metadata),
        **order.origin,
        **order.content,
    }
    if rules is not None and rules.spec.implementations:
        values["implementations"] = dict(rules.spec.implementations)
    if chosen.code is not None:
        values["code"] = {"digest": chosen.code, "packages": rules.spec.packages if rules is not None else "recorded"}
    if chosen.release is not None and chosen.approved is not None:
        ref = chosen.release
        values["release"] = {
            "bundle": ref.bundle,
            "version": ref.version,
            "digest": ref.digest,
            "environment": ref.environment,
            "revision": ref.revision,
            "audit_seq": chosen.approved.audit_seq,
        }
    return values
