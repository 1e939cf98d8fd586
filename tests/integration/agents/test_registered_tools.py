"""Tools that a program registers, called by the agents of its specs through the whole engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from model_server import Call, ModelServer, Reply, model_server

from kneo.errors import Invalid
from kneo.platform import PlatformManager
from kneo.sdk.tools import tool
from kneo.settings import from_env
from kneo.spec import SpecCompiler
from kneo.tools import CallNext, ToolContext, ToolDefinition, ToolRegistry


@pytest.fixture
def server() -> Iterator[ModelServer]:
    calls = [Call("lookup", {"user_id": "u-1"}), Call("pay", {"amount": 5})]
    with model_server([Reply(calls=calls), Reply("Done.")]) as found:
        yield found


class Program:
    """A program with two tools, one of which requires a confirmation."""

    def __init__(self, folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        self.paid: list[int] = []

        @tool(requires_confirmation=True)
        async def pay(amount: int) -> str:
            """Pay."""
            self.paid.append(amount)
            return f"paid {amount}"

        self.registry = ToolRegistry()
        schema = {"type": "object", "properties": {"user_id": {"type": "string"}}, "required": ["user_id"]}
        definition = ToolDefinition(name="lookup", description="Look up.", parameters=schema)
        self.registry.register(definition, lambda arguments: f"found {arguments['user_id']}")
        self.registry.add(pay)
        self.review = pay.review
        settings = from_env({"KNEO_SERV_DATABASE_URL": f"sqlite:///{folder / 'kneo.sqlite'}"}, folder)
        self.manager = PlatformManager(SpecCompiler(tool_registry=self.registry), settings=settings)

    def spec(self, **tools: Mapping[str, object]) -> dict[str, object]:
        model = {"provider": "openai", "name": "gpt-5-mini"}
        agent = {"name": "clerk", "model": model, "strategy": "react", "tools": ["lookup", "pay"]}
        return {"version": "v1", "agent": agent, "tools": tools}


@pytest.fixture
def program(tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    found = Program(tmp_path, server, monkeypatch)
    yield found
    found.manager.close()


def test_a_registered_tool_is_called_and_one_that_requires_a_person_is_not_without_its_gate(
    program: Program, server: ModelServer
) -> None:
    result = program.manager.run_from_spec("go", spec=program.spec(), target="agent")
    assert result.output_text == "Done."
    assert program.paid == []
    told = server.requests[-1].text
    assert "found u-1" in told
    assert "requires a person" in told


def test_a_spec_declares_the_gate_of_a_registered_tool_and_another_description(
    program: Program, server: ModelServer
) -> None:
    spec = program.spec(
        pay={"description": "Pay an invoice.", "review": program.review}, lookup={"description": "Find a user by id."}
    )
    paused = program.manager.run_from_spec("go", spec=spec, target="agent")
    assert paused.human_intervention_required
    assert paused.continuation_id is not None
    assert program.paid == []
    offered = {each["name"]: each for each in server.requests[0].body["tools"]}
    assert offered["lookup"]["description"] == "Find a user by id."
    assert offered["lookup"]["parameters"]["required"] == ["user_id"]
    assert offered["pay"]["parameters"]["required"] == ["amount"]
    request = paused.metadata["pending_human_request"]
    assert isinstance(request, Mapping)
    done = program.manager.resume_human_task(
        paused.continuation_id, request_id=str(request["request_id"]), decision="edited", content='{"amount": 4}'
    )
    assert (done.output_text, program.paid) == ("Done.", [4])


def test_middleware_stands_around_the_calls_of_agents_that_name_it(program: Program, server: ModelServer) -> None:
    async def logged(context: ToolContext, arguments: Mapping[str, object], call_next: CallNext) -> object:
        log.append((context.agent, context.tool, dict(arguments)))
        return f"logged: {await call_next()}"

    log: list[tuple[str, str, dict[str, object]]] = []
    program.registry.use("logged", logged)
    spec = program.spec()
    agent = {**spec["agent"], "tools": ["lookup"], "middleware": ["logged"]}  # type: ignore[dict-item]
    result = program.manager.run_from_spec("go", spec={**spec, "agent": agent}, target="agent")
    assert result.output_text == "Done."
    assert log == [("clerk", "lookup", {"user_id": "u-1"})]
    assert "logged: found u-1" in server.requests[-1].text


def test_an_agent_with_unregistered_middleware_is_not_asked(program: Program, server: ModelServer) -> None:
    spec = program.spec()
    agent = {**spec["agent"], "middleware": ["limits"]}  # type: ignore[dict-item]
    result = program.manager.run_from_spec("go", spec={**spec, "agent": agent}, target="agent")
    assert (result.status, result.error["type"] if result.error else None) == ("failed", "middleware_not_found")
    assert server.requests == []


SPEC = """
version: v1
agent:
  name: clerk
  model: {provider: openai, name: gpt-5-mini}
  system_prompt: {file: prompt.md}
  skills: [tone]
skills: {tone: {source: skills/tone}}
"""


def test_a_spec_of_a_file_has_the_prompts_and_skills_beside_it(
    program: Program, server: ModelServer, tmp_path: Path
) -> None:
    server.script = [Reply("Done.")]
    (tmp_path / "skills" / "tone").mkdir(parents=True)
    (tmp_path / "agent.yaml").write_text(SPEC)
    (tmp_path / "prompt.md").write_text("You are a clerk.")
    with pytest.raises(Invalid, match="E_SKILL_SOURCE"):
        program.manager.run_from_spec("go", spec_path="agent.yaml", target="agent")
    (tmp_path / "skills" / "tone" / "SKILL.md").write_text("---\ndescription: How to write.\n---\nBe brief.")

    assert program.manager.run_from_spec("go", spec_path="agent.yaml", target="agent").output_text == "Done."
    assert "You are a clerk." in server.requests[-1].text
    assert "Be brief." in server.requests[-1].text


def test_a_spec_without_the_content_of_its_skill_is_not_started(program: Program, server: ModelServer) -> None:
    spec = program.spec()
    agent = {**spec["agent"], "skills": ["tone"]}  # type: ignore[dict-item]
    with pytest.raises(Invalid, match="has the skill tone, whose content is not in the spec"):
        program.manager.run_from_spec(
            "go", spec={**spec, "agent": agent, "skills": {"tone": {"source": "x"}}}, target="agent"
        )
    assert server.requests == []
