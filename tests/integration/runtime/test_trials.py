"""Trials: runs on the ordinary engine in which no tool is called, no person is asked and, unless live, no model is asked."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from model_server import Call, Reply, model_server

from kneo.clock import monotonic
from kneo.errors import Forbidden
from kneo.runtime.trials.evaluation import Evaluation, EvaluationCostExceeded, EvaluationIncomplete, Evaluator
from kneo.runtime.trials.trial import TrialBench, TrialSubject, open_bench
from kneo.settings import from_env
from kneo.spec.code import BundleCode
from kneo.spec.compiler import SpecCompiler
from kneo.spec.reading.suite import parse_suite

pytest.importorskip("pydantic_ai")

PAY: dict[str, Any] = {
    "description": "Pay.",
    "parameters": {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]},
    "implementation": "trial_tools.pay",
    "capabilities": ["privileged"],
    "review": {"before": {"human": "finance", "decisions": ["approved", "rejected", "edited"]}},
}
SPEC: dict[str, Any] = {
    "version": "v1",
    "agent": {
        "name": "clerk",
        "system_prompt": "Pay.",
        "model": {"provider": "openai", "name": "gpt-5-mini"},
        "strategy": {"type": "react", "max_iterations": 5},
        "tools": {"include": ["pay", "lookup"]},
    },
    "tools": {
        "pay": PAY,
        "lookup": {"description": "Look up.", "parameters": {"type": "object"}, "implementation": "trial_tools.lookup"},
    },
    "components": {"humans": {"finance": {"description": "Right?"}}},
}

MODULE = """
from pathlib import Path

WITNESS = Path(__file__).with_name("witness.txt")


def pay(arguments):
    WITNESS.write_text("paid")


def lookup(arguments):
    WITNESS.write_text("looked up")


def send(text):
    WITNESS.write_text("sent")
    return text


def shout(text):
    return text.upper()
"""

CASE: dict[str, Any] = {
    "id": "small",
    "input": "Pay invoice 7",
    "replies": [
        {"call": {"tool": "lookup", "arguments": {"id": 7}}},
        {"call": {"tool": "pay", "arguments": {"amount": 120}}},
        {"text": "120 EUR paid."},
    ],
    "tools": [
        {"tool": "lookup", "returns": {"total": 120}},
        {"tool": "pay", "arguments": {"amount": 120}, "returns": "ok"},
    ],
    "answers": {"clerk.pay:1": {"decision": "approved"}},
    "expect": [
        {"status": "succeeded"},
        {"outputContains": "paid"},
        {"outputMatches": "^[0-9]+ EUR"},
        {"called": "pay", "arguments": {"amount": 120}, "times": 1},
        {"notCalled": "delete"},
        {"asked": "clerk.pay:1"},
        {"notAsked": "clerk.lookup:1"},
        {"maxCost": 0.05},
    ],
}


def case(**changes: object) -> dict[str, Any]:
    return copy.deepcopy(CASE) | changes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "trial_tools.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trial_tools", raising=False)
    return tmp_path


def evaluate(
    folder: Path,
    *cases: Mapping[str, object],
    spec: Mapping[str, object] = SPEC,
    declaration: bytes | None = None,
    models: Any = "scripted",
    runs_code: bool = True,
    code: BundleCode | None = None,
    **changes: object,
) -> Evaluation:
    content = {
        "apiVersion": "kneo/v1",
        "kind": "Suite",
        "metadata": {"name": "support"},
        "spec": {"cases": list(cases), "models": models, **changes},
    }
    suite = parse_suite(json.dumps(content).encode(), file="support.json")
    variables = {"KNEO_SERV_IMPORT_ALLOW": "trial_tools", "KNEO_SERV_IMPORT_ROOTS": str(folder)}
    settings = from_env(variables, folder)

    def opened(stack: ExitStack, subject: TrialSubject) -> TrialBench:
        check = SpecCompiler().compile
        bench = open_bench(settings, subject, models, check_spec=check, project=None, runs_code=runs_code)
        return stack.enter_context(bench)

    environment = "prod" if declaration is not None else None
    subject = TrialSubject(spec=spec, code=code, environment=environment, declaration=declaration)
    return asyncio.run(Evaluator(suite, subject, models, suite.spec.repeats, opened).evaluate())


def failures(evaluation: Evaluation) -> list[str]:
    return [failure for item in evaluation.cases for failure in item.failures]


def test_a_case_passes_and_no_tool_is_called(folder: Path) -> None:
    evaluation = evaluate(folder, case())
    assert failures(evaluation) == []
    assert {name: item.value for name, item in evaluation.metrics().items()} == {"pass_rate": "1", "cost_per_run": "0"}
    assert not (folder / "witness.txt").exists()
    assert "trial_tools" not in sys.modules, "not even its module is imported"


def test_repetitions_of_a_case_are_one_sample(folder: Path) -> None:
    evaluation = evaluate(folder, case(), case(id="again"), repeats=3)
    assert evaluation.metrics()["pass_rate"].samples == 2
    assert [len(item.repeats) for item in evaluation.cases] == [3, 3]


def test_a_call_with_other_arguments_than_those_of_its_stub_is_never_made(folder: Path) -> None:
    replies = [CASE["replies"][0], {"call": {"tool": "pay", "arguments": {"amount": 1200}}}, CASE["replies"][2]]
    evaluation = evaluate(folder, case(replies=replies))
    assert failures(evaluation) == ['pay was called with {"amount":1200}, and no stub fits.']
    assert evaluation.cases[0].repeats[0]["status"] == "failed"
    assert not (folder / "witness.txt").exists()


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"answers": {}}, "clerk.pay:1 was asked, and the case has no answer to it."),
        ({"answers": {"clerk.pay:1": {"timeout": True}}}, "clerk.pay:1 has no time limit to run out."),
        ({"replies": CASE["replies"][:1]}, "A model was asked for reply 2, and the case has 1."),
        ({"expect": [{"status": "failed"}]}, "the status is succeeded; failed is expected."),
        ({"expect": [{"outputEquals": "x"}]}, "the output does not equal 'x'."),
        ({"expect": [{"notCalled": "pay"}]}, "pay was called."),
        ({"expect": [{"asked": "clerk.lookup:1"}]}, "clerk.lookup:1 was not asked. Asked: clerk.pay:1."),
        ({"expect": [{"notAsked": "clerk.pay:1"}]}, "clerk.pay:1 was asked."),
    ],
)
def test_a_case_fails_with_its_reason(folder: Path, changes: dict[str, object], failure: str) -> None:
    assert failures(evaluate(folder, case(**changes))) == [failure]


def test_a_rejected_call_is_not_called(folder: Path) -> None:
    answers = {"clerk.pay:1": {"decision": "rejected", "feedback": "No."}}
    rejected = case(answers=answers, expect=[{"notCalled": "pay"}, {"asked": "clerk.pay:1"}])
    assert failures(evaluate(folder, rejected)) == []


WORKFLOW: dict[str, Any] = {
    "version": "v1",
    "agent": {"name": "clerk", "model": {"provider": "dummy", "name": "dummy"}},
    "workflow": {
        "type": "sequential",
        "name": "mail",
        "steps": [
            {"id": "shout", "kind": "function", "ref": "shout"},
            {"id": "ok", "kind": "human", "ref": "editor"},
            {"id": "send", "kind": "function", "ref": "send"},
        ],
    },
    "components": {
        "functions": {
            "shout": {"implementation": "trial_tools.shout"},
            "send": {"implementation": "trial_tools.send", "capabilities": ["network"]},
        },
        "humans": {"editor": {"description": "Send?", "timeout_seconds": 60, "on_timeout": "reject"}},
    },
}


def test_a_function_with_capabilities_runs_only_as_the_output_of_its_case(folder: Path) -> None:
    plain = {"id": "mail", "input": "hi", "answers": {"ok.step": {"decision": "approved"}}}
    evaluation = evaluate(folder, plain | {"expect": [{"status": "succeeded"}]}, spec=WORKFLOW)
    assert failures(evaluation) == [
        "The function at send has the capability network, and the case has no output of it."
    ]
    assert not (folder / "witness.txt").exists()
    stubbed = plain | {"outputs": {"send": "sent HI"}, "expect": [{"outputEquals": "sent HI"}]}
    assert failures(evaluate(folder, stubbed, spec=WORKFLOW)) == []
    assert not (folder / "witness.txt").exists()


IMPORTED = 'Path(__file__).with_name("imported.txt").write_text("imported")\n'
"""A line by which a module shows that it was imported, in whatever process."""

STUBBED: dict[str, Any] = {
    "id": "mail",
    "input": "hi",
    "answers": {"ok.step": {"decision": "approved"}},
    "outputs": {"shout": "HI", "send": "sent HI"},
    "expect": [{"outputEquals": "sent HI"}],
}


@pytest.mark.parametrize("level", ["none", "process"])
def test_functions_are_those_of_the_bundle(folder: Path, level: str) -> None:
    function = {"implementation": "trial_tools.shout", "sandbox": {"level": level}}
    workflow = WORKFLOW["workflow"] | {"steps": [{"id": "shout", "kind": "function", "ref": "shout"}]}
    spec = WORKFLOW | {"workflow": workflow, "components": {"functions": {"shout": function}}}
    signed = BundleCode({"trial_tools.py": b"def shout(text):\n    return 'signed ' + text\n"}, {})
    asked = {"id": "one", "input": "x", "expect": [{"outputEquals": "signed x"}]}
    assert failures(evaluate(folder, asked, spec=spec, code=signed)) == []
    assert failures(evaluate(folder, asked, spec=spec)) != [], "the project's module answers otherwise"


@pytest.mark.parametrize("level", ["none", "process"])
@pytest.mark.parametrize("runs_code", [True, False])
def test_the_module_of_a_stubbed_function_is_not_imported(folder: Path, level: str, runs_code: bool) -> None:
    (folder / "trial_tools.py").write_text(MODULE.replace("\n\n\n", f"\n{IMPORTED}\n\n", 1))
    spec = copy.deepcopy(WORKFLOW)
    for function in spec["components"]["functions"].values():
        function["sandbox"] = {"level": level}
    assert failures(evaluate(folder, STUBBED, spec=spec, runs_code=runs_code)) == []
    assert failures(evaluate(folder, case(), runs_code=runs_code)) == []
    assert not (folder / "imported.txt").exists()
    unstubbed = STUBBED | {"outputs": {"send": "sent HI"}}
    ended = ["The case has no output of the function at shout, and no code is executed."]
    assert failures(evaluate(folder, unstubbed, spec=spec, runs_code=runs_code)) == ([] if runs_code else ended)
    assert (folder / "imported.txt").exists() is runs_code


def test_a_trial_without_code_needs_no_sandbox(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Forbidden("This machine gives no sandbox.", code="sandbox_unavailable")

    monkeypatch.setattr("kneo.agents.sandboxes.SandboxHost.check_level", refuse)
    spec = copy.deepcopy(SPEC)
    spec["tools"]["pay"]["sandbox"] = {"level": "kernel"}
    assert failures(evaluate(folder, case(), spec=spec, runs_code=False)) == []
    assert (
        failures(evaluate(folder, case(), spec=spec))[0]
        == "the status is failed (sandbox_unavailable); succeeded is expected."
    )


def test_the_function_of_a_guardrail_gives_the_output_of_its_case(folder: Path) -> None:
    (folder / "trial_tools.py").write_text(MODULE.replace("\n\n\n", f"\n{IMPORTED}\n\n", 1))
    spec = copy.deepcopy(SPEC)
    spec["components"]["functions"] = {"polite": {"implementation": "trial_tools.shout"}}
    spec["agent"]["guardrails"] = {"output": [{"id": "polite", "type": "function", "ref": "polite", "action": "block"}]}
    passed = case(outputs={"polite": '{"passed": true}'})
    assert failures(evaluate(folder, passed, spec=spec, runs_code=False)) == []
    blocked = case(outputs={"polite": "false"}, expect=[{"status": "failed"}])
    assert failures(evaluate(folder, blocked, spec=spec, runs_code=False)) == []
    ended = ["The case has no output of the function at polite, and no code is executed."]
    assert failures(evaluate(folder, case(), spec=spec, runs_code=False)) == ended
    assert not (folder / "imported.txt").exists()


def test_a_question_times_out_without_waiting(folder: Path) -> None:
    late = {
        "id": "late",
        "input": "hi",
        "answers": {"ok.step": {"timeout": True}},
        "outputs": {"send": "sent"},
        "expect": [{"status": "cancelled"}],
    }
    began = monotonic()
    assert failures(evaluate(folder, late, spec=WORKFLOW)) == []
    assert monotonic() - began < 50


PROD = b"""
apiVersion: kneo/v1
kind: Environment
metadata: {name: prod}
spec:
  releases: [{bundle: clerk, version: 1.0.0}]
  policy: {enabled: true}
  signatures: {accept: [dsse], roles: [release], threshold: 1}
  tools: {deny: [DENIED]}
  gates:
    - {name: look, match: {kinds: [tool], tools: [lookup]}, before: {human: {candidates: {users: [bob]}}}}
"""


def test_a_trial_has_the_gates_and_rules_of_its_environment(folder: Path) -> None:
    answers = {**CASE["answers"], "clerk.lookup:1>before+look": {"decision": "approved"}}
    free = PROD.replace(b"DENIED", b"nothing")
    evaluation = evaluate(folder, case(), declaration=free)
    assert "was asked, and the case has no answer to it." in failures(evaluation)[0]
    key = failures(evaluation)[0].partition(" ")[0]
    answered = case(answers={**CASE["answers"], key: {"decision": "approved"}}, expect=[{"asked": key}])
    assert failures(evaluate(folder, answered, declaration=free)) == [], answers
    denied = case(answers={}, expect=[{"notCalled": "pay"}, {"called": "lookup"}])
    denied["answers"] = {key: {"decision": "approved"}}
    assert failures(evaluate(folder, denied, declaration=PROD.replace(b"DENIED", b"pay"))) == []


def test_live_models_and_judges_are_asked_and_cost_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = case(expect=[{"judge": "strict", "question": "Polite?", "atLeast": 0.8}])
    judges = {
        "strict": {
            "model": {"provider": "openai", "name": "gpt-5"},
            "system_prompt": "Answer with a number from 0 to 1.",
        }
    }

    calls = [
        Reply(calls=[Call("lookup", {"id": 7})]),
        Reply(calls=[Call("pay", {"amount": 120})]),
        Reply("120 EUR paid."),
    ]

    def asked(reply: str, **changes: object) -> Evaluation:
        with model_server({"gpt-5-mini": calls, "gpt-5": [Reply(reply)]}) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
            monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
            return evaluate(folder, judged, models="live", judges=judges, **changes)

    evaluation = asked("0.9")
    assert failures(evaluation) == []
    assert (evaluation.scripted, evaluation.metrics()["judge.strict"].value) == (False, "0.9")
    assert {(item.provider, item.name) for item in evaluation.models} == {("openai", "gpt-5-mini"), ("openai", "gpt-5")}
    assert failures(asked("0.5")) == ["strict gives 0.5; 0.8 is expected."]
    with pytest.raises(EvaluationIncomplete, match="gave no score"):
        asked("Very polite!")
    with pytest.raises(EvaluationCostExceeded):
        asked("0.9", maxCost=0.000000001)
    assert not (folder / "witness.txt").exists()


def test_a_report_commits_to_its_cases(folder: Path) -> None:
    evaluation = evaluate(folder, case())
    (reported,) = evaluation.report()
    assert evaluation.commitments().keys() == {"small"}
    assert len(str(reported["salt"])) == 32


def test_scripted_trials_are_quick(folder: Path) -> None:
    evaluate(folder, case())
    began = monotonic()
    evaluate(folder, *(case(id=f"case-{number}") for number in range(10)))
    assert monotonic() - began < 30
