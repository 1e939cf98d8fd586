"""A bundle that is released to prod, whose agent refunds by a privileged tool, and people who grant its calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from agent_runs import MODEL, AgentRuns
from controller_bench import Bench
from model_server import Call, ModelRequest, ModelServer, Reply, model_server

from kneo.records.grant import Grant, GrantLimits
from kneo.records.run import Run
from kneo.records.task import DecisionKind, HumanTask
from kneo.runtime.engine.start import StartRequest
from kneo.store import grants as rows
from kneo.store.engine import Store
from kneo.tasks import grants
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.grants import GrantRequest
from kneo.tasks.inbox import decide
from kneo.trust.dsse import serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import PAYLOAD_TYPE

SOURCE = """
def refund(arguments, key):
    note("{amount} ".format(**arguments) + key)
    return {"refunded": arguments["amount"]}
"""

PARAMETERS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["amount", "currency"],
    "properties": {"amount": {"type": "number"}, "currency": {"type": "string"}, "note": {"type": "string"}},
}

RULE: dict[str, object] = {
    "tools": ["refund"],
    "when": "args.currency == 'EUR' && args.amount <= 500",
    "uses": 100,
    "total": {"amount": 5000},
    "expires": "30d",
    "spotChecks": 0,
}
FINANCE = {"candidates": {"roles": ["finance"]}, "quorum": {"approvals": 2}}
PEOPLE = {
    "ann": {"roles": ["finance"]},
    "ben": {"roles": ["finance"]},
    "cid": {"roles": ["finance"]},
    "dan": {"roles": ["office"]},
}


class GrantHouse(AgentRuns):
    """A run calls refund with the amounts of its input, which is JSON: ``[20]``, or ``[{"amount": 20, "currency": "EUR"}]``.

    A call with a ``question`` asks a person.
    """

    def __init__(self, store: Store, folder: Path, server: ModelServer, patch: pytest.MonkeyPatch) -> None:
        super().__init__(store, folder / "code", server, patch)
        with (folder / "code" / f"{self.module}.py").open("a") as module:
            module.write(SOURCE)
        self.bench = Bench(store, folder)
        self.repo = self.bench.repo
        self.keys: dict[str, PrivateKey] = {name: self.repo.person(name, "reviewer") for name in ("ann", "ben", "cid")}
        self.rules: dict[str, object] = {"people": PEOPLE, "grants": [RULE]}
        self.version = 0

    def spec(self, *, human: Mapping[str, object] | None = None, **tool: object) -> dict[str, object]:
        refund = {
            **self.tool("refund", PARAMETERS, capabilities=["privileged"]),
            "review": {"before": {"human": {**FINANCE, **(human or {})}, "prompt": "Refund?"}},
            **tool,
        }
        return {
            "version": "v1",
            "agent": {
                "name": "teller",
                "model": MODEL,
                "strategy": "react",
                "tools": {"include": ["refund"], "permissions": {}},
            },
            "tools": {"refund": refund},
        }

    def release(
        self, spec: Mapping[str, object] | None = None, *, signers: Sequence[str] = (), **rules: object
    ) -> None:
        """Release the next version of the bundle, which people sign as well, and rules for prod."""
        self.version += 1
        keys = [self.repo.key, *(self.keys[name] for name in signers)]
        self.repo.bundle("refunds", f"1.{self.version}.0", spec or self.spec(), environments=["prod"], keys=keys)
        self.serve(f"1.{self.version}.0", **rules)

    def serve(self, version: str | None, **rules: object) -> None:
        """Name a version in prod, or none, and rules for it."""
        self.rules |= rules
        self.repo.environment("prod", {"refunds": version} if version else {}, prune={"maxPercent": 100}, **self.rules)
        self.repo.environment("dev", {})
        self.repo.commit("Release")
        result = self.bench.reconcile()
        assert result.outcomes["prod"].state == "Ready", result

    # ---- grants ---------------------------------------------------------------------------------------------------

    def request(self, **changes: object) -> GrantRequest:
        values: dict[str, object] = {
            "environment": "prod",
            "bundle": "refunds",
            "tool": "refund",
            "when": "args.amount <= 100 && args.currency == 'EUR'",
            "expires_in": timedelta(days=14),
            "reason": "many approvals, none edited",
            "uses": 50,
            "total": {"amount": 2000},
            **changes,
        }
        limits = {name: values.pop(name, None) for name in ("uses", "uses_per_day", "uses_per_run", "total")}
        return GrantRequest(**values, limits=GrantLimits(**limits))  # type: ignore[arg-type]

    def create(self, actor: str = "ann", *, signed: bool = True, **changes: object) -> Grant:
        request = self.request(**changes)
        with self.store.write() as tx:
            statement = self.signed(grants.draft(tx, request), actor) if signed else None
            return grants.create(tx, request, actor=actor, statement=statement, pin=self.repo.pin)

    def signed(self, grant: Grant, actor: str) -> dict[str, object]:
        envelope = sign(PAYLOAD_TYPE, grants.terms_of(grant).payload, self.keys[actor])
        found: dict[str, object] = json.loads(serialise(envelope))
        return found

    def approve(self, grant: Grant, actor: str = "ben", *, signed: bool = True) -> Grant:
        statement = self.signed(grant, actor) if signed else None
        with self.store.write() as tx:
            return grants.approve(tx, grant.id, actor=actor, statement=statement, pin=self.repo.pin)

    def active(self, **changes: object) -> Grant:
        return self.approve(self.create(**changes))

    def revoke(self, grant: Grant) -> Grant:
        with self.store.write() as tx:
            return grants.revoke(tx, grant.id, actor="ann")

    def grant(self, grant: Grant) -> Grant:
        with self.store.read() as tx:
            return grants.find(tx, grant.id)

    def uses(self, grant: Grant) -> list[tuple[int, str]]:
        with self.store.read() as tx:
            return [(use.number, use.run_id) for use in rows.list_uses(tx, grant.id)]

    # ---- runs -----------------------------------------------------------------------------------------------------

    def refunds(self, *calls: object, requester: str = "eve", drive: bool = True) -> Run:
        order = StartRequest(input=json.dumps(calls), requester=requester, bundle="refunds", environment="prod")
        run = self.starter.start(order)
        return self.drive(run) if drive else run

    def why(self, run: Run) -> object:
        """Return why no grant covers the one open question of a run; ``None`` where no grant was tried."""
        [task] = self.open(run)
        about = task.metadata.get("grant")
        return about["not_covered"] if isinstance(about, Mapping) else None

    def say(self, task: HumanTask, kind: str, actor: str = "ann", **more: object) -> HumanTask:
        return decide(self.store, task.id, DecisionRequest(decision=DecisionKind(kind), **more), actor=actor)  # type: ignore[arg-type]

    def refunded(self) -> list[float]:
        """Return the amounts that the tool refunded."""
        return [float(line.split()[0]) for line in self.notes()]


def _calls(request: ModelRequest) -> Reply:
    if request.turns:
        return Reply("Done.")
    [text] = [each["content"] for each in request.body["messages"] if each["role"] == "user"]
    given = json.loads(text)
    calls: Sequence[object] = given if isinstance(given, list) else [given]
    return Reply(calls=[_call(each, f"c{number}") for number, each in enumerate(calls, 1)])


def _call(given: object, call_id: str) -> Call:
    if isinstance(given, dict):
        return Call("ask_question" if "question" in given else "refund", given, id=call_id)
    return Call("refund", {"amount": given, "currency": "EUR"}, id=call_id)


@contextmanager
def grant_house(store: Store, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[GrantHouse]:
    """Serve the model of a house."""
    with ExitStack() as servers:
        yield GrantHouse(store, folder, servers.enter_context(model_server(_calls)), patch)
