"""Operations on canaries: their figures, their results, and what operators do with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from kneo import registry
from kneo.api.environments import change_result, check_forward, require_controller
from kneo.api.operation import Body, Context, Json, operation
from kneo.api.subjects import ENVIRONMENT
from kneo.clock import parse_time
from kneo.errors import Conflict
from kneo.records.canary import Canary, CanaryState, MetricFigures
from kneo.registry import canaries as changes
from kneo.store.engine import Tx
from kneo.store.service_key import missing_key
from kneo.trust.dsse import serialise, sign
from kneo.trust.result import Metric, ResultStatement, build_result, decimal_text
from kneo.trust.statement import PAYLOAD_TYPE


class CanaryChange(Body):
    """A change of a canary by an operator."""

    reason: str = Field(min_length=1, max_length=1_000)


@dataclass(frozen=True, kw_only=True)
class CanaryView:
    """The newest canary of a bundle in an environment. The controller counts its runs every ten seconds."""

    environment: str
    bundle: str
    state: Literal["running", "paused", "passed", "rolled_back", "ended"]
    version: str
    digest: str
    step: Annotated[int, Field(description="The present step, from 1 on.")]
    share: Annotated[float, Field(description="The share of new runs that it gets now, from 0 to 1.")]
    steps: Annotated[list[float], Field(description="The share of each step.")]
    began_at: str
    ended_at: str | None
    runs: Annotated[int, Field(description="Its counted runs.")]
    control: Annotated[int, Field(description="The runs of the release that it is compared with.")]
    metrics: list[MetricFigures]
    next: Annotated[str | None, Field(description="What the next step needs.")]
    reason: str

    @classmethod
    def of(cls, canary: Canary) -> CanaryView:
        """Build the view of a canary."""
        plan = changes.plan_of(canary)
        return cls(
            environment=canary.environment,
            bundle=canary.bundle,
            state=canary.state.value,
            version=canary.version,
            digest=canary.digest,
            step=canary.step,
            share=canary.share,
            steps=list(plan.shares),
            began_at=canary.began_at,
            ended_at=canary.ended_at,
            runs=canary.figures.runs,
            control=canary.figures.control,
            metrics=list(canary.figures.metrics),
            next=canary.figures.next if canary.is_live else None,
            reason=canary.reason,
        )


@operation("GET", "/environments/{name}/canaries/{bundle}", scope="releases:read", about=ENVIRONMENT)
def get_canary(context: Context, name: str, bundle: str) -> CanaryView:
    """Read the newest canary of a bundle in an environment."""
    with context.store.read() as tx:
        registry.check_declared(tx, name)
        return CanaryView.of(changes.find_canary(tx, name, bundle))


@operation("GET", "/environments/{name}/canaries/{bundle}/result", scope="releases:read", about=ENVIRONMENT)
def get_canary_result(context: Context, name: str, bundle: str) -> Json:
    """Return the signed result of a canary that passed or was rolled back, to commit it to Git."""
    with context.store.read() as tx:
        registry.check_declared(tx, name)
        canary = changes.find_canary(tx, name, bundle)
        statement = find_result(canary)
        if statement is not None:
            return sign_result(tx, statement)
    msg = f"The canary of {bundle} in {name} has no result: {canary.state}."
    hint = "A canary has one once it has compared runs, and has passed its last step or was rolled back."
    raise Conflict(msg, code="canary_not_ended", hint=hint)


def sign_result(tx: Tx, statement: ResultStatement) -> Json:
    """Return the envelope of a canary's result, signed with the service key.

    Raises:
        Invalid: ``no_service_key``.
    """
    key = tx.find_key()
    if key is None:
        raise missing_key()
    envelope: Json = json.loads(serialise(sign(PAYLOAD_TYPE, statement.payload, key)))
    return envelope


def find_result(canary: Canary) -> ResultStatement | None:
    """Return the result of a canary; None where it has none. The same canary has the same one each time."""
    figures, plan = canary.figures, changes.plan_of(canary)
    worse = [item.metric for item in figures.metrics if item.rolls_back]
    is_passed = canary.state is CanaryState.PASSED and canary.reason == PASSED_REASON
    if canary.ended_at is None or not (worse or (is_passed and figures.metrics)):
        return None
    metrics: dict[str, Metric] = {}
    for item in figures.metrics:
        metrics[item.metric] = _share(item.candidate_bad, figures.runs)
        metrics[f"control.{item.metric}"] = _share(item.control_bad, figures.control)
    return build_result(
        bundle_name=canary.bundle,
        bundle_digest=canary.digest,
        type="canary",
        suite="canary",
        suite_digest=plan.digest,
        environment=canary.environment,
        issued_at=parse_time(canary.ended_at),
        scripted=False,
        metrics=metrics,
        passed=[item.metric for item in figures.metrics if item.metric not in worse],
        failed=worse,
    )


PASSED_REASON = "passed"
"""The reason of a canary that has taken all of its steps."""


def _share(bad: int, runs: int) -> Metric:
    return Metric(value=decimal_text(Decimal(bad) / runs) if runs else "0", samples=runs)


Change = Callable[[Tx, str, str, str, str], Canary]


def _change(
    context: Context, name: str, bundle: str, body: CanaryChange, change: Change, *, forward: bool
) -> CanaryView:
    require_controller(context)
    with context.store.write() as tx:
        registry.check_declared(tx, name)
        if forward:
            check_forward(context, tx, name)
        change(tx, name, bundle, body.reason, context.actor)
    change_result(context, name)
    return get_canary(context, name, bundle)


@operation("POST", "/environments/{name}/canaries/{bundle}/pause", scope="releases:operate", about=ENVIRONMENT)
def pause_canary(context: Context, name: str, bundle: str, body: CanaryChange) -> CanaryView:
    """Pause a canary: it keeps its share, and no further step begins. It is rolled back also while it is paused."""
    return _change(context, name, bundle, body, changes.pause_by, forward=False)


@operation("POST", "/environments/{name}/canaries/{bundle}/resume", scope="releases:operate", about=ENVIRONMENT)
def resume_canary(context: Context, name: str, bundle: str, body: CanaryChange) -> CanaryView:
    """Resume a paused canary with the share of its step; the caller has to be an approver."""
    return _change(context, name, bundle, body, changes.resume_by, forward=True)


@operation("POST", "/environments/{name}/canaries/{bundle}/promote", scope="releases:operate", about=ENVIRONMENT)
def promote_canary(context: Context, name: str, bundle: str, body: CanaryChange) -> CanaryView:
    """Promote the version of a canary without its further steps. That needs the approvals of its bundle; the caller has to be an
    approver.
    """
    return _change(context, name, bundle, body, changes.promote_by, forward=True)


@operation("POST", "/environments/{name}/canaries/{bundle}/abort", scope="releases:operate", about=ENVIRONMENT)
def abort_canary(context: Context, name: str, bundle: str, body: CanaryChange) -> CanaryView:
    """End a canary; its version stays blocked until it is restarted."""
    return _change(context, name, bundle, body, changes.abort_by, forward=False)


@operation("POST", "/environments/{name}/canaries/{bundle}/restart", scope="releases:operate", about=ENVIRONMENT)
def restart_canary(context: Context, name: str, bundle: str, body: CanaryChange) -> CanaryView:
    """Let a canary begin again that was rolled back or aborted; the caller has to be an approver."""
    return _change(context, name, bundle, body, changes.restart_by, forward=True)
