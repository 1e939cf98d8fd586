"""What a simulation finds in small specs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_simulator import fn, human, spec_of

from kneo.cli.main import run
from kneo.runtime.simulate.report import Simulation, Simulator
from kneo.spec.models.answers import AnswersFile
from kneo.spec.models.environment import QuestionPolicy
from kneo.spec.models.spec import Spec

EXAMPLES = Path(__file__).parents[3] / "examples"
URGENT = {"type": "output_contains", "value": "urgent"}


def walk(workflow: object, *, limit: int = 5000, **components: object) -> Simulation:
    return Simulator.of(spec_of(workflow, **components), limit=limit).everything()


def follow(workflow: object, written: dict, **components: object) -> Simulation:
    return Simulator.of(spec_of(workflow, **components)).following("a.yaml", AnswersFile.model_validate(written))


def ends(simulation: Simulation) -> list[tuple[str, ...]]:
    return [(*outcome.ran, outcome.status) for outcome in simulation.outcomes]


def codes(simulation: Simulation) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in simulation.findings]


def test_answers_that_lead_the_same_way_are_one_branch() -> None:
    simulation = walk([fn("a"), human("q"), fn("b")])
    assert ends(simulation) == [("a", "b", "succeeded"), ("a", "cancelled")]
    assert simulation.outcomes[0].choices == (("question", "q.step", ("approved", "edited", "provided")),)
    assert simulation.findings == ()


def test_words_count_only_where_a_condition_looks_at_them() -> None:
    step = {"id": "x", "kind": "condition", "when": URGENT, "steps": [fn("b")], "else": [fn("c")]}
    simulation = walk([fn("a"), fn("d"), step])
    assert ends(simulation) == [("a", "d", "x/c", "succeeded"), ("a", "d", "x/b", "succeeded")]
    assert [outcome.choices[0][1:] for outcome in simulation.outcomes] == [
        ("d", ("something else",)),
        ("d", ('"urgent"',)),
    ]


def test_a_step_called_like_the_word_still_says_something_else() -> None:
    step = {"id": "x", "kind": "condition", "when": URGENT, "steps": [fn("b")], "else": [fn("c")]}
    assert {end[1] for end in ends(walk([fn("urgent"), step]))} == {"x/b", "x/c"}


def test_silence_is_a_branch_where_it_has_a_limit() -> None:
    limited = {"ann": {"description": "?", "decisions": ["approved"], "timeout_seconds": 5, "on_timeout": "fail"}}
    simulation = walk([human("q"), fn("a")], humans=limited)
    assert ends(simulation) == [("a", "succeeded"), ("expired",)]
    turned_to_others = {"ann": {**limited["ann"], "on_timeout": "escalate"}}
    assert ends(walk([human("q"), fn("a")], humans=turned_to_others)) == [("a", "succeeded")]


def test_an_environment_may_deny_silence_what_the_spec_lets_it_do() -> None:
    limited = {"ann": {"description": "?", "decisions": ["approved"], "timeout_seconds": 5, "on_timeout": "approve"}}
    spec = spec_of([human("q"), fn("a")], humans=limited)
    assert ends(Simulator.of(spec).everything()) == [("a", "succeeded")]
    strict = Simulator.of(spec, least=QuestionPolicy.model_validate({"denyOnTimeout": ["approve"]}))
    assert ends(strict.everything()) == [("a", "succeeded"), ("expired",)]


def test_the_command_asks_what_the_environment_file_asks(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init", "acme", "--json"]) == 0
    monkeypatch.chdir("acme")
    spec = next(Path("specs").glob("*.yaml"))
    spec.write_text(
        spec.read_text().replace(
            "Publish this announcement?", "Go?\n      timeout_seconds: 60\n      on_timeout: approve"
        )
    )
    prod = Path("environments/prod.yaml")
    prod.write_text(
        prod.read_text().rstrip()
        + """
  questions: {denyOnTimeout: [approve]}
  humans: {boss: {candidates: {users: [ann]}}}
  gates: [{name: all, match: {kinds: [function]}, before: {human: boss, on_reject: fail}}]
"""
    )
    capsys.readouterr()

    def statuses(env: str) -> set[str]:
        run(["spec", "simulate", str(spec), "--env", env, "--json"])
        return {outcome["status"] for outcome in json.loads(capsys.readouterr().out)["outcomes"]}

    assert (statuses("dev"), statuses("prod")) == (
        {"succeeded", "cancelled"},
        {"succeeded", "cancelled", "expired", "failed"},
    )


def test_the_command_imports_no_function(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init", "acme", "--json"]) == 0
    monkeypatch.chdir("acme")
    functions = Path("announcement_functions.py")
    functions.write_text(f"{functions.read_text()}\nraise SystemExit('imported')\n")
    capsys.readouterr()
    assert run(["spec", "simulate", *map(str, Path("specs").glob("*.yaml")), "--json"]) == 0
    statuses = [outcome["status"] for outcome in json.loads(capsys.readouterr().out)["outcomes"]]
    assert sorted(set(statuses)) == ["cancelled", "succeeded"]


def test_failures_count_only_where_somebody_catches_them() -> None:
    assert ends(walk([fn("a"), fn("b")])) == [("a", "b", "succeeded")]
    assert ends(walk([fn("a", on_error="fallback", fallback_ref="b"), fn("b")])) == [
        ("a", "b", "succeeded"),
        ("a", "a:fallback", "b", "succeeded"),
    ]


def test_each_branch_of_a_caught_failure_has_words() -> None:
    simulation = walk([fn("a", on_error="fallback", fallback_ref="b"), fn("b")])
    assert [outcome.choices for outcome in simulation.outcomes] == [
        (("step", "a", ("succeeds",)),),
        (("step", "a", ("fails",)),),
    ]


def test_a_step_that_nothing_leads_to_is_found() -> None:
    step = {"id": "x", "kind": "condition", "when": {"type": "never"}, "steps": [fn("b"), human("q")]}
    assert codes(walk([fn("a"), step])) == [("unreachable_step", "x/b"), ("unreachable_gate", "x/q")]


def test_a_gate_that_never_asks_is_found() -> None:
    step = fn("a", review={"before": {"when": {"type": "never"}}})
    assert codes(walk([step])) == [("unreachable_gate", "a.before")]


def test_a_gate_that_asks_by_chance_is_asked() -> None:
    step = fn("a", review={"before": {"when": {"type": "never"}, "sample": 0.001}})
    assert codes(walk([step])) == []


def test_what_people_fill_in_counts_where_a_condition_looks_at_it() -> None:
    fields = [{"name": "mode", "allowed_values": ["fast", "slow"]}, {"name": "count", "type": "int"}]
    when = {"type": "variable_equals", "key": "a.mode", "value": "slow"}
    steps = [
        fn("a", review={"before": {"fields": fields}}),
        {"id": "x", "kind": "condition", "when": when, "steps": [fn("b")]},
    ]
    simulation = walk(steps)
    assert ends(simulation)[:2] == [("a", "succeeded"), ("a", "x/b", "succeeded")]
    assert simulation.outcomes[1].choices == (("question", "a.before", ("approved mode=slow",)),)
    written = {"answers": {"a.before": {"decision": "approved", "values": {"mode": "slow", "count": 1}}}}
    assert ends(follow(steps, written)) == [("a", "x/b", "succeeded")]
    written["answers"]["a.before"]["values"]["mode"] = "medium"
    assert codes(follow(steps, written))[0] == ("answer_unfit", "a.before")


def privileged(workflow: object) -> Spec:
    tree = spec_of(workflow).model_dump(mode="json", by_alias=True, exclude_unset=True)
    tree["components"]["functions"]["b"]["capabilities"] = ["shell"]
    return Spec.model_validate_json(json.dumps(tree))


def test_a_privileged_end_that_nobody_agreed_to_is_found_with_its_decisions() -> None:
    step = {"id": "x", "kind": "condition", "when": URGENT, "steps": [human("q")]}
    simulation = Simulator.of(privileged([fn("a"), step, fn("b")])).everything()
    assert codes(simulation) == [("privileged_ungated", "b")]
    assert "a: something else" in simulation.findings[0].message
    assert [outcome.ungated != () for outcome in simulation.outcomes] == [True, False, False]


@pytest.mark.parametrize("on_reject", ["skip", "continue"])
def test_a_rejection_is_no_agreement(on_reject: str) -> None:
    lax = {"id": "q", "kind": "human", "ref": "lax"}
    tree = privileged([human("q"), fn("b")]).model_dump(mode="json", by_alias=True, exclude_unset=True)
    tree["workflow"]["steps"][0] = lax
    tree["components"]["humans"]["lax"] = {"on_reject": on_reject}
    simulation = Simulator.of(Spec.model_validate_json(json.dumps(tree))).everything()
    assert codes(simulation) == [("privileged_ungated", "b")]


def test_what_is_left_out_is_said() -> None:
    step = {"id": "l", "kind": "loop", "steps": [fn("a")], "max_iterations": 50, "until": URGENT}
    whole = walk([step])
    assert (whole.branches, whole.cut) == (50, 0)
    some = walk([step, fn("b")], limit=10)
    assert some.cut > 0
    assert some.as_json()["complete"] is False
    assert codes(some) == []
    assert None in [outcome.status for outcome in some.outcomes]


def test_what_was_not_reached_within_the_limit_is_not_passed_over() -> None:
    assert codes(walk([fn("a"), fn("b"), fn("c")], limit=2)) == [("unreachable_step", "c")]


def test_given_outputs_and_answers_leave_one_branch() -> None:
    step = {"id": "x", "kind": "condition", "when": URGENT, "steps": [human("q")], "else": [fn("c")]}
    written = {
        "outputs": {"a": "urgent!"},
        "answers": {"x/q.step": {"decision": "edited", "content": "calm"}},
        "expect": {"status": "succeeded", "output": "calm", "ran": ["a"], "not_run": ["x/c"]},
    }
    simulation = follow([fn("a"), step], written)
    assert (ends(simulation), simulation.findings) == ([("a", "succeeded")], ())


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ({"answers": {"q.step": {"decision": "rejected"}}, "expect": {"status": "succeeded"}}, "unexpected_outcome"),
        ({"answers": {"q.step": {"decision": "rejected"}}, "expect": {"ran": ["b"]}}, "unexpected_outcome"),
        ({"answers": {"q.step": {"decision": "approved"}}, "expect": {"not_run": ["b"]}}, "unexpected_outcome"),
        ({"answers": {"q.step": {"decision": "edited"}}}, "answer_unfit"),
        ({"answers": {"q.step": {"timeout": True}}}, "answer_unfit"),
        ({"answers": {"b.before": {"decision": "approved"}}}, "answer_unused"),
        ({"answers": {}, "outputs": {"nowhere": "x"}}, "answer_unused"),
    ],
)
def test_an_answers_file_that_does_not_fit_is_found(written: dict, code: str) -> None:
    simulation = follow([fn("a"), human("q"), fn("b")], written)
    assert code in [finding.code for finding in simulation.findings]
    assert all(finding.file == "a.yaml" for finding in simulation.findings)


def test_an_expectation_is_held_against_every_branch_that_is_left() -> None:
    assert codes(follow([human("q")], {"answers": {}, "expect": {"status": "succeeded"}})) == [
        ("unexpected_outcome", "expect")
    ]


def test_the_command_fails_a_spec_whose_answers_change(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    spec, answers = EXAMPLES / "human_approval_workflow.yaml", EXAMPLES / "human_approval_workflow.answers.yaml"
    monkeypatch.chdir(EXAMPLES.parent)
    assert run(["spec", "simulate", str(spec), "--answers", str(answers), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["branches"], told["left_out"], told["complete"]) == (True, 2, 0, True)
    assert told["scenarios"][0]["outcomes"][0]["ran"] == ["draft"]
    changed = tmp_path / "changed.yaml"
    changed.write_text(
        spec.read_text().replace("on_timeout: escalate", "on_timeout: escalate\n      on_reject: continue")
    )
    assert run(["spec", "simulate", str(changed), "--answers", str(answers), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in told["findings"]] == ["unexpected_outcome"]


def test_an_ungated_call_is_shown_rather_than_refused(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    spec = tmp_path / "open.yaml"
    spec.write_text(
        "agent: {name: root}\nworkflow: [{id: go, kind: function, ref: go}]\ncomponents: {functions: {go: "
        "{implementation: examples.app_functions.summarize, capabilities: [shell]}}}\n"
    )
    assert run(["spec", "simulate", str(spec)]) == 1
    assert "(privileged_ungated)" in capsys.readouterr().out


def test_a_file_that_is_no_answers_is_refused_with_its_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    bad = tmp_path / "bad.answers.yaml"
    bad.write_text("answers:\n  q: {decison: approved}\n")
    assert run(["spec", "simulate", str(EXAMPLES / "human_approval_workflow.yaml"), "--answers", str(bad)]) == 1
    assert "bad.answers.yaml:2" in capsys.readouterr().err
