"""A worker that requires the keys of its project's providers does not start without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kneo.clock import SystemClock
from kneo.errors import Invalid
from kneo.project.secrets import require_provider_secrets
from kneo.runtime.engine.assemble import working
from kneo.settings import Settings, from_env
from kneo.spec.project import ProjectConfig
from kneo.store.migrate import open_store

REQUIRED = {"KNEO_SERV_REQUIRE_PROVIDER_SECRETS": "true"}


def config(**variables: str) -> ProjectConfig:
    return ProjectConfig.model_validate({"project": {"name": "shop"}, "secrets": {"provider_env": variables}})


def required(folder: Path, **env: str) -> Settings:
    return from_env({**REQUIRED, **env}, folder)


def test_each_missing_key_is_named_with_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_OPENAI", "k")
    settings, keys = required(tmp_path), config(openai="SHOP_OPENAI", anthropic="SHOP_ANTHROPIC")
    with pytest.raises(Invalid, match=r"SHOP_ANTHROPIC \(anthropic\)\.") as caught:
        require_provider_secrets(settings, keys)
    assert "SHOP_OPENAI" not in caught.value.message
    require_provider_secrets(from_env({}, tmp_path), keys)  # not required
    require_provider_secrets(settings, config(openai="SHOP_OPENAI"))
    require_provider_secrets(settings, None)


def test_a_key_in_the_folder_of_secrets_counts(tmp_path: Path) -> None:
    (tmp_path / "SHOP_ANTHROPIC").write_text("k")
    settings = required(tmp_path, KNEO_SERV_SECRETS_DIR=str(tmp_path))
    require_provider_secrets(settings, config(anthropic="SHOP_ANTHROPIC"))


def test_a_worker_does_not_start_without_a_required_key(tmp_path: Path) -> None:
    (tmp_path / ".kneo").mkdir()
    (tmp_path / ".kneo" / "config.yaml").write_text(
        "project: {name: shop}\nsecrets: {provider_env: {openai: MISSING_KEY}}\n"
    )
    settings = required(tmp_path, KNEO_SERV_DATABASE_URL=f"sqlite:///{tmp_path}/kneo.sqlite")
    store = open_store(settings.database_url, SystemClock())
    try:
        with pytest.raises(Invalid, match="MISSING_KEY"), working(settings, store, 1):
            pytest.fail("the worker has started")
    finally:
        store.close()
