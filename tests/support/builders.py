"""Records with sensible values, of which a test says only what matters to it."""

from __future__ import annotations

import itertools
from dataclasses import replace

from kneo.digest import digest_of
from kneo.records.release import Release
from kneo.records.run import STATE_VERSION, ReleaseRef, Run, RunStatus
from kneo.records.task import DecisionKind, HumanTask, TaskStatus

_numbers = itertools.count(1)


def build_run(**changes: object) -> Run:
    run = Run(
        id=f"run_{next(_numbers):026d}",
        status=RunStatus.RUNNING,
        target="workflow",
        spec_digest=digest_of(b"a spec"),
        release=None,
        environment=None,
        agent_name="writer",
        workflow_name="publish",
        workflow_type="sequential",
        input_text="hello",
        output_text=None,
        error=None,
        state={},
        state_version=STATE_VERSION,
        visited_steps=(),
        requester="ann",
    )
    return replace(run, **changes)


def build_task(**changes: object) -> HumanTask:
    number = next(_numbers)
    task = HumanTask(
        id=f"cont_{number:026d}",
        request_id=f"req_{number:026d}",
        run_id=f"run_{number:026d}",
        environment=None,
        workflow_name="publish",
        workflow_type="sequential",
        step_id="approve",
        key="approve.step",
        kind="approval",
        status=TaskStatus.OPEN,
        version=0,
        title="Publish?",
        prompt="Please approve or reject what is shown.",
        subject="a draft",
        subject_digest=digest_of(b"a draft"),
        options=None,
        default_option=None,
        decisions=tuple(DecisionKind),
        assignee=None,
        timeout_seconds=None,
        on_timeout="expire",
        on_reject="stop",
        deadline_at=None,
        escalated_at=None,
        decision=None,
    )
    return replace(task, **changes)


def failed_run(release: Release, at: str) -> Run:
    """Build a run of a release that failed."""
    ref = ReleaseRef(
        bundle=release.bundle,
        version=release.version,
        digest=release.digest,
        environment=release.environment,
        revision=release.revision,
        promotion_id=release.promotion_id,
    )
    return build_run(status=RunStatus.FAILED, release=ref, environment=release.environment, completed_at=at)
