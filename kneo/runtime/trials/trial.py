"""One trial: a run on a temporary database, driven to its end with the answers of its source."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from kneo import registry
from kneo.agents.function_tools import ToolRegistry
from kneo.agents.providers import OperatorConnections
from kneo.clock import SystemClock, parse_time
from kneo.errors import KneoError
from kneo.records.conversation import EntryKind, EntryStatus
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.runtime.engine.assemble import open_sandboxes
from kneo.runtime.engine.programs import CheckSpec, ProgramLoader
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.agents import MakeServices, OpenServices
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.code_store import CodeStore
from kneo.runtime.trials.stubs import Stubs, TrialExecutor, TrialState, plain_key
from kneo.settings import Settings
from kneo.spec.code import BundleCode, RunCode
from kneo.spec.environment import parse_environment
from kneo.spec.models.answers import ScriptedAnswer
from kneo.spec.models.suite import Case, ModelMode, ScriptedReply
from kneo.spec.project import ProjectConfig
from kneo.spec.reading.reader import read
from kneo.store import agent_journal, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.migrate import open_store
from kneo.tasks import inbox
from kneo.tasks.decisions import DecisionRequest, check_decision
from kneo.tasks.lifecycle import process_due
from kneo.trust.keys import PrivateKey

PERSON = "evaluation"
"""The person who gives the answers of a case."""

TRIAL_SECONDS = 900
"""The longest time of one trial, in seconds."""

MAX_QUESTIONS = 1_000

MADE = frozenset({EntryStatus.DONE, EntryStatus.FAILED, EntryStatus.BEGUN, EntryStatus.WAITING})
"""The states of a call that was made, or would have been."""


class TrialClock:
    """The clock of trials: the system's, moved forward over the time limits of questions."""

    def __init__(self) -> None:
        self._system, self._ahead = SystemClock(), timedelta(0)

    def now(self) -> datetime:
        return self._system.now() + self._ahead

    def skip_to(self, moment: datetime) -> None:
        """Move forward to a time."""
        self._ahead += max(timedelta(0), moment - self.now())


@dataclass(frozen=True)
class MadeCall:
    """A tool call that a trial made to its stubs."""

    tool: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a trial did.

    Attributes:
        error: The type of the run's error.
        ended: Why the trial ended early; None where its run came to its end.
        cost_micros: The cost in millionths of a US dollar; None where the price of a model is not known.
    """

    status: str
    output: str
    error: str | None
    ended: str | None
    calls: tuple[MadeCall, ...]
    asked: tuple[str, ...]
    cost_micros: int | None


@dataclass(frozen=True, kw_only=True)
class TrialSubject:
    """The spec of trials, the code of its bundle, and the environment file under whose rules they run.

    Without a bundle's code, functions are those of the project.
    """

    spec: Mapping[str, object]
    code: BundleCode | None = None
    environment: str | None = None
    declaration: bytes | None = None


@dataclass
class TrialBench:
    """A temporary database with the ordinary starter and driver, and stubs in place of the outside."""

    store: Store
    clock: TrialClock
    starter: Starter
    driver: Driver
    subject: TrialSubject
    is_scripted: bool
    models: set[tuple[str, str, str]] = field(default_factory=set)
    """The models that answered: provider, name, and the name with which they answered."""
    _state: TrialState | None = None

    @property
    def state(self) -> TrialState:
        """The state of the present trial."""
        assert self._state is not None, "a trial is under way"
        return self._state

    def next_reply(self) -> ScriptedReply:
        """Return the next scripted reply of the present trial."""
        return self.state.next_reply()

    def check(self) -> None:
        """Raise the error of the present trial, if it has ended."""
        self.state.check()

    async def run(self, state: TrialState, text: str, target: str) -> Observed:
        """Run one trial.

        Args:
            state: Has what stands for the outside.
            text: The input of the run.
            target: ``workflow`` or ``agent``.

        Raises:
            KneoError: the run cannot start.
        """
        self._state = state
        subject = self.subject
        order = StartRequest(
            input=text, requester="eval", target=target, environment=subject.environment, spec=subject.spec
        )
        run = self.starter.start(order)
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                while not run.status.is_final:
                    await self.driver.drive(run.id)
                    run = self._read(run.id)
                    if run.status.is_final or not self._answer(run):
                        break
                    run = self._read(run.id)
        except TimeoutError:
            self.state.end(f"The trial took longer than {TRIAL_SECONDS} s.")
        return self._observed(run)

    def _read(self, run_id: str) -> Run:
        with self.store.read() as tx:
            run = runs.get(tx, run_id)
        assert run is not None, "it was started here"
        return run

    def _answer(self, run: Run) -> bool:
        """Answer the open questions of a run; return whether there were any, and each has an answer."""
        with self.store.read() as tx:
            waiting = tasks.of_run(tx, run.id, UNRESOLVED)
        for task in waiting:
            key = plain_key(task.key)
            if key not in self.state.asked:
                self.state.asked.append(key)
            if len(self.state.asked) > MAX_QUESTIONS:
                self.state.end(f"The trial asked more than {MAX_QUESTIONS} questions.")
            written = self.state.answer_to(task)
            if written is not None and not self._give(task, written):
                self.state.end(f"{key} has no time limit to run out.")
            if self.state.reason is not None:
                return False
        return bool(waiting)

    def _give(self, task: HumanTask, written: ScriptedAnswer) -> bool:
        if written.timeout:
            if task.deadline_at is None:
                return False
            self.clock.skip_to(parse_time(task.deadline_at) + timedelta(seconds=1))
            process_due(self.store)
            return True
        assert written.decision is not None
        request = DecisionRequest(
            decision=DecisionKind(written.decision),
            content=written.content,
            selected_option=written.selected_option,
            selected_options=written.selected_options,
            values=written.values,
            arguments=written.arguments,
            feedback=written.feedback,
            comment=written.comment,
        )

        def work(tx: Tx) -> None:
            runs.lock(tx, task.run_id)
            current = inbox.find(tx, task.id)
            decision = check_decision(current, request, actor=PERSON, at=tx.at)
            inbox.record(tx, current, replace(decision, voters=(PERSON,)))

        try:
            self.store.transact(work)
        except KneoError as refusal:
            self.state.end(f"The answer to {plain_key(task.key)} does not fit: {refusal.message}")
        return True

    def _observed(self, run: Run) -> Observed:
        with self.store.read() as tx:
            entries = agent_journal.list_entries(tx, run.id)
        made = (entry for entry in entries if entry.kind is EntryKind.TOOL and entry.status in MADE)
        calls = tuple(MadeCall(str(entry.facts.get("tool")), _arguments(entry.body)) for entry in made)
        return Observed(
            status=run.status.value,
            output=run.output_text or "",
            error=run.error.type if run.error is not None else None,
            ended=self.state.reason,
            calls=calls,
            asked=tuple(self.state.asked),
            cost_micros=0 if self.is_scripted else run.usage.cost_micros if not run.usage.unpriced_requests else None,
        )


def _arguments(body: Mapping[str, object]) -> Mapping[str, object]:
    arguments = body.get("arguments")
    return arguments if isinstance(arguments, Mapping) else {}


@contextlib.contextmanager
def open_bench(
    settings: Settings,
    subject: TrialSubject,
    models: ModelMode,
    *,
    check_spec: CheckSpec,
    project: ProjectConfig | None,
    tools: ToolRegistry | None = None,
    runs_code: bool = True,
) -> Iterator[TrialBench]:
    """Open a temporary database for trials, and delete it at the end.

    Args:
        settings: The settings of this process.
        subject: The spec, and its environment.
        models: Whether models are scripted or asked.
        check_spec: Validates the spec.
        project: The project's config, whose policies apply too.
        tools: The tools that the program registered; a trial calls none of them.
        runs_code: Whether functions without capabilities and without an output in the case are called. If not, no module
            that a spec names is imported.
    """
    clock, key = TrialClock(), PrivateKey.generate()
    with tempfile.TemporaryDirectory(prefix="kneo-trial-") as folder, contextlib.ExitStack() as stack:
        store = open_store(f"sqlite:///{Path(folder) / 'trial.sqlite'}", clock, lambda: key)
        stack.callback(store.close)
        if subject.environment is not None and subject.declaration is not None:
            declare(store, subject.environment, subject.declaration)
        operator = OperatorConnections.of(settings, project) if models == "live" else None
        starter = Starter(store, check_spec, pin=None, project=project, operator=lambda: operator)
        modules = (settings.import_roots, settings.import_allow) if runs_code else ((), ())
        codes = {each.digest: each for each in (subject.code,) if each is not None}
        code = CodeLoader(*modules, CodeStore(Path(folder, "code"), codes.__getitem__))
        executor = TrialExecutor(code, open_sandboxes(settings, store, code), runs_code=runs_code)
        for digest in codes:
            executor.run_code = RunCode(digest=digest, bundle=digest)
        bench = TrialBench(
            store, clock, starter, Driver(store, ProgramLoader(store), executor), subject, models == "scripted"
        )
        executor.state = lambda: bench.state
        executor.agents = type(executor.agents)(_make_services(settings, bench, executor, models, tools))
        yield bench


NOWHERE = OperatorConnections(secret=lambda _name: "https://scripted.invalid")
"""The connections of scripted models: each key and address is there, and none is used."""


def playing(read_cases: Callable[[], Sequence[Case]]) -> Callable[[MakeServices], MakeServices]:
    """Return what replaces the models of a worker by scripted ones, and leaves everything else as it is.

    Args:
        read_cases: Reads the cases, at each request.
    """

    def play(make: MakeServices) -> MakeServices:
        def opened() -> OpenServices:
            scripted = importlib.import_module("kneo.agents.scripted")
            clients = scripted.ScriptedClients(lambda messages: scripted.played_reply(read_cases(), messages))
            services = make()
            models = replace(services.services.models, clients=clients, operator=NOWHERE)  # type: ignore[attr-defined]
            return replace(services, services=replace(services.services, models=models))  # type: ignore[type-var]

        return opened

    return play


def _make_services(
    settings: Settings, bench: TrialBench, executor: TrialExecutor, models: ModelMode, tools: ToolRegistry | None
) -> Callable[[], OpenServices]:
    def make() -> OpenServices:
        # Both import the libraries of models, which only agents with a model need.
        engine = importlib.import_module("kneo.runtime.engine.agent_services")
        scripted = importlib.import_module("kneo.agents.scripted")
        opened: OpenServices = engine.open_services(settings, bench.store, executor.code, executor.sandboxes, tools)
        services = opened.services
        if models == "scripted":
            clients = scripted.ScriptedClients(lambda _messages: bench.next_reply())
            asked = replace(services.models, clients=clients, operator=NOWHERE)  # type: ignore[attr-defined]
        else:
            clients = scripted.ObservedClients(bench.check, lambda *answered: bench.models.add(answered))
            asked = replace(services.models, clients=clients)  # type: ignore[attr-defined]
        stubbed = replace(services, models=asked, tools=Stubs(lambda: bench.state))  # type: ignore[type-var]

        async def close() -> None:
            await clients.close()
            await opened.close()

        return OpenServices(services=stubbed, close=close)

    return make


def declare(store: Store, name: str, declaration: bytes) -> None:
    """Bring an environment file into force in a temporary database, with its rules and for inline specs.

    The releases are left out: a trial runs the spec of its bundle.
    """
    tree = read(declaration, file=f"environments/{name}.yaml").value
    assert isinstance(tree, dict)
    spec = {key: value for key, value in tree["spec"].items() if key not in {"releases", "suspend"}}
    text = json.dumps({**tree, "spec": {**spec, "inlineSpecs": True}}).encode()
    parsed = parse_environment(text, file=f"environments/{name}.yaml", accepted=True)
    with store.write() as tx:
        registry.accept_environment(tx, name, text, parsed.policy_digest, revision="trial", epoch=parsed.policy_digest)
