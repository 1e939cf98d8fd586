"""What can be set about logging in to a Git host reaches every command that talks to one."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from kneo.settings import GitCredentials, from_env

ROOT = Path(__file__).parents[2]
TOGETHER = {
    "github": {"GITHUB_APP_ID": "1", "GITHUB_INSTALLATION_ID": "2", "GITHUB_APP_KEY_FILE": "k.pem"},
    "client_key": {"CLIENT_CERT_FILE": "c.pem"},
}
NAMES = [field.name for field in fields(GitCredentials)]


@pytest.mark.parametrize("name", NAMES)
def test_every_credential_has_a_setting(name: str, tmp_path: Path) -> None:
    value = "https://api.example.org" if name.endswith("_url") else "x1"
    also = next((also for start, also in TOGETHER.items() if name.startswith(start)), {})
    variables = {
        f"KNEO_SERV_GIT_{key}": text for key, text in ({name.upper(): value} | also | {name.upper(): value}).items()
    }
    found = getattr(from_env(variables, tmp_path).git, name)
    assert found == (tmp_path / value if name.endswith("_file") else value)
    assert getattr(GitCredentials(), name) != found


def test_every_mirror_of_a_command_is_opened_with_the_credentials() -> None:
    calls = [
        node
        for path in (ROOT / "kneo/cli").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Mirror"
    ]
    assert calls
    assert {ast.unparse(call.args[-1]) for call in calls} == {"settings.git"}
