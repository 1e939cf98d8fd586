"""``kneo dev``: a spec of the working folder, with a worker, the console and a chat, while it is being written."""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from kneo.agents.providers import OperatorConnections
from kneo.agents.start_check import check_agents
from kneo.api.run_start import RunCreate
from kneo.background import background
from kneo.cli import render
from kneo.cli.chat import HELP, Chat, CurrentSpec, Turns, spec_tree
from kneo.cli.compose import process_store
from kneo.cli.connection import request
from kneo.cli.files import read_bytes
from kneo.cli.local import LocalBackend
from kneo.cli.serve.listener import Listener
from kneo.cli.serve.service import PortOption, make_server
from kneo.cli.serve.up import offer_sign_in
from kneo.cli.serve.worker import executing, logged_settings
from kneo.clock import SystemClock, new_id
from kneo.errors import Invalid, KneoError, Usage
from kneo.project import read_config
from kneo.runtime.engine.assemble import unchanged
from kneo.runtime.trials.trial import declare, playing
from kneo.settings import Settings, user_name
from kneo.spec.environment import ENVIRONMENT_LIMITS
from kneo.spec.models.spec import Spec
from kneo.spec.models.suite import Case
from kneo.spec.reading.reader import read
from kneo.spec.reading.suite import SUITE_LIMITS, parse_suite

V = TypeVar("V")

CONCURRENCY = 4

DATABASE = "dev.sqlite"
"""The database in the state folder: its runs are of no other process."""

DEFAULT = "dev"
"""The environment whose rules apply by default, where it has a file."""

BARE: Mapping[str, Any] = {
    "apiVersion": "kneo/v1",
    "kind": "Environment",
    "metadata": {"name": DEFAULT},
    "spec": {"policy": {"enabled": True}, "signatures": {"roles": ["release"], "threshold": 1}},
}

LOOK_SECONDS = 0.5
"""The interval at which files are compared."""

NOT_CONFIGURED = "provider_not_configured"


def dev(
    spec: Annotated[
        Path | None, typer.Argument(help="Spec file; by default the only one of specs/, or the project's default spec.")
    ] = None,
    replies: Annotated[
        Path | None, typer.Option("--replies", help="Suite whose replies stand for those of models; no key is needed.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="PROVIDER/NAME: another model for the spec's agent.")
    ] = None,
    environment: Annotated[str | None, typer.Option("--env", help="Environment whose rules apply.")] = None,
    port: PortOption = 8000,
) -> None:
    """Try a spec while you write it: a worker, the console, and a chat in the terminal.

    Each line is a run of the spec as its files are then. An edited spec is checked when it is saved; one with errors at the start is
    awaited. /as NAME answers questions as another person. Where the key of the model is missing and evals/ has one suite, the replies of its cases stand for those of the
    model. Ctrl-D ends everything.
    """
    settings = logged_settings("WARNING")
    settings = replace(settings, database_url=f"sqlite:///{settings.state_dir / DATABASE}")
    environment = environment or (DEFAULT if environment_file(DEFAULT).exists() else None)
    spec = spec or find_only("specs")
    current = wait_until_valid(lambda: CurrentSpec(lambda: spec_tree(spec, environment, model)))
    suite = replies if replies is not None else _suite_without_key(settings, current.tree, model)
    script = wait_until_valid(lambda: Script(suite)) if suite is not None else None
    name = new_id("chat", SystemClock().now())

    def make_request(text: str) -> RunCreate:
        tree = current.reload()
        return request(
            RunCreate,
            input=text,
            target="workflow" if "workflow" in tree else "agent",
            environment=environment or DEFAULT,
            session_id=name,
            spec=tree,
            async_mode=True,
            stream=script is None,
        )

    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # lines can be edited; absent on some systems
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(Listener("127.0.0.1", port)))
        store = stack.enter_context(process_store(settings))
        people = find_people(Spec.model_validate(current.tree))
        declare(store, environment or DEFAULT, with_people(environment, people))
        backend = DevBackend(settings)
        stack.callback(backend.close)
        wrap = playing(script.cases) if script is not None else unchanged
        worker = stack.enter_context(executing(settings, store, CONCURRENCY, wrap))
        server = make_server(settings, store, executes=True, alive=worker.heartbeats.is_alive)
        sockets = [listener.listen()]
        stack.enter_context(
            background("http", lambda: server.run(sockets=sockets), lambda: setattr(server, "should_exit", True))
        )
        render.success(f"Kneo is up at {listener.url}")
        offer_sign_in(settings, store, listener.url)
        if script is not None:
            render.text(f"The model is scripted: it replies to these inputs, which {suite} has:")
            for case in script.cases():
                render.text(f"  {case.input}")
        named = ", ".join(sorted(people.keys() - {user_name()}))
        if named:
            render.text(f"You have every role and group that the spec names. People for /as: {named}.")
        render.text(HELP)
        files = [path for path in (spec, suite) if path is not None]
        stopping = threading.Event()
        stack.enter_context(background("files", lambda: watch(files, current.reload, stopping), stopping.set))
        Chat(backend, Turns(backend, make_request), name, current).talk()


class DevBackend(LocalBackend):
    """The operations on the database of ``kneo dev``, in which the user plays every person."""

    def as_person(self, name: str) -> LocalBackend:
        """Return the backend on which another person acts. The database has nothing but tries."""
        other = super().as_person(name)
        other.on_behalf = None
        return other


def environment_file(name: str) -> Path:
    """Return the path of the file of an environment."""
    return Path("environments", f"{name}.yaml")


def find_people(spec: Spec) -> dict[str, dict[str, list[str]]]:
    """Return people for the questions of a spec: one for each role and group, named after it, and the user, who has all of them."""
    asked = [human.candidates for human in spec.components.humans.values() if human.candidates is not None]
    roles = sorted({role for each in asked for role in each.roles})
    groups = sorted({group for each in asked for group in each.groups})
    people = {role: {"roles": [role]} for role in roles} | {group: {"groups": [group]} for group in groups}
    return {**people, user_name(): {"roles": roles, "groups": groups}}


def with_people(name: str | None, people: Mapping[str, object]) -> bytes:
    """Return the file of an environment with further people; without a name that of one without rules of its own."""
    tree: Mapping[str, Any] = BARE
    if name is not None:
        path = environment_file(name)
        read_tree = read(
            read_bytes(path, max_bytes=ENVIRONMENT_LIMITS.max_bytes, what="environment"), file=str(path)
        ).value
        assert isinstance(read_tree, dict)
        tree = read_tree
    spec = tree["spec"]
    return json.dumps({**tree, "spec": {**spec, "people": {**people, **spec.get("people", {})}}}).encode()


def _suite_without_key(settings: Settings, tree: Mapping[str, object], model: str | None) -> Path | None:
    """Return the only suite of the folder ``evals``, where the key of a model is missing and no model was asked for."""
    spec = Spec.model_validate(tree)
    if spec.workflow is None and (spec.agent is None or spec.agent.model is None):
        msg = "The spec has neither a workflow nor an agent with a model: programs elsewhere call its tools."
        raise Usage(msg, hint="Serve them with kneo up --repo FOLDER, and make one with kneo call make.")
    operator = OperatorConnections.of(settings, read_config(settings))
    try:
        check_agents(spec, {spec.agent.name: spec.agent} if spec.agent is not None else {}, operator, None)
    except Invalid as missing:
        suite = find_only("evals")
        if model is not None or missing.code != NOT_CONFIGURED or suite is None:
            raise
        render.warning(missing.message, missing.hint)
        return suite
    return None


def find_only(folder: str) -> Path | None:
    """Return the only YAML file of a folder; None where there are several or none."""
    found = sorted(Path(folder).glob("*.y*ml"))
    return found[0] if len(found) == 1 else None


class Script:
    """The cases of a suite, as its file is now; one that cannot be read leaves those before.

    Args:
        path: The suite.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cases = self._read()

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        with contextlib.suppress(KneoError):
            self._cases = self._read()
        return self._cases

    def _read(self) -> Sequence[Case]:
        data = read_bytes(self._path, max_bytes=SUITE_LIMITS.max_bytes, what="suite")
        return parse_suite(data, file=str(self._path)).spec.cases


def wait_until_valid(read: Callable[[], V]) -> V:
    """Return what is read once it has no errors; until then print the errors whenever they differ from those before."""
    printed = ""
    while True:
        try:
            return read()
        except Invalid as error:
            if error.message != printed:
                printed = error.message
                render.failure(error.message, error.hint)
                render.text("Waiting until it is corrected. Ctrl-C ends.")
        threading.Event().wait(LOOK_SECONDS)


def watch(files: Sequence[Path], check: Callable[[], object], stopping: threading.Event) -> None:
    """Check the spec at once, as it may have changed since it was read, and whenever one of the files changes; print problems."""
    before: Sequence[tuple[int, int] | None] | None = None
    while not stopping.wait(LOOK_SECONDS):
        now = _stamps(files)
        if now != before:
            before = now
            try:
                check()
            except KneoError as error:
                render.failure(error.message, error.hint)


def _stamps(files: Sequence[Path]) -> list[tuple[int, int] | None]:
    return [_stamp(path) for path in files]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
