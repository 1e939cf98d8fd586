"""Every command that asks a service, and so decides, operates or reads, has its page in the console or a reason for having none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kneo.service.console.app import AREAS
from kneo.service.console.canaries import ACTS

sys.path.insert(0, str(Path(__file__).parent))

from reference_pages import commands_of_services

PAGES = {
    "approve": "/promotions/{promotion}",
    "reject": "/promotions/{promotion}",
    "rollback": "/environments/{environment}/rollback",
    "hold": "/environments/{environment}/hold",
    "unhold": "/environments/{environment}/unhold",
    "suspend": "/environments/{environment}/suspend",
    "unsuspend": "/environments/{environment}/unsuspend",
    "reconcile": "/environments/{environment}/reconcile",
    "status": "/environments",
    "why": "/promotions/{promotion}",
    "plan": "/plan",
    "bundles diff": "/bundles/{bundle}/diff",
    "inbox": "/inbox",
    "me": "/me",
    "runs list": "/runs",
    "runs get": "/runs/{run_id}",
    "runs steps": "/runs/{run_id}",
    "runs conversation": "/runs/{run_id}/conversation",
    "runs cancel": "/runs/{run_id}/cancel",
    "runs continue": "/runs/{run_id}/continue",
    "runs fork": "/runs/{run_id}/fork",
    "usage": "/usage",
    "task list": "/inbox",
    "task get": "/inbox/{task}",
    "task review": "/inbox",
    "task decide": "/inbox/{task}",
    "task claim": "/inbox/{task}/{action}",
    "task release": "/inbox/{task}/{action}",
    "task delegate": "/inbox/{task}/{action}",
    "task snooze": "/inbox/{task}/{action}",
    "task comment": "/inbox/{task}/{action}",
    "task history": "/inbox/{task}",
    "task watch": "/inbox",
    "bundles list": "/bundles",
    "source show": "/environments",
    "trace": "/trace/{reference}",
    "history": "/environments/{environment}",
    "events": "/audit",
    "audit list": "/audit",
    "audit prove": "/audit/{seq}/proof",
    "audit checkpoint": "/audit/checkpoint",
    "task receipt show": "/inbox/{task}/receipt",
    "promotion receipt show": "/approvals/{approval}/receipt",
    **{f"canary {act}": f"/environments/{{environment}}/{{bundle}}/canary/{act}" for act in ACTS},
    "canary status": "/environments/{environment}/{bundle}/canary",
    "access check": "/access",
    "grant list": "/grants",
    "grant show": "/grants/{grant}",
    "grant revoke": "/grants/{grant}/revoke",
    "grant propose": "/grants/proposal",
}
"""The page of each command that people decide or operate with."""

IN_TERMINALS = {
    "source accept-rewrite": "A rewritten history is accepted with a root key, which no browser holds.",
    "policy": "Rules belong into the environment's file, which the rules of the console follow.",
    "spec": "Authors check specs in their working copy; a plan shows what a commit would change.",
    "mcp serve": "It is a server for other programs.",
    "credentials": "Credentials belong to the processes that use them.",
    "config profile set": "It saves an address for the commands of one machine.",
    "audit verify": "A log is verified on another machine than the service, with a key that is kept there.",
    "agent chat": "It is a conversation in the terminal; applications talk to agents over the API.",
    "sessions": "Applications own the sessions of their users.",
    "runs checkpoints": "Checkpoints are states of the engine, for developers.",
    "runs trace": "The page of a run shows its steps; the raw events are for programs.",
    "runs watch": "The page of a run follows the run.",
    "run": "Applications start runs; the console shows them.",
    "runs result": "Programs carry out such a call and send its result.",
    "runs input": "A pause with a task is answered in the inbox.",
    "runs replay": "It lists checkpoints for developers; the page of a run forks from a step.",
    "runs recovery": "The page of a failed run offers what can be done.",
    "runs checkpoint-diff": "It compares states of the engine, for developers.",
    "task assign": "A lead assigns by name over the API; in the console people claim and delegate.",
    "task stats": "Statistics are read by programs and in terminals.",
    "task summary": "The inbox counts what waits.",
    "grant create": "Its terms are signed with a person's own key, which no browser holds; the console drafts it.",
    "grant approve": "Its terms are signed with a person's own key, which no browser holds.",
    "rehearse": "It tries a bundle of a clone, with the models of the evaluator's machine.",
    "canary result": "It is committed to Git, from a clone.",
    "call": "Programs make calls; people decide them in the inbox.",
    "task link": "A link is made for another person by the owner of the process.",
    "task receipt key": "The key of receipts is kept on another machine than the service, where they are verified.",
    "task receipt verify": "Verification belongs to another machine than the service.",
    "task statement": "It exports what a person signs with an own key, which no browser holds.",
    "task batch": "Each subject is opened before it is decided.",
}
"""Why a command, or a group of commands, has no page."""


HIDDEN = {"task history", "task summary"}
"""Commands with a page that the help leaves out."""


@pytest.fixture(scope="module")
def commands() -> set[str]:
    return commands_of_services() | HIDDEN


def test_every_command_of_a_service_has_its_page_or_a_reason(commands: set[str]) -> None:
    assert {each for each in commands if each not in PAGES and not _named(each) & IN_TERMINALS.keys()} == set()
    assert {each for each in PAGES if _named(each) & IN_TERMINALS.keys()} == set()


def test_every_page_and_reason_belongs_to_a_command(commands: set[str]) -> None:
    assert PAGES.keys() - commands == set()
    assert IN_TERMINALS.keys() - {name for each in commands for name in _named(each)} == set()


def test_every_named_page_is_a_page_of_the_console() -> None:
    paths = {_shape(route.path) for area in AREAS for route in area.routes}
    assert {path for path in PAGES.values() if _shape(path) not in paths} == set()


def _named(command: str) -> set[str]:
    """Return a command and the groups that have it."""
    words = command.split()
    return {" ".join(words[: number + 1]) for number in range(len(words))}


def _shape(path: str) -> str:
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))
