"""The tree of commands: the only list of what ``kneo`` can do, and where each part lives.

The one-line help stands here rather than beside the function, so that ``kneo --help`` imports no command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """Where a command or a group of commands lives.

    Attributes:
        target: ``module:attribute``; a function is a command, a ``typer.Typer`` is a group.
        help: What it does, in one line.
        section: The heading it stands under in the help.
        parts: Further commands of a group that live in modules of their own.
    """

    target: str
    help: str
    section: str = "Commands"
    parts: Mapping[str, Entry] = {}


START, DECLARE, RUN, SERVE, RELEASE, KNOW = "Start", "Declare and sign", "Run", "Serve", "Release", "Look back"

COMMANDS: dict[str, Entry] = {
    "init": Entry("cli.releases.init:init", "Make a config repository that works, with a signed example.", START),
    "config": Entry("cli.config:app", "Show and set the project's settings and saved service addresses.", START),
    "spec": Entry(
        "cli.specs.spec:app",
        "Check specs, show what they mean, and freeze them into signed bundles.",
        DECLARE,
        {
            "diff": Entry("cli.specs.diff:diff", "Say what changes from one spec to another."),
            "simulate": Entry("cli.specs.simulate:simulate", "Walk every branch of a spec without running anything."),
            "bundle": Entry(
                "cli.specs.bundle:app", "Freeze specs into signed bundles, and check who vouched for what."
            ),
        },
    ),
    "keys": Entry("cli.specs.keys:app", "Make signing keys and look at them.", DECLARE),
    "trust": Entry("cli.specs.trust:app", "Edit and sign the trust root: whose keys count for what.", DECLARE),
    "run": Entry("cli.runs.run:run", "Run an approved bundle, or a spec of your own.", RUN),
    "runs": Entry("cli.runs.runs:app", "Look at runs, stop them, go on with them, repeat them.", RUN),
    "human": Entry(
        "cli.people.human:app",
        "Answer what runs ask people.",
        RUN,
        {
            "claim": Entry("cli.people.inbox:claim", "Take a task, so that nobody else works on it."),
            "release": Entry("cli.people.inbox:release", "Give back a task that you took."),
            "assign": Entry("cli.people.inbox:assign", "Make somebody the one who is asked first."),
            "delegate": Entry("cli.people.inbox:delegate", "Hand a task of yours to somebody else who may answer it."),
            "snooze": Entry("cli.people.inbox:snooze", "Hide a task for a while."),
            "comment": Entry("cli.people.inbox:comment", "Say something about a task without answering it."),
            "history": Entry("cli.people.inbox:history", "Show everything that happened to a task."),
            "summary": Entry("cli.people.inbox:summary", "Count what waits for people."),
            "stats": Entry("cli.people.review_stats:stats", "How people review, gate by gate."),
            "batch": Entry("cli.people.inbox:batch", "Answer many tasks from a file."),
            "watch": Entry("cli.people.inbox:watch", "Follow the inbox as it fills and empties."),
            "review": Entry("cli.people.inbox:review", "Go through what waits for you, one after the other."),
            "prune": Entry(
                "cli.serve.maintenance:prune_tasks", "Bring the deadlines, reminders and escalations that are due."
            ),
            "statement": Entry(
                "cli.people.statements:statement", "Write down an answer for signing on another machine."
            ),
            "sign": Entry("cli.people.statements:sign_statement", "Sign an answer that was written down."),
            "link": Entry(
                "cli.people.links:app", "Make, list and revoke links with which one person answers one question once."
            ),
            "receipt": Entry("cli.people.receipts:app", "Show and check signed proof of what was decided."),
        },
    ),
    "credentials": Entry("cli.credentials:credentials", "Say which credentials are set, never what they are.", SERVE),
    "policy": Entry(
        "cli.releases.policy:app", "Show and set what environments ask of specs, beside what Git says.", RELEASE
    ),
    "up": Entry("cli.serve.up:up", "Run service, worker, controller and timers in one process.", SERVE),
    "controller": Entry("cli.serve.follow:controller", "Follow a config repository, from Git to the registry.", SERVE),
    "worker": Entry("cli.serve.worker:worker", "Execute steps, and bring deadlines.", SERVE),
    "service": Entry("cli.serve.service:service", "Answer HTTP.", SERVE),
    "maintenance": Entry(
        "cli.serve.maintenance:app", "Bring deadlines, delete what is old, copy the database and put it back.", SERVE
    ),
    "plan": Entry("cli.releases.plan:plan", "Show what a commit would change, before it is merged.", RELEASE),
    "promote": Entry("cli.releases.promote:promote", "Name in one environment what another one names.", RELEASE),
    "approve": Entry("cli.releases.release:approve", "Agree to a change that waits.", RELEASE),
    "reject": Entry("cli.releases.release:reject", "Refuse a change that waits.", RELEASE),
    "rollback": Entry("cli.releases.release:rollback", "Serve what was served before, and hold it there.", RELEASE),
    "hold": Entry("cli.releases.release:hold", "Keep what is served of a bundle as it is.", RELEASE),
    "unhold": Entry("cli.releases.release:unhold", "Let a bundle follow Git again.", RELEASE),
    "suspend": Entry("cli.releases.release:suspend", "Change nothing in an environment for a while.", RELEASE),
    "unsuspend": Entry("cli.releases.release:unsuspend", "Let an environment change again.", RELEASE),
    "source": Entry(
        "cli.releases.release:source",
        "Show the repository that is followed, and accept that its history was rewritten.",
        RELEASE,
    ),
    "status": Entry("cli.releases.status:status", "Show what each environment serves, and what waits.", RELEASE),
    "history": Entry("cli.releases.status:history", "Show what an environment served before.", RELEASE),
    "reconcile": Entry("cli.releases.status:reconcile", "Ask the controller to look at the repository now.", RELEASE),
    "why": Entry("cli.releases.release:why", "Say why a bundle is not served yet, and who can change that.", KNOW),
    "trace": Entry("cli.releases.release:trace", "Go from a run back to the people who vouch for it.", KNOW),
    "events": Entry("cli.releases.status:events", "Show what happened lately.", KNOW),
    "audit": Entry("cli.audit.audit:app", "Read and check the audit log.", KNOW),
}
