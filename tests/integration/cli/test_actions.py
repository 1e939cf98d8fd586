"""The checks of a config repository as its CI runs them: every step of the actions that kneo init writes, in bash, by its workflows."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from kneo_process import Machine
from warm import commands, run_python

from kneo.settings import process_environment
from kneo.trust.dsse import parse_envelope
from kneo.trust.keys import PrivateKey

ROOT = Path(__file__).parents[3]
ACTIONS = ("check", "sign")
WORKFLOWS = ("config-check", "config-sign")
_INPUT = re.compile(r"\$\{\{ inputs\.([a-z-]+) \}\}")
_ANY = re.compile(r"\$\{\{.*?\}\}")

JUDGED = "Refuse what would stall an environment"

GH = """#!/bin/sh
# The forge's command, as far as the actions use it: comments lie in a file, and one has the id 17 when it is the check's own.
echo "$*" >> "$COMMENT.calls"
case "$*" in
  *--paginate*) if head -n 1 "$COMMENT" 2>/dev/null | grep -q "^<!-- kneo-plan -->$"; then echo 17; fi ;;
  *PATCH*issues/comments/17*) for word; do case "$word" in body=@*) cat "${word#body=@}" > "$COMMENT" ;; esac; done ;;
  "pr comment"*) shift 3; cat "$2" > "$COMMENT" ;;
  *) exit 1 ;;
esac
"""


@dataclass
class Runner:
    """Runs actions as the forge's runner does."""

    repo: Path
    temp: Path
    env: dict[str, str]
    ran: list[str] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    keep_going: bool = False
    only: frozenset[str] | None = None
    """The names of the steps that run; without them all."""
    failed_at: str | None = None

    @property
    def summary(self) -> str:
        return (self.temp / "summary").read_text()

    def follow(self, workflow: str, **context: str) -> subprocess.CompletedProcess[str] | None:
        """Run what a workflow of this repository calls, in an event that its expressions are looked up in."""
        ((_, job),) = self._workflow(f".github/workflows/{workflow}.yml")["jobs"].items()
        given = {name: _evaluated(text, context) for name, text in job["with"].items()}
        secrets = {name: _evaluated(text, context) for name, text in job.get("secrets", {}).items()}
        called = self._workflow(job["uses"].removeprefix("./"))
        terms = called["on"]["workflow_call"]
        assert set(secrets) <= set(terms.get("secrets", {}))
        inputs = _with_defaults(terms["inputs"], given)
        ((_, job),) = called["jobs"].items()
        inner = context | {f"inputs.{name}": value for name, value in inputs.items()}
        inner |= {f"secrets.{name}": value for name, value in secrets.items()}
        (step,) = [step for step in job["steps"] if step["uses"].startswith("./")]
        passed = {name.replace("-", "_"): _evaluated(text, inner) for name, text in step["with"].items()}
        return self.run(Path(step["uses"]).name, **passed)

    def _workflow(self, path: str) -> dict[str, Any]:
        # YAML 1.1 takes the key "on" for a truth value.
        return {
            str(key).replace("True", "on"): value
            for key, value in yaml.safe_load((self.repo / path).read_text()).items()
        }

    def run(self, action: str, **inputs: str) -> subprocess.CompletedProcess[str] | None:
        """Run an action's steps until one fails; return that one."""
        declared = yaml.safe_load((self.repo / f".github/actions/{action}/action.yml").read_text())
        values = _with_defaults(declared["inputs"], {name.replace("_", "-"): value for name, value in inputs.items()})
        failed = None
        for step in declared["runs"]["steps"]:
            condition = step.get("if", "")
            if "inputs.comment != ''" in condition and not values["comment"]:
                continue
            if self.only is not None and step["name"] not in self.only:
                continue
            if failed is not None and "!cancelled()" not in condition and not self.keep_going:
                continue
            done = self._step(step, values)
            self.ran.append(step["name"])
            self.printed.append(done.stdout + done.stderr)
            if done.returncode != 0 and failed is None:
                failed, self.failed_at = done, step["name"]
        return failed

    def _step(self, step: Mapping[str, object], values: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        env = self.env | {"PATH": ":".join([*reversed((self.temp / "path").read_text().split()), self.env["PATH"]])}
        env |= {key: _INPUT.sub(lambda found: values[found[1]], text) for key, text in step.get("env", {}).items()}  # type: ignore[attr-defined]
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", str(step["run"])]
        return subprocess.run(command, cwd=self.repo, env=env, capture_output=True, text=True, timeout=240, check=False)


def _with_defaults(declared: Mapping[str, Mapping[str, str]], given: Mapping[str, str]) -> dict[str, str]:
    values = {name: given.get(name, item.get("default")) for name, item in declared.items()}
    assert set(given) <= set(declared)
    assert None not in values.values(), values
    return values


def _evaluated(text: str, context: Mapping[str, str]) -> str:
    return _ANY.sub(lambda found: context[found[0][3:-2].strip()], text)


LOCK = ".github/kneo.txt"

SHIM = "import os, sys\ndef main():\n    os.execv({kneo!r}, [{kneo!r}, *sys.argv[1:]])\n"


def _wheel(folder: Path, name: str, version: str = "0.1.0") -> str:
    """A package whose command of the same name starts this kneo, in a folder that stands for the registry; its hash."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}_shim.py": SHIM.format(kneo=f"{commands()}/kneo"),
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[console_scripts]\n{name} = {name}_shim:main\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for path, text in files.items()
    )
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{about}/RECORD": f"{record}{about}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


PYTHON = """#!/bin/sh
# The machine's Python, except that an environment is a copy of one that was made once.
if [ "$1 $2 $3 $4" != "-I -m venv --clear" ]; then exec {python} "$@"; fi
rm -rf "$5" && exec cp -RP {made} "$5"
"""

PLANNED = frozenset({"Plan", "Comment", JUDGED})
SIGNED = frozenset({"Sign", "Verify", "Commit"})


@dataclass
class Made:
    runner: Runner
    pin: str
    key: Path
    origin: Path


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, dict[str, object]]:
    """What kneo init makes, and the machine on which it was made."""
    folder = tmp_path_factory.mktemp("fresh")
    machine = Machine(folder, f"sqlite:///{folder / 'unused.sqlite'}")
    return machine, machine.json("init", "acme")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that copies environments: making one takes longer than everything else that an action does."""
    environment = tmp_path_factory.mktemp("environment") / "kneo"
    path = process_environment("PATH")["PATH"]
    python = shutil.which("python3", path=path)
    compiled = [
        str(environment / "bin/python"),
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        str(environment),
    ]
    for command in (["python3", "-I", "-m", "venv", str(environment)], compiled):
        subprocess.run(command, check=True, timeout=240, env={"PATH": path})
    return PYTHON.format(python=python, made=environment)


@pytest.fixture
def made(fresh: tuple[Machine, dict[str, object]], copied: str, tmp_path: Path) -> Made:
    """A copy of it with an origin, and a runner that has it checked out."""
    machine, answer = fresh
    repo, origin, temp, tools, packages = (
        tmp_path / name for name in ("acme", "origin.git", "temp", "tools", "packages")
    )
    shutil.copytree(machine.folder / "acme", repo)
    for folder in (temp, tools, packages):
        folder.mkdir()
    for name in ("summary", "path"):
        (temp / name).touch()
    (tools / "gh").write_text(GH)
    (tools / "python3").write_text(copied)
    shutil.copyfile(f"{commands()}/kneo", tools / "kneo")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    env = {
        **machine.env,
        "PATH": f"{tools}:{process_environment('PATH')['PATH']}",
        "GITHUB_STEP_SUMMARY": str(temp / "summary"),
        "RUNNER_TEMP": str(temp),
        "GITHUB_PATH": str(temp / "path"),
        "COMMENT": str(temp / "comment"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(packages),
        "GITHUB_REPOSITORY": "acme/config",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    (repo / LOCK).write_text(f"kneo==0.1.0 --hash=sha256:{_wheel(packages, 'kneo')}\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (
        ["-C", str(repo), "add", LOCK],
        ["-C", str(repo), *identity, "commit", "-q", "-m", "Lock what CI installs"],
        ["clone", "-q", "--bare", str(repo), str(origin)],
        ["-C", str(repo), "remote", "add", "origin", str(origin)],
        ["-C", str(repo), "fetch", "-q", "origin"],
    ):
        subprocess.run(["git", *words], check=True, env=env)
    key = Path(str(answer["key"]))
    (repo / "release.pub").write_text(PrivateKey.load(key.read_bytes()).public.pem)
    return Made(Runner(repo, temp, env), str(answer["trust_root"]), key, origin)


NO_KNEO = "#!/bin/sh\necho 'the kneo of the machine ran' >&2\nexit 99\n"


def _sign_install(made: Made, **how: str) -> subprocess.CompletedProcess[str] | None:
    """Run the action that signs on a machine whose own kneo must not be used."""
    (made.runner.temp.parent / "tools/kneo").write_text(NO_KNEO)
    return _sign(made, key=made.key.read_text(), **how)


def _spoil(made: Made, lock: str) -> None:
    packages = made.runner.temp.parent / "packages"
    (made.runner.repo / LOCK).write_text(lock.format(other=_wheel(packages, "other"), wrong="0" * 64))


@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        ("", "lock file with hashes"),
        ("kneo==0.1.0\n", "lock file with hashes"),
        ("kneo==0.1.0\nother==0.1.0 --hash=sha256:{other}\n", "HASHES ARE REQUIRED"),
        ("kneo==0.1.0 --hash=sha256:{wrong}\n", "DO NOT MATCH"),
        ("other==0.1.0 --hash=sha256:{other}\n", "does not name kneo"),
    ],
    ids=["empty", "no hashes", "one without a hash", "another hash", "no kneo"],
)
def test_the_job_that_signs_installs_only_what_the_lock_file_names_by_hash(made: Made, lock: str, reason: str) -> None:
    _spoil(made, lock)
    failed = _sign_install(made)
    assert failed is not None
    assert made.runner.ran == ["Install"]
    assert reason.lower() in "".join(made.runner.printed).lower()
    assert not (made.runner.repo / "bundles/announcement/1.1.0.dsse.json").exists()


def test_the_job_that_signs_refuses_a_lock_file_that_is_not_there(made: Made) -> None:
    failed = _sign_install(made, requirements=".github/other.txt")
    assert failed is not None
    assert made.runner.ran == ["Install"]
    assert "uv pip compile --generate-hashes" in failed.stdout


def test_the_job_that_signs_builds_nothing_and_imports_nothing_of_the_repository(made: Made) -> None:
    copying, kept = made.runner.temp.parent / "tools/python3", made.runner.temp.parent / "python3"
    copying.rename(kept)
    for name in ("venv", "pip", "ensurepip"):
        (made.runner.repo / f"{name}.py").write_text("raise SystemExit('the repository was imported')\n")
    assert _sign_install(made) is None
    kept.rename(copying)
    packages = made.runner.temp.parent / "packages"
    (packages / "kneo-0.1.0-py3-none-any.whl").unlink()
    source = packages / "kneo-0.1.0.tar.gz"
    source.write_bytes(b"a source distribution is never opened")
    (made.runner.repo / LOCK).write_text(
        f"kneo==0.1.0 --hash=sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}\n"
    )
    made.runner.ran.clear()
    failed = made.runner.run("sign", **_what(made), key=made.key.read_text())
    assert failed is not None
    assert made.runner.ran == ["Install"]
    assert "no matching distribution" in failed.stderr.lower()


def test_the_check_installs_by_the_lock_file_of_the_commit_it_compares_with(made: Made) -> None:
    (made.runner.temp.parent / "tools/kneo").unlink()
    (made.runner.repo / LOCK).write_text("kneo==0.1.0 --hash=sha256:" + "0" * 64 + "\n")
    _commit(made, "Choose what is installed")
    made.runner.only = frozenset({"Install", "Lint specs"})
    failed = made.runner.run("check", trust_root=made.pin, base="HEAD~1")
    assert failed is None, failed
    (made.runner.temp / "path").write_text("")
    made.runner.run("check", trust_root=made.pin, base="HEAD")
    assert made.runner.failed_at == "Install"


def _with_wheel(made: Made) -> Path:
    """Put the wheel of Kneo into the repository, as the lock file names it, beside another package at the index; return the wheel."""
    wheel = made.runner.repo / ".github/wheels" / "kneo-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    packages = made.runner.temp.parent / "packages"
    (packages / wheel.name).rename(wheel)
    (packages / wheel.name).write_bytes(b"the package of that name at the index")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (made.runner.repo / LOCK).write_text(f"./.github/wheels/{wheel.name} --hash=sha256:{digest}\n")
    _commit(made, "Add the wheel of Kneo")
    return wheel


def test_the_job_that_signs_installs_the_wheel_of_the_repository(made: Made) -> None:
    wheel = _with_wheel(made)
    assert _sign_install(made) is None
    wheel.write_bytes(wheel.read_bytes() + b"changed")
    made.runner.ran.clear()
    made.runner.run("sign", **_what(made), key=made.key.read_text())
    assert made.runner.ran == ["Install"]
    assert "do not match" in "".join(made.runner.printed).lower()


def test_the_check_installs_the_wheel_of_the_commit_it_compares_with(made: Made) -> None:
    wheel = _with_wheel(made)
    (made.runner.temp.parent / "tools/kneo").unlink()
    wheel.write_bytes(b"a wheel that a pull request chose")
    _commit(made, "Choose what is installed")
    made.runner.only = frozenset({"Install", "Lint specs"})
    failed = made.runner.run("check", trust_root=made.pin, base="HEAD~1")
    assert failed is None, failed


def _commit(made: Made, message: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (("add", "-A"), ("commit", "-q", "-m", message)):
        subprocess.run(["git", "-C", str(made.runner.repo), *identity, *words], check=True, env=made.runner.env)


def test_a_fresh_repository_passes_and_the_plan_is_commented(made: Made) -> None:
    environment = made.runner.repo / "environments/dev.yaml"
    environment.write_text(environment.read_text() + "  suspend: true\n")
    _commit(made, "Suspend dev")
    failed = made.runner.run("check", trust_root=made.pin, base="HEAD~1", comment="7", token="t")
    assert failed is None, failed
    assert made.runner.ran[-2:] == ["Comment", JUDGED]
    assert "announcement" in made.runner.summary
    assert "2 of 2 cases passed with scripted models." in made.runner.summary
    assert "dev" in (made.runner.temp / "comment").read_text()
    plan, _, figures = (made.runner.temp / "comment").read_text().partition("\n### Kneo evaluation\n\n")
    assert plan in made.runner.summary
    assert figures in made.runner.summary


def test_the_workflow_of_a_pull_request_checks_it_and_comments_where_it_may(made: Made) -> None:
    _commit(made, "Add the public key")
    made.runner.only = PLANNED
    mine = "github.event.pull_request.head.repo.full_name == github.repository && github.event.number || ''"
    event = {"vars.KNEO_TRUST_ROOT": made.pin, "github.base_ref": "main", "github.token": "t", mine: ""}
    for number, last in (("7", "Comment"), ("", "Plan")):
        failed = made.runner.follow("kneo", **event | {mine: number})
        assert failed is None, failed
        assert made.runner.ran[-2:] == [last, JUDGED]


def test_a_commit_that_would_stall_an_environment_is_commented_and_fails(made: Made) -> None:
    made.runner.only = PLANNED
    (made.runner.repo / "environments/prod.yaml").write_text("x: [\n")
    _commit(made, "Break prod")
    failed = made.runner.run("check", trust_root=made.pin, base="HEAD~1", comment="7", token="t")
    assert failed is not None
    assert made.runner.ran[-2:] == ["Comment", JUDGED]
    assert "PolicyInvalid" in (made.runner.temp / "comment").read_text()


EVALUATED = frozenset({"Evaluate suites", "Plan", "Comment", JUDGED})

SUITE = """
apiVersion: kneo/v1
kind: Suite
metadata: {{name: announcement}}
spec:
  cases:
    - id: approved
      input: the room moves
      answers: {{approve.step: {{decision: approved}}}}
      outputs: {{{outputs}}}
      expect: [{{status: succeeded}}, {{outputContains: "{text}"}}]
"""


def _with_suite(made: Made, *, text: str = "announced", outputs: str = "draft: Draft, publish: announced") -> Path:
    """Write a suite into the repository, and a module that shows that it was imported; return the file that shows it."""
    repo, shown = made.runner.repo, made.runner.temp / "imported"
    for module in repo.glob("*.py"):
        module.write_text(f"open({str(shown)!r}, 'w').close()\n{module.read_text()}")
    (repo / "evals/announcement.yaml").write_text(SUITE.format(text=text, outputs=outputs))
    _commit(made, "Add a suite")
    made.runner.only = EVALUATED
    return shown


def test_suites_are_evaluated_and_their_figures_commented(made: Made) -> None:
    imported = _with_suite(made)
    failed = made.runner.run("check", trust_root=made.pin, base="HEAD~1", comment="7", token="t")
    assert failed is None, made.runner.printed
    comment = (made.runner.temp / "comment").read_text()
    assert comment.startswith("<!-- kneo-plan -->")
    assert "1 of 1 case passed with scripted models." in comment
    assert "| pass\\_rate | 1 | 1 |" in comment
    assert "1 of 1 case passed" in made.runner.summary
    assert not imported.exists(), "nothing of the pull request is executed"


def test_a_failing_case_is_commented_and_fails_the_check(made: Made) -> None:
    imported = _with_suite(made, text="postponed")
    failed = made.runner.run("check", trust_root=made.pin, base="HEAD~1", comment="7", token="t")
    assert failed is not None
    assert made.runner.failed_at == "Evaluate suites"
    comment = (made.runner.temp / "comment").read_text()
    assert "0 of 1 case passed" in comment
    assert "**approved** the output does not contain 'postponed'." in comment
    assert not imported.exists()


def test_a_case_that_needs_code_fails_without_its_execution(made: Made) -> None:
    imported = _with_suite(made, outputs="draft: Draft")
    assert made.runner.run("check", trust_root=made.pin, base="HEAD~1", comment="7", token="t") is not None
    assert "no code is executed" in (made.runner.temp / "comment").read_text()
    assert not imported.exists()
    spec = ["--bundle", "specs/announcement.yaml"]
    command = [sys.executable, "-m", "kneo.cli.main", "eval", "evals/announcement.yaml", *spec]
    run_python(command, cwd=made.runner.repo, env=made.runner.env)
    assert imported.exists(), "the module shows that it is imported where code is executed"


def test_a_suite_that_asks_models_is_left_out(made: Made) -> None:
    imported = _with_suite(made)
    suite = made.runner.repo / "evals/announcement.yaml"
    suite.write_text(suite.read_text().replace("spec:", "spec:\n  models: live", 1))
    (made.runner.repo / "evals/other.yaml").write_text("no suite of a spec here")
    _commit(made, "Ask models")
    failed = made.runner.run("check", trust_root=made.pin, base="HEAD~1", comment="7", token="t")
    assert failed is None, made.runner.printed
    assert "The suite has no replies for scripted models" in (made.runner.temp / "comment").read_text()
    assert "evals/other.yaml is not evaluated: there is no specs/other.yaml." in "".join(made.runner.printed)
    assert not imported.exists()


def test_only_its_own_comment_is_edited(made: Made) -> None:
    made.runner.only = PLANNED
    comment = made.runner.temp / "comment"
    comment.write_text("Somebody else's words\n")
    _commit(made, "Add the public key")
    for expected in ("pr comment 7", "--method PATCH"):
        assert made.runner.run("check", trust_root=made.pin, base="HEAD~1", comment="7", token="t") is None
        calls = (made.runner.temp / "comment.calls").read_text().splitlines()
        assert expected in calls[-1]
    assert comment.read_text().startswith("<!-- kneo-plan -->")


def test_names_with_line_breaks_give_the_runner_no_commands(made: Made) -> None:
    specs = made.runner.repo / "specs"
    text = (specs / "announcement.yaml").read_text()
    (specs / "x\n::add-mask::pwned\n.yaml").write_text(text)
    (specs / "y.yaml").write_text(text.replace("id: draft", 'id: "a\\n::add-mask::pwned"'))
    (specs / "z\n::warning::pwned\n.yaml").write_text("x: [\n")
    (made.runner.repo / "evals/e\n::add-mask::pwned\n.yaml").write_text(text)
    (made.runner.repo / "evals/y.yaml").write_text(SUITE.format(text="x\\n::add-mask::pwned", outputs="draft: Draft"))
    _commit(made, "Names with line breaks")
    made.runner.keep_going = True
    made.runner.run("check", trust_root=made.pin, base="HEAD~1")
    obeyed = list(_obeyed("".join(made.runner.printed)))
    assert obeyed
    assert not [line for line in obeyed if "pwned" in line and not line.startswith("::error file=")], obeyed
    assert any("pwned" in line for line in "".join(made.runner.printed).splitlines())


def test_names_with_line_breaks_write_no_line_of_the_summary(made: Made) -> None:
    specs = made.runner.repo / "specs"
    text = (specs / "announcement.yaml").read_text()
    forged = "\\n```\\n# Plan\\nApproved by ann"
    (specs / "y.yaml").write_text(
        text.replace("id: draft", f'id: "a{forged}"').replace("id: approve", f'id: "b{forged}"')
    )
    name = "x\n```\n# Plan\nApproved by ann <img src=x> [a](b)"
    (specs / f"{name}.yaml").write_text(text)
    made.runner.only = frozenset({"Report on specs"})
    made.runner.keep_going = True
    made.runner.run("check", trust_root=made.pin, base="HEAD")
    lines = [line for line in made.runner.summary.splitlines() if line]
    assert "ann" in made.runner.summary
    assert [line for line in lines if not line.startswith(("### ", "**", "- "))] == []
    assert not [line for line in lines if re.search(r"(?<!\\)(```|<img|\[a)", line)]
    assert len([line for line in lines if line.startswith("### ")]) == 3


def test_keys_with_commands_give_the_runner_none(made: Made) -> None:
    """In the log of a job of one's own, which stops no commands."""
    specs = made.runner.repo / "specs"
    text = (specs / "announcement.yaml").read_text()
    hostile = "a\\n::add-mask::pwned\\n##[add-mask]pwned"
    (specs / "y.yaml").write_text(f'"{hostile}": 1\n' + text.replace("id: draft", f'id: "{hostile}"'))
    (specs / "z.yaml").write_text(text.replace("id: draft", f'id: "{hostile}"'))
    printed = ""
    for verb in ("lint", "simulate", "policy-report", "validate", "explain", "graph", "compile"):
        for name in ("y", "z"):
            command = [sys.executable, "-m", "kneo.cli.main", "spec", verb, f"specs/{name}.yaml"]
            done = run_python(command, cwd=made.runner.repo, env=made.runner.env)
            printed += done.stdout + done.stderr
    assert "pwned" in printed
    assert list(_obeyed(printed)) == []


def _obeyed(log: str) -> Iterator[str]:
    """The lines that a runner takes for commands, as it does: after spaces, unless they are stopped."""
    token = None
    for line in log.splitlines():
        said = line.strip()
        if token is not None:
            token = None if said == f"::{token}::" else token
        elif said.startswith("::stop-commands::"):
            token = said.removeprefix("::stop-commands::")
        elif said.startswith("::") or "##[" in said:
            yield said


def test_the_workflow_that_signs_signs_what_it_is_asked_for(made: Made) -> None:
    event = {
        "vars.KNEO_TRUST_ROOT": made.pin,
        "inputs.name": "announcement",
        "inputs.version": "1.1.0",
        "github.actor": "ann",
        "secrets.KNEO_SIGNING_KEY": made.key.read_text(),
    }
    made.runner.only = SIGNED
    failed = made.runner.follow("sign", **event)
    assert failed is None, failed
    show = ["git", "-C", str(made.origin), "show", "sign-announcement-1.1.0:bundles/announcement/1.1.0.dsse.json"]
    assert parse_envelope(subprocess.run(show, check=True, capture_output=True, env=made.runner.env).stdout).signatures


@pytest.mark.parametrize(
    ("break_it", "step"),
    [
        (("specs/announcement.yaml", "ref: editor", "ref: nobody"), "Lint specs"),
        (("bundles/announcement/1.0.0.dsse.json", '"sig": "', '"sig": "AAAA'), "Verify bundles"),
    ],
)
def test_what_is_wrong_fails_where_it_is_found(made: Made, break_it: tuple[str, str, str], step: str) -> None:
    name, good, bad = break_it
    file = made.runner.repo / name
    assert good in file.read_text()
    file.write_text(file.read_text().replace(good, bad, 1))
    _commit(made, "Break it")
    failed = made.runner.run("check", trust_root=made.pin, base="HEAD~1")
    assert failed is not None
    assert made.runner.failed_at == step


def _sign(made: Made, **how: str) -> subprocess.CompletedProcess[str] | None:
    spec = made.runner.repo / "specs/announcement.yaml"
    spec.write_text(spec.read_text() + "# another version\n")
    _commit(made, "Change the spec")
    return made.runner.run("sign", **_what(made), **how)


def _what(made: Made) -> dict[str, str]:
    where = {"spec": "specs/announcement.yaml", "bundle": "announcement", "version": "1.1.0", "branch": "sign-1.1.0"}
    return where | {"trust_root": made.pin, "approved_by": "ann"}


def _pushed(made: Made) -> bytes:
    show = ["git", "-C", str(made.origin), "show", "sign-1.1.0:bundles/announcement/1.1.0.dsse.json"]
    return subprocess.run(show, check=True, capture_output=True, env=made.runner.env).stdout


def test_a_version_is_signed_with_a_secret_and_pushed(made: Made) -> None:
    failed = _sign(made, key=made.key.read_text())
    assert failed is None, failed
    assert made.runner.ran == ["Install", "Lint", "Sign", "Verify", "Commit"]
    assert len(parse_envelope(_pushed(made)).signatures) == 1


SIGNER = """
import base64, sys
from pathlib import Path
from kneo.trust.keys import PrivateKey
print(base64.b64encode(PrivateKey.load(Path(sys.argv[1]).read_bytes()).sign(sys.stdin.buffer.read())).decode())
"""


def test_a_version_is_signed_by_a_command_of_a_key_service(made: Made, tmp_path: Path) -> None:
    (tmp_path / "signer.py").write_text(SIGNER)
    signer = f"{sys.executable} {tmp_path / 'signer.py'} {made.key}"
    made.runner.only = SIGNED
    failed = _sign(made, signer=signer, public="release.pub")
    assert failed is None, failed
    assert len(parse_envelope(_pushed(made)).signatures) == 1


@pytest.mark.parametrize("how", [{"key": "not a key"}, {"signer": "/bin/echo AAAA", "public": "release.pub"}])
def test_without_a_key_nothing_is_signed(made: Made, how: dict[str, str]) -> None:
    made.runner.only = SIGNED
    failed = _sign(made, **how)
    assert failed is not None
    assert made.runner.ran == ["Sign"]
    assert not (made.runner.repo / "bundles/announcement/1.1.0.dsse.json").exists()


# ---- the files themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_what_kneo_init_writes_is_the_action_of_this_repository(action: str) -> None:
    ours = (ROOT / f".github/actions/{action}/action.yml").read_bytes()
    assert (ROOT / f"kneo/cli/releases/templates/action-{action}.yml").read_bytes() == ours


@pytest.mark.parametrize("action", ACTIONS)
def test_no_text_of_somebody_else_is_read_as_a_program(action: str) -> None:
    declared = yaml.safe_load((ROOT / f".github/actions/{action}/action.yml").read_text())
    assert declared["runs"]["using"] == "composite"
    for step in declared["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert not _ANY.search(step["run"]), step["name"]
        used = [name for text in step.get("env", {}).values() for name in _INPUT.findall(text)]
        assert set(used) <= set(declared["inputs"])


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_what_kneo_init_writes_is_the_workflow_of_this_repository(workflow: str) -> None:
    ours = (ROOT / f".github/workflows/{workflow}.yml").read_bytes()
    assert (ROOT / f"kneo/cli/releases/templates/workflow-{workflow}.yml").read_bytes() == ours


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_workflow_that_is_called_asks_for_no_right_that_its_caller_does_not_give(workflow: str) -> None:
    """The forge does not start a workflow whose job asks for more, not even one that it would skip."""
    kind = workflow.removeprefix("config-")
    called, caller = (
        yaml.safe_load((ROOT / "kneo/cli/releases/templates" / name).read_text())
        for name in (f"workflow-{workflow}.yml", {"check": "workflow.yml", "sign": "workflow-sign.yml"}[kind])
    )
    assert called["permissions"] == caller["permissions"] == {}
    ((_, inner),), ((_, outer),) = called["jobs"].items(), caller["jobs"].items()
    assert inner["permissions"] == outer["permissions"]
    assert outer["uses"] == f"./.github/workflows/{workflow}.yml"
    (uses,) = [step for step in inner["steps"] if step["uses"] == f"./.github/actions/{kind}"]
    declared = yaml.safe_load((ROOT / f".github/actions/{kind}/action.yml").read_text())["inputs"]
    assert {name for name, item in declared.items() if item.get("required")} <= set(uses["with"]) <= set(declared)
    for step in inner["steps"]:
        assert step["uses"].startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"])
