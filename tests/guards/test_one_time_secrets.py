"""Operations whose responses hold a secret: each declares it, so that no response with a secret is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
from pydantic import TypeAdapter

from kneo.api.links import create_link
from kneo.api.operation import Context, OneTimeSecret, Operation, operation
from kneo.redaction import is_secret_key
from kneo.service.app import routers
from kneo.service.routing import ApiRouter, RouteTable

NO_SECRETS = {"list_sessions.sessions"}
"""Fields that are named like a secret and hold none."""

OPERATIONS = [each for router in routers() if isinstance(router, ApiRouter) for each in router.operations.values()]


def fields(schema: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the names and schemas of the fields in a schema and its parts."""
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        yield from properties.items() if isinstance(properties, Mapping) else ()
        for part in schema.values():
            yield from fields(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from fields(part)


def secrets_of(operation: Operation[..., object]) -> set[str]:
    """Return the fields of an operation's view that are a secret, or are named like one."""
    schema = TypeAdapter(operation.view).json_schema(mode="serialization")
    found = {name for name, field in fields(schema) if "'format': 'password'" in str(field) or is_secret_key(name)}
    return {name for name in found if f"{operation.id}.{name}" not in NO_SECRETS}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_an_operation_whose_response_holds_a_secret_declares_it(operation: Operation[..., object]) -> None:
    assert operation.shows_secret == bool(secrets_of(operation))


def test_the_routes_of_these_operations_know_it() -> None:
    assert {route.id for route in RouteTable(routers()) if route.shows_secret} == {
        each.id for each in OPERATIONS if each.shows_secret
    }
    assert create_link.shows_secret


@dataclass(frozen=True, kw_only=True)
class KeyView:
    name: str
    key: OneTimeSecret


@dataclass(frozen=True, kw_only=True)
class KeysView:
    keys: list[KeyView | None]


@dataclass(frozen=True, kw_only=True)
class TokenView:
    access_token: str


def test_a_secret_that_is_not_declared_is_noticed() -> None:
    def make_keys(context: Context) -> KeysView:
        raise NotImplementedError(context)

    def make_token(context: Context) -> TokenView:
        raise NotImplementedError(context)

    made = {
        each.__name__: operation("POST", "/made", scope="x:write", about=None)(each) for each in (make_keys, make_token)
    }
    assert {name: secrets_of(each) for name, each in made.items()} == {
        "make_keys": {"key"},
        "make_token": {"access_token"},
    }
    assert secrets_of(replace(create_link, shows_secret=False)) == {"path", "url"}
