import pytest

from kneo.spec.lint import check
from kneo.spec.models.spec import Spec


def places(**extra: object) -> list[str | None]:
    spec = Spec.model_validate({"agent": {"name": "root"}, **extra})
    return [d.path_text for d in check(spec) if d.code == "E_SECRET_INLINE"]


def server(**fields: object) -> dict:
    return {"mcp_servers": {"s": {"transport": "stdio", "command": "x", **fields}}}


KEY = "sk-" + "a1B2c3D4e5F6g7H8i9J0k1L2"


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        "sk-ant-" + "api03-Zx9Yw8Vu7Ts6Rq5Po4Nm3",
        "AKIA" + "QZ3XWVUTSRPONMLK",
        "ghp_" + "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2",
        "xoxb-" + "1234567890-abcdefghij",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE",
        "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "dozjgNryP4J3jVmNHl0w5N",
        "postgres://app:hunter22@db/prod",
        "https://hooks.slack.com/services/" + "T0AB12CD3/B0EF45GH6/abcdefghijklmnop1234",
    ],
)
def test_known_shapes_are_found_anywhere(secret: str) -> None:
    assert places(agent={"name": "a", "system_prompt": f"Use {secret} to log in."}) == ["agent.system_prompt"]


@pytest.mark.parametrize(
    "text",
    [
        "Ask for sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx.",
        "Keys look like AKIAIOSFODNN7EXAMPLE.",
        "risk-assessment-of-the-whole-organisation",
        "postgres://user:$PASSWORD@host and https://user:password@host",
        "See https://example.com:8080/path@2",
        "gh is a tool; ghp_ is a prefix",
    ],
)
def test_prose_about_credentials_is_none(text: str) -> None:
    assert places(agent={"name": "a", "system_prompt": text}) == []


@pytest.mark.parametrize("value", ["hunter2", "correct horse battery", "Bearer abcd-efgh", "S3cr3t!"])
def test_values_under_the_name_of_a_credential(value: str) -> None:
    model = {"provider": "openai", "name": "m", "extra": {"api_key": value, "base_url": "https://x", "apiKey": value}}
    assert places(agent={"name": "a", "model": model}) == ["agent.model.extra.api_key", "agent.model.extra.apiKey"]
    assert places(**server(env={"DB_PASSWORD": value, "PATH": "/bin"})) == ["mcp_servers.s.env.DB_PASSWORD"]
    assert places(**server(args=["--quiet", f"--api-token={value}"])) == ["mcp_servers.s.args[1]"]
    assert places(**server(args=["--api-token", value, "--token", "--quiet"])) == ["mcp_servers.s.args[1]"]


@pytest.mark.parametrize(
    "value",
    [
        "OPENAI_API_KEY",
        "$TOKEN",
        "${TOKEN}",
        "Bearer ${TOKEN}",
        "{{ key }}",
        "<your key>",
        "env:KEY",
        "***",
        "",
        "changeme",
    ],
)
def test_references_and_placeholders_are_fine(value: str) -> None:
    assert places(**server(env={"API_KEY": value}, headers={"Authorization": value})) == []
    assert places(metadata={"password": value}) == []


def test_names_that_only_speak_of_credentials() -> None:
    extra = {
        "api_key_ref": "prod-key",
        "token_type": "bearer",
        "secret_name": "db",
        "tokens": "many",
        "max_tokens": "9",
    }
    assert places(agent={"name": "a", "model": {"provider": "p", "name": "m", "extra": extra}}) == []
    properties = {"password": {"type": "string", "description": "the new one"}}
    assert places(tools={"t": {"description": "d", "agent": "a", "parameters": {"properties": properties}}}) == []
