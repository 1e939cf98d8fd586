"""Which project a process belongs to."""

import pytest

from kneo.errors import Invalid
from kneo.settings import from_env, variables_set


def test_the_nearest_config_decides(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert from_env({}, inner).project_config is None
    assert from_env({}, inner).project_root == inner
    (tmp_path / "kneo_serv.yml").touch()
    assert from_env({}, inner).project_root == tmp_path
    (tmp_path / ".kneo").mkdir()
    (tmp_path / ".kneo" / "config.yaml").touch()
    settings = from_env({"KNEO_ENV": "prod"}, inner)
    assert settings.project_config == tmp_path / ".kneo" / "config.yaml"
    assert settings.project_root == tmp_path
    assert settings.environment == "prod"


def test_a_named_config_must_exist(tmp_path):
    (tmp_path / "mine.yaml").touch()
    assert from_env({"KNEO_PROJECT_CONFIG": "mine.yaml"}, tmp_path).project_config == tmp_path / "mine.yaml"
    with pytest.raises(Invalid, match="does not exist"):
        from_env({"KNEO_PROJECT_CONFIG": "other.yaml"}, tmp_path)


def test_variables_are_only_asked_whether_they_are_set():
    assert variables_set(["A", "B", "C"], {"A": "secret", "B": ""}) == {"A"}
