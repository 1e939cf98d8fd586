"""Requests to models: every complete reply is in the journal before it is used."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NoReturn, cast

from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings as RequestSettings

from kneo.agents.agent_spans import note_reply, request_span
from kneo.agents.clients import ModelClients, RequestLimit
from kneo.agents.failures import IncompleteReply, RequestFailure
from kneo.agents.prices import cost_micros, is_priced
from kneo.agents.providers import (
    OperatorConnections,
    ProviderConnection,
    check_allowed,
    choices,
    connect,
    find_provider,
)
from kneo.agents.quota import ModelQuota, PlannedRequest
from kneo.agents.replies import sound_reply, with_distinct_calls
from kneo.agents.services import AgentServices, Progress
from kneo.agents.texts import sound_text
from kneo.agents.turn import Postponed, Turn
from kneo.agents.window import LeftOut, leave_out_more, without
from kneo.clock import Clock, isoformat, monotonic, parse_time
from kneo.errors import KneoError
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import NewTrace
from kneo.settings import ModelSettings
from kneo.spec.models.agent import ModelChoice
from kneo.spec.policy import ModelRules

ANTHROPIC_MAX_TOKENS = 4_096
"""Sent where a spec has no ``max_tokens``: without one the library of Anthropic streams in secret."""


async def _no_rules(_environment: str | None) -> ModelRules | None:
    return None


@dataclass(frozen=True, kw_only=True)
class ModelServices:
    """What requests to models need from their process.

    Attributes:
        operator: The keys and addresses of this machine.
        settings: Tries, waits and limits.
        rules: The rules for models of an environment as they are now; ``None`` where there is none.
        quota: Budgets and limits per minute, over all workers.
        sleep: Waits; tests hand in another one.
        jitter: A number from 0 to 1, by which waits differ.
    """

    operator: OperatorConnections
    settings: ModelSettings = field(default_factory=ModelSettings)
    rules: Callable[[str | None], Awaitable[ModelRules | None]] = _no_rules
    quota: ModelQuota | None = None
    clients: ModelClients = field(default_factory=ModelClients)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self.clients.close()


async def recorded_model(turn: Turn, services: AgentServices, progress: Progress) -> Model:
    """Return the model of a turn.

    Raises:
        Invalid: ``provider_not_configured``, ``model_not_allowed``, ``model_host_denied``.
    """
    models = services.models
    assert isinstance(models, ModelServices)
    rules = await models.rules(turn.environment)
    candidates = []
    for choice in choices(turn.agent_name, turn.agent):
        if rules is not None:
            check_allowed(turn.agent_name, choice, rules)
        provider = find_provider(turn.agent_name, choice)
        connection = connect(turn.agent_name, choice, provider, models.operator, rules)
        limit = models.clients.limit(turn.environment, connection, _concurrency(choice, models, rules))
        candidates.append(ModelCandidate(choice=choice, connection=connection, limit=limit))
    first = models.clients.client(candidates[0].connection).model(candidates[0].choice.name)
    return RecordedModel(first, turn, models, services.clock, progress, tuple(candidates), rules)


def _concurrency(choice: ModelChoice, models: ModelServices, rules: ModelRules | None) -> int:
    stated = [
        limit.concurrency
        for limit in (rules.limits if rules is not None else ())
        if limit.provider == choice.provider and limit.concurrency is not None
    ]
    return min([models.settings.concurrency, *stated])


@dataclass(frozen=True, kw_only=True)
class ModelCandidate:
    """The model of a spec or one of its fallbacks."""

    choice: ModelChoice
    connection: ProviderConnection
    limit: RequestLimit

    @property
    def max_tokens(self) -> int | None:
        return self.choice.max_tokens or (ANTHROPIC_MAX_TOKENS if self.connection.wire == "messages" else None)

    @property
    def facts(self) -> Mapping[str, object]:
        """The model, as trace events name it."""
        return {"provider": self.choice.provider, "model": self.choice.name}


@dataclass(kw_only=True)
class Tries:
    """The tries of one reply, over all candidates."""

    started_at: datetime
    began: float
    number: int = 0
    trace: list[NewTrace] = field(default_factory=list)


class RecordedModel(WrapperModel):
    """The model of one turn: asks, repeats, falls back and records.

    The wrapped model is the first candidate's; it tells what the loop may ask of the model. Messages and parameters are
    prepared for the candidate that is asked, not for the first one.
    """

    def __init__(
        self,
        wrapped: Model,
        turn: Turn,
        models: ModelServices,
        clock: Clock,
        progress: Progress,
        candidates: tuple[ModelCandidate, ...],
        rules: ModelRules | None,
    ) -> None:
        super().__init__(wrapped)
        self._turn, self._progress, self._candidates, self._rules = turn, progress, candidates, rules
        self._models, self._clock = models, clock

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: RequestSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Return the next reply of the conversation, which is in the journal.

        Raises:
            Postponed: the provider asks for a longer wait than a run is held for.
            KneoError: ``model_refused``, ``model_overloaded``, ``model_unreachable``, ``token_budget_exceeded``, or an error
                of the quota.
        """
        tries = Tries(started_at=self._clock.now(), began=monotonic())
        prompt = ModelPrompt(messages, model_settings, model_request_parameters)
        for number, candidate in enumerate(self._candidates):
            is_last = number == len(self._candidates) - 1
            reply = await self._ask_until_reply(candidate, prompt, tries, is_last=is_last)
            if reply is not None:
                return await self._record(candidate, messages, reply, tries)
            facts = {**self._candidates[number + 1].facts, "instead_of": candidate.choice.name}
            tries.trace.append(self._event("model_fallback", facts))
        raise AssertionError

    def request_stream(self, *_arguments: object, **_options: object) -> NoReturn:
        """Refuse: a turn streams on the wire by itself where a client reads its deltas, and uses complete replies only."""
        raise NotImplementedError

    def prepare_messages(
        self, messages: list[ModelMessage], _parameters: ModelRequestParameters | None = None
    ) -> list[ModelMessage]:
        """Return the messages as they are; they are prepared for the candidate that is asked."""
        return messages

    async def _ask_until_reply(
        self, candidate: ModelCandidate, prompt: ModelPrompt, tries: Tries, *, is_last: bool
    ) -> ModelResponse | None:
        """Ask a model, again where that can help; ``None`` sends the request to the next one."""
        failures, asked, settings = 0, 0, self._models.settings
        while True:
            self._check_token_budget(candidate)
            tries.number += 1
            reply, failure = await self._try(candidate, self._fitting(prompt))
            if failure is None:
                candidate.limit.grow()
                return reply
            if failure.is_too_long and self._leave_out_more(candidate, prompt, tries):
                continue
            if failure.status == 429:
                candidate.limit.shrink()
            wait = failure.retry_after
            asked, failures = asked + (wait is not None), failures + (wait is None)
            is_long = wait is not None and wait > settings.hold_seconds
            if not is_last and failure.is_repeated and (is_long or asked + failures > settings.retries):
                return None
            if not failure.is_repeated or failures > settings.retries:
                await self._fail(failure.error(candidate.choice, candidate.connection, tries.number), tries)
            facts = {**candidate.facts, "reason": failure.reason, "try": tries.number}
            tries.trace.append(self._event("model_retried", facts))
            if wait is None:
                await self._models.sleep(self._pause(failures))
                continue
            if not is_long and asked > settings.retries:
                # A provider that asks for tiny waits again and again is not flooded.
                wait = max(wait, min(self._pause(asked - settings.retries), settings.hold_seconds))
            started_at = await self._begin_of_patience(candidate, failure, wait, tries)
            if is_long:
                await self._postpone(candidate, wait, started_at, tries)
            await self._models.sleep(wait)

    def _pause(self, number: int) -> float:
        """Return the wait before a repetition, in seconds."""
        return self._models.settings.backoff_seconds * 2.0 ** min(number - 1, 20) * (0.5 + self._models.jitter() / 2)

    def _fitting(self, prompt: ModelPrompt) -> ModelPrompt:
        """Return a prompt without what the requests of the conversation leave out."""
        left_out = self._left_out
        return replace(prompt, messages=without(prompt.messages, left_out)) if left_out != LeftOut() else prompt

    @property
    def _left_out(self) -> LeftOut:
        return LeftOut(self._progress.left_out_results, self._progress.left_out_messages)

    def _leave_out_more(self, candidate: ModelCandidate, prompt: ModelPrompt, tries: Tries) -> bool:
        """Leave out more of a request that is too long for the model; return whether that was possible."""
        more = leave_out_more(prompt.messages, self._progress.past, self._left_out)
        if more is None:
            return False
        self._progress.left_out_results, self._progress.left_out_messages = more.results, more.messages
        counts = {"left_out_results": more.results, "left_out_messages": more.messages}
        tries.trace.append(self._event("request_shortened", {**candidate.facts, **counts}))
        return True

    async def _try(
        self, candidate: ModelCandidate, prompt: ModelPrompt
    ) -> tuple[ModelResponse | None, RequestFailure | None]:
        """Ask once. A failure is a value, so that no exception of a library is in the chain of the step's error."""
        async with candidate.limit.slot():
            await self._admit(candidate)
            seconds = candidate.choice.timeout_seconds or self._models.settings.timeout_seconds
            with request_span(self._turn, candidate.choice, candidate.connection, candidate.max_tokens) as traced:
                try:
                    async with self._models.clients.lease(candidate.connection) as client, asyncio.timeout(seconds):
                        model = client.model(candidate.choice.name)
                        reply = sound_reply(await self._once(model, candidate, prompt, seconds))
                except Exception as error:
                    failure = RequestFailure.of(error, self._clock.now())
                    if failure is None:
                        raise
                    traced.failed(failure.reason)
                    return None, failure
                note_reply(traced, self._turn, prompt.messages, reply)
        return reply, None

    async def _once(
        self, model: Model, candidate: ModelCandidate, prompt: ModelPrompt, seconds: float
    ) -> ModelResponse:
        settings = cast("RequestSettings", {**(prompt.settings or {}), "timeout": seconds})
        if candidate.max_tokens is not None:
            settings["max_tokens"] = candidate.max_tokens
        if candidate.choice.temperature is not None:
            settings["temperature"] = candidate.choice.temperature
        if candidate.connection.wire == "gemini":
            settings.pop("parallel_tool_calls", None)  # it has no such setting; tool calls are taken one by one
        deltas = self._turn.deltas
        if deltas is None or not deltas.is_read():
            return await model_request(
                model, prompt.messages, model_settings=settings, model_request_parameters=prompt.parameters
            )
        number, offset = self._progress.next_entry()[1], 0
        streaming = model_request_stream(
            model, prompt.messages, model_settings=settings, model_request_parameters=prompt.parameters
        )
        async with streaming as stream:
            async for event in stream:
                text = _text_of(event)
                if text:
                    deltas.write(number, offset, sound_text(text))
                    offset += len(text)
            reply = stream.get()
        # Some servers end a stream in the middle without a word; the library then reports a reason of its own invention.
        if "finish_reason" not in (reply.provider_details or {}) and reply.finish_reason != "content_filter":
            raise IncompleteReply
        deltas.end(number)
        return reply

    async def _admit(self, candidate: ModelCandidate) -> None:
        if self._models.quota is None:
            return
        choice = candidate.choice
        await self._models.quota.admit(
            PlannedRequest(
                run_id=self._turn.run_id,
                environment=self._turn.environment,
                agent=self._turn.agent_name,
                provider=choice.provider,
                model=choice.name,
                max_tokens=candidate.max_tokens,
                is_priced=is_priced(choice, self._rules),
                answers=self._turn.answers,
            )
        )

    def _check_token_budget(self, candidate: ModelCandidate) -> None:
        left = self._progress.tokens_left()
        needed = candidate.max_tokens or 1
        if left is None or needed <= left:
            return
        msg = f"The agent {self._turn.agent_name} has {max(left, 0)} tokens left of its token_budget; a request needs {needed}."
        hint = "Raise token_budget, or lower max_tokens, of the model."
        raise TokenBudgetExceeded(msg, hint=hint)

    async def _begin_of_patience(
        self, candidate: ModelCandidate, failure: RequestFailure, wait: float, tries: Tries
    ) -> str:
        """Return the time at which the reply was first asked for, also by an earlier entry of the turn.

        Raises:
            ModelUnavailable: ``model_overloaded``: the wait that the provider asks for ends after the patience.
        """
        name, _ = self._progress.next_entry()
        waiting = [entry for entry in self._turn.journal.load() if entry.name == name]
        started_at = waiting[-1].started_at if waiting else isoformat(tries.started_at)
        waited = (self._clock.now() - parse_time(started_at)).total_seconds()
        if waited + wait > self._models.settings.patience_seconds:
            await self._fail(failure.error(candidate.choice, candidate.connection, tries.number), tries)
        return started_at

    async def _postpone(self, candidate: ModelCandidate, wait: float, started_at: str, tries: Tries) -> NoReturn:
        """End the turn until the provider is to be asked again. The wait's beginning is in the journal.

        Raises:
            Postponed: always.
        """
        name, number = self._progress.next_entry()
        facts = {**candidate.facts, "seconds": wait}
        entry = ConversationEntry(
            conversation=self._turn.conversation,
            name=name,
            number=number,
            kind=EntryKind.MODEL,
            status=EntryStatus.WAITING,
            facts={**facts, "agent": self._turn.agent_name},
            started_at=started_at,
        )
        trace = [*tries.trace, self._event("model_postponed", facts)]
        await self._turn.journal.append(entry, trace=trace, durable=False)
        raise Postponed(wait, f"{candidate.choice.provider} asks to wait {wait:.0f} s")

    async def _fail(self, error: KneoError, tries: Tries) -> NoReturn:
        if tries.trace:
            await self._turn.journal.append(trace=tries.trace, durable=False)
        raise error

    async def _record(
        self, candidate: ModelCandidate, messages: list[ModelMessage], reply: ModelResponse, tries: Tries
    ) -> ModelResponse:
        """Write a reply and the messages before it into the journal, then return it."""
        reply = with_distinct_calls(reply)
        name, number = self._progress.next_entry()
        new: list[ModelMessage] = [*messages[self._progress.messages :], reply]
        facts = self._facts(candidate, reply, tries)
        entry = ConversationEntry(
            conversation=self._turn.conversation,
            name=name,
            number=number,
            kind=EntryKind.MODEL,
            status=EntryStatus.DONE,
            body={"messages": ModelMessagesTypeAdapter.dump_python(new, mode="json")},
            facts=facts,
            started_at=isoformat(tries.started_at),
            completed_at=isoformat(self._clock.now()),
        )
        trace = [*tries.trace, self._event("model_completed", {**facts, "request": number})]
        await self._turn.journal.append(entry, trace=trace, durable=False)
        self._progress.record(messages=len(messages) + 1, tokens=reply.usage.input_tokens + reply.usage.output_tokens)
        return reply

    def _facts(self, candidate: ModelCandidate, reply: ModelResponse, tries: Tries) -> dict[str, object]:
        usage = reply.usage
        facts: dict[str, object] = {
            "agent": self._turn.agent_name,
            "provider": candidate.choice.provider,
            "model": reply.model_name or candidate.choice.name,
            "finish_reason": reply.finish_reason,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cached_tokens": usage.cache_read_tokens,
            "reasoning_tokens": usage.details.get("reasoning_tokens", 0),
            "tries": tries.number,
            "milliseconds": round((monotonic() - tries.began) * 1000),
        }
        if self._left_out != LeftOut():
            facts["left_out_results"] = self._progress.left_out_results
            facts["left_out_messages"] = self._progress.left_out_messages
        if self._turn.withheld is not None:
            facts["withheld"] = self._turn.withheld
        cost = cost_micros(candidate.choice, reply, self._rules)
        return facts if cost is None else {**facts, "cost_micros": cost}

    def _event(self, kind: str, facts: Mapping[str, object]) -> NewTrace:
        return NewTrace(type=kind, step_id=self._turn.step_id, data=facts)


@dataclass(frozen=True)
class ModelPrompt:
    """A request before it is prepared for a model."""

    messages: list[ModelMessage]
    settings: RequestSettings | None
    parameters: ModelRequestParameters


class TokenBudgetExceeded(KneoError):
    """The token budget of an agent has no room for another request."""

    http_status = 400
    default_code = "token_budget_exceeded"


def _text_of(event: object) -> str:
    """Return the text that an event of a stream adds to the answer; thinking is not part of it."""
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return ""
