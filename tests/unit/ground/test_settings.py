from __future__ import annotations

import base64
import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kneo.digest import digest_of
from kneo.errors import Invalid
from kneo.settings import (
    _ELSEWHERE,
    HOOK_PROVIDERS,
    NOTIFY_CHANNELS,
    PUSH_HOSTS,
    SETTINGS,
    Limits,
    debug_wanted,
    find_project_config,
    from_env,
    function_environment,
    hide_settings,
    process_environment,
    read_secret,
    settings_of,
    unknown_variables,
    user_name,
    variables_set,
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path


def test_without_any_variable_everything_has_a_default(here: Path) -> None:
    settings = from_env({}, here)
    assert settings.project_root == here
    assert settings.database_url == f"sqlite:///{here}/.kneo/kneo_runs.sqlite"
    assert settings.state_dir == here / ".kneo"
    assert settings.trust_root is None
    assert not settings.auth_enabled
    assert settings.limits == Limits()


def test_nothing_secret_has_a_default(here: Path) -> None:
    settings = from_env({}, here)
    assert (settings.api_keys, settings.admin_api_key, settings.key_passphrase, settings.client_api_key) == ("",) * 4


@pytest.mark.parametrize("name", [".kneo/config.yaml", ".kneo/config.yml", "kneo_serv.yaml", "kneo_serv.yml"])
def test_the_project_is_the_nearest_folder_with_a_config(here: Path, name: str) -> None:
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).touch()
    below = here / "a" / "b"
    below.mkdir(parents=True)
    assert find_project_config(below) == here / name
    settings = from_env({}, below)
    assert (settings.project_root, settings.project_config) == (here, here / name)
    assert settings.spec_root == here
    assert settings.import_roots == (here, below)
    assert settings.state_dir == here / ".kneo"


def test_a_folder_that_is_named_like_the_config_is_no_project(here: Path) -> None:
    (here / ".kneo" / "config.yaml").mkdir(parents=True)
    below = here / "a"
    below.mkdir()
    assert find_project_config(below) is None
    assert from_env({}, below).project_root == below


def test_a_named_project_config_must_be_there(here: Path) -> None:
    config = here / "elsewhere" / "kneo_serv.yaml"
    with pytest.raises(Invalid, match="KNEO_PROJECT_CONFIG") as refused:
        from_env({"KNEO_PROJECT_CONFIG": "elsewhere/kneo_serv.yaml"}, here)
    assert str(config) in str(refused.value)
    config.parent.mkdir()
    config.touch()
    settings = from_env({"KNEO_PROJECT_CONFIG": "elsewhere/kneo_serv.yaml"}, here)
    assert (settings.project_config, settings.project_root) == (config, config.parent)


def test_which_variables_are_set_is_told_without_their_values() -> None:
    assert variables_set(["A", "B", "C"], {"A": "secret", "B": ""}) == {"A"}


def test_a_child_gets_only_the_variables_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNEO_TEST_ONE", "1")
    monkeypatch.setenv("KNEO_TEST_TWO", "2")
    assert process_environment("KNEO_TEST_ONE", "KNEO_TEST_NONE") == {"KNEO_TEST_ONE": "1"}


def test_tracebacks_are_asked_for() -> None:
    assert debug_wanted({"KNEO_SERV_DEBUG": "1"})
    assert not debug_wanted({"KNEO_SERV_DEBUG": "0"})
    assert not debug_wanted({})


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("sqlite:////var/lib/kneo/k.sqlite", "sqlite:////var/lib/kneo/k.sqlite"),
        ("  postgresql://h/d ", "postgresql+psycopg://h/d"),
    ],
)
def test_the_database_url_is_understood(here: Path, text: str, url: str) -> None:
    assert from_env({"KNEO_SERV_DATABASE_URL": text}, here).database_url == url


def test_state_stands_beside_a_sqlite_database(here: Path) -> None:
    assert from_env({"KNEO_SERV_DATABASE_URL": "sqlite:////srv/k.sqlite"}, here).state_dir == Path("/srv")


@pytest.mark.parametrize("text", ["mysql://h/d", "sqlite://", "kneo.sqlite", "postgresql+asyncpg://h/d"])
def test_another_database_is_refused_without_repeating_its_password(here: Path, text: str) -> None:
    with pytest.raises(Invalid, match="KNEO_SERV_DATABASE_URL"):
        from_env({"KNEO_SERV_DATABASE_URL": text}, here)
    with pytest.raises(Invalid) as refused:
        from_env({"KNEO_SERV_DATABASE_URL": f"mysql://u:{'secret'}@h/d"}, here)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("env", "enabled"),
    [
        ({}, False),
        ({"KNEO_SERV_AUTH_ENABLED": "true"}, True),
        ({"KNEO_SERV_AUTH_ENABLED": " ON "}, True),
        ({"KNEO_SERV_AUTH_ENABLED": "false"}, False),
        ({"KNEO_SERV_API_KEYS": "ann:key:admin"}, True),
        ({"KNEO_SERV_ADMIN_API_KEY": "key"}, True),
        ({"KNEO_SERV_AUTH_ENABLED": "false", "KNEO_SERV_API_KEYS": "ann:key:admin"}, True),
    ],
)
def test_keys_switch_authentication_on(here: Path, env: dict[str, str], enabled: bool) -> None:
    assert from_env(env, here).auth_enabled is enabled


@pytest.mark.parametrize(
    "name", ["KNEO_SERV_AUTH_ENABLED", "KNEO_SERV_METRICS_ENABLED", "KNEO_SERV_REQUIRE_PROVIDER_SECRETS"]
)
def test_a_typing_error_switches_nothing_off(here: Path, name: str) -> None:
    with pytest.raises(Invalid, match=f"{name} must be true or false"):
        from_env({name: "ture"}, here)


LIMITS = {
    "KNEO_SERV_MAX_BODY_BYTES": "body_bytes",
    "KNEO_SERV_MAX_INPUT_CHARS": "input_chars",
    "KNEO_SERV_MAX_HUMAN_CONTENT_CHARS": "human_content_chars",
    "KNEO_SERV_MAX_INLINE_SPEC_BYTES": "inline_spec_bytes",
    "KNEO_SERV_MAX_METADATA_BYTES": "metadata_bytes",
    "KNEO_SERV_MAX_PATH_CHARS": "path_chars",
    "KNEO_SERV_MAX_LIST_ITEMS": "page_items",
}


@pytest.mark.parametrize(("name", "field"), LIMITS.items())
def test_each_limit_has_its_variable(here: Path, name: str, field: str) -> None:
    assert getattr(from_env({name: "7"}, here).limits, field) == 7
    assert from_env({name: " "}, here).limits == Limits()


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "1e3", "9" * 10_000])
def test_a_limit_that_makes_no_sense_is_refused_by_name(here: Path, text: str) -> None:
    with pytest.raises(Invalid, match="KNEO_SERV_MAX_BODY_BYTES") as refused:
        from_env({"KNEO_SERV_MAX_BODY_BYTES": text}, here)
    assert refused.value.code == "invalid_setting"
    assert len(str(refused.value)) < 200


def test_the_trust_root_must_be_a_digest(here: Path) -> None:
    pin = digest_of(b"root")
    assert from_env({"KNEO_SERV_TRUST_ROOT": f" {pin} "}, here).trust_root == pin
    with pytest.raises(Invalid, match="KNEO_SERV_TRUST_ROOT"):
        from_env({"KNEO_SERV_TRUST_ROOT": "sha256:short"}, here)


def test_status_words_are_one_of_three(here: Path) -> None:
    assert from_env({"KNEO_SERV_STATUS_WORDS": "published"}, here).status_words == "published"
    with pytest.raises(Invalid, match="KNEO_SERV_STATUS_WORDS"):
        from_env({"KNEO_SERV_STATUS_WORDS": "loud"}, here)


def test_runs_are_handed_out_in_one_of_two_ways(here: Path) -> None:
    env = {
        "KNEO_SERV_DISPATCH": "temporal",
        "KNEO_SERV_TEMPORAL_ADDRESS": "t:1",
        "KNEO_SERV_TEMPORAL_NAMESPACE": "ours",
    }
    chosen = from_env(env, here).execution
    assert (chosen.dispatch, chosen.temporal_address, chosen.temporal_namespace) == ("temporal", "t:1", "ours")
    assert from_env({"KNEO_SERV_DISPATCH": "kafka"}, here).execution.dispatch == "kafka", "a package may add it"
    with pytest.raises(Invalid, match="KNEO_SERV_DISPATCH"):
        from_env({"KNEO_SERV_DISPATCH": "kafka:9092"}, here)


def test_the_import_allow_list_is_split_and_trimmed(here: Path) -> None:
    assert from_env({"KNEO_SERV_IMPORT_ALLOW": " app, lib.steps ,,"}, here).import_allow == ("app", "lib.steps")


def test_paths_of_a_person_start_at_home(here: Path) -> None:
    settings = from_env({"HOME": str(here)}, here)
    assert settings.known_roots_path == here / ".kneo_serv" / "known_roots.json"
    assert from_env({"KNEO_SERV_PROFILES_PATH": "/etc/p.json"}, here).profiles_path == Path("/etc/p.json")


def test_settings_do_not_show_their_secrets(here: Path) -> None:
    env = {
        "KNEO_SERV_API_KEYS": "ann:TOPSECRET:admin",
        "KNEO_SERV_ADMIN_API_KEY": "TOPSECRET",
        "KNEO_SERV_API_KEY": "TOPSECRET",
        "KNEO_SERV_KEY_PASSPHRASE": "TOPSECRET",
        "KNEO_SERV_SERVICE_KEY": "TOPSECRET",
        "KNEO_SERV_SPEC_SIGNING_KEY": "TOPSECRET",
        "KNEO_SERV_HOOK_SECRET_GITHUB": "TOPSECRET",
        "KNEO_SERV_NOTIFY_SLACK": "https://hooks.example/TOPSECRET",
        "KNEO_SERV_NOTIFY_TOKEN": "TOPSECRET",
        "KNEO_SERV_DATABASE_URL": "postgresql://u:TOPSECRET@h/d",
    }
    assert "TOPSECRET" not in repr(from_env(env, here))


@pytest.mark.parametrize("text", ["-1", "65536", "eighty", "8.0", "9" * 10_000])
def test_a_port_that_makes_no_sense_is_refused_by_name(here: Path, text: str) -> None:
    with pytest.raises(Invalid, match="KNEO_SERV_METRICS_PORT"):
        from_env({"KNEO_SERV_METRICS_PORT": text}, here)


def test_webhook_secrets_and_channels_are_known_by_name(here: Path) -> None:
    env = {
        "KNEO_SERV_HOOK_SECRET_GITHUB": "s",
        "KNEO_SERV_HOOK_SECRET_GITLAB": " ",
        "KNEO_SERV_HOOK_SECRET_OTHER": "s",
        "KNEO_SERV_NOTIFY_SLACK": "https://hooks.example/x",
    }
    settings = from_env(env, here)
    assert settings.hook_secrets == {"github": "s"}
    assert settings.notify == {"slack": "https://hooks.example/x"}
    assert from_env({"KNEO_SERV_METRICS_PORT": "9100"}, here).metrics_port == 9100


@pytest.mark.parametrize("name", ["OPS_TOKEN", "OPS_PASSWORD", "OPS_KEY", "OPS_SECRETS", "Ops_Token"])
def test_a_setting_that_is_not_known_is_refused_and_becomes_no_channel(here: Path, name: str) -> None:
    env = {"KNEO_SERV_CHANNEL_OPS": "https://hooks.example", f"KNEO_SERV_CHANNEL_{name}": "/run/secrets/ops"}
    with pytest.raises(Invalid, match=f"KNEO_SERV_CHANNEL_{name.upper()}") as caught:
        from_env(env, here)
    assert caught.value.code == "invalid_setting"
    assert "/run/secrets/ops" not in str(caught.value)


@pytest.mark.parametrize("name", ["OPS", "FILE", "KEY", "SLACK_OPS", "PROFILE", "MONKEY"])
def test_a_channel_may_have_any_other_name(here: Path, name: str) -> None:
    channels = from_env({f"KNEO_SERV_CHANNEL_{name}": "https://hooks.example"}, here).channels
    assert channels == {name.lower().replace("_", "-"): "https://hooks.example"}


def test_the_same_settings_for_another_database_keep_its_key_beside_it(tmp_path: Path) -> None:
    settings = from_env({"HOME": str(tmp_path), "KNEO_SERV_DATABASE_URL": "postgresql://h/db"}, tmp_path)
    other = settings.on(f"sqlite:///{tmp_path / 'b' / 'runs.db'}")
    assert other.state_dir == tmp_path / "b"
    assert other.on("postgresql://h/db") == settings
    with pytest.raises(Invalid, match="mysql"):
        settings.on("mysql://h/db")


def test_settings_that_are_hidden_are_still_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNEO_SERV_API_KEYS", "ann:secret:viewer")
    monkeypatch.setenv("SHOP_TOKEN", "token")
    hide_settings()
    hide_settings()
    assert "KNEO_SERV_API_KEYS" not in function_environment()
    assert function_environment()["SHOP_TOKEN"] == "token"
    assert process_environment("KNEO_SERV_API_KEYS") == {"KNEO_SERV_API_KEYS": "ann:secret:viewer"}
    assert from_env().api_keys == "ann:secret:viewer"
    assert variables_set(["KNEO_SERV_API_KEYS"])
    monkeypatch.setenv("KNEO_SERV_API_KEYS", "ben:other:viewer")
    assert from_env().api_keys == "ben:other:viewer"


def test_a_secret_is_a_variable_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "A_KEY").write_text("from the folder\n")
    (tmp_path / "elsewhere").write_text("first")
    named = {"B_KEY_FILE": str(tmp_path / "elsewhere")}
    assert read_secret("A_KEY", tmp_path, {}) == "from the folder"
    assert read_secret("A_KEY", tmp_path, {"A_KEY": " from the variable "}) == "from the variable"
    assert read_secret("B_KEY", None, named) == "first"
    (tmp_path / "elsewhere").write_text("rotated")
    assert read_secret("B_KEY", None, named) == "rotated"
    assert read_secret("C_KEY", tmp_path, {}) is None
    assert variables_set(["A_KEY", "B_KEY", "C_KEY"], named, tmp_path) == {"A_KEY", "B_KEY"}


@pytest.mark.parametrize("name", ["KNEO_SERV_ADMIN_API_KEY", "../elsewhere", "/etc/passwd", "", "A B"])
def test_no_setting_and_no_path_is_a_secret(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (tmp_path / "elsewhere").write_text("text")
    (folder / "KNEO_SERV_ADMIN_API_KEY").write_text("text")
    assert read_secret(name, folder, {"KNEO_SERV_ADMIN_API_KEY": "text", "A B": "text"}) is None


def test_a_secret_of_two_sources_or_of_none_that_can_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_text("x" * 70_000)
    for env in ({"A": "1", "A_FILE": str(tmp_path / "bytes")}, {"A_FILE": str(tmp_path / "none")}):
        with pytest.raises(Invalid, match="A_FILE"):
            read_secret("A", None, env)
    for name in ("bytes", "large"):
        with pytest.raises(Invalid, match=name) as refused:
            read_secret("A", None, {"A_FILE": str(tmp_path / name)})
        assert "xxx" not in str(refused.value)


SECRET_SETTINGS = {
    "KNEO_SERV_DATABASE_URL": lambda settings: settings.database_url,
    "KNEO_SERV_API_KEYS": lambda settings: settings.api_keys,
    "KNEO_SERV_ADMIN_API_KEY": lambda settings: settings.admin_api_key,
    "KNEO_SERV_API_KEY": lambda settings: settings.client_api_key,
    "KNEO_SERV_KEY_PASSPHRASE": lambda settings: settings.key_passphrase,
    "KNEO_SERV_SERVICE_KEY": lambda settings: settings.service_key,
    "KNEO_SERV_DATA_KEYS": lambda settings: settings.data_keys,
    "KNEO_SERV_SPEC_SIGNING_KEY": lambda settings: settings.spec_signing_key,
    "KNEO_SERV_NOTIFY_TOKEN": lambda settings: settings.notify_token,
    "KNEO_SERV_SLACK_SIGNING_SECRET": lambda settings: settings.slack_signing_secret,
    "KNEO_SERV_OIDC_CLIENT_SECRET": lambda settings: settings.oidc.client_secret,
    "KNEO_SERV_VAPID_PRIVATE_KEY": lambda settings: settings.push.private_key,
    **{f"KNEO_SERV_HOOK_SECRET_{name.upper()}": lambda settings: settings.hook_secrets for name in HOOK_PROVIDERS},
    **{f"KNEO_SERV_NOTIFY_{name.upper()}": lambda settings: settings.notify for name in NOTIFY_CHANNELS},
    "KNEO_SERV_NOTIFY_WEBHOOK_SECRET": lambda settings: settings.notify_webhook_keys,
    "KNEO_SERV_CHANNEL_SLACK_OPS": lambda settings: settings.channels,
    "KNEO_SERV_CHANNEL_SLACK_OPS_SECRET": lambda settings: settings.webhook_keys,
}
BESIDE = {
    "KNEO_SERV_OIDC_CLIENT_SECRET": {
        "KNEO_SERV_OIDC_ISSUER": "https://issuer.example",
        "KNEO_SERV_OIDC_CLIENT_ID": "kneo",
        "KNEO_SERV_OIDC_ROLES": "ops=operator",
        "KNEO_SERV_PUBLIC_URL": "https://kneo.example",
    },
    "KNEO_SERV_VAPID_PRIVATE_KEY": {"KNEO_SERV_VAPID_SUBJECT": "mailto:ops@example.org"},
    "KNEO_SERV_NOTIFY_WEBHOOK_SECRET": {"KNEO_SERV_NOTIFY_WEBHOOK": "https://hooks.example"},
    "KNEO_SERV_CHANNEL_SLACK_OPS_SECRET": {"KNEO_SERV_CHANNEL_SLACK_OPS": "https://hooks.example"},
}


def value_of(variable: str) -> str:
    if variable == "KNEO_SERV_DATABASE_URL":
        return "postgresql://u:p@h/d"
    return WEBHOOK_SECRET if variable.endswith(("SLACK_OPS_SECRET", "WEBHOOK_SECRET")) else "https://h/x"


WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.mark.parametrize(("variable", "read"), SECRET_SETTINGS.items())
def test_a_secret_setting_stands_in_a_variable_or_in_a_file(here: Path, variable: str, read: Callable) -> None:
    value = value_of(variable)
    (here / "secret").write_text(value + "\n")
    beside = BESIDE.get(variable, {})
    plain = read(from_env({variable: value} | beside, here))
    assert plain
    assert plain != read(from_env(beside, here))
    assert read(from_env({f"{variable}_FILE": "secret"} | beside, here)) == plain
    assert read(from_env({f"{variable}_FILE": str(here / "secret"), variable: " "} | beside, here)) == plain
    with pytest.raises(Invalid, match=f"{variable} and {variable}_FILE are both set") as refused:
        from_env({f"{variable}_FILE": "secret", variable: value} | beside, here)
    assert refused.value.code == "invalid_setting"
    with pytest.raises(Invalid, match=rf"{variable}_FILE names .*none, which does not exist"):
        from_env({f"{variable}_FILE": "none"} | beside, here)


def test_every_secret_setting_is_in_the_table_above() -> None:
    declared = [each for group in SETTINGS for _name, _default, each in settings_of(group) if each.secret]
    named = {
        name.replace("CHANNEL_NAME", "CHANNEL_SLACK_OPS") for each in declared for name in each.variable.split(", ")
    }
    assert named == set(SECRET_SETTINGS)


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe", b"x" * 70_000])
def test_a_file_that_holds_no_secret_is_refused(here: Path, content: bytes) -> None:
    (here / "keys").write_bytes(content)
    with pytest.raises(Invalid, match="KNEO_SERV_API_KEYS_FILE names") as refused:
        from_env({"KNEO_SERV_API_KEYS_FILE": "keys"}, here)
    assert refused.value.code == "invalid_setting"
    assert "xxx" not in str(refused.value)


def test_a_pipe_or_folder_is_not_the_file_of_a_secret(here: Path) -> None:
    os.mkfifo(here / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(Invalid, match="cannot be read"):
            from_env({"KNEO_SERV_API_KEYS_FILE": name}, here)


def test_spaces_of_a_secret_in_a_file_are_kept(here: Path) -> None:
    (here / "phrase").write_text(" open sesame \r\n")
    assert from_env({"KNEO_SERV_KEY_PASSPHRASE_FILE": "phrase"}, here).key_passphrase == " open sesame "


def test_a_file_of_a_setting_that_is_no_secret_is_not_read(here: Path) -> None:
    (here / "level").write_text("DEBUG")
    assert from_env({"KNEO_SERV_LOG_LEVEL_FILE": "level"}, here).http.log_level == "INFO"


def test_api_keys_in_a_file_switch_authentication_on(here: Path) -> None:
    (here / "keys").write_text("ann:key:admin\n")
    assert from_env({"KNEO_SERV_API_KEYS_FILE": "keys"}, here).auth_enabled
    assert variables_set(["KNEO_SERV_API_KEYS"], {"KNEO_SERV_API_KEYS_FILE": "keys"}) == {"KNEO_SERV_API_KEYS"}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900)])
def test_the_patience_with_models_is_a_duration(here: Path, text: str, seconds: float) -> None:
    assert from_env({"KNEO_SERV_MODEL_PATIENCE": text}, here).models.patience_seconds == seconds
    with pytest.raises(Invalid, match="KNEO_SERV_MODEL_PATIENCE must be a duration"):
        from_env({"KNEO_SERV_MODEL_PATIENCE": f"{text} or so"}, here)


PUSH = {"KNEO_SERV_VAPID_PRIVATE_KEY": "a key", "KNEO_SERV_VAPID_SUBJECT": "mailto:ops@example.org"}


def test_push_services_are_those_of_browsers_unless_others_are_named(here: Path) -> None:
    assert from_env(PUSH, here).push.hosts == PUSH_HOSTS
    named = from_env({**PUSH, "KNEO_SERV_PUSH_HOSTS": "Push.example.org:8443, *.example.net"}, here)
    assert named.push.hosts == ("push.example.org:8443", "*.example.net")
    assert "a key" not in repr(named)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"KNEO_SERV_VAPID_SUBJECT": ""}, "needs KNEO_SERV_VAPID_SUBJECT"),
        ({"KNEO_SERV_VAPID_SUBJECT": "ops@example.org"}, "must be a mailto: or https: address"),
        ({"KNEO_SERV_PUSH_HOSTS": "https://push.example.org"}, "must list host names"),
        ({"KNEO_SERV_PUSH_HOSTS": "*"}, "must list host names"),
        ({"KNEO_SERV_PUSH_HOSTS": "a b"}, "must list host names"),
        ({"KNEO_SERV_CHANNEL_WEB_PUSH": "https://hooks.example"}, "is the channel of Web Push"),
    ],
)
def test_settings_of_web_push_that_are_refused(here: Path, changes: dict[str, str], word: str) -> None:
    with pytest.raises(Invalid, match=re.escape(word)):
        from_env({**PUSH, **changes}, here)


OIDC = {
    "KNEO_SERV_OIDC_ISSUER": "https://login.example.org/",
    "KNEO_SERV_OIDC_AUDIENCE": "kneo",
    "KNEO_SERV_OIDC_ROLES": "ops = operator ; a=b=viewer,human:read;;",
}


def test_an_issuer_is_read_letter_by_letter_and_switches_authentication_on(here: Path) -> None:
    settings = from_env(OIDC, here)
    assert settings.auth_enabled
    assert settings.oidc.issuer == "https://login.example.org/"
    assert settings.oidc.roles == (("ops", ("operator",)), ("a=b", ("viewer", "human:read")))


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("KNEO_SERV_OIDC_ISSUER", "http://login.example.org"),
        ("KNEO_SERV_OIDC_ISSUER", "http://localhost.example.org"),
        ("KNEO_SERV_OIDC_ISSUER", "https://user:pass@login.example.org"),
        ("KNEO_SERV_OIDC_ISSUER", "https://login.example.org/?tenant=1"),
        ("KNEO_SERV_OIDC_ISSUER", "https://"),
        ("KNEO_SERV_OIDC_ISSUER", "https://login.example.org:port"),
        ("KNEO_SERV_OIDC_ISSUER", "login.example.org"),
        ("KNEO_SERV_OIDC_ISSUER", ""),
        ("KNEO_SERV_OIDC_AUDIENCE", ""),
        ("KNEO_SERV_OIDC_ROLES", ""),
        ("KNEO_SERV_OIDC_ROLES", "ops"),
        ("KNEO_SERV_OIDC_ROLES", "=operator"),
        ("KNEO_SERV_OIDC_ROLES", "ops="),
    ],
)
def test_settings_of_an_issuer_that_do_not_fit(here: Path, variable: str, text: str) -> None:
    with pytest.raises(Invalid, match=variable) as refused:
        from_env({**OIDC, variable: text}, here)
    assert refused.value.code == "invalid_setting"


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:1", "[::1]:5556"])
def test_an_issuer_on_this_machine_needs_no_tls(here: Path, host: str) -> None:
    assert from_env({**OIDC, "KNEO_SERV_OIDC_ISSUER": f"http://{host}/dex"}, here).oidc.issuer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"KNEO_SERV_OIDC_CLIENT_ID": "console"}, "KNEO_SERV_PUBLIC_URL"),
        ({"KNEO_SERV_OIDC_CLIENT_SECRET": "secret"}, "without KNEO_SERV_OIDC_CLIENT_ID"),
        ({"KNEO_SERV_OIDC_SCOPES": "profile groups"}, "openid"),
    ],
)
def test_settings_of_a_client_that_do_not_fit(here: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        from_env({**OIDC, **changes}, here)


def test_an_issuer_for_the_console_alone(here: Path) -> None:
    client = {
        "KNEO_SERV_OIDC_AUDIENCE": "",
        "KNEO_SERV_OIDC_CLIENT_ID": "console",
        "KNEO_SERV_OIDC_SCOPES": "openid groups",
        "KNEO_SERV_PUBLIC_URL": "https://kneo.example.org/",
    }
    settings = from_env({**OIDC, **client}, here)
    assert (settings.oidc.audience, settings.oidc.scopes) == ("", ("openid", "groups"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("KNEO_SERV_RETENTON_RUNS_DAYS", "did you mean KNEO_SERV_RETENTION_RUNS_DAYS?"),
        ("KNEO_SERV_TRUSTROOT", "did you mean KNEO_SERV_TRUST_ROOT?"),
        ("KNEO_SERV_ADMIN_API_KEY_FIEL", "did you mean KNEO_SERV_ADMIN_API_KEY_FILE?"),
        ("KNEO_SERV_CHANEL_OPS", "docs/reference/settings.md"),
        ("KNEO_SERV_HOOK_SECRET_GITHUP", "did you mean KNEO_SERV_HOOK_SECRET_GITHUB?"),
        ("KNEO_SERV_LOG_LEVEL_FILE", "did you mean KNEO_SERV_LOG_LEVEL?"),
        ("KNEO_SERV_", "docs/reference/settings.md"),
        ("KNEO_SERV_TOKEN_BUDGET", "is a setting of kneo-serv"),
        ("KNEO_SERV_CHECKPOINT_MAX_LIST_ITEMS", "is a setting of kneo-serv"),
    ],
)
def test_a_variable_that_no_setting_reads_is_described_without_its_value(name: str, nearest: str) -> None:
    [description] = unknown_variables({name: "TOPSECRET"})
    assert description.startswith(f"{name} is ")
    assert nearest in description
    assert "TOPSECRET" not in description


def test_the_variables_of_settings_are_known() -> None:
    declared = [each for group in SETTINGS for _name, _default, each in settings_of(group)]
    names = [name for each in declared for name in each.variable.split(", ")]
    secret = [name + "_FILE" for each in declared if each.secret for name in each.variable.split(", ")]
    assert len(names) > 100
    env = dict.fromkeys(
        [*names, *secret, "KNEO_SERV_DEBUG", "KNEO_SERV_CHANNEL_OPS", "KNEO_SERV_CHANNEL_OPS_SECRET"], "x"
    )
    assert unknown_variables(env | {"KNEO_HOME": "x", "PATH": "x"}) == ()


def test_addresses_that_kubernetes_sets_for_a_service_are_no_settings() -> None:
    links = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8000_TCP", "PORT_8000_TCP_ADDR"]
    assert unknown_variables({f"KNEO_SERV_{name}": "10.0.0.1" for name in links}) == ()
    assert len(unknown_variables({"KNEO_SERV_PORT": "8000"})) == 1


def test_a_report_of_unknown_variables_is_bounded() -> None:
    assert len(unknown_variables({f"KNEO_SERV_X{number}": "" for number in range(1_000)})) == 20


def test_the_page_about_moving_has_the_settings_that_kneo_serv_alone_reads() -> None:
    page = (Path(__file__).parents[3] / "docs" / "moving" / "kneo-serv.md").read_text()
    [section] = re.findall(r"^## Settings without effect$(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    named = {
        name
        for cell in re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
        for name in re.findall(r"`(KNEO_\w+)`", cell)
    }
    assert len(named) == 19
    for name in named:
        assert "a setting of kneo-serv" in str(unknown_variables({name: ""})), name
    assert {name.removeprefix("KNEO_SERV_") for name in named} == _ELSEWHERE


def test_a_user_without_a_name_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert user_name() == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(os, "getuid", lambda: 10_001_001)
    assert user_name() == "uid-10001001"
