"""Which models an agent can ask, over which connection: refused before anything runs, and never with another's key."""

from __future__ import annotations

from typing import Any

import pytest

from kneo.agents.providers import OperatorConnections, ProviderConnection, check_models, choices, connect, find_provider
from kneo.errors import Invalid
from kneo.spec.models.agent import Agent
from kneo.spec.models.providers import PROVIDERS
from kneo.spec.policy import AllowedModel, ModelConnection, ModelRules

KEYS = {"OPENAI_API_KEY": "own", "PROJECT_KEY": "project", "PROD_KEY": "prod", "SPEC_KEY": "spec"}


def agent(model: dict[str, Any] | None = None, **preferences: Any) -> Agent:
    return Agent(
        name="clerk",
        model={"provider": "openai", "name": "gpt-5-mini", **(model or {})},
        runtime_preferences=preferences or None,
    )


def connection(
    model: dict[str, Any] | None = None,
    *,
    env: dict[str, str] | None = None,
    project: dict[str, str] | None = None,
    rules: ModelRules | None = None,
) -> ProviderConnection:
    (choice,) = choices("clerk", agent(model))
    operator = OperatorConnections(secret=(KEYS if env is None else env).get, key_variables=project or {})
    return connect("clerk", choice, find_provider("clerk", choice), operator, rules)


def refused(code: str, **arguments: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        connection(**arguments)
    assert caught.value.code == code
    return caught.value


def checked(
    spec: Agent, *, missing: str = "", rules: ModelRules | None = None, env: dict[str, str] | None = None
) -> None:
    operator = OperatorConnections(secret=(KEYS if env is None else env).get)
    check_models("clerk", spec, operator, rules, installed=lambda provider: provider.extra != missing)


# ---- keys and addresses -----------------------------------------------------------------------------------------


def test_the_environment_wins_over_the_project_and_the_project_over_the_spec() -> None:
    spec = {"extra": {"api_key_ref": "SPEC_KEY"}}
    prod = ModelRules(
        connections={"openai": ModelConnection(api_key_ref="PROD_KEY", base_url="https://gateway.example/v1/")}
    )
    assert connection().key == "own"
    assert connection(spec).key == "spec"
    assert connection(spec, project={"openai": "PROJECT_KEY"}).key == "project"
    assert connection(spec, project={"openai": "PROJECT_KEY"}, rules=prod).key == "prod"
    assert connection(spec, rules=prod).base_url == "https://gateway.example/v1"
    assert connection().base_url == "https://api.openai.com/v1"


def test_the_operators_address_wins_over_the_specs() -> None:
    spec = {"extra": {"base_url": "https://spec.example/v1"}}
    assert connection(spec).base_url == "https://spec.example/v1"
    assert (
        connection(spec, env={**KEYS, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}).base_url == "http://127.0.0.1:9/v1"
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example/v1",
        "https://localhost/v1",
        "https://api.localhost/v1",
        "https://127.0.0.1/v1",
        "https://127.1/v1",
        "https://0x7f000001/v1",
        "https://2130706433/v1",
        "https://[::1]/v1",
        "https://[::ffff:127.0.0.1]/v1",
        "https://10.1.2.3/v1",
        "https://169.254.169.254/v1",
        "https://100.64.0.1/v1",
        "https://168.63.129.16/v1",
        "https://[64:ff9b::7f00:1]/v1",
        "https://[2002:7f00:1::]/v1",
        "https://vault.internal/v1",
        "https://key@models.example/v1",
        "https://",
        "file:///etc/passwd",
        "https://[",
    ],
)
def test_a_spec_cannot_send_a_key_to_the_machine_or_in_clear(url: str) -> None:
    refused("model_host_denied", model={"extra": {"base_url": url}})


def test_an_environment_names_the_hosts_of_specs() -> None:
    spec = {"extra": {"base_url": "https://models.example/v1"}}
    assert "models.example" in str(refused("model_host_denied", model=spec, rules=ModelRules()))
    assert connection(spec, rules=ModelRules(hosts=["models.example"])).base_url == "https://models.example/v1"
    other = {"extra": {"base_url": "https://models.example.evil.example/v1"}}
    refused("model_host_denied", model=other, rules=ModelRules(hosts=["models.example"]))


@pytest.mark.parametrize("ref", ["KNEO_SERV_ADMIN_API_KEY", "kneo_serv_api_keys"])
def test_a_spec_cannot_name_a_setting_as_its_key(ref: str) -> None:
    env = {**KEYS, ref: "secret"}
    refused("provider_not_configured", model={"extra": {"api_key_ref": ref}}, env=env)


def test_a_missing_key_is_named_and_one_of_ones_own_server_is_not_needed() -> None:
    assert "OPENAI_API_KEY_FILE" in str(refused("provider_not_configured", env={}))
    assert connection({"provider": "ollama", "name": "llama"}, env={}).key is None
    refused("provider_not_configured", model={"provider": "ollama", "extra": {"api_key_ref": "NONE"}}, env={})


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://box:11434", "http://box:11434/v1"),
        ("http://box:11434/", "http://box:11434/v1"),
        ("http://box:11434/v1", "http://box:11434/v1"),
        ("", "http://127.0.0.1:11434/v1"),
    ],
)
def test_the_address_of_ollama_may_leave_out_its_path(text: str, url: str) -> None:
    env = {"OLLAMA_BASE_URL": text} if text else {}
    assert connection({"provider": "ollama", "name": "llama"}, env=env).base_url == url


def test_a_provider_without_a_usual_address_needs_one() -> None:
    assert "AZURE_BASE_URL" in str(refused("provider_not_configured", model={"provider": "azure"}))
    env = {"AZURE_BASE_URL": "https://me.example/openai/v1", "AZURE_API_KEY": "k"}
    assert connection({"provider": "azure"}, env=env).base_url == "https://me.example/openai/v1"


def test_openai_has_two_apis_and_no_other_provider_has() -> None:
    assert connection().wire == "responses"
    assert connection({"extra": {"api": "chat"}}).wire == "chat"
    for model in ({"extra": {"api": "messages"}}, {"provider": "vllm", "extra": {"api": "responses"}}):
        refused("provider_not_configured", model=model)


def test_a_key_of_extra_without_effect_is_refused() -> None:
    assert "api_key" in str(refused("provider_not_configured", model={"extra": {"api_key": "sk-1"}}))
    refused("provider_not_configured", model={"extra": {"base_url": 7}})


def test_no_connection_shows_its_key() -> None:
    assert "own" not in repr(connection())


# ---- the start of a run -----------------------------------------------------------------------------------------


def test_an_agent_whose_provider_is_unknown_not_installed_or_without_key_is_refused() -> None:
    checked(agent())
    for spec, words in (
        ({"provider": "openia"}, "Available here: dummy, openai"),
        ({"provider": "default"}, "names no provider"),
        ({"provider": "anthropic"}, "ANTHROPIC_API_KEY"),
        ({"fallbacks": [{"provider": "anthropic", "name": "claude"}]}, "ANTHROPIC_API_KEY"),
    ):
        with pytest.raises(Invalid, match=words) as caught:
            checked(agent(spec))
        assert caught.value.code == "provider_not_configured"
    with pytest.raises(Invalid, match=r"pip install 'kneo\[openai\]'"):
        checked(agent(), missing="openai")


def test_a_process_without_keys_still_refuses_what_no_process_can_do() -> None:
    check_models("clerk", agent({"provider": "anthropic"}))
    with pytest.raises(Invalid):
        check_models("clerk", agent({"provider": "openia"}))


def test_models_that_the_environment_does_not_allow_are_refused_also_as_fallbacks_and_dummies() -> None:
    rules = ModelRules(allow=[AllowedModel(provider="openai", names=["gpt-5*"])])
    checked(agent(), rules=rules)
    for spec in (
        {"name": "gpt-4o"},
        {"provider": "dummy"},
        {"fallbacks": [{"provider": "openai", "name": "gpt-4o"}]},
    ):
        with pytest.raises(Invalid) as caught:
            checked(agent(spec), rules=rules)
        assert caught.value.code == "model_not_allowed"
    with pytest.raises(Invalid):
        checked(agent(), rules=ModelRules(allow=[]))


@pytest.mark.parametrize(
    ("preferences", "provider"),
    [
        ({}, "openai"),
        ({"preferred_mode": "bridge", "allowed_modes": ["bridge"]}, "openai"),
        ({"preferred_mode": "bridge", "bridge_provider": "anthropic"}, "anthropic"),
        ({"preferred_mode": "native", "native_provider": "openai-agents"}, "openai-agents"),
        ({"preferred_mode": "native", "bridge_provider": "anthropic"}, "openai"),
        ({"preferred_mode": "adapter", "adapter_ref": "x", "fallback_mode": "native"}, "openai"),
    ],
)
def test_runtime_preferences_choose_the_provider(preferences: dict[str, Any], provider: str) -> None:
    assert choices("clerk", agent(**preferences))[0].provider == provider


@pytest.mark.parametrize(
    "preferences",
    [
        {"preferred_mode": "adapter", "adapter_ref": "x"},
        {"preferred_mode": "native", "allowed_modes": ["bridge"]},
        {"allowed_modes": ["native"]},
    ],
)
def test_a_runtime_that_is_not_there_or_not_allowed_is_refused(preferences: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        choices("clerk", agent(**preferences))
    assert caught.value.code == "provider_not_configured"


def test_the_refusal_of_an_adapter_names_it() -> None:
    with pytest.raises(Invalid, match="prefers the runtime adapter graphs, which this version does not have"):
        choices("clerk", agent(preferred_mode="adapter", adapter_ref="graphs"))
    with pytest.raises(Invalid, match="prefers a runtime adapter, which"):
        choices("clerk", agent(preferred_mode="adapter"))


def test_an_agent_without_a_model_is_refused() -> None:
    with pytest.raises(Invalid, match="has no model"):
        check_models("clerk", Agent(name="clerk"))


def test_every_provider_is_complete() -> None:
    for name, provider in PROVIDERS.items():
        assert provider.name == name
        assert provider.extra in {"openai", "anthropic", "google"}
        assert provider.needs_key or provider.wire == "chat"
