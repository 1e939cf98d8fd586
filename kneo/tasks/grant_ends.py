"""Ends of standing grants that follow from decisions of people: a rejection, and spot checks that were not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kneo.clock import parse_time
from kneo.records.grant import GrantStatus
from kneo.records.task import GRANTED, Decision, DecisionKind, HumanTask
from kneo.store import grants
from kneo.store.engine import Tx
from kneo.tasks.review import MOSTLY_QUICK, PERSON, is_unread

CHECKS = 10
"""The spot checks that count, the last ones."""

CHECKS_NEEDED = 5


def end_after(tx: Tx, task: HumanTask, decision: Decision) -> None:
    """End the grants that a decision of a person about a call ends."""
    facts, about = task.metadata.get("facts"), task.metadata.get(GRANTED)
    if decision.by != PERSON or not task.is_about_a_call or not isinstance(facts, Mapping):
        return
    if decision.kind is DecisionKind.REJECTED:
        if task.environment is not None and task.bundle_digest is not None:
            tool = str(facts.get("tool"))
            grants.end_rejected(tx, task.environment, task.bundle_digest, tool, actor=decision.actor)
    elif isinstance(about, Mapping) and about.get("not_covered") == "spot_check":
        _count_check(tx, str(about["id"]), task, decision)


def _count_check(tx: Tx, grant_id: str, task: HumanTask, decision: Decision) -> None:
    grant = grants.get(tx, grant_id, lock=True)
    if grant is None or grant.status is GrantStatus.ENDED:
        return
    seconds = (parse_time(decision.at) - parse_time(task.created_at)).total_seconds()
    quick = decision.kind is DecisionKind.APPROVED and is_unread(seconds, len(task.subject))
    checks = (*grant.checks, quick)[-CHECKS:]
    counted = grants.put(tx, replace(grant, checks=checks))
    if len(checks) >= CHECKS_NEEDED and sum(checks) >= MOSTLY_QUICK * len(checks):
        grants.end(tx, [counted], "unread", actor=None)
