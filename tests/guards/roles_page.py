"""``docs/reference/roles.md``: which role may do what, from the code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kneo.api.operation import ANY_KEY
from kneo.roles import INCLUDED, ROLES, SCOPES, with_included
from kneo.service.app import routers
from kneo.service.routing import VERSION, RouteEntry, RouteTable

HEAD = """\
# Roles and scopes

`KNEO_SERV_API_KEYS` gives each key a name and roles or scopes: `ann:KEY:approver;ci:KEY:viewer,runs:write`, with
[the digest of a key](../operations/api-keys.md) in place of `KEY` where you want to store none. The name is who did what in the
audit log, and the person of that name in environment files. A request without a known key is refused with 401, one whose key lacks the scope
with 403 and the scope that is missing. A service without keys lets everybody on this machine do everything.

Roles here say which requests a key may send. Whose approval counts in an environment is for that environment's file to say: an `approver`
who is not listed there is refused with `not_an_approver`. To suspend an environment, to hold a release and to roll back to an earlier version,
`releases:operate` is enough. To resume, to lift a hold and to return to a later version, the person has to be listed too, where the
environment requires approvals. Roles of the trust root (`root`, `release`, `approver`) are about signing keys and
are a third thing.
"""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "agent chat": (
        "create_run",
        "get_run",
        "stream_run_events",
        "list_human_tasks",
        "get_human_task",
        "resume_human_task",
        "cancel_run",
        "continue_run",
        "list_runs",
        "get_run_trace",
        "get_bundle_version",
    ),
    "approve": ("list_promotions", "approve_promotion"),
    "audit checkpoint": ("get_audit_checkpoint",),
    "audit list": ("list_audit_events",),
    "audit prove": ("get_audit_proof",),
    "credentials": ("list_credentials",),
    "events": ("list_audit_events",),
    "history": ("get_environment_history",),
    "hold": ("hold_release",),
    "mcp serve": ("list_agents", "send_to_mcp_server"),
    "call cancel": ("cancel_call",),
    "call get": ("get_call",),
    "call list": ("list_calls",),
    "call make": ("create_call",),
    "call tools": ("list_call_tools",),
    "task assign": ("assign_human_task",),
    "task batch": ("resume_human_tasks",),
    "task claim": ("claim_human_task",),
    "task comment": ("comment_human_task",),
    "task delegate": ("delegate_human_task",),
    "task get": ("get_human_task",),
    "task history": ("get_human_task_history",),
    "task link create": ("create_link",),
    "task link list": ("list_links",),
    "task link revoke": ("revoke_link",),
    "task list": ("list_human_tasks",),
    "task receipt key": ("get_receipt_key",),
    "task receipt show": ("get_receipt", "list_receipts"),
    "task receipt verify": ("verify_receipts",),
    "task release": ("unclaim_human_task",),
    "task decide": ("resume_human_task",),
    "task review": ("list_human_tasks", "resume_human_task"),
    "task snooze": ("snooze_human_task",),
    "task statement": ("get_answer_to_sign",),
    "task stats": ("get_human_task_stats",),
    "task summary": ("summarise_human_tasks",),
    "task watch": ("stream_human_tasks",),
    "plan": ("list_human_tasks",),
    "promotion receipt show": ("get_approval_receipt", "list_promotion_receipts", "get_environment_history"),
    "canary abort": ("abort_canary",),
    "canary pause": ("pause_canary",),
    "canary promote": ("promote_canary",),
    "canary restart": ("restart_canary",),
    "canary result": ("get_canary_result",),
    "canary resume": ("resume_canary",),
    "canary status": ("get_canary",),
    "grant approve": ("get_grant", "approve_grant"),
    "grant create": ("create_grant", "get_grant_to_sign"),
    "grant list": ("list_grants",),
    "grant propose": ("propose_grant",),
    "grant revoke": ("revoke_grant",),
    "grant show": ("get_grant", "list_grant_uses"),
    "bundles diff": ("diff_bundle_versions",),
    "bundles list": ("list_bundles",),
    "inbox": ("get_inbox",),
    "me": ("get_me",),
    "policy get": ("get_environment_policy",),
    "policy list": ("list_environment_policies",),
    "policy preview": ("preview_environment_policy",),
    "policy set": ("set_environment_policy",),
    "reconcile": ("reconcile_environment",),
    "reject": ("list_promotions", "reject_promotion"),
    "rollback": ("rollback_release",),
    "run": ("create_run",),
    "runs cancel": ("cancel_run",),
    "runs checkpoint-diff": ("diff_run_checkpoints",),
    "runs checkpoints": ("list_run_checkpoints",),
    "runs continue": ("continue_run",),
    "runs fork": ("fork_run",),
    "runs get": ("get_run",),
    "runs input": ("put_run_input",),
    "runs list": ("list_runs",),
    "runs recovery": ("get_run_recovery",),
    "runs replay": ("get_run_replay",),
    "runs conversation": ("get_run_conversation",),
    "runs result": ("get_tool_result",),
    "runs steps": ("list_run_steps",),
    "sessions delete": ("delete_session",),
    "sessions list": ("list_sessions",),
    "sessions show": ("list_session_messages",),
    "runs trace": ("get_run_trace",),
    "runs watch": ("stream_run_events",),
    "source accept-rewrite": ("get_source", "accept_rewrite"),
    "source show": ("get_source",),
    "spec compile": ("compile_spec",),
    "spec explain": ("explain_spec",),
    "spec lint": ("validate_spec",),
    "spec policy-report": ("report_spec_policy",),
    "spec validate": ("validate_spec",),
    "access check": ("check_access",),
    "rehearse": ("list_recordings",),
    "status": ("list_environments", "get_environment"),
    "suspend": ("suspend_environment",),
    "trace": ("trace",),
    "unhold": ("unhold_release",),
    "unsuspend": ("unsuspend_environment",),
    "why": ("explain_release",),
    "usage": ("get_usage",),
}
"""Which operations a command asks a service for. Checked against the commands and the operations there are."""

OPERATIONS: Mapping[str, RouteEntry] = {each.id: each for each in RouteTable(routers())}


def roles_page(generated: str) -> str:
    """Return the page."""
    roles = list(ROLES)
    lines = [generated, "", HEAD, "## What a role has", "", _row(["scope", *roles, "what it allows"])]
    lines.append(_row(["---", *("---" for _ in roles), "---"]))
    for scope, meaning in SCOPES.items():
        also = f"; comes with {_listed(_including(scope))}" if _including(scope) else ""
        lines.append(_row([f"`{scope}`", *("✓" if _has(role, scope) else "" for role in roles), meaning + also]))
    lines += ["", "## What an operation needs", "", _row(["operation", "", "scopes", "roles"]), _row(["---"] * 4)]
    for operation in sorted(OPERATIONS.values(), key=lambda each: (each.template, each.method)):
        asked = f"`{operation.method} {VERSION}{operation.template}`"
        lines.append(_row([f"`{operation.id}`", asked, *_needs(_scopes([operation.id]))]))
    lines += [
        "",
        "## What a command needs",
        "",
        "With `--service-url` or `--profile`; commands on the database need no key.",
        "",
    ]
    lines += [_row(["command", "scopes", "roles"]), _row(["---"] * 3)]
    lines += [_row([f"`kneo {name}`", *_needs(_scopes(asked))]) for name, asked in sorted(COMMANDS.items())]
    return "\n".join(lines) + "\n"


def _scopes(operations: Iterable[str]) -> list[str]:
    return sorted({need.scope for each in operations for need in OPERATIONS[each].required})


def _needs(scopes: list[str]) -> list[str]:
    if not scopes:
        return ["no key", "everybody"]
    if scopes == [ANY_KEY]:
        return ["any key", ", ".join(ROLES)]
    return [_listed(scopes), ", ".join(role for role in ROLES if all(_has(role, scope) for scope in scopes))]


def _has(role: str, scope: str) -> bool:
    found = with_included(ROLES[role])
    return "*" in found or scope in found


def _including(scope: str) -> list[str]:
    return [each for each, included in INCLUDED.items() if scope in included]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
