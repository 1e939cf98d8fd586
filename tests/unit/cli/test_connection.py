"""Whom a command talks to: the documented order."""

from pathlib import Path

import pytest

from kneo.cli.connection import Address, choose
from kneo.cli.profiles import Profile, Profiles, save_profiles
from kneo.errors import NotFound
from kneo.settings import Settings, from_env


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    saved = Profiles().with_profile("there", Profile("http://there", "there-key"), activate=False)
    path = tmp_path / "profiles.json"
    save_profiles(path, saved.with_profile("other", Profile("http://other", None), activate=True))
    return from_env({"HOME": str(tmp_path), "KNEO_SERV_PROFILES_PATH": str(path), "KNEO_SERV_API_KEY": "own"}, tmp_path)


def with_project(settings: Settings) -> Settings:
    folder = settings.project_root / ".kneo"
    folder.mkdir()
    (folder / "config.yaml").write_text("project: {name: p}\nservice: {default_url: 'http://project'}\n")
    env = {"HOME": str(settings.project_root), "KNEO_SERV_PROFILES_PATH": str(settings.profiles_path)}
    return from_env(env | {"KNEO_SERV_API_KEY": "own"}, settings.project_root)


def test_the_address_that_is_named_with_the_key_of_the_profile(settings: Settings):
    assert choose(settings, "http://named", "there") == Address("http://named", "there-key")
    assert choose(settings, "http://named", None) == Address("http://named", "own")


def test_then_the_profile_that_is_named(settings: Settings):
    assert choose(with_project(settings), None, "there") == Address("http://there", "there-key")


def test_then_the_services_address_of_the_project(settings: Settings):
    assert choose(with_project(settings), None, None) == Address("http://project", "own")


def test_then_the_active_profile(settings: Settings):
    assert choose(settings, None, None) == Address("http://other", "own")


def test_and_else_the_database_beside_us(tmp_path: Path):
    assert choose(from_env({"HOME": str(tmp_path)}, tmp_path), None, None) is None


def test_a_profile_that_is_not_there_is_said(settings: Settings):
    with pytest.raises(NotFound, match="other, there"):
        choose(settings, None, "nowhere")


def test_a_key_is_not_shown_by_accident():
    assert "secret" not in repr(Address("http://x", "secret"))
