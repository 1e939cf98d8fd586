"""What commands about releases ask, answered by a service or by the database beside us. Answers look the same."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import quote

from cli.backend import Json
from cli.connection import choose, open_service
from kneo.settings import Settings, from_env

if TYPE_CHECKING:
    from cli.client import ServiceBackend


class Deployments(Protocol):
    """Everything the commands about releases need."""

    def receipt(self, task_id: str) -> Json: ...

    def receipts(self, run_id: str) -> Json: ...

    def receipt_key(self) -> Json: ...

    def verify_receipts(self, handed: Mapping[str, object]) -> Json: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def deployments(service_url: str | None, profile: str | None) -> Iterator[Deployments]:
    """Open whatever a command talks to, and close it afterwards."""
    settings = from_env()
    address = choose(settings, service_url, profile)
    opened: Deployments = (
        RemoteDeployments(open_service(settings, address)) if address is not None else LocalDeployments(settings)
    )
    try:
        yield opened
    finally:
        opened.close()


class RemoteDeployments:
    """Asks a service."""

    def __init__(self, service: ServiceBackend) -> None:
        self.service = service

    def receipt(self, task_id: str) -> Json:
        return self.service.send("GET", f"/human-tasks/{quote(task_id)}/receipt")

    def receipts(self, run_id: str) -> Json:
        return self.service.send("GET", f"/runs/{quote(run_id)}/receipts")

    def receipt_key(self) -> Json:
        return self.service.send("GET", "/receipts/key")

    def verify_receipts(self, handed: Mapping[str, object]) -> Json:
        return self.service.send("POST", "/receipts/verify", body=handed)

    def close(self) -> None:
        self.service.close()


class LocalDeployments:
    """Works on the database directly. Nobody is authenticated here, so decisions have to be signed."""

    def __init__(self, settings: Settings) -> None:
        store = importlib.import_module("cli.compose").find_store(settings)
        self.decisions = importlib.import_module("kneo.service.receipts")
        self.settings = settings
        self.store = store

    def receipt(self, task_id: str) -> Json:
        return cast("Json", self.decisions.receipt_of_task(self.store, task_id))

    def receipts(self, run_id: str) -> Json:
        return cast("Json", self.decisions.receipts_of_run(self.store, run_id))

    def receipt_key(self) -> Json:
        return cast("Json", self.decisions.public_key(self.settings))

    def verify_receipts(self, handed: Mapping[str, object]) -> Json:
        return cast("Json", self.decisions.verify_receipts(self.store, self.settings, handed, None))

    def close(self) -> None:
        self.store.close()
