"""The tree of commands: the only list of Kneo's own commands and the modules that implement them.

Extensions add further commands; they never replace one.

The one-line help is part of the tree, so that ``kneo --help`` imports no command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from kneo.cli.options import expand_groups
from kneo.extension_points import Point

R = TypeVar("R")

_ATTRIBUTE = "kneo_examples"


class Entry(NamedTuple):
    """The implementation of a command or of a group of commands.

    Attributes:
        target: ``module:attribute``; a function is a command, a ``typer.Typer`` is a group.
        help: One line of at most 60 characters, in the imperative.
        section: The heading above the command in the help.
        parts: Further commands of a group, implemented in other modules.
        hidden: Whether the help leaves the command out.
    """

    target: str
    help: str
    section: str = "Commands"
    parts: Mapping[str, Entry] = {}
    hidden: bool = False


GET_STARTED, SPECS, RUNS, RELEASES, SERVERS, AUDIT = (
    "Get started",
    "Specs and bundles",
    "Runs and tasks",
    "Releases",
    "Servers",
    "Audit and history",
)


def _list_paths(entries: Mapping[str, Entry], above: str = "") -> Iterator[str]:
    """Yield the paths of commands, with dots for spaces."""
    for name, entry in entries.items():
        yield above + name
        yield from _list_paths(entry.parts, f"{above}{name}.")


COMMANDS: dict[str, Entry] = {
    "init": Entry("kneo.cli.releases.init:init", "Create a config repository with a signed example", GET_STARTED),
    "up": Entry("kneo.cli.serve.up:up", "Run API server, worker and controller in one process", GET_STARTED),
    "config": Entry("kneo.cli.config:app", "Manage project settings and server profiles", GET_STARTED),
    "spec": Entry(
        "kneo.cli.specs.spec:app",
        "Check specs and build signed bundles",
        SPECS,
        {
            "diff": Entry("kneo.cli.specs.diff:diff", "Compare two specs"),
            "simulate": Entry("kneo.cli.specs.simulate:simulate", "Simulate every branch of a workflow"),
            "bundle": Entry("kneo.cli.specs.bundle:app", "Sign, verify and inspect bundles"),
            "mcp": Entry("kneo.cli.specs.mcp:app", "Declare the tools of MCP servers"),
        },
    ),
    "eval": Entry("kneo.cli.specs.eval:evaluate", "Evaluate a bundle by the cases of a suite", SPECS),
    "evidence": Entry("kneo.cli.specs.eval:app", "Pin suites; import and verify signed results", SPECS),
    "keys": Entry(
        "kneo.cli.specs.keys:app",
        "Generate and show signing keys; generate other keys",
        SPECS,
        {
            "api-key": Entry(
                "kneo.cli.serve.service_keys:api_key", "Generate an API key and its entry for the settings"
            ),
        },
    ),
    "trust": Entry("kneo.cli.specs.trust:app", "Manage the trust root: keys, roles and thresholds", SPECS),
    "dev": Entry("kneo.cli.dev:dev", "Try a spec while you write it: worker, console and chat", RUNS),
    "run": Entry("kneo.cli.runs.run:run", "Start a run and wait until it pauses or finishes", RUNS),
    "runs": Entry(
        "kneo.cli.runs.runs:app",
        "List, inspect, cancel, retry and fork runs",
        RUNS,
        {
            "get": Entry("kneo.cli.runs.sessions:get", "Show one run and the answers that people gave"),
            "steps": Entry("kneo.cli.runs.sessions:steps", "List the steps of a run with their models and cost"),
            "conversation": Entry("kneo.cli.runs.sessions:conversation", "Show what agents and their models wrote"),
            "result": Entry("kneo.cli.runs.sessions:result", "Show the whole result of a tool call"),
            "cancel": Entry("kneo.cli.runs.control:cancel", "Cancel a run and withdraw its open tasks"),
            "replay": Entry("kneo.cli.runs.control:replay", "Show a run's checkpoints, or run it again from a step"),
            "recovery": Entry("kneo.cli.runs.control:recovery", "Show whether a run can be retried"),
            "continue": Entry("kneo.cli.runs.control:continue_", "Retry a failed run from the step that failed"),
            "fork": Entry("kneo.cli.runs.control:fork", "Start a new run from a point of another run"),
            "input": Entry("kneo.cli.runs.control:give_input", "Answer a paused run with a value"),
            "checkpoint-diff": Entry("kneo.cli.runs.control:checkpoint_diff", "Compare two checkpoints of a run"),
        },
    ),
    "sessions": Entry("kneo.cli.runs.sessions:app", "List and delete what agents remember of earlier runs", RUNS),
    "agent": Entry(
        "kneo.cli.chat:app",
        "Talk with agents",
        RUNS,
        {"chat": Entry("kneo.cli.chat:chat", "Chat with an agent and answer its gates")},
    ),
    "usage": Entry("kneo.cli.runs.runs:usage", "Sum up requests to models, tokens and cost", RUNS),
    "inbox": Entry("kneo.cli.people.tasks:inbox", "List the tasks and pending changes that wait for you", RUNS),
    "me": Entry("kneo.cli.people.tasks:me", "Show your name, scopes, groups and roles", RUNS),
    "task": Entry(
        "kneo.cli.people.tasks:app",
        "Work on human tasks: list, review and decide",
        RUNS,
        {
            "get": Entry("kneo.cli.people.decisions:get", "Show a task"),
            "review": Entry("kneo.cli.people.decisions:review", "Review your open tasks one by one"),
            "decide": Entry("kneo.cli.people.decisions:decide", "Submit a decision for a task and continue its run"),
            "claim": Entry("kneo.cli.people.tasks:claim", "Claim a task so that others do not work on it"),
            "release": Entry("kneo.cli.people.tasks:release", "Release a task that you claimed"),
            "assign": Entry("kneo.cli.people.tasks:assign", "Assign a task to a person"),
            "delegate": Entry("kneo.cli.people.tasks:delegate", "Delegate your task to another candidate"),
            "snooze": Entry("kneo.cli.people.tasks:snooze", "Hide a task until a later time"),
            "comment": Entry("kneo.cli.people.tasks:comment", "Comment on a task without deciding it"),
            "watch": Entry("kneo.cli.people.tasks:watch", "Watch the inbox for new and closed tasks"),
            "stats": Entry("kneo.cli.people.decisions:stats", "Show review statistics for each gate"),
            "link": Entry("kneo.cli.people.decisions:app", "Manage one-time approval links"),
            "receipt": Entry("kneo.cli.people.receipts:app", "Show and verify signed receipts of decisions"),
            "sign": Entry("kneo.cli.people.statements:sign_statement", "Sign an exported decision"),
            "statement": Entry(
                "kneo.cli.people.statements:statement", "Export a decision for signing on another machine"
            ),
            "batch": Entry("kneo.cli.people.decisions:batch", "Submit many decisions from a file"),
            "history": Entry("kneo.cli.people.tasks:history", "Show the events of a task", hidden=True),
            "summary": Entry("kneo.cli.people.tasks:summary", "Count open tasks by status", hidden=True),
            "prune": Entry(
                "kneo.cli.serve.maintenance:prune_tasks",
                "Process due deadlines, reminders and escalations",
                hidden=True,
            ),
        },
    ),
    "call": Entry("kneo.cli.calls:app", "Call tools of released bundles", RUNS),
    "grant": Entry("kneo.cli.people.grants:app", "Approve future calls of a tool, within limits", RUNS),
    "status": Entry(
        "kneo.cli.releases.environments:status", "Show environments, conditions and pending changes", RELEASES
    ),
    "access": Entry("kneo.cli.releases.access:app", "Explain what people may do in an environment", RELEASES),
    "plan": Entry("kneo.cli.releases.plan:plan", "Preview what a commit would change", RELEASES),
    "promote": Entry(
        "kneo.cli.releases.bundles:promote", "Promote a release from one environment to another", RELEASES
    ),
    "approve": Entry("kneo.cli.releases.approvals:approve", "Approve a pending change", RELEASES),
    "reject": Entry("kneo.cli.releases.approvals:reject", "Reject a pending change", RELEASES),
    "rehearse": Entry("kneo.cli.releases.rehearse:rehearse", "Rehearse a bundle on recorded runs", RELEASES),
    "canary": Entry("kneo.cli.releases.canary:app", "Show, pause, promote, abort and restart canaries", RELEASES),
    "promotion": Entry(
        "kneo.cli.releases.promotion_receipts:app",
        "Show and verify the receipts of promotions",
        RELEASES,
        {
            "receipt": Entry(
                "kneo.cli.releases.promotion_receipts:receipt", "Show and verify signed receipts of promotions"
            )
        },
    ),
    "rollback": Entry(
        "kneo.cli.releases.environments:rollback", "Roll back to the previous release and hold it", RELEASES
    ),
    "why": Entry(
        "kneo.cli.releases.environments:why", "Explain why a release is pending and who can unblock it", RELEASES
    ),
    "hold": Entry("kneo.cli.releases.environments:hold", "Keep the current release of a bundle", RELEASES),
    "unhold": Entry("kneo.cli.releases.environments:unhold", "Let a bundle follow Git again", RELEASES),
    "suspend": Entry("kneo.cli.releases.environments:suspend", "Pause all changes to an environment", RELEASES),
    "unsuspend": Entry("kneo.cli.releases.environments:unsuspend", "Resume changes to an environment", RELEASES),
    "reconcile": Entry("kneo.cli.releases.environments:reconcile", "Reconcile the config repository now", RELEASES),
    "bundles": Entry(
        "kneo.cli.releases.bundles:app",
        "List accepted bundles and compare their versions",
        RELEASES,
        {"diff": Entry("kneo.cli.releases.bundles:diff", "Compare two accepted versions of a bundle")},
    ),
    "source": Entry(
        "kneo.cli.releases.approvals:source", "Show the config repository; accept a rewritten history", RELEASES
    ),
    "policy": Entry("kneo.cli.releases.policy:app", "Manage server-side policies that add to those in Git", RELEASES),
    "service": Entry("kneo.cli.serve.service:service", "Run the API server", SERVERS),
    "worker": Entry("kneo.cli.serve.worker:worker", "Run a worker: execute steps, process deadlines", SERVERS),
    "controller": Entry(
        "kneo.cli.serve.controller:controller", "Run the controller: reconcile environments with Git", SERVERS
    ),
    "doctor": Entry("kneo.cli.serve.doctor:doctor", "Check the installation and print what to do", SERVERS),
    "maintenance": Entry("kneo.cli.serve.maintenance:app", "Back up, restore, migrate and prune the database", SERVERS),
    "credentials": Entry("kneo.cli.config:credentials", "List which credentials are set, without values", SERVERS),
    "trace": Entry("kneo.cli.audit:trace", "Trace a run or digest to its release, commit and approvers", AUDIT),
    "history": Entry("kneo.cli.releases.environments:history", "Show past releases of an environment", AUDIT),
    "events": Entry("kneo.cli.audit:events", "Show recent events", AUDIT),
    "audit": Entry("kneo.cli.audit:app", "Read and verify the audit log", AUDIT),
}

EXTENSIONS = Point("commands", Entry, own=[*_list_paths(COMMANDS)], paths=True)
"""Commands of installed packages, by their paths with dots for spaces: ``maintenance.import``."""


def list_extensions_of(group: str) -> Mapping[str, str]:
    """Return the commands that extensions add to a group by its path, ``""`` for the root: name → name of the extension."""
    paths = {path: path.rpartition(".") for path in EXTENSIONS.names()}
    return {name: path for path, (parent, _, name) in paths.items() if parent == group.replace(" ", ".")}


ALIASES: Mapping[str, str] = {
    "human": "task",
    "task resume": "task decide",
    "task unclaim": "task release",
}
"""Permanent other names of commands, which the help shows below them: alias → canonical path. An alias of a group has all its commands."""


def aliases_of(group: str) -> Mapping[str, str]:
    """Return the aliases within a group by its path, ``""`` for the root: alias → name."""
    paths = {alias: alias.rpartition(" ") for alias in ALIASES}
    return {name: ALIASES[alias].rpartition(" ")[2] for alias, (parent, _, name) in paths.items() if parent == group}


def examples(*lines: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Return a decorator for the function of a command: attach examples, each a complete command line; expand its option groups."""

    def attach(function: Callable[..., R]) -> Callable[..., R]:
        command = expand_groups(function)
        setattr(command, _ATTRIBUTE, lines)
        return command

    return attach


def examples_of(function: object) -> tuple[str, ...]:
    """Return the examples of a command's function."""
    lines: tuple[str, ...] = getattr(function, _ATTRIBUTE, ())
    return lines
