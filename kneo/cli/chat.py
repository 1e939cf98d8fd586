"""``kneo agent chat``: a conversation with an agent in the terminal. Each line is a run of the same session."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort

from kneo.api.bundles import get_bundle_version
from kneo.api.decisions import TaskDecision, get_human_task, resume_human_task
from kneo.api.run_start import RunCreate, cancel_run, continue_run, create_run
from kneo.api.run_views import RunView
from kneo.api.runs import get_run, get_run_trace, list_runs
from kneo.api.task_views import HumanTaskView
from kneo.api.tasks import list_human_tasks
from kneo.cli import render
from kneo.cli.backend import Backend, Json
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, request
from kneo.cli.people.decisions import ask_decision
from kneo.cli.runs.runs import usage_line
from kneo.cli.specs.check import read_tree
from kneo.cli.watch import PAUSED, POLL_SECONDS, StreamPrinter, show_event
from kneo.clock import SystemClock, new_id
from kneo.errors import Conflict, Forbidden, Invalid, KneoError, NotFound, Untrusted, Usage
from kneo.names import visible
from kneo.spec.models.spec import Spec

LATER = "later"

_CHOICES: Mapping[str, str] = {
    "approved": "[a]pprove",
    "edited": "[e]dit",
    "rejected": "[r]eject",
    "provided": "[p]rovide",
    "selected": "[s]elect",
    LATER: "[l]ater",
}
"""What a person types for each decision: the letter in brackets, or the whole word."""

MAX_EVENTS = 1_000
"""Trace events of a run that are shown."""


class Turns:
    """The runs of a chat, one after the other.

    Args:
        backend: The service or the local database.
        make_request: Makes the request of a run from a line.
    """

    def __init__(self, backend: Backend, make_request: Callable[[str], RunCreate]) -> None:
        self._backend, self._make_request = backend, make_request
        self._decider = backend
        """The backend through which questions are answered."""
        self.last: RunView | None = None

    def say(self, text: str) -> None:
        """Start a run with a line, and show it until it ends or waits for others.

        Ctrl-C while the run is being started cancels it, too: the start is awaited, because only then the run has a name.
        """
        started: list[str] = []
        start = _Work(lambda: started.append(self._backend.call(create_run, self._make_request(text)).run_id))
        is_interrupted = False
        while start.is_alive():
            try:
                start.join(POLL_SECONDS)
            except KeyboardInterrupt:
                is_interrupted = True
        if start.error is not None:
            raise start.error
        if is_interrupted:
            shown = _ShownRun(self._backend, started[0])
            self._cancel(shown)
            shown.show_result(self.last)
        else:
            self._show(started[0])

    def retry(self) -> None:
        """Continue the last run from the step that failed; start one that did not fail again."""
        if self.last is None:
            render.text("Nothing was said yet.")
        elif self.last.status == "failed":
            run_id = self.last.run_id
            self._show(run_id, _Work(lambda: self._backend.call(continue_run, run_id)))
        else:
            self.say(self.last.input_text)

    def decide_as(self, name: str) -> None:
        """Answer questions as another person from now on, those of the last run first; without a name as the caller.

        Raises:
            Forbidden: a service answers, which authenticates its callers.
        """
        self._decider = self._backend.as_person(name) if name else self._backend
        render.text(f"Questions are answered as {visible(name)}." if name else "Questions are answered as you.")
        if self.last is not None and self.last.status in PAUSED:
            self._show(self.last.run_id)

    def _show(self, run_id: str, work: _Work | None = None) -> None:
        shown = _ShownRun(self._backend, run_id)
        try:
            self.last = shown.follow() if work is None else shown.follow_work(work)
            self._answer_gates(shown)
        except KeyboardInterrupt:
            render.text("")
            self._cancel(shown)
        shown.show_result(self.last)

    def _answer_gates(self, shown: _ShownRun) -> None:
        """Ask the open questions of a run, one after the other; those answered later stay in the inbox."""
        deferred: set[str] = set()
        while self.last is not None and self.last.status in PAUSED:
            task = self._next_task(shown.run_id, deferred)
            if task is None:
                return
            word = _ask_word(task)
            if word == LATER:
                deferred.add(task.continuation_id)
                render.text(f"The run waits. Decide later: kneo task decide {task.continuation_id}")
                continue
            try:
                decision = ask_decision(task, word)
                self.last = shown.follow_work(_Work(lambda: self._decide(task, decision)))  # noqa: B023 - awaited here
            except Abort:
                continue
            except (Conflict, Forbidden, Invalid, NotFound, Untrusted) as error:
                render.warning(error.message, error.hint)

    def _decide(self, task: HumanTaskView, decision: TaskDecision) -> object:
        return self._decider.call(resume_human_task, task.continuation_id, decision)

    def _next_task(self, run_id: str, deferred: set[str]) -> HumanTaskView | None:
        page = self._backend.call(list_human_tasks, run_id=run_id)
        open_ids = [task.continuation_id for task in page.tasks if task.continuation_id not in deferred]
        return self._backend.call(get_human_task, open_ids[0]) if open_ids else None

    def _cancel(self, shown: _ShownRun) -> None:
        try:
            self._backend.call(cancel_run, shown.run_id)
        except KneoError as error:
            render.warning(error.message, error.hint)
        self.last = shown.follow()


class _Work(threading.Thread):
    """An operation that waits for a run, in a thread: the run is shown meanwhile, and Ctrl-C is noticed."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - raised again in the main thread, which waits for the operation
            self.error = error


class _ShownRun:
    """A run on the terminal: the text of its agent, and its calls of tools."""

    def __init__(self, backend: Backend, run_id: str) -> None:
        self.run_id = run_id
        self._backend = backend
        self._printer = StreamPrinter()
        self._events = 0
        """Trace events that are shown."""

    def follow(self) -> RunView:
        """Show the run until it pauses or ends."""
        count = 0
        for event in self._backend.follow(self.run_id, until_pause=True, deltas=True):
            kind = str(event["type"])
            if kind == "model_delta":
                self._printer.show(event)
            elif kind not in {"status", "end"}:
                count += 1
                if self._events < count <= MAX_EVENTS:
                    self._events = count
                    self._show_call(event)
        self._printer.end_reply()
        return self._backend.call(get_run, self.run_id)

    def follow_work(self, work: _Work) -> RunView:
        """Show the run while an operation continues it.

        Raises:
            KneoError: the operation was refused.
        """
        while work.is_alive() and self._backend.call(get_run, self.run_id).status in {*PAUSED, "failed"}:
            work.join(POLL_SECONDS)
        if work.is_alive():
            self.follow()
        while work.is_alive():
            work.join(POLL_SECONDS)
        if work.error is not None:
            raise work.error
        return self.follow()

    def show_result(self, view: RunView | None) -> None:
        """Show how the run ended, and its output unless it was streamed."""
        if view is None:
            return
        if view.status == "cancelled":
            render.text(f"Cancelled {view.run_id}.")
        elif view.error is not None:
            render.failure(f"{view.error.type}: {view.error.message}", f"Details: kneo runs trace {view.run_id}")
        elif view.output_text is not None and view.output_text.strip() != self._printer.text.strip():
            render.text(view.output_text)

    def _show_call(self, event: Json) -> None:
        if str(event["type"]).startswith("tool_"):
            self._printer.end_reply()
            show_event(event)


def _ask_word(task: HumanTaskView) -> str:
    """Ask for a decision; ``later`` leaves the task open."""
    decisions = task.request["decisions"]
    assert isinstance(decisions, list)
    allowed = [word for word in _CHOICES if word in {*decisions, LATER}]
    letters = {word[0]: word for word in allowed}
    render.line(render.OPEN, str(task.request["prompt"]))
    if task.current_input is not None:
        render.text(str(task.current_input))
    while True:
        try:
            typed = input(f"{' '.join(_CHOICES[word] for word in allowed)}: ").strip().lower()
        except EOFError:
            return LATER
        word = letters.get(typed) or next((word for word in allowed if typed and word.startswith(typed)), None)
        if word is not None:
            return word


app = typer.Typer(no_args_is_help=True)

SHOWN_RUNS = 50
"""Runs of the session in ``/history`` and ``/usage``."""

HELP = "/tools  /usage  /history  /trace  /retry  /as NAME  /quit    Ctrl-C cancels the run, Ctrl-D leaves."


@app.callback()
def agent() -> None:
    """Talk with agents."""


@examples(
    "kneo agent chat specs/hello.yaml",
    "kneo agent chat --bundle support@1.2.0 --env prod --session chat_01m0",
    "kneo agent chat --model ollama/llama3.2",
)
def chat(
    spec: Annotated[
        Path | None, typer.Argument(help="Spec file; by default the project's default spec, unless --bundle is set.")
    ] = None,
    bundle: Annotated[str | None, typer.Option("--bundle", help="Bundle: NAME, NAME@VERSION or sha256:….")] = None,
    environment: Annotated[str | None, typer.Option("--env", help="Environment that releases the bundle.")] = None,
    session: Annotated[
        str | None, typer.Option("--session", help="Session to continue. Default: a new one, whose name is printed.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="PROVIDER/NAME: another model for the spec's agent; without a spec, a plain one."),
    ] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Chat with an agent: each line is a run, and its gates are answered here.

    A spec is read again for each line, so that an edited prompt counts at once. /as NAME answers as another person, on the local
    database. Ctrl-C cancels the run, not the chat. A question that is answered later stays in the inbox.
    """
    if options.as_json:
        msg = "A chat has no JSON."
        raise Usage(msg, hint="kneo run --input TEXT --session ID --json")
    if bundle is not None and (spec is not None or model is not None):
        msg = "A bundle runs as approved: without a spec and without another model."
        raise Usage(msg, hint="kneo agent chat --bundle NAME --env ENV")
    current = CurrentSpec(lambda: spec_tree(spec, environment, model)) if bundle is None else None
    name = session or new_id("chat", SystemClock().now())

    def make_request(text: str) -> RunCreate:
        return request(
            RunCreate,
            input=text,
            target="agent",
            environment=environment,
            session_id=name,
            bundle=bundle,
            spec=current.reload() if current is not None else None,
            async_mode=True,
            stream=True,
        )

    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # lines can be edited; absent on some systems
    with options.open() as opened:
        render.text(f"Session {name}. Continue it later with --session {name}.\n{HELP}")
        Chat(opened, Turns(opened, make_request), name, current).talk()


class CurrentSpec:
    """The spec of a chat, as its files are now.

    Args:
        read: Reads and checks the spec.
    """

    def __init__(self, read: Callable[[], Mapping[str, object]]) -> None:
        self._read = read
        self.tree = read()

    def reload(self) -> Mapping[str, object]:
        """Read the spec again, and say so where it has changed.

        Raises:
            Invalid: ``spec_invalid``: it has errors.
        """
        tree = self._read()
        if tree != self.tree:
            self.tree = tree
            render.text("The spec has changed.")
        return tree


def spec_tree(spec: Path | None, environment: str | None, model: str | None) -> Mapping[str, object]:
    """Return the spec of the runs, with another model where one is given."""
    if model is None:
        return read_tree(spec, environment)
    provider, _, name = model.partition("/")
    if not provider or not name:
        msg = f"--model is PROVIDER/NAME, such as openai/gpt-5-mini, not {model[:80]!r}."
        raise Usage(msg)
    chosen = {"provider": provider, "name": name}
    if spec is None:
        return {"version": "v1", "agent": {"name": "assistant", "model": chosen}}
    tree = read_tree(spec, environment)
    agent_tree = tree["agent"]
    assert isinstance(agent_tree, Mapping), "the spec is valid"
    return {**tree, "agent": {**agent_tree, "model": chosen}}


class Chat:
    """The lines of a chat, and its commands.

    Args:
        backend: The service or the local database.
        turns: The runs of the chat.
        session: The session of the runs.
        current: The spec of the runs; ``None`` for those of a bundle.
    """

    def __init__(self, backend: Backend, turns: Turns, session: str, current: CurrentSpec | None) -> None:
        self._backend, self._turns, self._session, self._current = backend, turns, session, current
        self._commands: Mapping[str, Callable[[], None]] = {
            "/tools": self._show_tools,
            "/usage": self._show_usage,
            "/history": self._show_history,
            "/trace": self._show_trace,
            "/retry": turns.retry,
            "/help": lambda: render.text(HELP),
        }

    def talk(self) -> None:
        """Read lines until the end of the input or ``/quit``."""
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                render.text("")
                return
            except KeyboardInterrupt:
                render.text("\nLeave with /quit or Ctrl-D.")
                continue
            if line == "/quit":
                return
            try:
                self._take(line)
            except KneoError as error:
                render.failure(error.message, error.hint)
            except KeyboardInterrupt:
                render.text("\nInterrupted. Look for a run that goes on with: kneo runs list --status running")

    def _take(self, line: str) -> None:
        if not line.startswith("/"):
            if line:
                self._turns.say(line)
        elif line == "/as" or line.startswith("/as "):
            self._turns.decide_as(line.removeprefix("/as").strip())
        elif line in self._commands:
            self._commands[line]()
        else:
            render.text(f"There is no command {line[:40]}. {HELP}")

    def _show_tools(self) -> None:
        spec = self._spec()
        if spec is None:
            render.text("The tools are known after the first run.")
            return
        names = spec.agent.tools.include if spec.agent.tools is not None else ()
        if not names:
            render.text(f"The agent {spec.agent.name} has no tools.")
        for name in names:
            tool = spec.tools.get(name)
            asked = "  (asks a person)" if tool is not None and tool.review is not None else ""
            render.text(f"  {name}  {tool.description if tool is not None else ''}{asked}")

    def _spec(self) -> Spec | None:
        if self._current is not None:
            return Spec.model_validate(self._current.reload())
        release = self._turns.last.metadata.get("release") if self._turns.last is not None else None
        if not isinstance(release, Mapping):
            return None
        version = self._backend.call(get_bundle_version, str(release["bundle"]), str(release["version"]))
        return Spec.model_validate(version.spec)

    def _show_usage(self) -> None:
        counts: dict[str, int] = {}
        for run in self._runs():
            used = run.metadata.get("usage")
            for name, count in (used if isinstance(used, Mapping) else {}).items():
                if isinstance(count, int):
                    counts[name] = counts.get(name, 0) + count
        render.text(usage_line(counts) if counts else "No model was asked yet.")

    def _show_history(self) -> None:
        for run in self._runs():
            render.text(f"> {run.input_text}")
            render.text(run.output_text if run.output_text is not None else f"[{run.status}: {run.run_id}]")

    def _runs(self) -> list[RunView]:
        page = self._backend.call(
            list_runs, session_id=self._session, sort_by="created_at", sort_order="desc", limit=SHOWN_RUNS
        )
        return list(reversed(page.runs))

    def _show_trace(self) -> None:
        if self._turns.last is None:
            render.text("There is no run yet.")
            return
        for event in self._backend.call(get_run_trace, self._turns.last.run_id, limit=1000).events:
            show_event(vars(event))
