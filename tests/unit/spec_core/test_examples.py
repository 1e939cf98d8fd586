"""Every example is what its first lines promise."""

import ast
import json
import shutil
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from examples.app_functions import compress_history, summarize, web_search, webpage_reader
from examples.human_functions import draft_report, publish_report
from examples.my_tools import lookup_user
from kneo.cli.main import run
from kneo.cli.specs.spec import rendered
from kneo.project.files import ModuleFiles
from kneo.spec.graph import spec_graph
from kneo.spec.lint import check
from kneo.spec.modules import RuleContext
from kneo.spec.project import parse_project
from kneo.spec.reading.load import SourceFile, load_spec
from kneo.spec.reading.reader import read_yaml

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
SPECS = sorted(
    path.name for path in EXAMPLES.glob("*.yaml") if path.name.count(".") == 1 and path.name != "project_config.yaml"
)
ENVIRONMENTS = ("dev", "staging", "prod")
CONTEXT = RuleContext(ModuleFiles([ROOT]), tools=frozenset({"lookup_user"}))


def load(name, overlays=()):
    sources = [SourceFile(overlay, (EXAMPLES / overlay).read_bytes()) for overlay in overlays]
    return load_spec((EXAMPLES / name).read_bytes(), file=name, overlays=sources, context=CONTEXT, rules=check)


def test_the_examples_are_all_there():
    assert SPECS == [
        "concurrent_review_workflow.yaml",
        "graph_review_workflow.yaml",
        "group_chat_workflow.yaml",
        "human_approval_workflow.yaml",
        "lookup_agent.yaml",
        "release_gates.yaml",
        "research_agent.yaml",
        "smoke_human_workflow.yaml",
    ]


@pytest.mark.parametrize("name", SPECS)
def test_an_example_has_no_findings(name):
    loaded = load(name)
    assert [found.code for found in loaded.diagnostics] == []
    assert loaded.valid
    assert spec_graph(loaded.spec).nodes


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_research_agent_in_every_environment(environment):
    loaded = load("research_agent.yaml", [f"research_agent.{environment}.yaml"])
    assert [found.code for found in loaded.diagnostics] == []
    iterations = {"dev": 3, "staging": 5, "prod": 8}
    assert loaded.spec.agent.strategy.max_iterations == iterations[environment]
    assert loaded.spec.policies["tracing"]["enabled"]
    assert any(step.kind == "human" for step in loaded.spec.workflow.steps) == (environment == "prod")


@pytest.mark.parametrize("name", [*SPECS, "project_config.yaml", "human_approval_workflow.answers.yaml"])
def test_editors_find_nothing_either(name):
    head, _, _ = (EXAMPLES / name).read_text().partition("\n")
    assert head.startswith("# yaml-language-server: $schema=../schemas/")
    schema = json.loads((EXAMPLES / head.partition("=")[2]).read_text())
    value = read_yaml((EXAMPLES / name).read_bytes(), file=name).value
    assert [error.message for error in Draft202012Validator(schema).iter_errors(value)] == []


def test_the_project_config_makes_a_project(tmp_path, monkeypatch, capsys):
    config = parse_project((EXAMPLES / "project_config.yaml").read_bytes(), file="project_config.yaml")
    assert config.policy("prod").require_human_review
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".kneo").mkdir()
    shutil.copy(EXAMPLES / "project_config.yaml", tmp_path / ".kneo" / "config.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KNEO_ENV", raising=False)
    monkeypatch.delenv("KNEO_PROJECT_CONFIG", raising=False)
    for environment in ENVIRONMENTS:
        assert run(["spec", "validate", "--env", environment]) == 0, capsys.readouterr()
        assert f"research_agent.{environment}.yaml" in capsys.readouterr().out


def test_the_functions_answer_offline():
    assert "example.org" in web_search({"query": "a b"})
    assert "https://x" in webpage_reader({"url": "https://x"})
    assert summarize("One. Two! Three? Four.") == "One. Two! Three?"
    assert len(compress_history("x" * 1000)) < 410
    assert draft_report("cats") in publish_report(draft_report("cats"))
    assert lookup_user({"user_id": "u-002"}) == "bob@example.com"
    assert lookup_user({"user_id": "nobody"}) == "unknown: nobody"
    assert lookup_user({}).startswith("unknown")


def test_the_program_uses_the_embedding_surface():
    tree = ast.parse((EXAMPLES / "run_with_timeout.py").read_text())
    called = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert {"start_run_from_spec", "dispatch_run", "prune_timed_out_runs", "get_run"} <= called


@pytest.mark.parametrize(("name", "text"), rendered().items())
def test_the_schemas_in_the_repository_are_fresh(name, text):
    assert (ROOT / "schemas" / name).read_text() == text, "make schemas writes them anew"


def test_no_other_file_is_among_the_schemas():
    assert sorted(path.name for path in (ROOT / "schemas").iterdir()) == sorted(rendered())
