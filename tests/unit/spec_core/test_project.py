import pytest

from kneo.spec.project import choose_environment, parse_project, provider_variable, render_project
from kneo.spec.reading.load import load_spec
from kneo.spec.reading.validate import InvalidDeclaration

WHOLE = b"""\
project: {name: demo, owner: team, description: d, default_environment: staging, tags: [a]}
service: {default_url: "http://localhost:8000", timeout_seconds: 30, headers: {X-Team: a}}
local:
  {state_path: s, artifact_path: a, log_path: l, cache_path: c, create_missing_dirs: false}
specs:
  default_spec: specs/a.yaml
  overlays: {prod: [specs/a.prod.yaml]}
  include_paths: [lib]
  validate_on_run: false
runtime_defaults:
  {preferred_mode: native, allowed_modes: [native], fallback_mode: null, native_provider: openai}
model_defaults:
  prod: {provider: openai, name: m, temperature: 0.1, max_tokens: 10, timeout_seconds: 5, extra: {base_url: u}}
policy_defaults:
  checkpointing: {enabled: true, mode: node}
  logging: {level: debug}
  tracing: {enabled: true, include_messages: true, include_tool_results: false}
  guardrails: {enable_default_input_filter: true, enable_default_output_review: false}
secrets: {provider_env: {openai: MY_KEY}, extra_env: {mcp_default: MCP_API_KEY}}
retention:
  {runs_days: 30, checkpoints_days: 14, queue_days: 7, continuations_days: 21, artifacts_days: 60, logs_days: 90,
   audit_days: null, idempotency_days: 1}
environments:
  prod:
    region: eu
    defaults: {agent: {description: from prod}}
    policy_enforcement: {require_tool_permissions: true, blocked_diagnostic_codes: [E_UNSAFE_TOOL_IMPORT]}
"""


def test_the_whole_config():
    config = parse_project(WHOLE, file=".kneo/config.yaml")
    assert config.retention.logs_days == 90
    assert config.policy("prod").require_tool_permissions
    assert config.policy("dev") is None
    assert config.provider_variables() == {"openai": "MY_KEY"}
    defaults = config.spec_defaults("prod")
    assert defaults.model["extra"] == {"base_url": "u"}
    assert "fallback_mode" not in defaults.runtime
    loaded = load_spec(b"agent: {name: a}", file="s.yaml", defaults=defaults)
    assert loaded.valid
    assert loaded.tree["agent"]["model"]["name"] == "m"
    assert loaded.tree["metadata"] == {"project": "demo", "environment": "prod"}
    assert loaded.tree["policies"]["project_defaults"]["logging"] == {"level": "debug"}


def test_the_least_config():
    config = parse_project(b"project: {name: x}", file="f")
    assert config.local.state_path == ".kneo/kneo_runs.sqlite"
    assert config.specs.validate_on_run
    assert config.provider_variables()["google-adk"] == "GOOGLE_API_KEY"
    assert config.spec_defaults("dev").runtime == {"preferred_mode": "bridge", "allowed_modes": ["bridge"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "project is required"),
        ("project: {name: x}\nspec: {}", "Did you mean specs?"),
        ("project: {name: x}\nretention: {runs_days: -1}", "at least 0"),
        (
            "project: {name: x}\nenvironments: {prod: {policy_enforcement: {require_human: true}}}",
            "require_human_review",
        ),
        ("project: {name: x}\npolicy_defaults: {logging: {level: loud}}", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_mistakes(text, words):
    with pytest.raises(InvalidDeclaration) as caught:
        parse_project(text.encode(), file=".kneo/config.yaml")
    assert words in str(caught.value)
    assert caught.value.details["file"] == ".kneo/config.yaml"


def test_a_new_config_is_one_and_names_nothing_that_is_not_there():
    config = parse_project(render_project("it's: mine").encode(), file="f")
    assert config.project.name == "it's: mine"
    assert config.service.default_url is None
    assert config.specs.default_spec is None
    assert config.policy("prod").require_guardrails
    assert not config.policy("dev").enabled
    config = parse_project(render_project("n", "s.yaml", {"prod": ["s.prod.yaml"]}).encode(), file="f")
    assert config.specs.default_spec == "s.yaml"
    assert config.specs.overlays == {"prod": ("s.prod.yaml",)}


def test_which_environment():
    config = parse_project(WHOLE, file="f")
    assert choose_environment("a", "b", config) == "a"
    assert choose_environment(None, "b", config) == "b"
    assert choose_environment(None, "", config) == "staging"
    assert choose_environment(None, "", None) == "dev"


def test_where_keys_of_other_providers_are_looked_for():
    assert provider_variable("my-llm") == "MY_LLM_API_KEY"
    assert provider_variable("google-adk") == "GOOGLE_API_KEY"
