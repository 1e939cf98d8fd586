"""A run that asks one question, and an environment whose people are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from builders import build_run

from kneo.digest import digest_of
from kneo.records.release import EnvironmentRecord
from kneo.records.run import Run
from kneo.records.task import DecisionKind, HumanTask
from kneo.spec.models.human import Human
from kneo.store import releases, runs
from kneo.store.engine import Store
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide
from kneo.tasks.questions import Question, open_task

ENVIRONMENT = "prod"
PEOPLE = {
    "ann": {"groups": ["editors"], "roles": ["reviewer", "ops"]},
    "ben": {"groups": ["editors"], "roles": ["reviewer"]},
    "cy": {"groups": ["legal"], "roles": ["reviewer", "legal"]},
    "dee": {"groups": [], "roles": []},
}


def declare(
    store: Store, people: Mapping[str, object] | None = None, *, environment: str = ENVIRONMENT, **more: object
) -> None:
    """Make an environment known as the controller does after it has verified its file."""
    spec = {
        "people": PEOPLE if people is None else people,
        "policy": {"enabled": True},
        "signatures": {"roles": ["release"], "threshold": 1},
        **more,
    }
    tree = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": environment}, "spec": spec}
    declaration = json.dumps(tree).encode()
    with store.write() as tx:
        record = EnvironmentRecord(
            name=environment,
            declaration=declaration,
            policy_digest=digest_of(declaration),
            revision="main@sha1:1",
            pending=(),
            updated_at="",
        )
        releases.put_environments(tx, [record])


def ask(store: Store, run: Run | None = None, *, key: str = "q.step", **human: object) -> HumanTask:
    """Ask a question in a run of its own, or in one that asked before."""
    declared = Human.model_validate_json(json.dumps(human))
    with store.write() as tx:
        if run is None:
            run = build_run(environment=ENVIRONMENT, requester="rex")
            runs.insert_run(tx, run)
        question = Question(
            key=key,
            path="q",
            step_id="q",
            position="step",
            human=declared,
            subject="a draft",
            decisions=tuple(DecisionKind(word) for word in declared.decisions or DecisionKind),
            options=declared.options,
        )
        return open_task(tx, run, question)


def answer(store: Store, task: HumanTask, actor: str, kind: str = "approved", **more: object) -> HumanTask:
    said = DecisionRequest(request_id=task.request_id, decision=DecisionKind(kind))
    return decide(store, task.id, replace(said, **more), actor=actor)
