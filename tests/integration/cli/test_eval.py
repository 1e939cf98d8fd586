"""``kneo eval`` and ``kneo evidence``, as a person types them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_repo import ConfigRepo

from kneo.trust.dsse import parse_envelope
from kneo.trust.result import parse_result

Kneo = Callable[..., Any]


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigRepo:
    repo = ConfigRepo(tmp_path / "repo")
    key = repo.person("eva", "evaluator")
    (tmp_path / "eva.pem").write_bytes(key.dump())
    repo.bundle("mail", "1.0.0")
    repo.commit("Sign mail")
    monkeypatch.chdir(repo.folder)
    monkeypatch.setenv("KNEO_SERV_TRUST_ROOT", repo.pin)
    return repo


def _suite(repo: ConfigRepo, expected: str = "succeeded") -> Path:
    content = {
        "apiVersion": "kneo/v1",
        "kind": "Suite",
        "metadata": {"name": "support"},
        "spec": {
            "cases": [
                {
                    "id": "plain",
                    "input": "Hello",
                    "answers": {"approve.step": {"decision": "approved"}},
                    "outputs": {"publish": "published"},
                    "expect": [{"status": expected}, {"asked": "approve.step"}],
                }
            ]
        },
    }
    repo.write("evals/support.yaml", yaml.safe_dump(content).encode())
    return repo.folder / "evals/support.yaml"


def test_a_bundle_is_evaluated_signed_and_verified(repo: ConfigRepo, kneo: Kneo, tmp_path: Path) -> None:
    suite = _suite(repo)
    output, report = "bundles/mail/1.0.0.evidence/support.dsse.json", tmp_path / "report.json"
    options = [
        "--bundle",
        "mail@1.0.0",
        "--key",
        str(tmp_path / "eva.pem"),
        "--output",
        output,
        "--report",
        str(report),
    ]
    done = kneo("eval", str(suite), *options, "--json")
    assert done.status == 0, done.out + done.err
    answer = json.loads(done.out)
    assert (answer["ok"], answer["scripted"], answer["metrics"]["pass_rate"]) == (
        True,
        True,
        {"value": "1", "samples": 1},
    )
    assert answer["cases"] == [{"id": "plain", "passed": True, "repeats": 1, "failures": []}]
    digest = json.loads(kneo("evidence", "digest", str(suite), "--json").out)["digest"]
    statement = parse_result(parse_envelope((repo.folder / output).read_bytes()).payload)
    assert (statement.suite_digest, statement.predicate.result) == (digest, "PASSED")
    assert statement.bundle_digest == answer["digest"]
    verified = kneo("evidence", "verify", output, "--report", str(report), "--json")
    assert verified.status == 0, verified.out + verified.err
    assert json.loads(verified.out)["signers"] == [{"name": "eva", "roles": ["evaluator"]}]


def test_a_failed_case_exits_with_1_and_is_signed_as_failed(repo: ConfigRepo, kneo: Kneo, tmp_path: Path) -> None:
    output = "bundles/mail/1.0.0.evidence/support.dsse.json"
    options = ["--bundle", "mail@1.0.0", "--key", str(tmp_path / "eva.pem"), "--output", output]
    done = kneo("eval", str(_suite(repo, "failed")), *options)
    assert done.status == 1
    assert "the status is succeeded; failed is expected." in (done.out + done.err)
    assert parse_result(parse_envelope((repo.folder / output).read_bytes()).payload).predicate.result == "FAILED"


@pytest.mark.parametrize("target", ["statement", "report"])
def test_a_changed_byte_of_statement_or_report_exits_with_3(
    repo: ConfigRepo, kneo: Kneo, tmp_path: Path, target: str
) -> None:
    output, report = repo.folder / "bundles/mail/1.0.0.evidence/support.dsse.json", tmp_path / "report.json"
    options = ["--key", str(tmp_path / "eva.pem"), "--output", str(output), "--report", str(report)]
    assert kneo("eval", str(_suite(repo)), "--bundle", "mail@1.0.0", *options).status == 0
    changed = output if target == "statement" else report
    before = changed.read_bytes()
    at = before.index(b"payload") + 30 if target == "statement" else before.index(b"succeeded")
    changed.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    assert kneo("evidence", "verify", str(output), "--report", str(report)).status == 3
    changed.write_bytes(before[:-20])
    assert kneo("evidence", "verify", str(output), "--report", str(report)).status == 3


@pytest.mark.parametrize(
    "options", [["--key", "KEY"], ["--key", "KEY", "--output", "x.json", "--repeats", "1"]], ids=["output", "repeats"]
)
def test_options_that_do_not_fit_exit_with_2(repo: ConfigRepo, kneo: Kneo, tmp_path: Path, options: list[str]) -> None:
    suite = _suite(repo)
    suite.write_text(suite.read_text().replace("spec:", "spec:\n  repeats: 3", 1))
    named = [str(tmp_path / "eva.pem") if item == "KEY" else item for item in options]
    assert kneo("eval", str(suite), "--bundle", "mail@1.0.0", *named).status == 2


JUDGES = {"strict": {"model": {"provider": "openai", "name": "gpt-5"}, "system_prompt": "Answer 0 to 1."}}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"models": "live"}, ["--no-code"], "Models are not asked with --no-code."),
        ({"models": "live"}, ["--no-code", "--models", "scripted"], "The suite has no replies for scripted models"),
        ({"models": "live", "judges": JUDGES}, ["--models", "scripted"], "The suite has judges, which are models"),
    ],
    ids=["live", "replies", "judges"],
)
def test_a_suite_that_asks_models_is_not_evaluated_without_them(
    repo: ConfigRepo, kneo: Kneo, change: dict[str, object], options: list[str], message: str
) -> None:
    suite = _suite(repo)
    content = yaml.safe_load(suite.read_text())
    content["spec"] |= change
    suite.write_text(yaml.safe_dump(content))
    done = kneo("eval", str(suite), "--bundle", "mail@1.0.0", "--markdown", *options)
    assert (done.status, message in done.err) == (2, True), done.err
    assert ("Not evaluated here. " in done.out) is ("scripted" in options)


def test_a_platform_is_not_loaded_where_no_code_is_executed(
    repo: ConfigRepo, kneo: Kneo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.write("own_platform.py", b"raise SystemExit('the platform was imported')\n")
    monkeypatch.setenv("KNEO_SERV_PLATFORM", "own_platform:make")
    done = kneo("eval", str(_suite(repo)), "--bundle", "mail@1.0.0", "--no-code")
    assert (done.status, "KNEO_SERV_PLATFORM names code" in done.err) == (2, True), done.err


def test_texts_of_a_suite_are_no_markdown_of_the_comment(repo: ConfigRepo, kneo: Kneo) -> None:
    suite = _suite(repo)
    content = yaml.safe_load(suite.read_text())
    hostile = "x\n| <img src=x> [a](b) <!-- @ann"
    content["spec"]["cases"][0]["expect"] = [{"outputContains": f"{number}{hostile}"} for number in range(25)]
    suite.write_text(json.dumps(content))
    done = kneo("eval", str(suite), "--bundle", "mail@1.0.0", "--markdown")
    assert done.status == 1
    lines = [line for line in done.out.splitlines() if line]
    assert not [line for line in lines if not line.startswith(("#### ✗ Suite", "0 of 1 case", "|", "- "))], lines
    assert not re.search(r"(?<!\\)[<@]|(?<!\\)\[a", done.out)
    assert "5 more failures" in done.out


JUNIT = b"""<testsuites><testsuite><testcase classname="a" name="x"/><testcase classname="a" name="y"><failure/></testcase>
<testcase classname="a" name="z"><skipped/></testcase></testsuite></testsuites>"""
INSPECT = {
    "status": "success",
    "eval": {"model": "openai/gpt-5-mini"},
    "samples": [
        {"id": 1, "scores": {"match": {"value": "C"}}},
        {"id": 1, "scores": {"match": {"value": "I"}}},
        {"id": 2, "scores": {"match": {"value": "C"}}},
    ],
    "results": {"scores": [{"metrics": {"accuracy": {"value": 0.75}}}]},
}


@pytest.mark.parametrize(
    ("kind", "data", "passed", "failed", "metrics"),
    [
        ("junit", JUNIT, ["a.x"], ["a.y"], {"pass_rate": ("0.5", 2)}),
        ("inspect", json.dumps(INSPECT).encode(), ["2"], ["1"], {"accuracy": ("0.75", 2), "pass_rate": ("0.5", 2)}),
    ],
    ids=["junit", "inspect"],
)
def test_results_of_other_tools_are_signed(
    repo: ConfigRepo,
    kneo: Kneo,
    tmp_path: Path,
    kind: str,
    data: bytes,
    passed: list[str],
    failed: list[str],
    metrics: dict[str, tuple[str, int]],
) -> None:
    (tmp_path / "results").write_bytes(data)
    output = repo.folder / "bundles/mail/1.0.0.evidence/other.dsse.json"
    options = ["--suite", str(_suite(repo)), "--bundle", "mail@1.0.0", "--key", str(tmp_path / "eva.pem")]
    done = kneo("evidence", "import", str(tmp_path / "results"), "--format", kind, *options, "--output", str(output))
    assert done.status == 0, done.out + done.err
    statement = parse_result(parse_envelope(output.read_bytes()).payload)
    assert list(statement.predicate.passed_tests) == passed
    assert list(statement.predicate.failed_tests) == failed
    assert {name: (item.value, item.samples) for name, item in statement.facts.metrics.items()} == metrics


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("junit", b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + JUNIT),
        ("junit", "<!DOCTYPE x>".encode("utf-16")),
        ("junit", b"<testsuites/>"),
        ("junit", JUNIT[:-5]),
        ("inspect", json.dumps({**INSPECT, "status": "started"}).encode()),
        ("inspect", b"[]"),
    ],
)
def test_results_that_cannot_be_used_are_not_signed(
    repo: ConfigRepo, kneo: Kneo, tmp_path: Path, kind: str, data: bytes
) -> None:
    (tmp_path / "results").write_bytes(data)
    output = tmp_path / "other.dsse.json"
    options = ["--suite", str(_suite(repo)), "--bundle", "mail@1.0.0", "--key", str(tmp_path / "eva.pem"), "--json"]
    done = kneo("evidence", "import", str(tmp_path / "results"), "--format", kind, *options, "--output", str(output))
    assert done.status == 1
    assert "results_invalid" in (done.out + done.err)
    assert not output.exists()
