import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import kneo.cli.releases.init as command
from kneo import __version__, distribution
from kneo.clock import SystemClock
from kneo.errors import Invalid
from kneo.spec.environment import parse_environment
from kneo.trust.keys import PrivateKey
from kneo.trust.root import verify_chain
from kneo.trust.verify import verify_bundle

Kneo = Callable[..., Any]
BUNDLE = "bundles/announcement/1.0.0.dsse.json"


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_answer(kneo: Kneo, tmp_path: Path):
    made = kneo("init", "acme", "--json")
    assert made.status == 0
    assert {key: made.json[key] for key in ("directory", "key", "bundle", "environments")} == {
        "directory": str(tmp_path / "acme"),
        "key": str(tmp_path / "acme-keys" / "release.pem"),
        "bundle": "announcement@1.0.0",
        "environments": ["dev", "staging", "prod"],
    }
    assert made.json["keys"] == {
        role: str(tmp_path / "acme-keys" / f"{role}.pem") for role in ("root", "release", "approver")
    }
    assert made.json["principals"] == {"root": "owner", "release": "owner", "approver": "approver"}
    assert str(made.json["trust_root"]).startswith("sha256:")


def test_everything_is_committed_and_verifies(kneo: Kneo, tmp_path: Path):
    made = kneo("init", "acme", "--json").json
    repo = tmp_path / "acme"
    approver = PrivateKey.load(Path(made["keys"]["approver"]).read_bytes()).keyid.removeprefix("sha256:")
    assert git(repo, "status", "--porcelain", "--ignored") == ""
    assert git(repo, "rev-list", "--count", "main") == "1"
    assert git(repo, "ls-tree", "-r", "--name-only", "main").split() == [
        ".github/actions/check/action.yml",
        ".github/actions/sign/action.yml",
        ".github/kneo.in",
        ".github/workflows/config-check.yml",
        ".github/workflows/config-sign.yml",
        ".github/workflows/kneo.yml",
        ".github/workflows/sign.yml",
        ".gitignore",
        "README.md",
        "announcement_functions.py",
        f"bundles/announcement/1.0.0.approvals/{approver}.dsse.json",
        BUNDLE,
        f"environments/dev.approvals/{approver}.dsse.json",
        "environments/dev.yaml",
        f"environments/prod.approvals/{approver}.dsse.json",
        "environments/prod.yaml",
        f"environments/staging.approvals/{approver}.dsse.json",
        "environments/staging.yaml",
        "environments/trust.json",
        "evals/announcement.yaml",
        "specs/announcement.yaml",
    ]
    now = SystemClock().now()
    root = verify_chain(made["trust_root"], [(repo / "environments/trust.json").read_bytes()], now)
    assert set(root.document.roles) == {"root", "release", "approver"}
    for name in made["environments"]:
        file = f"environments/{name}.yaml"
        environment = parse_environment((repo / file).read_bytes(), file=file)
        assert environment.spec.inline_specs is (name == "dev")
        assert [(r.bundle, r.version) for r in environment.spec.releases] == [("announcement", "1.0.0")]
        bundle = verify_bundle(
            (repo / BUNDLE).read_bytes(),
            root=root,
            signatures=environment.spec.signatures,
            path=BUNDLE,
            environment=name,
            now=now,
        )
        assert bundle.digest == made["digest"]


def test_the_key_is_private_and_elsewhere(kneo: Kneo, tmp_path: Path):
    made = kneo("init", "acme", "--json").json
    for key in map(Path, made["keys"].values()):
        assert not key.is_relative_to(tmp_path / "acme")
        assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        secret = key.read_text().splitlines()[1]
        assert all(secret.encode() not in content for content in everything(tmp_path / "acme").values())


def test_each_key_does_one_thing_and_prod_asks_for_another_person(kneo: Kneo, tmp_path: Path):
    made = kneo("init", "acme", "--principal", "bob", "--approver", "ann", "--json").json
    keys = {role: PrivateKey.load(Path(path).read_bytes()).keyid for role, path in made["keys"].items()}
    shown = kneo("trust", "show", "--file", "acme/environments/trust.json", "--json").json
    assert {name: role["keys"] for name, role in shown["roles"].items()} == {role: [keys[role]] for role in keys}
    assert [shown["keys"][keys[role]]["principal"] for role in ("root", "release", "approver")] == ["bob", "bob", "ann"]
    prod = parse_environment((tmp_path / "acme/environments/prod.yaml").read_bytes(), file="prod.yaml").spec
    assert prod.approvals is not None
    assert (prod.approvals.required, prod.approvals.exclude) == (1, ("bundle_signer",))
    assert prod.people["ann"].roles == ("approver",)


def test_one_person_cannot_hold_both_sides(kneo: Kneo, tmp_path: Path):
    assert kneo("init", "acme", "--principal", "ann", "--approver", "ANN").status == 2
    assert kneo("init", "acme", "--key", "approver.pem").status == 2
    kneo("keys", "generate", "-o", "release.pem")
    (tmp_path / "approver.pem").write_bytes((tmp_path / "release.pem").read_bytes())
    (tmp_path / "approver.pem").chmod(0o600)
    assert kneo("init", "acme", "--key", "release.pem").status == 2
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize("template", command.RepositoryTemplate)
def test_no_template_word_is_left(template: command.RepositoryTemplate, kneo: Kneo, tmp_path: Path):
    assert kneo("init", "acme", "--name", "release-notes", "--template", template).status == 0
    for path, content in everything(tmp_path / "acme").items():
        assert ".git/" in path or not re.search(rb"@[A-Z_]+@", content), path


@pytest.mark.parametrize("template", command.RepositoryTemplate)
@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_a_template_is_a_spec_without_findings_in_each_environment(
    template: command.RepositoryTemplate, environment: str, kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = kneo("init", "acme", "--template", template, "--json").json
    name = made["bundle"].removesuffix("@1.0.0")
    monkeypatch.chdir(tmp_path / "acme")
    checked = kneo("spec", "lint", f"specs/{name}.yaml", "--env", environment)
    assert checked.status == 0, checked.err


@pytest.mark.parametrize("template", command.RepositoryTemplate)
def test_the_readme_of_a_template_has_one_screen_and_names_each_folder(
    template: command.RepositoryTemplate, kneo: Kneo, tmp_path: Path
):
    kneo("init", "acme", "--template", template)
    readme = (tmp_path / "acme/README.md").read_text()
    assert len(readme.splitlines()) <= 60
    for folder in ("specs/", "bundles/", "environments/", ".github/"):
        assert f"`{folder}" in readme
    assert (tmp_path / "acme/.github/workflows/kneo.yml").is_file()


def test_ci_installs_the_wheel_of_the_repository_until_an_index_has_kneo(
    kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = kneo("init", "acme")
    requirements = (tmp_path / "acme/.github/kneo.in").read_text()
    assert f"\n./.github/wheels/kneo-{__version__}-py3-none-any.whl\n" in requirements
    for command_line in (command.WHEEL, command.LOCK):
        assert command_line in made.out
        assert command_line in requirements
    monkeypatch.setattr(distribution, "INDEX_NAME", "kneo-platform")
    monkeypatch.setattr(distribution, "NAME", "kneo-platform")
    made = kneo("init", "other", "--template", "gateway")
    requirements = (tmp_path / "other/.github/kneo.in").read_text()
    assert requirements.endswith(f"\nkneo-platform=={__version__}\n")
    assert command.LOCK in requirements
    assert not {"wheel", ".github/wheels"} & {*(requirements + made.out).split()}
    assert "pip install 'kneo-platform[mcp]'" in (tmp_path / "other/README.md").read_text()


@pytest.mark.parametrize("template", ["agent", "gateway"])
def test_the_tests_of_a_template_pass(template: str, kneo: Kneo, tmp_path: Path):
    kneo("init", "acme", "--template", template, "--name", "shop-agent")
    command = [sys.executable, "-m", "unittest", "tests/test_tools.py"]
    done = subprocess.run(command, cwd=tmp_path / "acme", capture_output=True, text=True, check=False)
    assert (done.returncode, "Ran 3 tests" in done.stderr) == (0, True), done.stderr


def test_the_suite_of_the_agent_holds_and_stops_a_gate_that_asks_less(
    kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kneo("init", "acme", "--template", "agent")
    monkeypatch.chdir(tmp_path / "acme")
    words = ("eval", "evals/support.yaml", "--bundle", "specs/support.yaml", "--env", "prod")
    assert kneo(*words).status == 0
    for file in ("specs/support.yaml", "environments/prod.yaml"):
        path = tmp_path / "acme" / file
        path.write_text(path.read_text().replace("args.euros > 100", "args.euros > 900").replace("<= 100", "<= 900"))
    failed = kneo(*words)
    assert failed.status == 1
    assert "large-refund-asks-finance" in failed.err


@pytest.mark.parametrize("template", ["workflow", "agent"])
def test_the_suite_of_a_template_needs_no_code_and_no_model(
    template: str, kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kneo("init", "acme", "--template", template, "--name", "shop-agent")
    monkeypatch.chdir(tmp_path / "acme")
    done = kneo("eval", "evals/shop-agent.yaml", "--bundle", "specs/shop-agent.yaml", "--no-code", "--json")
    assert (done.status, done.json["ok"], done.json["scripted"]) == (0, True, True)


def test_the_model_of_the_agent_is_named(kneo: Kneo, tmp_path: Path):
    assert kneo("init", "acme", "--template", "agent", "--model", "ollama/qwen3:8b").status == 0
    model = yaml.safe_load((tmp_path / "acme/specs/support.yaml").read_text())["agent"]["model"]
    assert (model["provider"], model["name"]) == ("ollama", "qwen3:8b")
    assert kneo("init", "other", "--template", "agent", "--model", "gpt-5-mini").status == 2


def test_the_spec_is_clean_and_means_what_was_signed(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = kneo("init", "acme", "--name", "release-notes", "--json").json["key"]
    assert kneo("spec", "lint", "acme/specs/release-notes.yaml").status == 0
    monkeypatch.chdir(tmp_path / "acme")
    assert kneo("spec", "lint", "specs/release-notes.yaml").status == 0
    again = ["--output", "bundles/release-notes/1.0.0.dsse.json", "--approved-by", "ann", "--key", key, "--json"]
    signed = kneo("spec", "bundle", "sign", "specs/release-notes.yaml", *again)
    assert signed.status == 0, signed.err
    assert signed.json["added"] is True


def test_the_function_publishes_once_for_each_key(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kneo("init", "acme")
    names: dict[str, Any] = {}
    exec((tmp_path / "acme" / "announcement_functions.py").read_text(), names)

    class Context:
        idempotency_key, run_id = "k1", "run_1"

    monkeypatch.chdir(tmp_path)
    assert names["publish"]("hello", Context()) == names["publish"]("hello", Context()) == "published: hello"
    lines = [json.loads(line) for line in (tmp_path / "published.jsonl").read_text().splitlines()]
    assert lines == [{"idempotency_key": "k1", "run_id": "run_1", "text": "hello"}]


def test_this_machine_remembers_the_root(kneo: Kneo, home: Path, tmp_path: Path):
    made = kneo("init", "acme", "--json").json
    known = json.loads((home / ".kneo_serv" / "known_roots.json").read_text())
    assert known == {str(tmp_path / "acme"): made["trust_root"]}


def test_an_empty_folder_one_stands_in(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "acme").mkdir()
    monkeypatch.chdir(tmp_path / "acme")
    assert kneo("init", ".").status == 0
    assert Path.cwd() == tmp_path / "acme"
    assert (Path.cwd() / "README.md").is_file()
    assert git(Path.cwd(), "status", "--porcelain") == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["acme", "acme-keys", "home"]


def test_a_folder_with_something_in_it_is_left_alone(kneo: Kneo, home: Path, tmp_path: Path):
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "notes").write_text("mine")
    refused = kneo("init", "acme")
    assert refused.status == 5
    assert "not empty" in refused.err
    assert everything(tmp_path) == {"acme/notes": b"mine"}
    assert not (home / ".kneo_serv").exists()
    (tmp_path / "file").write_text("x")
    assert kneo("init", "file").status == 5


@pytest.mark.parametrize("name", ["", "Two Words", "../up", "a_b", "1st", "x" * 61, "-a", "a-"])
def test_names_that_are_no_names(name: str, kneo: Kneo, tmp_path: Path):
    assert kneo("init", "acme", f"--name={name}").status == 2
    assert not (tmp_path / "acme").exists()


def test_a_key_inside_the_repository_is_refused(kneo: Kneo, tmp_path: Path):
    (tmp_path / "acme").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "acme")
    for path in ("acme/release.pem", "acme/../acme/keys/k.pem", "link/k.pem"):
        assert kneo("init", "acme", "--key", path).status == 2
    assert list((tmp_path / "acme").iterdir()) == []


def test_a_key_that_is_there_is_used(kneo: Kneo, tmp_path: Path):
    kneo("keys", "generate", "-o", "ann.pem")
    made = kneo("init", "acme", "--key", "ann.pem", "--principal", "ann", "--json").json
    assert made["key"] == str(tmp_path / "ann.pem")
    keyid = PrivateKey.load((tmp_path / "ann.pem").read_bytes()).keyid
    shown = kneo("trust", "show", "--file", "acme/environments/trust.json", "--json").json
    assert shown["roles"]["release"]["keys"] == [keyid]
    assert shown["keys"][keyid]["principal"] == "ann"


@pytest.mark.parametrize("what", ["_sign", "_write_templates", "KnownRoots"])
@pytest.mark.parametrize("exists", [False, True])
def test_after_a_failure_everything_is_as_before(
    what: str, exists: bool, kneo: Kneo, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise Invalid("The disk is full.")

    if exists:
        (tmp_path / "acme").mkdir()
    monkeypatch.setattr(command, what, fail)
    assert kneo("init", "acme").status == 1
    assert everything(tmp_path) == {}
    assert (tmp_path / "acme").exists() is exists
    assert sorted(p.name for p in tmp_path.iterdir()) == (["acme", "home"] if exists else ["home"])
    assert not (home / ".kneo_serv").exists()


def test_a_place_that_cannot_be_written(kneo: Kneo, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    refused = kneo("init", "file/acme")
    assert refused.status in {1, 5}
    assert "Traceback" not in refused.err
    assert everything(tmp_path) == {"file": b"x"}


def test_git_is_never_set_up_and_a_hook_calls(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    git(tmp_path, "init", "--quiet", "outer")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "outer" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "outer" / ".git" / "index"))
    assert kneo("init", "acme").status == 0
    assert git(tmp_path / "acme", "log", "--format=%an") == "kneo"
    assert git(tmp_path / "outer", "status", "--porcelain") == ""


def test_an_environment_file_may_be_called_yml(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kneo("init", "acme")
    monkeypatch.chdir(tmp_path / "acme")
    Path("environments/prod.yaml").rename("environments/prod.yml")
    assert kneo("spec", "lint", "specs/announcement.yaml", "--env", "prod").status == 0
    Path("environments/prod.yml").write_text("kind: Environment\n")
    refused = kneo("spec", "lint", "specs/announcement.yaml", "--env", "prod")
    assert (refused.status, "environments/prod.yml" in refused.err) == (1, True)


def test_a_release_that_stands_in_a_text_is_not_promoted(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kneo("init", "acme")
    monkeypatch.chdir(tmp_path / "acme")
    prod = Path("environments/prod.yaml")
    text = "humans:\n    lead:\n      description: |\n        - {bundle: announcement, version: 9.9.9}\n"
    prod.write_text(prod.read_text().replace("spec:\n", f"spec:\n  {text}", 1).replace("1.0.0", "0.9.0"))
    for words in (["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "Text"]):
        subprocess.run(["git", *words], check=True)
    before = prod.read_text()
    refused = kneo("promote", "announcement", "--from", "dev", "--to", "prod", "--json")
    assert (refused.status, refused.json["error"]) == (5, "unusual_file")
    assert prod.read_text() == before
