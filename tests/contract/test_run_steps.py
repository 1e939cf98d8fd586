"""The operations that show what agents did and used, on both databases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from builders import build_run, build_task
from engine import Engine
from operation_context import operation_context

from kneo.api.conversation_messages import MAX_TEXT_CHARS
from kneo.api.run_conversation import get_run_conversation
from kneo.api.run_steps import list_run_steps
from kneo.api.run_views import RunView
from kneo.api.usage import get_usage
from kneo.errors import InvalidValue, NotFound
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import Run, RunStatus, StepRecord
from kneo.records.task import Decision, DecisionKind, TaskStatus
from kneo.store import agent_journal, history, runs, tasks, usage
from kneo.store.engine import Store


def insert(store: Store, **changes: object) -> Run:
    run = build_run(**changes)
    with store.write() as tx:
        runs.insert_run(tx, run)
    return run


def step(run: Run, sequence: int, ended: str, *, attempt: int = 0, **changes: object) -> StepRecord:
    values: dict[str, object] = {
        "run_id": run.id,
        "sequence": sequence,
        "step_id": "checks/policy",
        "kind": "agent",
        "attempt": attempt,
        "status": "completed",
        "idempotency_key": f"{run.id}:checks#2/policy:{attempt}",
        "input_text": "in",
        "output_text": "out",
        "error": None,
        "code_digest": None,
        "started_at": "2026-01-31T12:00:00.000000+00:00",
        "completed_at": ended,
    }
    return StepRecord(**values | changes)  # type: ignore[arg-type]


def reply(
    at: str, *, number: int = 1, conversation: str = "checks#2/policy~0", body: Mapping[str, object] | None = None
) -> ConversationEntry:
    return ConversationEntry(
        conversation=conversation,
        name=f"model:{number}",
        number=number,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        body=body or {"messages": []},
        facts={
            "agent": "writer",
            "provider": "openai",
            "model": "gpt",
            "input_tokens": 10,
            "output_tokens": 5,
            "cost_micros": 3,
        },
        started_at=at,
        completed_at=at,
    )


def write(store: Store, run: Run, steps: Sequence[StepRecord], *entries: ConversationEntry) -> None:
    with store.write() as tx:
        for one in steps:
            history.insert_step(tx, one)
        agent_journal.append(tx, run.id, entries)
        usage.record_usage(tx, run, entries)


T = "2026-01-31T12:00:{:02d}.000000+00:00"


def test_each_attempt_has_the_usage_of_its_own_requests(store: Store) -> None:
    run = insert(store)
    failed = step(run, 1, T.format(10), status="failed", output_text=None)
    done = step(run, 2, T.format(20), attempt=1)
    tool = ConversationEntry(
        conversation="checks#2/policy~0",
        name="tool:2.a",
        number=2,
        kind=EntryKind.TOOL,
        status=EntryStatus.DONE,
        started_at=T.format(13),
    )
    behind_a_tool = reply(T.format(14), conversation="checks#2/policy~0>2.a")
    entries = [reply(T.format(3)), reply(T.format(12), number=2), tool, behind_a_tool]
    write(store, run, [failed, done], *entries)
    page = list_run_steps(operation_context(store), run.id)
    assert [(view.path, view.attempt, view.status) for view in page.steps] == [
        ("checks/policy", 0, "failed"),
        ("checks/policy", 1, "completed"),
    ]
    first, second = (view.usage for view in page.steps)
    assert first is not None
    assert (first.requests, first.total_tokens, first.cost_micros) == (1, 15, 3)
    assert second is not None
    assert (second.requests, second.tool_calls, second.total_tokens, second.cost_micros) == (2, 1, 30, 6)
    model = page.steps[1].model
    assert model is not None
    assert (model.provider, model.name) == ("openai", "gpt")


def test_a_step_that_waits_shows_what_its_agent_used(store: Store) -> None:
    run = insert(store, status=RunStatus.PAUSED)
    write(store, run, [step(run, 1, T.format(1))], reply(T.format(5)))
    page = list_run_steps(operation_context(store), run.id)
    waiting = page.steps[1]
    assert (waiting.path, waiting.status, waiting.agent_name, waiting.output) == (
        "checks/policy",
        "waiting",
        "writer",
        None,
    )
    assert waiting.usage is not None
    assert (page.count, page.total) == (2, 2)
    assert list_run_steps(operation_context(store), run.id, limit=1).count == 1
    [second] = list_run_steps(operation_context(store), run.id, limit=1, offset=1).steps
    assert second == waiting


def test_a_step_without_a_journal_shows_the_model_of_its_turn(store: Store) -> None:
    run = insert(store)
    facts = {"agent_name": "greeter", "model_provider": "dummy", "model_name": "d"}
    write(store, run, [step(run, 1, T.format(1), facts=facts), step(run, 2, T.format(2), kind="function")])
    agent, function = list_run_steps(operation_context(store), run.id).steps
    assert agent.model is not None
    assert (agent.agent_name, agent.model.provider, agent.model.name, agent.usage) == ("greeter", "dummy", "d", None)
    assert (function.model, function.usage) == (None, None)


def test_the_usage_of_a_run_stands_in_its_view(store: Store) -> None:
    run = insert(store)
    assert RunView.of(run, None).usage is None
    assert "usage" not in RunView.of(run, None).metadata
    with store.write() as tx:
        run = usage.record_usage(tx, run, [reply(T.format(1))])
    view = RunView.of(run, None)
    assert view.usage is not None
    assert vars(view.usage) == view.metadata["usage"]
    assert view.usage.total_tokens == 15


MESSAGES = [
    {
        "kind": "request",
        "instructions": "Be brief.",
        "timestamp": None,
        "parts": [{"part_kind": "user-prompt", "content": "Look up ann@example.com", "timestamp": T.format(1)}],
    },
    {
        "kind": "response",
        "timestamp": T.format(2),
        "parts": [
            {"part_kind": "thinking", "content": "hidden"},
            {"part_kind": "text", "content": "One moment."},
            {"part_kind": "tool-call", "tool_name": "look", "args": '{"password": "hunter2"}', "tool_call_id": "a"},
        ],
    },
    {
        "kind": "request",
        "parts": [{"part_kind": "tool-return", "tool_name": "look", "content": {"n": 1}, "tool_call_id": "a"}],
    },
    {"kind": "response", "parts": [{"part_kind": "text", "content": "x" * 3 * MAX_TEXT_CHARS}]},
]


def test_a_conversation_shows_messages_without_secrets(store: Store) -> None:
    run = insert(store)
    first = reply(T.format(2), body={"messages": MESSAGES[:2]})
    write(store, run, [], first, reply(T.format(4), number=2, body={"messages": MESSAGES[2:]}))
    view = get_run_conversation(operation_context(store), run.id)
    [conversation] = view.conversations
    assert (conversation.step, conversation.agent, view.count) == ("checks/policy", "writer", 1)
    system, user, call, last = conversation.messages
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "assistant"]
    [made] = call.tool_calls
    assert (system.text, call.text, made.result) == ("Be brief.", "One moment.", '{"n": 1}')
    assert "ann@example.com" not in user.text
    assert (made.name, made.arguments) == ("look", '{"password": "[REDACTED]"}')
    assert made.title == "look(password: [REDACTED])"
    assert call.usage is not None
    assert (call.usage.total_tokens, call.usage.cost_micros) == (15, 3)
    assert last.text.endswith(f"[cut: {3 * MAX_TEXT_CHARS} characters in all]")
    whole = get_run_conversation(operation_context(store), run.id, whole=True)
    assert whole.conversations[0].messages[1].text == "Look up ann@example.com"
    assert "hunter2" not in str(whole)


def test_a_conversation_is_found_by_the_path_of_its_step(store: Store) -> None:
    run = insert(store)
    write(store, run, [], reply(T.format(1)), reply(T.format(2), conversation="reply~1"))
    found = get_run_conversation(operation_context(store), run.id, step="reply")
    assert [one.conversation for one in found.conversations] == ["reply~1"]
    assert get_run_conversation(operation_context(store), run.id, step="other").conversations == []


def test_unknown_runs_are_not_found(store: Store) -> None:
    for operation in (list_run_steps, get_run_conversation):
        with pytest.raises(NotFound):
            operation(operation_context(store), "run_none")


def test_usage_is_summed_up_by_day_model_and_agent(store: Store) -> None:
    run = insert(store, environment="prod")
    write(store, run, [], reply(T.format(1)), reply(T.format(2), number=2))
    context = operation_context(store)
    by_day = get_usage(context)
    assert (by_day.since, by_day.until) == ("2026-01-01", "2026-01-31")
    [day] = by_day.usage
    assert (day.day, day.model, day.requests, day.total_tokens, day.cost_micros) == ("2026-01-31", None, 2, 30, 6)
    assert by_day.total.requests == 2
    [model] = get_usage(context, by="model", environment="prod").usage
    assert (model.provider, model.model, model.agent) == ("openai", "gpt", None)
    [agent] = get_usage(context, by="agent").usage
    assert agent.agent == "writer"
    assert get_usage(context, environment="staging").usage == []
    assert get_usage(context, until="2026-01-30").usage == []
    for wrong in ("yesterday", "2026-13-01", "0001-01-01"):
        with pytest.raises(InvalidValue, match="since is not a day"):
            get_usage(context, since=wrong)


def test_the_tool_calls_of_a_step_are_listed_without_their_content(store: Store) -> None:
    run = insert(store)
    call = ConversationEntry(
        conversation="checks#2/policy~0",
        name="tool:1.a",
        number=1,
        kind=EntryKind.TOOL,
        status=EntryStatus.DENIED,
        body={"arguments": {"iban": "DE00"}},
        facts={"tool": "send_money"},
        started_at=T.format(3),
        completed_at=T.format(4),
    )
    write(store, run, [step(run, 1, T.format(10))], reply(T.format(2)), call)
    [view] = list_run_steps(operation_context(store), run.id).steps
    [called] = view.tool_calls
    assert (called.key, called.tool, called.status, called.completed_at) == ("1.a", "send_money", "denied", T.format(4))
    assert view.milliseconds == 10_000
    assert "DE00" not in repr(view)


def test_the_gates_of_a_run_stand_beside_its_steps(store: Store) -> None:
    run = insert(store, status=RunStatus.PAUSED)
    other = insert(store)
    decision = Decision(
        kind=DecisionKind.REJECTED,
        content=None,
        selected_option=None,
        comment="Not with this address",
        actor="ann",
        by="person",
        at=T.format(9),
    )
    sent_back = build_task(
        run_id=run.id,
        step_path="draft",
        position="after",
        status=TaskStatus.APPLIED,
        decision=decision,
        subject="secret text",
    )
    asked = build_task(run_id=run.id, step_path="draft", position="after", attempt=1)
    with store.write() as tx:
        for task in (sent_back, asked, build_task(run_id=other.id)):
            tasks.insert_task(tx, task)
    page = list_run_steps(operation_context(store), run.id)
    assert [(gate.path, gate.attempt, gate.status, gate.decision, gate.actor, gate.comment) for gate in page.gates] == [
        ("draft", 0, "applied", "rejected", "ann", "Not with this address"),
        ("draft", 1, "open", None, None, None),
    ]
    assert "secret text" not in repr(page)


def test_the_step_that_a_worker_executes_is_listed_as_running(store: Store, tmp_path: Path) -> None:
    engine = Engine(store, tmp_path / "code", "def read(text):\n    return text\n")
    workflow = {"type": "sequential", "steps": [{"kind": "function", "ref": "read", "id": "read"}]}
    run = engine.start(workflow, "ticket 4411")
    [running] = list_run_steps(operation_context(store), run.id).steps
    assert (running.path, running.kind, running.status, running.input) == ("read", "function", "running", "ticket 4411")
    assert (running.started_at, running.completed_at) == (None, None)
    engine.drive(run)
    [done] = list_run_steps(operation_context(store), run.id).steps
    assert (done.status, done.output) == ("completed", "ticket 4411")


def test_the_steps_of_a_run_whose_spec_is_gone_can_still_be_read(store: Store) -> None:
    run = insert(store)
    write(store, run, [step(run, 1, T.format(1))])
    assert [view.status for view in list_run_steps(operation_context(store), run.id).steps] == ["completed"]


def test_texts_are_read_and_cut_at_their_beginning(store: Store) -> None:
    run = insert(store)
    long, secret = "é words " * 30_000, "ghp_" + "0123456789" * 3
    texts = [(long, "x" * 690 + f" {secret} and more"), ("short", None), (f"password={secret}", "y" * 700)]
    steps = [
        step(run, number, T.format(number), input_text=first, output_text=second)
        for number, (first, second) in enumerate(texts, 1)
    ]
    write(store, run, steps)
    with store.read() as tx:
        stored, _ = history.page_of_steps(tx, run.id, limit=9, offset=0, text_chars=700)
        whole, _ = history.page_of_steps(tx, run.id, limit=9, offset=0)
    assert [each.record for each in whole] == steps
    assert stored[0].record.input_text == long[:700]
    assert [each[1:] for each in stored] == [each[1:] for each in whole]
    assert [each[1:] for each in stored] == [(len(first), len(second or "")) for first, second in texts]
    first, second, third = list_run_steps(operation_context(store), run.id, text_chars=700).steps
    assert first.input == f"{long[:700]}[cut: 240000 characters in all]"
    assert first.output == f"{'x' * 690} [cut: 734 characters in all]", "the cut divides a secret: none of it is shown"
    assert (second.input, second.output) == ("short", None)
    assert (third.input, third.output) == ("password=[REDACTED]", "y" * 700)
    whole_views = list_run_steps(operation_context(store), run.id).steps
    assert [view.input for view in whole_views] == [long, "short", "password=[REDACTED]"]
    assert whole_views[0].output == "x" * 690 + " [REDACTED] and more"
