"""The scripts of a deployment: one checks its variables before, one its service after."""

from __future__ import annotations

import importlib.util
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from deploy_files import DEPLOY, ROOT
from service_bench import Bench, serving


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    importlib.import_module("sys").modules[name] = module
    spec.loader.exec_module(module)
    return module


SMOKE, CHECK = script("deployment_smoke"), script("validate_staging_env")
STEPS = ["probes", "keys", "spec validation", "run", "decision", "audit events", "credentials", "policy"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("smoked")
    with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}") as made:
        yield made


def smoke(bench: Bench, *more: str, **keys: str) -> int:
    keys = {role: keys.get(role, f"{role}-key") for role in ("operator", "reviewer", "viewer")}
    tokens = [part for role, key in keys.items() for part in (f"--{role}-token", key)]
    return SMOKE.main(["--base-url", bench.url, *tokens, *more])


def test_a_deployment_that_works_passes_every_step(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke(bench) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert re.findall(r"^PASS  ([a-z ]+):", printed, re.MULTILINE) == STEPS
    assert "-key" not in printed
    # It may be repeated.
    assert smoke(bench) == 0


@pytest.mark.parametrize(
    ("keys", "step", "words"),
    [
        ({"viewer": "operator-key"}, "keys", "POST /v1/runs responded"),
        ({"operator": "wrong"}, "keys", "GET /v1/me responded 401"),
        ({"reviewer": "viewer-key"}, "keys", "use the keys of three people"),
        ({"operator": "service-key"}, "policy", "PUT /v1/policies/environment/deployment-smoke responded 403"),
    ],
)
def test_a_step_that_fails_names_its_request(
    bench: Bench, capsys: pytest.CaptureFixture[str], keys: dict[str, str], step: str, words: str
) -> None:
    assert smoke(bench, **keys) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(f"FAIL  {step}: ")
    assert words in printed[-1]


def test_a_spec_by_path_that_is_not_there_and_a_service_that_is_not_there_fail(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke(bench, "--spec-path", "none.yaml") == 1
    assert "FAIL  run: POST /v1/runs responded 4" in capsys.readouterr().out
    nowhere = ["--base-url", "http://127.0.0.1:1"]
    assert SMOKE.main([*nowhere, "--operator-token", "a", "--reviewer-token", "b", "--viewer-token", "c"]) == 1
    assert "FAIL  probes: GET /livez: no response" in capsys.readouterr().out


def filled(tmp_path: Path, **changes: str | None) -> Path:
    """Write the example with every placeholder replaced, and with changes."""
    text = (DEPLOY / "production.env.example").read_text()
    text = re.sub(r"replace-(operator|reviewer|viewer|admin)-key", lambda _: secrets.token_hex(32), text)
    text = (
        text.replace("replace-digest", f"sha256:{'0' * 64}")
        .replace("replace-password", "pw")
        .replace("replace-host", "kneo")
    )
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines) | changes
    path = tmp_path / "production.env"
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items() if value is not None))
    path.chmod(0o600)
    return path


def findings(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    status = CHECK.main(["--env-file", str(path), *more])
    lines = [line[7:] for line in capsys.readouterr().out.splitlines() if line.startswith("ERROR  ")]
    assert status == bool(lines)
    return lines


def test_the_example_is_refused_for_its_placeholders_and_passes_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(DEPLOY / "production.env.example", capsys)
    assert {name for line in found for name in re.findall(r"(\w+) still has a placeholder", line)} == {
        "KNEO_SERV_API_KEYS",
        "KNEO_SERV_ADMIN_API_KEY",
        "KNEO_SERV_DATABASE_URL",
        "KNEO_SERV_TRUST_ROOT",
        "KNEO_SERV_PUBLIC_URL",
    }
    assert findings(filled(tmp_path), capsys) == []


KEY = "k" * 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"KNEO_SERV_API_KEYS": f"ops:{KEY}1:operator;rev:{KEY}2:reviewer"}, "no key with the role viewer"),
        ({"KNEO_SERV_API_KEYS": f"a:short:operator;b:{KEY}1:reviewer;c:{KEY}2:viewer"}, "the key of a is shorter"),
        ({"KNEO_SERV_API_KEYS": f"a:{KEY}:operator;b:{KEY}:reviewer;c:{KEY}2:viewer"}, "the key of b is also that of"),
        ({"KNEO_SERV_API_KEYS": None}, "KNEO_SERV_API_KEYS (or KNEO_SERV_API_KEYS_FILE) is missing"),
        ({"KNEO_SERV_DATABASE_URL": None}, "the service would use a SQLite file"),
        ({"KNEO_SERV_DATABASE_URL": "sqlite:////data/kneo.sqlite"}, "names a SQLite file"),
        ({"KNEO_SERV_SERVICE_KEY_FILE": None}, "nothing could sign receipts"),
        ({"KNEO_SERV_OTEL_RECORD_ARGUMENTS": "true"}, "KNEO_SERV_OTEL_RECORD_ARGUMENTS puts contents into traces"),
        ({"KNEO_SERV_ALLOW_ANONYMOUS": "yes"}, "gives every caller every right"),
        ({"KNEO_SERV_MAX_BODY_BYTES": "many"}, "KNEO_SERV_MAX_BODY_BYTES must be a whole number"),
    ],
)
def test_each_mistake_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str | None], words: str
) -> None:
    found = findings(filled(tmp_path, **changes), capsys)
    assert [line for line in found if words in line], found
    assert KEY not in "\n".join(found)


def test_lines_modes_and_missing_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = filled(tmp_path, KNEO_SERV_OTEL_RECORD_ARGUMENTS="true")
    assert findings(path, capsys, "--allow-recorded-content") == []
    path.chmod(0o644)
    assert findings(path, capsys, "--allow-recorded-content") == [f"{path} can be read by others: chmod 600 {path}"]
    path.chmod(0o600)
    path.write_text(path.read_text() + "what is this\nKNEO_SERV_AUTH_ENABLED=false\n")
    found = findings(path, capsys, "--allow-recorded-content")
    assert any("is not NAME=VALUE" in line for line in found)
    assert any("KNEO_SERV_AUTH_ENABLED is set twice" in line for line in found)
    assert CHECK.main(["--env-file", str(tmp_path / "none.env")]) == 1
