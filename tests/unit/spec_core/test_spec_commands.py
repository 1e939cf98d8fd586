"""The commands about specs, run in this process in a folder of their own."""

import json

import pytest

from kneo.cli.main import run
from kneo.digest import digest_of_json
from kneo.spec.reading.reader import read_json, read_yaml

SPEC = """\
agent: {name: root, system_prompt: {file: prompts/root.md}}
workflow:
  type: sequential
  name: lab
  steps:
    - {id: draft, kind: function, ref: f}
    - {id: ask, kind: human, ref: boss}
    - {id: publish, kind: agent, ref: worker, review: {after: boss}}
components:
  agents: {worker: {name: worker}}
  functions: {f: {implementation: functions.draft}}
  humans: {boss: {description: Good?}}
"""
LEGACY = """\
root_agent: {name: a}
root_workflow: [{id: x, kind: agent, ref: a}]
component_workflows: {sub: [a]}
functions: {f: {implementation: functions.draft}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "root.md").write_text("Be kind.\n")
    (tmp_path / "functions.py").write_text("raise SystemExit('imported')\ndef draft(text): ...\n")
    (tmp_path / "ok.yaml").write_text(SPEC)
    (tmp_path / "bad.yaml").write_text(
        SPEC.replace("ref: boss}", "ref: bos}").replace("functions.draft", "functions.gone")
    )
    (tmp_path / "typo.yaml").write_text("agent: {name: a, modle: m}\n")
    (tmp_path / "legacy.yaml").write_text(LEGACY)
    monkeypatch.chdir(tmp_path)
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_IMPORT_ALLOW"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


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


def test_validate(answer, kneo):
    status, said = answer("spec", "validate", "ok.yaml")
    assert status == 0
    assert said == {
        "valid": True,
        "diagnostics": [],
        "report": {"agent_name": "root", "workflow_name": "lab"},
        "file": "ok.yaml",
        "overlays": [],
        "environment": "dev",
    }
    status, said = answer("spec", "validate", "bad.yaml", "--env", "prod")
    assert status == 1
    assert not said["valid"]
    assert said["environment"] == "prod"
    assert {d["code"] for d in said["diagnostics"]} >= {"E_STEP_HUMAN_REF"}
    assert all(d["line"] for d in said["diagnostics"])
    status, out, _ = kneo("spec", "validate", "typo.yaml")
    assert status == 1
    assert out.splitlines()[:3] == [
        "typo.yaml:1:18: error E_SCHEMA: 'modle' is not a key that is known here.",
        "    1 | agent: {name: a, modle: m}",
        "      |                  ^",
    ]


def test_options_stand_before_or_after_the_path(kneo):
    assert kneo("spec", "validate", "--env", "prod", "--json", "ok.yaml")[0] == 0
    assert kneo("spec", "validate", "ok.yaml", "--json", "--env", "prod")[0] == 0


def test_lint(answer):
    assert answer("spec", "lint", "ok.yaml")[0] == 0
    status, said = answer("spec", "lint", "bad.yaml")
    assert status == 1
    assert not said["clean"]
    assert said["error_count"] == sum(d["severity"] == "error" for d in said["diagnostics"])
    assert said["warning_count"] + said["error_count"] == len(said["diagnostics"])


def test_findings_for_other_tools(kneo):
    status, out, _ = kneo("spec", "lint", "--format", "sarif", "typo.yaml")
    assert status == 1
    [result] = json.loads(out)["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "typo.yaml"
    status, out, _ = kneo("spec", "lint", "typo.yaml", "--format", "github")
    assert out.startswith("::error file=typo.yaml,line=1,col=18,title=E_SCHEMA::")


def test_compile_and_explain(answer, kneo):
    status, said = answer("spec", "compile", "ok.yaml")
    assert status == 0
    assert said["ok"]
    assert said["summary"] == {"has_root_agent": True, "has_root_workflow": True, "component_agents": ["worker"]}
    status, said = answer("spec", "compile", "bad.yaml")
    assert status == 1
    assert not said["ok"]
    status, said = answer("spec", "explain", "ok.yaml")
    assert said["summary"] == {"root_agent": "root", "root_workflow": "lab", "component_agents": ["worker"]}
    assert said["steps"][2] == {"id": "publish", "kind": "agent", "ref": "worker", "gates": {"after": "boss"}}
    assert "publish: agent worker, asks after" in kneo("spec", "explain", "ok.yaml")[1]


def test_resolve(folder, answer, kneo):
    status, said = answer("spec", "resolve", "ok.yaml", "--output", "out.yaml")
    assert status == 0
    tree = read_yaml((folder / "out.yaml").read_bytes(), file="out").value
    assert tree["agent"]["system_prompt"] == "Be kind.\n"
    assert said["digest"] == digest_of_json(tree)
    assert kneo("spec", "resolve", "-o", "out.json", "ok.yaml")[0] == 0
    assert read_json((folder / "out.json").read_bytes(), file="out").value == tree
    assert read_yaml(kneo("spec", "resolve", "ok.yaml", "-o", "-")[1].encode(), file="out").value == tree
    assert kneo("spec", "resolve", "bad.yaml", "-o", "no.yaml")[0] == 1
    assert not (folder / "no.yaml").exists()


def test_migrate(folder, answer, kneo):
    applied = [
        "set version=v1",
        "renamed root_agent to agent",
        "renamed root_workflow to workflow",
        "moved component_workflows to components.workflows",
        "moved functions to components.functions",
        "converted workflow list to sequential workflow",
        "converted components.workflows.sub list to sequential workflow",
    ]
    shape = {"source_version": None, "target_version": "v1", "changed": True, "applied": applied}
    status, said = answer("spec", "migrate", "legacy.yaml")
    assert status == 0
    assert said == {**shape, "spec": said["spec"]}
    assert answer("spec", "migrate", "legacy.yaml", "--check") == (1, shape)
    assert answer("spec", "migrate", "--output", "new.yaml", "legacy.yaml") == (0, {**shape, "output": "new.yaml"})
    assert kneo("spec", "migrate", "new.yaml", "--check") == (0, "", "")
    assert read_yaml(kneo("spec", "migrate", "legacy.yaml")[1].encode(), file="f").value == said["spec"]
    (folder / "v2.yaml").write_text("version: v2\n")
    assert kneo("spec", "migrate", "v2.yaml")[0] == 1


def test_graph(answer, kneo):
    assert answer("spec", "graph", "ok.yaml")[1]["start"] == "draft"
    assert kneo("spec", "graph", "ok.yaml")[1].startswith("flowchart TD")
    assert kneo("spec", "graph", "--format", "dot", "ok.yaml")[1].startswith("digraph")


def test_schema(folder, kneo):
    assert json.loads(kneo("spec", "schema")[1])["$id"] == "spec.schema.json"
    assert json.loads(kneo("spec", "schema", "trust-root")[1])["$id"] == "trust-root.schema.json"
    assert kneo("spec", "schema", "enviroment")[0] == 4
    assert kneo("spec", "schema", "--output", "out")[0] == 0
    assert (folder / "out" / "environment.schema.json").is_file()


def test_a_spec_that_is_not_there(answer):
    status, said = answer("spec", "lint", "none.yaml")
    assert status == 4
    assert said["error"] == "not_found"
    assert answer("spec", "lint")[0] == 2


PROJECT = """\
project: {name: demo}
specs:
  default_spec: specs/main.yaml
  overlays: {prod: [specs/prod.yaml, specs/missing.yaml]}
model_defaults: {prod: {provider: dummy, name: d}}
"""


def test_the_project_decides_what_is_left_open(folder, answer, kneo, monkeypatch):
    (folder / ".kneo").mkdir()
    (folder / ".kneo" / "config.yaml").write_text(PROJECT)
    (folder / "specs").mkdir()
    (folder / "specs" / "main.yaml").write_text("agent: {name: main, system_prompt: {file: ../prompts/root.md}}\n")
    (folder / "specs" / "prod.yaml").write_text("agent: {name: prod}\n")
    status, said = answer("spec", "validate", "--env", "prod")
    assert status == 0
    assert said["report"]["agent_name"] == "prod"
    assert (said["file"], said["overlays"]) == ("specs/main.yaml", ["specs/prod.yaml"])
    assert "specs/missing.yaml does not exist" in kneo("spec", "validate", "--env", "prod")[2]
    resolved = read_yaml(kneo("spec", "resolve", "-o", "-", "--env", "prod")[1].encode(), file="f").value
    assert resolved["agent"]["model"] == {"provider": "dummy", "name": "d"}
    assert resolved["metadata"] == {"project": "demo", "environment": "prod"}
    assert resolved["agent"]["system_prompt"] == "Be kind.\n"

    monkeypatch.chdir(folder / "specs")
    assert answer("spec", "validate", "main.yaml")[1]["file"] == "main.yaml", "paths start where somebody stands"
    status, said = answer("spec", "validate", "specs/main.yaml")
    assert status == 4
    assert "There is one at" in said["hint"]


def test_overlays_belong_to_the_default_spec(folder, answer):
    (folder / ".kneo").mkdir()
    (folder / ".kneo" / "config.yaml").write_text(PROJECT)
    (folder / "specs").mkdir()
    (folder / "specs" / "prod.yaml").write_text("agent: {name: prod}\n")
    assert answer("spec", "validate", "ok.yaml", "--env", "prod")[1]["overlays"] == []
    (folder / ".kneo" / "config.yaml").write_text(PROJECT.replace("  default_spec: specs/main.yaml\n", ""))
    said = answer("spec", "validate", "ok.yaml", "--env", "prod")[1]
    assert said["overlays"] == ["specs/prod.yaml"], "without a default they are for every spec"


STRICT = """\
project: {name: demo}
environments:
  prod:
    policy_enforcement: {require_human_review: true, require_guardrails: true, fail_on_warnings: true}
"""


def test_the_environments_policy_is_held(folder, answer, kneo):
    (folder / ".kneo").mkdir()
    (folder / ".kneo" / "config.yaml").write_text(STRICT)
    assert answer("spec", "validate", "ok.yaml")[0] == 0
    status, said = answer("spec", "validate", "ok.yaml", "--env", "prod")
    assert status == 1
    assert [d["code"] for d in said["diagnostics"]] == ["E_ENV_POLICY_GUARDRAILS"]
    for command in (["compile"], ["lint"], ["policy-report"], ["resolve", "-o", "out.yaml"]):
        assert kneo("spec", *command, "ok.yaml", "--env", "prod")[0] == 1
    assert not (folder / "out.yaml").exists()


def test_a_config_repositorys_policy_is_held_too(folder, answer):
    (folder / "environments").mkdir()
    (folder / "environments" / "trust.json").write_text("{}")
    (folder / "environments" / "prod.yaml").write_text(
        "apiVersion: kneo/v1\nkind: Environment\nmetadata: {name: prod}\n"
        "spec: {policy: {require_guardrails: true}, signatures: {roles: [release], threshold: 1}}\n"
    )
    assert answer("spec", "lint", "ok.yaml", "--env", "dev")[0] == 0
    status, said = answer("spec", "lint", "ok.yaml", "--env", "prod")
    assert status == 1
    assert said["diagnostics"][0]["code"] == "E_ENV_POLICY_GUARDRAILS"


def test_policy_report(answer, kneo):
    status, said = answer("spec", "policy-report", "ok.yaml")
    assert status == 0
    assert said["valid"]
    assert said["summary"]["human_review_step_count"] == 1
    assert said["report"]["summary"] == said["summary"], "the service's form and the command's"
    assert said["human_review"]["reviewers"] == ["boss"]
    assert "ask asks boss" in kneo("spec", "policy-report", "ok.yaml")[1]
    assert answer("spec", "policy-report", "bad.yaml")[0] == 0, "errors of meaning are in the report"
    status, said = answer("spec", "policy-report", "typo.yaml")
    assert status == 1
    assert not said["valid"]


def test_nothing_outside_the_project_is_taken_in(folder, answer):
    secret = folder.parent / "secret.txt"
    secret.write_text("secret")
    (folder / "link.md").symlink_to(secret)
    for reference in ("../secret.txt", str(secret), "link.md", "a\\0b", "x" * 5000):
        (folder / "leak.yaml").write_text(f'agent: {{name: a, system_prompt: {{file: "{reference}"}}}}\n')
        status, said = answer("spec", "validate", "leak.yaml")
        assert status == 1
        assert "secret\n" not in json.dumps(said["diagnostics"])
        assert said["diagnostics"][0]["code"] in {"E_FILE_REF", "E_SCHEMA"}


def test_compiled_modules_and_packages_are_found(folder, answer):
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").write_text("from .inner import deep\n")
    (folder / "pkg" / "inner.py").write_text("def deep(text): ...\n")
    (folder / "fast.cpython-311-x86_64-linux-gnu.so").touch()
    for implementation in ("pkg.deep", "pkg.inner.deep", "fast.anything"):
        (folder / "s.yaml").write_text(SPEC.replace("functions.draft", implementation))
        status, said = answer("spec", "lint", "s.yaml")
        assert status == 0, said["diagnostics"]
    (folder / "s.yaml").write_text(SPEC.replace("functions.draft", "pkg.inner.shallow"))
    assert answer("spec", "lint", "s.yaml")[0] == 1


def test_a_folder_in_place_of_a_spec_is_named(kneo, folder):
    status, _, said = kneo("spec", "lint", ".")
    assert status == 4
    assert f"{folder} is a folder; name a spec in it." in said


ENVIRONMENT = """\
apiVersion: kneo/v1
kind: Environment
metadata: {name: prod}
spec:
  policy: {enabled: true}
  signatures: {roles: [release], threshold: 1}
"""


def test_an_environment_file_is_checked_by_its_own_rules(folder, kneo, answer):
    (folder / "environments").mkdir()
    file = folder / "environments" / "prod.yaml"
    file.write_text(ENVIRONMENT)
    for verb in ("lint", "validate"):
        status, out, _ = kneo("spec", verb, "environments/prod.yaml")
        assert (status, "environments/prod.yaml: no problems found" in out) == (0, True)
    assert answer("spec", "validate", "environments/prod.yaml")[1]["valid"]

    file.write_text(ENVIRONMENT.replace("threshold: 1", "treshold: 1"))
    status, out, _ = kneo("spec", "lint", "environments/prod.yaml")
    assert status == 1
    assert "environments/prod.yaml:6:34: error E_SCHEMA: 'treshold' is not a key that is known here." in out
    assert "Did you mean threshold?" in out
    assert "agent" not in out

    file.write_text(ENVIRONMENT + "  soak: 24h\n")
    status, said = answer("spec", "lint", "environments/prod.yaml")
    assert (status, [(found["code"], found["line"]) for found in said["diagnostics"]]) == (1, [("E_ENVIRONMENT", 7)])

    file.write_text(ENVIRONMENT.replace("name: prod", "name: live"))
    status, out, _ = kneo("spec", "lint", "environments/prod.yaml")
    assert status == 1
    assert "prod.yaml:3:" in out
    assert "metadata.name is live; it must be prod, like the file." in out

    file.write_text("kind: Environment\nspec: [\n")
    status, out, _ = kneo("spec", "lint", "environments/prod.yaml")
    assert (status, "environments/prod.yaml:" in out) == (1, True)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (ENVIRONMENT, "This is an environment file, and not a spec.", "Check it: kneo spec lint FILE."),
        (
            '{"payload": "e30=", "payloadType": "application/vnd.kneo.trust-root+json", "signatures": []}',
            "This is a signed trust root, and not a spec.",
            "Show it: kneo trust show.",
        ),
        (
            '{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": []}',
            "This is a signed bundle or decision, and not a spec.",
            "Verify a bundle: kneo spec bundle verify FILE; verify a decision: kneo promotion receipt verify FILE.",
        ),
        (
            '{"kind": "kneo.spec.bundle", "version": "v1", "spec": {}}',
            "This is a signed bundle or decision, and not a spec.",
            "Verify a bundle: kneo spec bundle verify FILE; verify a decision: kneo promotion receipt verify FILE.",
        ),
    ],
    ids=["environment", "trust root", "bundle", "older bundle"],
)
def test_another_kind_of_file_is_named(folder, answer, text, message, hint):
    (folder / "other.json" if text.startswith("{") else folder / "other.yaml").write_text(text)
    name = "other.json" if text.startswith("{") else "other.yaml"
    status, said = answer("spec", "explain" if name == "other.yaml" else "lint", name)
    (found,) = said["diagnostics"]
    assert (status, found["message"], found["suggestion"]) == (1, message, hint)
    assert (found["file"], found["line"]) == (name, 2 if name == "other.yaml" else 1)
