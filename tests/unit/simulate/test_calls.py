"""What a simulation finds about tool calls: each question, its decisions and their consequences."""

from __future__ import annotations

from kneo.runtime.simulate.report import Simulation, Simulator
from kneo.spec.models.answers import AnswersFile
from kneo.spec.models.environment import EnvironmentGate, with_gates
from kneo.spec.models.spec import Spec

PAY = {"description": "Pays.", "implementation": "acme.pay", "capabilities": ["privileged"]}
LOOK = {"description": "Looks.", "implementation": "acme.look"}

NO_CALL = "makes no call that asks"


def spec_of(tools: dict[str, object], *gates: dict[str, object], **agents: list[str]) -> Spec:
    declared = {name: {"name": name, "tools": {"include": include}} for name, include in agents.items()}
    spec = Spec.model_validate(
        {
            "agent": {"name": "root"},
            "workflow": [{"id": "work", "kind": "agent", "ref": "clerk"}],
            "components": {"agents": declared, "humans": {"ann": {}}},
            "tools": tools,
        }
    )
    return with_gates(spec, tuple(EnvironmentGate.model_validate(gate) for gate in gates))


def walk(spec: Spec) -> Simulation:
    return Simulator.of(spec).everything()


def follow(spec: Spec, written: dict[str, object]) -> Simulation:
    return Simulator.of(spec).following("a.yaml", AnswersFile.model_validate(written))


def ways(simulation: Simulation) -> list[tuple[tuple[str, ...], str | None]]:
    return [(tuple(" ".join(words) for _, _, words in each.choices), each.status) for each in simulation.outcomes]


def test_a_gated_call_may_be_made_or_not_and_be_approved_edited_or_rejected() -> None:
    simulation = walk(
        spec_of({"pay": {**PAY, "review": {"before": {"human": "ann"}}}, "look": LOOK}, clerk=["pay", "look"])
    )
    assert sorted(ways(simulation)) == [
        (("calls pay", "approved rejected edited"), "succeeded"),
        ((NO_CALL,), "succeeded"),
    ]
    assert simulation.findings == ()
    assert {each.ran for each in simulation.outcomes} == {("work",)}


def test_a_rejection_that_stops_the_run_is_a_branch_of_its_own() -> None:
    gate = {"human": "ann", "on_reject": "stop"}
    simulation = walk(spec_of({"pay": {**PAY, "review": {"before": gate}}}, clerk=["pay"]))
    assert sorted(ways(simulation)) == [
        (("calls pay", "approved edited"), "succeeded"),
        (("calls pay", "rejected"), "cancelled"),
        ((NO_CALL,), "succeeded"),
    ]


def test_the_gate_of_an_environment_asks_after_that_of_the_spec() -> None:
    added = {
        "name": "money",
        "match": {"kinds": ["tool"], "capabilities": ["privileged"]},
        "before": {"on_reject": "fail"},
    }
    simulation = walk(spec_of({"pay": {**PAY, "review": {"before": {"human": "ann"}}}}, added, clerk=["pay"]))
    assert sorted(ways(simulation)) == [
        (("calls pay", "approved edited", "approved edited"), "succeeded"),
        (("calls pay", "approved edited", "rejected"), "failed"),
        (("calls pay", "rejected"), "succeeded"),
        ((NO_CALL,), "succeeded"),
    ]
    assert simulation.findings == ()


def test_a_call_without_a_gate_is_found() -> None:
    assert [found.code for found in walk(spec_of({"pay": PAY}, clerk=["pay"])).findings] == ["privileged_ungated"]


def test_the_question_of_an_agent_behind_a_tool_is_a_branch() -> None:
    tools = {
        "pay": {**PAY, "review": {"before": {"human": "ann", "on_reject": "stop"}}},
        "ask_cashier": {"description": "Asks.", "agent": "cashier"},
    }
    simulation = walk(spec_of(tools, clerk=["ask_cashier"], cashier=["pay"]))
    assert (("calls pay", "rejected"), "cancelled") in ways(simulation)
    assert simulation.findings == ()


def test_a_person_who_carries_a_call_out_is_asked() -> None:
    tool = {"description": "Runs a query.", "review": {"external": {"human": "ann"}}}
    assert (("calls query", "provided rejected"), "succeeded") in ways(walk(spec_of({"query": tool}, clerk=["query"])))


def test_written_answers_decide_about_calls_whatever_their_arguments() -> None:
    gate = {"human": "ann", "on_reject": "stop"}
    spec = spec_of({"pay": {**PAY, "review": {"before": gate}}}, clerk=["pay"])
    for key in ("work.pay:1", "work.pay:1:0123abcd"):
        simulation = follow(spec, {"answers": {key: {"decision": "rejected"}}, "expect": {"status": "cancelled"}})
        assert (ways(simulation), simulation.findings) == ([(("rejected",), "cancelled")], ())
    both = [{"name": "money", "match": {"kinds": ["tool"]}, "before": {"on_reject": "stop"}}]
    added = follow(
        spec_of({"pay": PAY}, *both, clerk=["pay"]),
        {"answers": {"work.pay:1:0123abcd": {"decision": "rejected"}}},
    )
    assert (ways(added), added.findings) == ([(("rejected",), "cancelled")], ())
    twice = follow(
        spec_of({"pay": {**PAY, "review": {"before": gate}}}, *both, clerk=["pay"]),
        {
            "answers": {
                "work.pay:1:0123abcd": {"decision": "approved"},
                "work.pay:1:0123abcd+environment.money.before": {"decision": "rejected"},
            }
        },
    )
    assert (ways(twice), twice.findings) == ([(("approved", "rejected"), "cancelled")], ())
    nested = {"pay": {**PAY, "review": {"before": gate}}, "ask": {"description": "Asks.", "agent": "cashier"}}
    behind = spec_of(nested, clerk=["ask"], cashier=["pay"])
    written = {"answers": {"work.ask:1:89abcdef>pay:1:0123abcd": {"decision": "rejected"}}}
    assert ways(follow(behind, written)) == [(("rejected",), "cancelled")]
    other = follow(spec, {"answers": {"work.pay:2": {"decision": "rejected"}}})
    assert [found.code for found in other.findings] == ["answer_unused"]


def test_a_written_output_makes_no_call_that_nobody_answered() -> None:
    spec = spec_of({"pay": {**PAY, "review": {"before": {"human": "ann"}}}}, clerk=["pay"])
    assert ways(follow(spec, {"outputs": {"work": "done"}, "answers": {}})) == [((), "succeeded")]
