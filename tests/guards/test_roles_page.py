"""The page of roles knows every command that asks a service, and every scope that an operation needs."""

from __future__ import annotations

import sys
from pathlib import Path

from kneo.api.operation import ANY_KEY
from kneo.roles import INCLUDED, ROLES, SCOPES, with_included

sys.path.insert(0, str(Path(__file__).parent))

from reference_pages import commands_of_services
from roles_page import COMMANDS, OPERATIONS

ASKS_NOTHING = {"config profile set", "audit verify"}
"""The first saves an address; the second reads the local database and explains that."""


def test_every_command_that_asks_a_service_is_on_the_page() -> None:
    assert set(COMMANDS) == commands_of_services() - ASKS_NOTHING


def test_every_operation_on_the_page_exists() -> None:
    assert {each for asked in COMMANDS.values() for each in asked} <= set(OPERATIONS)


def test_every_scope_is_explained_and_granted_by_a_role() -> None:
    needed = {need.scope for operation in OPERATIONS.values() for need in operation.required}
    assert needed <= {*SCOPES, ANY_KEY}
    granted = {scope for role, scopes in ROLES.items() for scope in with_included(scopes)}
    assert granted == set(SCOPES)
    assert {scope for pair in INCLUDED.items() for scope in (pair[0], *pair[1])} <= set(SCOPES)


def test_who_operates_does_not_approve() -> None:
    deciding = {role for role, scopes in ROLES.items() if "releases:decide" in with_included(scopes)}
    operating = {role for role, scopes in ROLES.items() if "releases:operate" in with_included(scopes)}
    assert (deciding, operating) == ({"approver"}, {"operator"})
