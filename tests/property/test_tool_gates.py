"""The proof about tool calls against the runtime: a call that is proved to be gated is asked about, whatever its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from kneo.runtime.program.gates import compile_tool_gates, gate_id
from kneo.spec.coverage.environment_gates import gates_of_calls
from kneo.spec.index import SpecIndex
from kneo.spec.lint import check
from kneo.spec.models.environment import EnvironmentGate, GatedSpec, with_gates
from kneo.spec.models.spec import Spec

WHEN = {"type": "metadata_equals", "key": "amount", "value": 5}
ARGUMENTS = ({}, {"amount": 5}, {"amount": 6})

CHANCE = st.sampled_from(
    [
        {},
        {},
        {"when": WHEN},
        {"when": {"type": "always"}},
        {"sample": 0.0},
        {"sample": 1.0},
        {"when": WHEN, "sample": 1.0},
        {"when": {"type": "expression", "value": "args.amount == 5"}},
        {"when": {"type": "expression", "value": "args.amount == 5"}, "sample": 0.0},
        {"when": {"type": "not", "condition": {"type": "expression", "value": "args.amount == 5"}}},
    ]
)
REVIEW = st.one_of(
    st.none(),
    st.builds(lambda gate: {"before": gate}, CHANCE),
    st.builds(lambda before, external: {"before": before, "external": external}, CHANCE, CHANCE),
    st.builds(lambda gate: {"external": gate}, CHANCE),
)
CAPABILITIES = st.sampled_from([[], ["filesystem_read"], ["privileged"], ["shell", "network"]])
TOOLS = st.fixed_dictionaries({name: st.tuples(CAPABILITIES, REVIEW) for name in ("pay", "look", "mail.send")})
INCLUDED = st.lists(st.sampled_from(["pay", "look", "mail.send", "ask_b", "unknown"]), unique=True)
MATCH = st.fixed_dictionaries(
    {"kinds": st.sampled_from([["tool"], ["tool", "function"], ["agent"]])},
    optional={
        "tools": st.sampled_from([["pay"], ["mail.*"], ["*"], ["none"]]),
        "capabilities": st.sampled_from([["privileged"], ["shell"]]),
        "refs": st.sampled_from([["a"], ["b"], ["?"]]),
        "steps": st.sampled_from([["one"], ["*"]]),
    },
)
ADDED = st.lists(st.tuples(MATCH, CHANCE), max_size=2)


def spec_of(
    tools: Mapping[str, tuple], a: list[str], b: list[str], review: dict | None, added: list[tuple]
) -> GatedSpec:
    declared = {
        name: {
            "description": "A tool.",
            "implementation": "acme.tool",
            "capabilities": capabilities,
            **({"review": gates} if gates else {}),
        }
        for name, (capabilities, gates) in tools.items()
    }
    declared["ask_b"] = {"description": "Asks b.", "agent": "b", **({"review": review} if review else {})}
    spec = Spec.model_validate(
        {
            "agent": {"name": "root"},
            "workflow": [{"id": "one", "kind": "agent", "ref": "a"}, {"id": "two", "kind": "agent", "ref": "b"}],
            "components": {
                "agents": {
                    "a": {"name": "a", "tools": {"include": a}},
                    "b": {"name": "b", "tools": {"include": [name for name in b if name != "ask_b"]}},
                }
            },
            "tools": declared,
        }
    )
    gates = [{"name": f"g{number}", "match": match, "before": gate} for number, (match, gate) in enumerate(added)]
    found = with_gates(spec, tuple(EnvironmentGate.model_validate(gate) for gate in gates))
    return found if isinstance(found, GatedSpec) else GatedSpec(**dict(found))


def silent_calls(spec: GatedSpec) -> Iterator[str]:
    """Yield the steps in which a privileged call can be made about which the runtime asks nobody, without rules of an environment."""
    index, gates = SpecIndex.of(spec), compile_tool_gates(spec)
    around = gates_of_calls(index)
    for at in index.steps:
        of_call = gates.of_step([gate_id(gate) for gate in around.get(id(at.step), ())], "seed")
        pending = [str(getattr(at.step, "ref", ""))]
        while pending:
            agent = pending.pop()
            included = spec.components.agents[agent].tools
            for name in included.include if included else ():
                tool = spec.tools.get(name)
                privileged = tool is not None and bool({"privileged", "shell", "network"} & set(tool.capabilities))
                silent = any(
                    all(gate.unless_unattended and not privileged for gate in of_call(agent, name, arguments))
                    for arguments in ARGUMENTS
                )
                if tool is not None and silent and tool.agent:
                    pending.append(tool.agent)
                elif silent and privileged:
                    yield f"workflow.steps[{at.path[-1]}]"


@settings(max_examples=400, deadline=None)
@given(TOOLS, INCLUDED, INCLUDED, REVIEW, ADDED)
def test_a_call_is_proved_to_be_gated_exactly_where_the_runtime_always_asks(
    tools: Mapping[str, tuple], a: list[str], b: list[str], review: dict | None, added: list[tuple]
) -> None:
    # Gates around whole steps are the subject of another proof.
    added = [each for each in added if "tool" in each[0]["kinds"]]
    spec = spec_of(tools, a, b, review, added)
    found = {each.path_text for each in check(spec) if each.code == "E_PRIVILEGED_UNGATED"}
    silent = set(silent_calls(spec))
    assert silent <= found
    if not any("steps" in match for match, _ in added):
        assert found == silent, "a gate that names steps does not count, every other one does"


def test_the_runtime_asks_for_approval_before_a_person_carries_a_call_out() -> None:
    spec = spec_of({"pay": (["privileged"], {"before": True, "external": True})}, ["pay"], [], None, [])
    asked = compile_tool_gates(spec).of_step((), "seed")("a", "pay", {})
    assert [gate.position for gate in asked] == ["tool", "external"]
