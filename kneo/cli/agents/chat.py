"""``kneo agent chat``: a conversation with an agent in the terminal. Each line is a run of the same session."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from kneo.api.bundles import get_bundle_version
from kneo.api.run_start import RunCreate
from kneo.api.run_views import RunView
from kneo.api.runs import get_run_trace, list_runs
from kneo.cli import render
from kneo.cli.agents.chat_turns import Turns
from kneo.cli.backend import Backend
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.cli.requests import request
from kneo.cli.runs.usage import usage_line
from kneo.cli.specs.check import read_tree
from kneo.cli.watch import show_event
from kneo.clock import SystemClock, new_id
from kneo.errors import KneoError, Usage
from kneo.spec.models.spec import Spec

app = typer.Typer(no_args_is_help=True)

SHOWN_RUNS = 50
"""Runs of the session in ``/history`` and ``/usage``."""

HELP = "/tools  /usage  /history  /trace  /retry  /quit    Ctrl-C cancels the run, Ctrl-D leaves."


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

    Ctrl-C cancels the run, not the chat. A question that is answered later stays in the inbox.
    """
    if options.as_json:
        msg = "A chat has no JSON."
        raise Usage(msg, hint="kneo run --input TEXT --session ID --json")
    if bundle is not None and (spec is not None or model is not None):
        msg = "A bundle runs as approved: without a spec and without another model."
        raise Usage(msg, hint="kneo agent chat --bundle NAME --env ENV")
    tree = _tree(spec, environment, model) if bundle is None else None
    name = session or new_id("chat", SystemClock().now())

    def make_request(text: str) -> RunCreate:
        return request(
            RunCreate,
            input=text,
            target="agent",
            environment=environment,
            session_id=name,
            bundle=bundle,
            spec=tree,
            async_mode=True,
            stream=True,
        )

    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # lines can be edited; absent on some systems
    with options.open() as opened:
        render.text(f"Session {name}. Continue it later with --session {name}.\n{HELP}")
        Chat(opened, Turns(opened, make_request), name, tree).talk()


def _tree(spec: Path | None, environment: str | None, model: str | None) -> Mapping[str, object]:
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
        tree: The spec of the runs; ``None`` for those of a bundle.
    """

    def __init__(self, backend: Backend, turns: Turns, session: str, tree: Mapping[str, object] | None) -> None:
        self._backend, self._turns, self._session, self._tree = backend, turns, session, tree
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
        if self._tree is not None:
            return Spec.model_validate(self._tree)
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
