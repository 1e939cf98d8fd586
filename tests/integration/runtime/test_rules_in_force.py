"""Rules of environments for models and tools: those in force now, and the operator's where none is declared."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from gates.asking import declare

from kneo.runtime.engine.rules_in_force import RulesInForce
from kneo.settings import Settings, from_env
from kneo.store.engine import Store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    env = {"KNEO_SERV_TOOLS_INSIDE": "crm.internal:8443, db.internal:80", "KNEO_SERV_MCP_COMMANDS": "/bin/crm"}
    return from_env(env, tmp_path)


def test_where_no_environment_is_declared_the_operator_decides(store: Store, settings: Settings) -> None:
    rules = RulesInForce(settings, store)
    for name in (None, "dev"):
        assert asyncio.run(rules.tools(name)).inside == ("crm.internal:8443", "db.internal:80")
        assert asyncio.run(rules.tools(name)).mcp.commands == ("/bin/crm",)
        assert (asyncio.run(rules.tools(name)).deny, asyncio.run(rules.tools(name)).allow) == ((), None)
        assert asyncio.run(rules.models(name)) is None


def test_an_environment_decides_alone_and_at_once(store: Store, settings: Settings) -> None:
    rules = RulesInForce(settings, store)
    declare(store, tools={"inside": ["only.internal:1"]}, models={"allow": [{"provider": "openai"}]})
    assert asyncio.run(rules.tools("prod")).inside == ("only.internal:1",)
    assert asyncio.run(rules.tools("prod")).mcp.commands == ()
    assert asyncio.run(rules.tools("prod")).deny == ()
    models = asyncio.run(rules.models("prod"))
    assert models is not None
    assert models.allow is not None
    assert [allowed.provider for allowed in models.allow] == ["openai"]
    declare(store, tools={"deny": ["sh*"]})
    assert asyncio.run(rules.tools("prod")).deny == ("sh*",)
    assert asyncio.run(rules.tools("prod")).inside == ()


def test_where_others_decide_an_environment_that_is_gone_allows_nothing(store: Store, tmp_path: Path) -> None:
    pinned = from_env(
        {"KNEO_SERV_TRUST_ROOT": f"sha256:{'0' * 64}", "KNEO_SERV_TOOLS_INSIDE": "crm.internal:1"}, tmp_path
    )
    rules = RulesInForce(pinned, store)
    assert asyncio.run(rules.tools("prod")).allow == ()
    assert asyncio.run(rules.tools("prod")).inside == ()
    assert asyncio.run(rules.tools("prod")).sandbox.required == "kernel"
    models = asyncio.run(rules.models("prod"))
    assert models is not None
    assert models.allow == ()


def test_the_event_loop_waits_for_no_database(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(store, tools={"deny": ["sh*"]})
    readers: list[int] = []
    look = store.look

    def reading() -> object:
        readers.append(threading.get_ident())
        return look()

    monkeypatch.setattr(store, "look", reading)
    assert asyncio.run(RulesInForce(settings, store).tools("prod")).deny == ("sh*",)
    assert readers
    assert threading.get_ident() not in readers
