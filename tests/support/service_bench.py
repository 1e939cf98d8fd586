"""The whole service in this process: the application behind a socket, a worker beside it, one key for each role."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import httpx
from config_repo import FUNCTIONS

from kneo.background import background
from kneo.cli.compose import make_starter, make_store
from kneo.cli.serve.service import Server
from kneo.roles import ROLES
from kneo.runtime.engine.assemble import make_driver
from kneo.runtime.engine.worker import Worker
from kneo.service.app import create_app
from kneo.settings import HttpSettings, Limits, Settings, from_env

Json = dict[str, object]

AGENT = {"name": "helper", "model": {"provider": "dummy", "name": "dummy"}}


def spec_of(*steps: Mapping[str, object], name: str = "lab", **components: object) -> Json:
    """A sequential spec around some steps; the functions of a config repository's tests are at hand."""
    return {
        "version": "v1",
        "agent": AGENT,
        "workflow": {"type": "sequential", "name": name, "steps": list(steps)},
        "components": {
            "agents": {"writer": {**AGENT, "name": "writer"}},
            "functions": {
                "publish": {"implementation": "lab_functions.publish"},
                "boom": {"implementation": "lab_functions.boom"},
                "flaky": {"implementation": "lab_functions.flaky"},
                "slow": {"implementation": "lab_functions.slow"},
                "large": {"implementation": "lab_functions.large"},
                "flood": {"implementation": "lab_functions.flood"},
                "repeat": {"implementation": "lab_functions.repeat"},
            },
            "humans": {"editor": {"description": "Publish this announcement?", "assignee": "ann@example.com"}},
            **components,
        },
    }


DRAFT: Json = {"id": "draft", "kind": "agent", "ref": "writer"}
APPROVE: Json = {"id": "approve", "kind": "human", "ref": "editor"}
PUBLISH: Json = {"id": "publish", "kind": "function", "ref": "publish"}

MORE_FUNCTIONS = """

def flaky(text):
    mark = Path(__file__).with_name("mended")
    if not mark.exists():
        raise RuntimeError("not yet mended")
    return f"mended: {text}"


def leak(text):
    raise RuntimeError("no /srv/app/secrets/file, token=abcdefgh")


def large(text):
    return "large " * 166_666 + "text"


def flood(text):
    return (text * 20_000)[:1_000_000]


def repeat(text):
    raise RuntimeError(text)


def pay(arguments):
    return {"paid": arguments["amount"]}


def slow(text):
    import time
    time.sleep(0.6)
    return text
"""


class Told(NamedTuple):
    """A server-sent event."""

    name: str
    data: Json
    id: str | None


def _told(lines: Iterator[str]) -> Iterator[Told]:
    said: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            said[name] = value.removeprefix(" ")
        elif said:
            # Of an id alone browsers take note, too, without an event.
            if "retry" not in said and said.keys() != {"id"}:
                yield Told(said.get("event", ""), json.loads(said.get("data", "{}")), said.get("id"))
            said = {}


class Bench:
    """A running service."""

    LIMITS: ClassVar = Limits(body_bytes=40_000, input_chars=500, human_content_chars=100, metadata_bytes=2_000)

    def __init__(self, folder: Path, url: str | None, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.store = make_store(settings)
        self.url = url or ""
        self._clients: dict[str, httpx.Client] = {}
        self.stop: Callable[[], None] = lambda: None

    def client(self, role: str = "admin") -> httpx.Client:
        """A client with the key of a role."""
        if role not in self._clients:
            headers = {"Authorization": f"Bearer {role}-key"}
            self._clients[role] = httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=240)
        return self._clients[role]

    def ask(
        self, method: str, path: str, body: object = None, *, role: str = "admin", **more: object
    ) -> httpx.Response:
        return self.client(role).request(method, path, json=body, **more)

    def get(self, path: str, *, role: str = "admin", expect: int = 200, **query: object) -> Json:
        answer = self.client(role).get(path, params={key: str(value) for key, value in query.items()})
        assert answer.status_code == expect, answer.text
        return answer.json()

    def post(
        self, path: str, body: object = None, *, role: str = "admin", expect: int = 200, key: str | None = None
    ) -> Json:
        headers = {"Idempotency-Key": key} if key else {}
        answer = self.client(role).post(path, json=body if body is not None else {}, headers=headers)
        assert answer.status_code == expect, answer.text
        return answer.json()

    @contextlib.contextmanager
    def stream(self, path: str, *, role: str = "admin", **headers: str) -> Iterator[Iterator[Told]]:
        """Follow server-sent events; comments have no name."""
        with self.client(role).stream("GET", path, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield _told(answer.iter_lines())

    def start(self, spec: Json | None = None, *, role: str = "operator", expect: int = 200, **body: object) -> Json:
        return self.post("/runs", {"input": "hi", "spec": spec or spec_of(DRAFT), **body}, role=role, expect=expect)

    def paused(self, **body: object) -> Json:
        run = self.start(spec_of(DRAFT, APPROVE, PUBLISH), **body)
        assert run["status"] == "paused", json.dumps(run)
        return run

    def answer(
        self, run: Json, *, role: str = "reviewer", expect: int = 200, key: str | None = None, **said: object
    ) -> Json:
        request = run["metadata"]["pending_human_request"]["request_id"]
        body = {"request_id": request, "decision": "approved", **said}
        return self.post(f"/human-tasks/{run['continuation_id']}/resume", body, role=role, expect=expect, key=key)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self.store.close()


def listening() -> socket.socket:
    """Open a socket with a free port, which no other process gets before the service does."""
    return socket.create_server(("127.0.0.1", 0))


def url_of(listener: socket.socket, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def serving(
    folder: Path,
    database_url: str,
    *,
    http: HttpSettings | None = None,
    workers: int = 4,
    listener: socket.socket | None = None,
    shutdown_seconds: int = 2,
    **variables: str,
) -> Iterator[Bench]:
    """Run the service over a database until the block ends; without workers no run is driven.

    Args:
        folder: Where the functions of specs are.
        database_url: The database.
        http: The limits of HTTP.
        workers: How many runs are executed at once.
        listener: The open socket where settings have to name the port; else one with a free port.
        shutdown_seconds: How long requests may take after the block.
        variables: More settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lab_functions.py").write_text(FUNCTIONS + MORE_FUNCTIONS)
    # Services of other tests in this process have a module of this name in folders of their own.
    sys.modules.pop("lab_functions", None)
    keys = ";".join(f"{role}:{role}-key:{role}" for role in ROLES)
    env = {
        "HOME": str(folder),
        "KNEO_SERV_API_KEYS": keys,
        "KNEO_SERV_DATABASE_URL": database_url,
        "KNEO_SERV_IMPORT_ALLOW": "lab_functions",
        **variables,
    }
    settings = from_env(env, folder)
    settings = replace(settings, limits=replace(Bench.LIMITS, page_items=settings.limits.page_items))
    if http is not None:
        settings = replace(settings, http=http)
    bench = Bench(folder, None, settings)
    worker = Worker(bench.store, make_driver(settings, bench.store), concurrency=max(workers, 1))
    app = create_app(settings, bench.store, make_starter(settings, bench.store, executes=lambda: workers > 0))
    server = Server(app, settings.http, shutdown_seconds=shutdown_seconds)

    def stop() -> None:
        server.should_exit = True

    with listener or listening() as listener:
        bench.url = url_of(listener)
        with (
            contextlib.closing(bench),
            background("worker", worker.run, worker.stop) if workers else contextlib.nullcontext(),
            background("server", lambda: server.run(sockets=[listener]), stop),
        ):
            bench.stop = stop
            yield bench


__all__ = ["APPROVE", "DRAFT", "PUBLISH", "Bench", "listening", "serving", "spec_of", "url_of"]
