"""What lint says about models: what a machine lacks, and what an environment refuses."""

from __future__ import annotations

import pytest

from kneo.agents.providers import model_check
from kneo.settings import from_env
from kneo.spec.coverage.policy import check_policy
from kneo.spec.lint import check
from kneo.spec.lint.tools import host_of, within
from kneo.spec.models.environment import EnvironmentSpec
from kneo.spec.models.providers import PROVIDERS
from kneo.spec.modules import RuleContext
from kneo.spec.policy import PolicyFlags
from kneo.spec.project import ProjectConfig
from kneo.spec.reading.load import load_tree

VARIABLES = [variable for each in PROVIDERS.values() for variable in (each.key_variable, each.url_variable)]
ABOUT_MODELS = ("W_MODEL", "I_MODEL")


@pytest.fixture(autouse=True)
def _without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def findings(
    model: dict[str, object], rules: dict[str, object] | None = None, project: dict[str, str] | None = None
) -> dict[str, tuple[str | None, str]]:
    config = None
    if project is not None:
        config = ProjectConfig.model_validate({"project": {"name": "p"}, "secrets": {"provider_env": project}})
    required = {"policy": {}, "signatures": {"roles": ["release"], "threshold": 1}}
    declared = EnvironmentSpec.model_validate({**required, "models": rules}) if rules is not None else None
    context = RuleContext(rules=declared, models=model_check(from_env(), config))
    loaded = load_tree({"agent": {"name": "root", "model": model}}, rules=check, context=context)
    assert loaded.spec is not None
    return {
        found.code: (found.path_text, f"{found.message} {found.suggestion}")
        for found in loaded.diagnostics
        if found.code.startswith(ABOUT_MODELS)
    }


@pytest.mark.parametrize("provider", [each.name for each in PROVIDERS.values() if each.needs_key])
def test_a_missing_key_is_named_with_what_to_do(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = PROVIDERS[provider].key_variable
    [(code, (path, text))] = findings({"provider": provider, "name": "m"}).items()
    assert (code, path) == ("I_MODEL_KEY", "agent.model.provider")
    assert f"Set {variable}, or {variable}_FILE" in text
    monkeypatch.setenv(variable, "secret-value")
    assert findings({"provider": provider, "name": "m"}) == {}


@pytest.mark.parametrize(
    ("provider", "extra"),
    [("openai", "openai"), ("anthropic", "anthropic"), ("google-adk", "google"), ("openai-compatible", "openai")],
)
def test_a_missing_library_is_named_with_the_command(
    provider: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    path, text = findings({"provider": provider, "name": "m"})["I_MODEL_EXTRA"]
    assert path == "agent.model.provider"
    assert f"pip install 'kneo[{extra}]'" in text


@pytest.mark.parametrize(
    ("extra", "project", "rules", "variable"),
    [
        ({}, {}, {}, "OPENAI_API_KEY"),
        ({"api_key_ref": "SPEC_KEY"}, {}, {}, "SPEC_KEY"),
        ({"api_key_ref": "SPEC_KEY"}, {"openai": "TEAM_KEY"}, {}, "TEAM_KEY"),
        (
            {"api_key_ref": "SPEC_KEY"},
            {"openai": "TEAM_KEY"},
            {"connections": {"openai": {"api_key_ref": "PROD_KEY"}}},
            "PROD_KEY",
        ),
    ],
)
def test_the_key_that_is_missing_is_the_one_that_a_run_would_use(
    extra: dict[str, object], project: dict[str, str], rules: dict[str, object], variable: str
) -> None:
    found = findings({"provider": "openai", "name": "m", "extra": extra}, rules, project)
    assert f"Set {variable}," in found["I_MODEL_KEY"][1]


def test_what_an_environment_refuses() -> None:
    model = {"provider": "vllm", "name": "qwen", "extra": {"base_url": "https://elsewhere.example/v1"}}
    allow = {"allow": [{"provider": "vllm", "names": ["qwen"]}]}
    assert findings(model, {**allow, "hosts": ["elsewhere.example"]}) == {}
    assert findings(model, allow).keys() == {"W_MODEL_HOST"}
    assert findings(model, {"hosts": ["elsewhere.example"], "allow": []}).keys() == {"W_MODEL_NOT_ALLOWED"}
    dummy = {"provider": "dummy", "name": "echo"}
    assert findings(dummy, {"allow": []}).keys() == {"W_MODEL_NOT_ALLOWED"}


def test_fallbacks_are_checked_like_the_model() -> None:
    fallbacks = [
        {"provider": "vllm", "name": "m"},
        {"provider": "opnai", "name": "m"},
        {"provider": "anthropic", "name": "m"},
    ]
    found = findings({"provider": "ollama", "name": "m", "fallbacks": fallbacks})
    assert {code: path for code, (path, _) in found.items()} == {
        "W_MODEL_PROVIDER": "agent.model.fallbacks[1].provider",
        "I_MODEL_KEY": "agent.model.fallbacks[2].provider",
    }


def test_a_policy_about_warnings_does_not_depend_on_the_machine_of_the_check() -> None:
    tree = {"agent": {"name": "root", "model": {"provider": "openai", "name": "m"}}}
    loaded = load_tree(tree, rules=check, context=RuleContext(models=model_check(from_env(), None)))
    assert loaded.spec is not None
    assert "I_MODEL_KEY" in {found.code for found in loaded.diagnostics}
    assert check_policy(loaded.spec, loaded.diagnostics, PolicyFlags(fail_on_warnings=True)) == ()


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Crm.Example/x", "crm.example"),
        ("https://models.example@evil.example/v1", "evil.example"),
        ("file:///etc/passwd", None),
        ("models.example", None),
        ("https://[::1", None),
    ],
)
def test_hosts_of_addresses(url: str, host: str | None) -> None:
    assert host_of(url) == host


def test_domains_have_hosts_below_them_and_no_others() -> None:
    assert within("eu.crm.example", ("CRM.example",))
    assert not within("evilcrm.example", ("crm.example",))
    assert not within("example", ("crm.example",))
