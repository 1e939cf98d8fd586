import json
import stat

import pytest

from kneo.cli.main import run
from kneo.spec.project import parse_project


@pytest.fixture
def folder(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("KNEO_SERV_PROFILES_PATH", str(tmp_path / "home" / "profiles.json"))
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "OPENAI_API_KEY", "MCP_API_KEY", "KNEO_SERV_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return work


@pytest.fixture
def kneo(folder, capsys):
    def call(*arguments):
        status = run(list(arguments))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def answer(kneo):
    def call(*arguments):
        status, out, _ = kneo(*arguments, "--json")
        return status, json.loads(out)

    return call


def test_a_new_project_works_at_once(folder, kneo, answer):
    assert kneo("config", "init", "--name", "demo")[0] == 0
    config = parse_project((folder / ".kneo" / "config.yaml").read_bytes(), file="f")
    assert config.service.default_url is None, "no command needs a service that nobody started"
    assert config.specs.default_spec is None
    assert (folder / ".kneo" / "artifacts").is_dir()
    (folder / "s.yaml").write_text("agent: {name: a}\n")
    assert kneo("spec", "validate", "s.yaml")[0] == 0
    assert kneo("config", "init")[0] == 5
    assert answer("config", "init", "--force")[1]["name"] == "kneo-serv-project"


def test_a_spec_that_is_there_becomes_the_default(folder, answer):
    (folder / "examples").mkdir()
    (folder / "examples" / "research_agent.yaml").write_text("agent: {name: a}\n")
    (folder / "examples" / "research_agent.staging.yaml").write_text("agent: {name: b}\n")
    assert answer("config", "init")[1]["default_spec"] == "examples/research_agent.yaml"
    status, said = answer("config", "resolve", "--env", "staging")
    assert status == 0
    assert said == {
        "root_dir": str(folder),
        "config_path": str(folder / ".kneo" / "config.yaml"),
        "environment": "staging",
        "spec_path": str(folder / "examples" / "research_agent.yaml"),
        "overlay_paths": [str(folder / "examples" / "research_agent.staging.yaml")],
        "state_path": str(folder / ".kneo" / "kneo_runs.sqlite"),
        "artifact_path": str(folder / ".kneo" / "artifacts"),
        "log_path": str(folder / ".kneo" / "logs"),
        "cache_path": str(folder / ".kneo" / "cache"),
        "service_url": None,
        "has_config": True,
        "secrets": {"provider_env": {"openai": "OPENAI_API_KEY"}, "extra_env": {"mcp_default": "MCP_API_KEY"}},
    }
    assert answer("config", "render-spec", "-o", "out.yaml", "--env", "staging")[0] == 0
    assert "name: b" in (folder / "out.yaml").read_text()


def test_show(folder, kneo, answer):
    assert answer("config", "show") == (0, {})
    assert "kneo config init" in kneo("config", "show")[2]
    (folder / "kneo_serv.yaml").write_text("project: {name: x}\nservice: {headers: {Authorization: Bearer secret}}\n")
    status, said = answer("config", "show")
    assert said["project"]["name"] == "x"
    assert said["service"]["headers"] == {"Authorization": "[REDACTED]"}
    assert said["specs"]["validate_on_run"] is True
    (folder / "kneo_serv.yaml").write_text("project: {nme: x}\n")
    status, _, err = kneo("config", "show")
    assert status == 1
    assert "kneo_serv.yaml:1:" in err
    assert "Traceback" not in err


def test_secrets_are_counted_and_never_read(answer, monkeypatch, folder):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    (folder / "kneo_serv.yaml").write_text(
        "project: {name: x}\nsecrets: {provider_env: {openai: OPENAI_API_KEY}, extra_env: {m: MCP_API_KEY}}\n"
    )
    status, said = answer("config", "secrets", "--env", "prod")
    assert status == 0
    assert said["providers"]["openai"] == {
        "name": "provider:openai",
        "env_var": "OPENAI_API_KEY",
        "present": True,
        "value": "[REDACTED]",
        "status": "present",
        "expires_at": None,
        "last_checked": None,
    }
    assert said["extra"]["m"]["value"] is None
    assert set(said["service_tokens"]) == {"KNEO_SERV_API_KEY", "KNEO_SERV_API_KEYS", "KNEO_SERV_ADMIN_API_KEY"}
    assert "very-secret" not in json.dumps(said)


def test_profiles(folder, kneo, answer):
    path = folder.parent / "home" / "profiles.json"
    assert answer("config", "profile", "list") == (0, {"active": None, "profiles": [], "path": str(path)})
    local = {"name": "local", "service_url": "http://127.0.0.1:9", "authenticated": True}
    arguments = ("--service-url", "http://127.0.0.1:9/", "--api-key", "sekret", "--no-activate")
    assert answer("config", "profile", "set", "local", *arguments) == (0, local)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (
        answer("config", "profile", "set", "two", "--service-url", "https://two.example")[1]["authenticated"] is False
    )
    status, said = answer("config", "profile", "list")
    assert said["active"] == "two"
    assert [entry["name"] for entry in said["profiles"]] == ["local", "two"]
    assert answer("config", "profile", "use", "local") == (0, local)
    assert answer("config", "profile", "show") == (0, local)
    assert answer("config", "profile", "show", "--name", "two")[1]["name"] == "two"
    assert kneo("config", "profile", "use", "ghost")[0] == 4
    assert json.loads(path.read_text()) == {
        "active": "local",
        "profiles": {
            "local": {"api_key": "sekret", "service_url": "http://127.0.0.1:9"},
            "two": {"api_key": None, "service_url": "https://two.example"},
        },
    }
    assert answer("config", "profile", "delete", "local")[1]["deleted"]
    assert kneo("config", "profile", "delete", "local")[0] == 0
    assert answer("config", "profile", "list")[1]["active"] is None
    status, out, err = kneo("config", "profile", "show")
    assert status == 1
    assert "sekret" not in out + err


def test_a_broken_profiles_file_is_one_line(folder, kneo):
    path = folder.parent / "home" / "profiles.json"
    path.parent.mkdir()
    for content in ("[", "[]", '{"profiles": {"a": 3}}', "{}"):
        path.write_text(content)
        status, _, err = kneo("config", "profile", "list")
        assert status == 1
        assert str(path) in err
    assert kneo("config", "profile", "set", "x", "--service-url", "not a url")[0] == 2
