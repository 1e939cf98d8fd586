"""What commands about releases ask, answered by a service or by the database beside us. Answers look the same."""

from __future__ import annotations

import contextlib
import getpass
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import quote

from cli.backend import Json
from cli.connection import choose, open_service
from kneo.errors import Usage
from kneo.settings import Settings, from_env

if TYPE_CHECKING:
    from cli.client import ServiceBackend


class Deployments(Protocol):
    """Everything the commands about releases need."""

    def promotions(self, environment: str) -> Json: ...

    def decide(
        self, environment: str, pending_id: str, decision: str, envelope: str | None, reason: str | None
    ) -> Json: ...

    def act(self, environment: str, verb: str, body: Mapping[str, object]) -> Json:
        """``hold``, ``unhold``, ``suspend``, ``unsuspend`` or ``rollback``."""
        ...

    def why(self, environment: str, bundle: str) -> Json: ...

    def trace(self, reference: str) -> Json: ...

    def source(self) -> Json: ...

    def accept_rewrite(self, envelope: str) -> Json: ...

    def checkpoint(self) -> Json: ...

    def prove(self, seq: int, size: int | None = None) -> Json: ...

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

    def promotions(self, environment: str) -> Json:
        return self.service.send("GET", "/promotions", query={"environment": environment, "phase": "waiting"})

    def decide(
        self, environment: str, pending_id: str, decision: str, envelope: str | None, reason: str | None
    ) -> Json:
        del environment
        body = {
            name: value for name, value in (("envelope", envelope), ("reason", reason)) if value is not None
        } or None
        return self.service.send("POST", f"/promotions/{quote(pending_id)}/{decision}", body=body)

    def act(self, environment: str, verb: str, body: Mapping[str, object]) -> Json:
        return self.service.send("POST", f"/environments/{quote(environment)}/{verb}", body=dict(body) or None)

    def why(self, environment: str, bundle: str) -> Json:
        return self.service.send("GET", f"/environments/{quote(environment)}/why/{quote(bundle)}")

    def trace(self, reference: str) -> Json:
        return self.service.send("GET", f"/trace/{quote(reference)}")

    def source(self) -> Json:
        return self.service.send("GET", "/source")

    def accept_rewrite(self, envelope: str) -> Json:
        return self.service.send("POST", "/source/accept-rewrite", body={"envelope": envelope})

    def checkpoint(self) -> Json:
        return self.service.send("GET", "/audit/checkpoint")

    def prove(self, seq: int, size: int | None = None) -> Json:
        return self.service.send("GET", "/audit/proof", query={"seq": seq, "size": size})

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
        answers = importlib.import_module("kneo.service.deployments")
        self.proofs = importlib.import_module("kneo.service.audit_proofs")
        self.decisions = importlib.import_module("kneo.service.receipts")
        self.keys = importlib.import_module("kneo.store.service_key")
        self.settings = settings
        self.store = store
        self.answers = answers.Deployments(store, settings, over_http=False)
        self.actor = getpass.getuser()

    def promotions(self, environment: str) -> Json:
        return cast("Json", self.answers.promotions(environment, "waiting", 1000))

    def decide(
        self, environment: str, pending_id: str, decision: str, envelope: str | None, reason: str | None
    ) -> Json:
        del reason  # signed with the decision
        if envelope is None:
            msg = "Without a service nobody knows who you are, so a decision has to be signed."
            raise Usage(msg, hint="Add --key FILE, or --service-url URL.")
        decisions = importlib.import_module("kneo.trust.statement").Decision
        done = self.answers.decide(
            environment, pending_id, decisions(decision), actor=self.actor, envelope=envelope.encode()
        )
        return cast("Json", done)

    def act(self, environment: str, verb: str, body: Mapping[str, object]) -> Json:
        known = {"hold": ("bundle", "reason", "until"), "unhold": ("bundle",), "suspend": ("reason", "until")}
        names = known.get(verb, ("bundle", "to", "reason") if verb == "rollback" else ())
        done = getattr(self.answers, verb)(environment, *(body.get(name) for name in names), actor=self.actor)
        return cast("Json", done)

    def why(self, environment: str, bundle: str) -> Json:
        return cast("Json", self.answers.why(environment, bundle))

    def trace(self, reference: str) -> Json:
        return cast("Json", self.answers.trace(reference))

    def source(self) -> Json:
        return cast("Json", self.answers.source())

    def accept_rewrite(self, envelope: str) -> Json:
        return cast("Json", self.answers.accept_rewrite(envelope.encode(), actor=self.actor))

    def checkpoint(self) -> Json:
        key = self.keys.service_key(self.settings)
        return cast("Json", self.proofs.checkpoint(self.store, key) | {"key": key.public.pem})

    def prove(self, seq: int, size: int | None = None) -> Json:
        return cast("Json", self.proofs.prove(self.store, self.keys.service_key(self.settings), seq, size))

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
