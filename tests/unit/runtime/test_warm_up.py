"""Imports at the start of a worker read specs of any kind, and fail nothing."""

from __future__ import annotations

import importlib
import json

import pytest

from kneo.runtime.engine import assemble


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    class Clients:
        @staticmethod
        def warm_up(providers: list[str]) -> None:
            names.extend(providers)

    def record(name: str) -> object:
        names.append(name.rpartition(".")[2])
        return Clients

    monkeypatch.setattr(importlib, "import_module", record)
    return names


def test_providers_are_found_at_any_depth_of_bundles_and_specs(imported: list[str]) -> None:
    fallback = {"provider": "dummy", "fallbacks": [{"provider": "anthropic"}]}
    payload = {"predicate": {"spec": {"components": {"agents": {"a": {"model": fallback}}}, "mcp_servers": {}}}}
    assemble.import_libraries([json.dumps(payload).encode(), b'{"agent": {"model": {"provider": "openai"}}}'])
    assert imported == ["loop", "agent_services", "clients", "anthropic", "openai"]


def test_servers_of_mcp_are_imported_with_the_agents_that_use_them(imported: list[str]) -> None:
    spec = {"agent": {"model": {"provider": "openai"}}, "mcp_servers": {"crm": {}}}
    assemble.import_libraries([json.dumps(spec).encode()])
    assert imported[-1] == "servers"


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 100_000, b'{"provider": 7}', b'"provider"', b"null"])
def test_what_is_not_a_spec_imports_nothing(body: bytes, imported: list[str]) -> None:
    assemble.import_libraries([body])
    assert imported == []


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assemble.import_libraries([b'{"provider": "openai"}'])
