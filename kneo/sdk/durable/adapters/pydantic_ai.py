"""Agents of pydantic-ai in flows: replies of the model and results of tools are checkpoints. And as participants of workflows.

Needs ``pip install 'kneo[agents]'``. After an answer or a crash the flow's function runs again; a wrapped agent then reads
the recorded replies and results, so that neither the model nor a finished tool is called twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter
from pydantic_ai import DeferredToolRequests, DeferredToolResults, ModelRetry, ToolDenied
from pydantic_ai.agent import AbstractAgent, AgentRun, WrapperAgent
from pydantic_ai.capabilities import AbstractCapability, ReinjectSystemPrompt
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart
from pydantic_ai.models import CompletedStreamedResponse, ModelRequestParameters, StreamedResponse, infer_model
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset
from pydantic_ai.usage import UsageLimits
from pydantic_core import to_jsonable_python

from kneo.embed.steps import CheckpointCall, is_in_step
from kneo.errors import Usage
from kneo.sdk.messages import Message, RunConfig
from kneo.sdk.waits import hitl_tool, wait, wait_for_input

__all__ = ["DurableAgent", "KitaruAgent", "answer_deferred", "answer_messages", "hitl_tool", "wait_for_input"]

Strategy = Literal["calls", "turn"]

DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT")

_REPLY: TypeAdapter[ModelResponse] = TypeAdapter(ModelResponse)


class DurableAgent(WrapperAgent[DepsT, OutputT]):
    """An agent whose turns continue where they were. Outside a flow it is the agent that it wraps.

    Replies of the model are recorded by their number in the flow: a turn that is entered again gets the replies that it had,
    whatever the prompt says by then. Tools run one after the other.

    Args:
        agent: The agent.
        checkpoint_strategy: ``calls`` records each tool's result when the tool ends; ``turn`` records them when the turn
            ends, so that an interrupted turn calls its tools again. Replies are recorded at once with both.
        tool_checkpoint_config_by_name: ``False`` for tools whose results are not recorded.

    Raises:
        Usage: an unknown strategy, or a value other than ``True`` and ``False`` for a tool.
    """

    def __init__(
        self,
        agent: AbstractAgent[DepsT, OutputT],
        *,
        checkpoint_strategy: Strategy = "calls",
        tool_checkpoint_config_by_name: Mapping[str, bool] | None = None,
    ) -> None:
        super().__init__(agent)
        if checkpoint_strategy not in {"calls", "turn"}:
            msg = f"checkpoint_strategy is calls or turn, not {str(checkpoint_strategy)[:80]!r}."
            raise Usage(msg)
        recorded = dict(tool_checkpoint_config_by_name or {})
        if wrong := [name for name, value in recorded.items() if not isinstance(value, bool)]:
            msg = (
                f"tool_checkpoint_config_by_name has True or False for each tool; {wrong[0][:80]!r} has something else."
            )
            raise Usage(msg)
        self._strategy = checkpoint_strategy
        self._unrecorded = frozenset(name for name, value in recorded.items() if not value)

    @asynccontextmanager
    async def iter(self, *args: Any, **kwargs: Any) -> AsyncGenerator[AgentRun[DepsT, Any]]:
        """Begin a turn; ``run``, ``run_sync`` and ``run_stream`` begin theirs here as well."""
        if not is_in_step():
            async with super().iter(*args, **kwargs) as run:
                yield run
            return
        name = self.name or "agent"
        model = infer_model(kwargs.pop("model", None) or self.wrapped.model or _no_model(name))
        turn = _Turn(at_once=self._strategy == "calls", unrecorded=self._unrecorded)
        given: Sequence[AbstractToolset[DepsT]] = [*self.wrapped.toolsets, *(kwargs.pop("toolsets", None) or ())]
        toolsets = [each.visit_and_replace(lambda leaf: _RecordedTools(leaf, turn)) for each in given]
        with (
            self.wrapped.override(model=_RecordedModel(model, name), toolsets=toolsets, tools=[]),
            self.parallel_tool_call_execution_mode("sequential"),
        ):
            async with super().iter(*args, **kwargs) as run:
                yield run
        await asyncio.to_thread(turn.end)


KitaruAgent = DurableAgent
"""The name of the class in programs written for that package."""


def _no_model(name: str) -> str:
    msg = f"The agent {name[:80]} has no model."
    raise Usage(msg, hint="Pass model= to the agent, or to its run.")


class _RecordedModel(WrapperModel):
    """A model whose replies are recorded by their number."""

    def __init__(self, wrapped: Any, agent: str) -> None:
        super().__init__(wrapped)
        self._agent = agent

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        call = CheckpointCall.of(f"{self._agent} reply", (), {})
        recorded = await asyncio.to_thread(call.recorded)
        if recorded:
            return _REPLY.validate_python(recorded[0])
        reply = await self.wrapped.request(messages, model_settings, model_request_parameters)
        await asyncio.to_thread(call.record, _REPLY.dump_python(reply, mode="json"))
        return reply

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,  # noqa: ARG002 - of the signature
    ) -> AsyncGenerator[StreamedResponse]:
        reply = await self.request(messages, model_settings, model_request_parameters)
        yield CompletedStreamedResponse(model_request_parameters, reply, replay_events=True)


@dataclass
class _Turn:
    """The results of one turn's tools, as far as they are recorded when the turn ends."""

    at_once: bool
    unrecorded: frozenset[str]
    results: list[tuple[CheckpointCall, object]] = field(default_factory=list)

    def keep(self, call: CheckpointCall, result: object) -> None:
        if self.at_once:
            call.record(result)
        else:
            self.results.append((call, result))

    def end(self) -> None:
        for call, result in self.results:
            call.record(result)


@dataclass
class _RecordedTools(WrapperToolset[Any]):
    """Tools whose results are recorded: what they return, or what they ask the model to do otherwise."""

    turn: _Turn

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        if name in self.turn.unrecorded:
            return await self.wrapped.call_tool(name, tool_args, ctx, tool)
        call = CheckpointCall.of(name, (), to_jsonable_python(tool_args))
        recorded = await asyncio.to_thread(call.recorded)
        found = recorded[0] if recorded else await self._call(call, name, tool_args, ctx, tool)
        assert isinstance(found, Mapping)
        if "retry" in found:
            raise ModelRetry(str(found["retry"]))
        return found["result"]

    async def _call(
        self, call: CheckpointCall, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Mapping[str, object]:
        try:
            with call.running():
                result = await self.wrapped.call_tool(name, tool_args, ctx, tool)
        except ModelRetry as error:
            found: Mapping[str, object] = {"retry": error.message}
        else:
            # Decoded again, so that the first call and a repeated turn return the same.
            found = {"result": json.loads(json.dumps(to_jsonable_python(result)))}
        await asyncio.to_thread(self.turn.keep, call, found)
        return found


async def answer_messages(agent: AbstractAgent[Any, Any], messages: Sequence[Message], config: RunConfig) -> str:
    """Return the reply of an agent to a conversation, as a participant of a workflow gives it.

    The last message is the prompt, the earlier ones are the history. Output of a type other than ``str`` is returned as JSON.

    Args:
        agent: The agent; it gets no ``deps``.
        messages: The conversation.
        config: Its ``temperature``, its ``max_iterations`` as the most requests, and its ``system_prompt`` instead of the
            instructions and system prompts of the agent.

    Raises:
        Usage: the agent deferred a call of a tool.
    """
    *earlier, last = messages
    history: list[ModelMessage] = [_as_history(each) for each in earlier]
    instead: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    capabilities: list[AbstractCapability[Any]] = [ReinjectSystemPrompt()]
    if config.system_prompt is not None:
        # With a history an agent adds no system prompt of its own.
        history.insert(0, ModelRequest([SystemPromptPart(config.system_prompt)]))
        instead, capabilities = agent.override(instructions=[]), []
    with instead:
        result = await agent.run(
            last.content,
            message_history=history or None,
            model_settings=None if config.temperature is None else ModelSettings(temperature=config.temperature),
            usage_limits=None if config.max_iterations is None else UsageLimits(request_limit=config.max_iterations),
            capabilities=capabilities,
        )
    if isinstance(result.output, DeferredToolRequests):
        msg = f"The agent {agent.name} deferred a call of a tool, which nothing answers in a workflow."
        hint = "Run the agent in a function that passes the output to answer_deferred, and add the function to the workflow."
        raise Usage(msg, hint=hint)
    output = result.output
    return output if isinstance(output, str) else json.dumps(to_jsonable_python(output), ensure_ascii=False)


def _as_history(message: Message) -> ModelMessage:
    if message.role == "assistant":
        return ModelResponse([TextPart(message.content)])
    # A message with the role system is part of the conversation too: the system prompt of the agent is its own.
    return ModelRequest([UserPromptPart(message.content)])


def answer_deferred(requests: DeferredToolRequests) -> DeferredToolResults:
    """Ask a person about each call that the agent deferred, one human task each.

    A call that needs an approval is approved or rejected; the answer to any other deferred call is its result, any JSON.

    Args:
        requests: The output of a run of the agent; pass the result as ``deferred_tool_results`` to the next run.
    """
    results = DeferredToolResults()
    for call in requests.approvals:
        name = f"approve_{call.tool_name}_{call.tool_call_id}"
        approved = wait(schema=bool, name=name, question=f"Approve {call.tool_name}?", metadata=call.args_as_dict())
        results.approvals[call.tool_call_id] = True if approved else ToolDenied("A person rejected this call.")
    for call in requests.calls:
        name = f"defer_{call.tool_name}_{call.tool_call_id}"
        question = f"What is the result of {call.tool_name}?"
        results.calls[call.tool_call_id] = wait(name=name, question=question, metadata=call.args_as_dict())
    return results
