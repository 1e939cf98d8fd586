"""Rehearsals: recorded runs leave an environment with its consent and redacted, and no trial on them calls a tool."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from controller_bench import Bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_server import Call, Reply, model_server
from operation_context import operation_context
from sqlalchemy import update

from kneo.agents.turn import ToolCall
from kneo.api.recordings import RecordingsView, list_recordings
from kneo.clock import ManualClock
from kneo.errors import Forbidden, Invalid
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.recording import RecordedCall, Recording, recorded_key, redacted_json, subject_digest
from kneo.records.task import UNRESOLVED, DecisionKind
from kneo.runtime.engine.assemble import open_sandboxes, services_of
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Executor
from kneo.runtime.trials.rehearsal import RecordedState, Rehearsal, rehearse
from kneo.runtime.trials.trial import TrialSubject, open_bench
from kneo.settings import from_env
from kneo.spec.compiler import SpecCompiler
from kneo.spec.models.spec import Tool
from kneo.store import agent_journal as journal
from kneo.store import tasks
from kneo.store.agent_journal import JournalLimits
from kneo.store.engine import Store
from kneo.store.tables import agent_journal
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide

pytest.importorskip("pydantic_ai")

MAIL = "bo@example.com"

SPEC: dict[str, Any] = {
    "version": "v1",
    "agent": {
        "name": "clerk",
        "system_prompt": "Pay.",
        "model": {"provider": "openai", "name": "m"},
        "strategy": {"type": "react", "max_iterations": 6},
        "tools": {"include": ["pay", "lookup", "send"]},
    },
    "tools": {
        "pay": {
            "description": "Pay.",
            "parameters": {
                "type": "object",
                "properties": {"amount": {"type": "number"}, "to": {"type": "string"}},
                "required": ["amount"],
            },
            "implementation": "rehearsed_tools.pay",
            "capabilities": ["privileged"],
            "review": {"before": {"human": "finance", "decisions": ["approved", "rejected", "edited"]}},
        },
        "lookup": {
            "description": "Look up.",
            "parameters": {"type": "object"},
            "implementation": "rehearsed_tools.lookup",
        },
        "send": {
            "description": "Send.",
            "parameters": {"type": "object"},
            "implementation": "rehearsed_tools.send",
            "effects": True,
        },
    },
    "components": {"humans": {"finance": {"description": "Right?"}}},
}

MODULE = """
from pathlib import Path

WITNESS = Path(__file__).with_name("witness.txt")


def note(text):
    with WITNESS.open("a") as file:
        file.write(text)


def pay(arguments):
    note("pay ")
    return {"paid": arguments["amount"]}


def lookup(arguments):
    note("lookup ")
    if arguments.get("id") == 13:
        raise ValueError("no such invoice")
    return {"total": 120, "mail": "bo@example.com"}


def send(arguments):
    note("send ")
    return "sent"
"""

LOOK = Reply(calls=[Call("lookup", {"id": 7, "mail": MAIL})])
PAY = Reply(calls=[Call("pay", {"amount": 120, "to": MAIL})])
DONE = Reply("120 EUR paid.")

REDACTED_LOOK = Reply(calls=[Call("lookup", {"id": 7, "mail": "[REDACTED_EMAIL]"})])
REDACTED_PAY = Reply(calls=[Call("pay", {"amount": 120, "to": "[REDACTED_EMAIL]"})])

NO_TURN: Any = None
"""The turn of a call whose result needs none."""

CONSENT = {"recordings": {"use": ["rehearsal"]}}


class RecordedHouse(Bench):
    """A controller whose prod releases the clerk, with runs that really call its tools."""

    witness: Path

    def release(self, **spec: object) -> None:  # type: ignore[override]
        self.repo.environment("prod", {"clerk": "1.0.0"}, **spec)
        self.repo.commit("Release")
        self.reconcile()
        self.reconcile()

    def run(self, *replies: Reply, decision: str = "approved", **more: object) -> str:
        """Run the release to its end, with a person who decides every question; return the run's id."""
        assert isinstance(self.store.clock, ManualClock)
        self.store.clock.advance(timedelta(seconds=1))
        with model_server(list(replies)) as server, pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_BASE_URL", server.openai_url)
            patch.setenv("OPENAI_API_KEY", "key")
            own = from_env(
                {
                    "KNEO_SERV_IMPORT_ALLOW": "rehearsed_tools",
                    "KNEO_SERV_IMPORT_ROOTS": str(self.folder),
                    "OPENAI_BASE_URL": server.openai_url,
                    "OPENAI_API_KEY": "key",
                    "PATH": "/usr/bin:/bin",
                },
                self.folder,
            )
            starter = Starter(self.store, SpecCompiler().compile, pin=self.repo.pin)
            order = StartRequest(
                input=f"Pay invoice 7 of {MAIL}", requester="bob", environment="prod", bundle="clerk", target="agent"
            )
            run_id = starter.start(order).id
            code = CodeLoader(own.import_roots, own.import_allow)
            sandboxes = open_sandboxes(own, self.store, code)
            while True:
                executor = Executor(code, sandboxes, services_of(own, self.store, code, sandboxes))
                asyncio.run(Driver(self.store, ProgramLoader(self.store), executor).drive_alone(run_id))
                with self.store.read() as tx:
                    waiting = tasks.of_run(tx, run_id, UNRESOLVED)
                if not waiting:
                    return run_id
                for task in waiting:
                    answer = DecisionRequest(decision=DecisionKind(decision), **more)  # type: ignore[arg-type]
                    decide(self.store, task.id, answer, actor="ann")

    def read(self, **query: Any) -> RecordingsView:
        return list_recordings(operation_context(self.store, actor="eva"), "prod", **query)

    def rehearse(
        self, *replies: Reply, spec: dict[str, Any] = SPEC, recordings: list[Recording] | None = None
    ) -> Rehearsal:
        """Rehearse a spec on the recordings; its model gives these replies in each trial."""
        found = self.read() if recordings is None else None
        chosen = recordings if found is None else found.recordings
        before = self.witness.read_text()
        assert chosen is not None
        with model_server(list(replies) * max(1, len(chosen))) as server, pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_BASE_URL", server.openai_url)
            patch.setenv("OPENAI_API_KEY", "key")
            own = from_env(
                {"KNEO_SERV_IMPORT_ALLOW": "rehearsed_tools", "KNEO_SERV_IMPORT_ROOTS": str(self.folder)}, self.folder
            )
            subject = TrialSubject(
                spec=spec,
                environment="prod",
                declaration=(self.repo.folder / "environments/prod.yaml").read_bytes(),
            )
            with open_bench(own, subject, "live", check_spec=SpecCompiler().compile, project=None) as bench:
                done = asyncio.run(rehearse(bench, chosen, "personal", lambda _run: None))
        assert self.witness.read_text() == before, "a trial calls no tool"
        return done


@pytest.fixture
def house(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedHouse:
    (tmp_path / "rehearsed_tools.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    house = RecordedHouse(store, tmp_path)
    house.witness = tmp_path / "witness.txt"
    house.witness.write_text("")
    house.repo.bundle("clerk", "1.0.0", SPEC)
    house.release(**CONSENT)
    return house


def outcome(done: Rehearsal) -> tuple[str, str | None]:
    (run,) = done.runs
    return run.outcome, run.reason


@pytest.mark.both_databases
def test_a_rehearsal_from_the_recording_to_the_result(house: RecordedHouse) -> None:
    run_id = house.run(LOOK, PAY, DONE)
    assert house.witness.read_text() == "lookup pay "
    view = house.read()
    (recording,) = view.recordings
    assert (recording.run_id, recording.bundle, recording.version) == (run_id, "clerk", "1.0.0")
    assert (recording.status, recording.output, recording.unavailable) == ("succeeded", "120 EUR paid.", None)
    text = json.dumps(asdict(view))
    assert "example.com" not in text
    assert [(call.tool, call.path) for call in recording.calls] == [("lookup", "clerk"), ("pay", "clerk")]
    assert [(question.key, question.decision) for question in recording.questions] == [("clerk.pay:1", "approved")]
    (event,) = house.events("recordings.read")
    assert (event["runs"], event["newest"], event["redact"]) == (1, run_id, "personal")

    matched = house.rehearse(REDACTED_LOOK, REDACTED_PAY, DONE)
    assert outcome(matched) == ("matched", None)
    assert {name: (item.value, item.samples) for name, item in matched.metrics().items()} == {
        "matched": ("1", 1),
        "unsafe": ("0", 1),
        "unknown": ("0", 1),
        "gates_lost": ("0", 1),
    }
    assert [(model.provider, model.name) for model in matched.models] == [("openai", "m")]

    ungated = copy.deepcopy(SPEC)
    del ungated["tools"]["pay"]["review"]
    ungated["tools"]["pay"] |= {"capabilities": [], "effects": True}
    lost = house.rehearse(REDACTED_LOOK, REDACTED_PAY, DONE, spec=ungated)
    assert outcome(lost)[0] == "unsafe"
    assert "without the question" in str(outcome(lost)[1])
    assert (lost.gates_lost, lost.passed) == (1, False)


@pytest.mark.both_databases
def test_recordings_need_the_consent_of_the_environment(house: RecordedHouse) -> None:
    house.run(Reply("Hello"))
    house.release()
    with pytest.raises(Forbidden, match="prod does not allow its recordings to be rehearsed") as refusal:
        house.read()
    assert refusal.value.code == "recordings_not_allowed"
    assert house.events("recordings.read") == []


def test_opened_recordings_wait_for_an_approval(house: RecordedHouse) -> None:
    approvals = {"required": 1, "roles": ["approver"], "exclude": []}
    house.release(approvals=approvals)
    with pytest.raises(Forbidden):
        house.read()
    house.release(approvals=approvals, **CONSENT)
    with pytest.raises(Forbidden):
        house.read()
    assert "recordings of its runs could be read for rehearsals" in house.pending()[0].message


@pytest.mark.parametrize(
    ("replies", "expected", "reason"),
    [
        ([DONE], "diverged_safe", "2 calls were not made; the first one is of lookup."),
        ([REDACTED_LOOK, REDACTED_PAY, Reply("Paid.")], "diverged_safe", "The output is another text."),
        ([Reply(calls=[Call("lookup", {"id": 8})]), DONE], "diverged_safe", 'New call of lookup with {"id":8}.'),
        (
            [REDACTED_LOOK, Reply(calls=[Call("pay", {"amount": 1200})]), DONE],
            "diverged_safe",
            "New question",
        ),
        (
            [REDACTED_LOOK, Reply(calls=[Call("send", {"to": "all"})]), DONE],
            "unsafe",
            'New call of send with {"to":"all"}, which has effects and about which no gate asks.',
        ),
        (
            [Reply(calls=[Call("lookup", {"id": 8}), Call("send", {"to": "all"})]), DONE],
            "unsafe",
            "New call of send",
        ),
    ],
    ids=["fewer", "text", "new", "asks", "effects", "together"],
)
def test_a_divergence_is_classified(house: RecordedHouse, replies: list[Reply], expected: str, reason: str) -> None:
    house.run(LOOK, PAY, DONE)
    done = house.rehearse(*replies)
    found, why = outcome(done)
    assert (found, done.passed) == (expected, expected != "unsafe")
    assert reason in str(why)


def test_equal_calls_have_their_results_in_order_and_failures_fail_again(house: RecordedHouse) -> None:
    bad = Reply(calls=[Call("lookup", {"id": 13})])
    house.run(bad, bad, DONE)
    (recording,) = house.read().recordings
    assert [call.failed for call in recording.calls] == [True, True]
    assert outcome(house.rehearse(bad, bad, DONE))[0] == "matched"
    assert outcome(house.rehearse(bad, bad, bad, DONE)) == ("diverged_safe", 'New call of lookup with {"id":13}.')


def test_arguments_match_as_they_are_after_redaction(house: RecordedHouse) -> None:
    house.run(LOOK, PAY, DONE)
    assert outcome(house.rehearse(LOOK, PAY, DONE))[0] == "matched", "the candidate names what was redacted"


def test_a_recorded_failure_fails_with_its_error() -> None:
    failure = {"error": "ValueError", "message": "no such invoice"}
    made = RecordedCall(path="clerk", tool="lookup", arguments={"id": 13}, result=failure, failed=True)
    recording = Recording(run_id="run_1", bundle="clerk", version="1", target="agent", status="succeeded", calls=[made])
    call = ToolCall(key="1.a", name="lookup", tool=Tool(description="Look."), arguments={"id": 13.0}, turn=NO_TURN)
    with pytest.raises(Invalid, match="no such invoice") as failed:
        RecordedState(recording, "personal").result_of(call)
    assert failed.value.code == "ValueError"


def test_an_edited_call_is_edited_again_and_a_rejected_one_is_rejected_again(house: RecordedHouse) -> None:
    house.run(PAY, DONE, decision="edited", arguments={"amount": 60})
    assert outcome(house.rehearse(REDACTED_PAY, DONE))[0] == "matched"
    house.run(PAY, DONE, decision="rejected", content="Too much.")
    newest = house.read(limit=1).recordings
    assert (newest[0].calls, newest[0].questions[0].feedback) == ([], "Too much.")
    assert outcome(house.rehearse(REDACTED_PAY, DONE, recordings=newest))[0] == "matched"


def test_what_cannot_be_rehearsed_is_unknown_and_stays_in_the_denominator(house: RecordedHouse) -> None:
    house.run(LOOK, DONE)
    (readable,) = house.read().recordings
    with house.store.write() as tx:
        tx.connection.execute(update(agent_journal).values(body=b"\x01abcd" + bytes(40)))
    (sealed,) = house.read().recordings
    assert sealed.unavailable is not None
    assert (sealed.input, sealed.calls) == (None, [])
    done = house.rehearse(REDACTED_LOOK, DONE, recordings=[sealed, readable])
    assert [run.outcome for run in done.runs] == ["unknown", "matched"]
    assert done.metrics()["unknown"].value == "0.5"
    with_error = house.rehearse(Reply(status=401), recordings=[readable])
    assert outcome(with_error)[0] == "unknown"


@pytest.mark.parametrize(
    ("change", "unavailable"),
    [
        (lambda entry: replace(entry, facts={**entry.facts, "withheld": "all"}), "withheld"),
        (lambda entry: replace(entry, status=EntryStatus.BEGUN), "interrupted"),
        (lambda entry: replace(entry, status=EntryStatus.WAITING), "interrupted"),
        (lambda entry: replace(entry, body={**entry.body, "result": "x" * 1_000_001}), "too_large"),
    ],
    ids=["withheld", "begun", "waiting", "too large"],
)
def test_a_run_without_a_whole_recording_has_no_content_and_is_unknown(
    house: RecordedHouse, change: Callable[[ConversationEntry], ConversationEntry], unavailable: str
) -> None:
    run_id = house.run(LOOK, DONE)
    with house.store.write() as tx:
        made = [item for item in journal.list_entries(tx, run_id) if item.kind is EntryKind.TOOL]
        journal.append(tx, run_id, [change(item) for item in made], JournalLimits(body_bytes=2_000_000))
    (recording,) = house.read().recordings
    assert recording.unavailable == unavailable
    assert (recording.input, recording.output, recording.calls, recording.questions) == (None, None, [], [])
    done = house.rehearse(REDACTED_LOOK, DONE)
    assert outcome(done) == ("unknown", f"The recording is {unavailable}.")
    assert done.metrics()["unknown"].value == "1"


def test_recordings_are_of_the_period_the_bundle_and_the_page(house: RecordedHouse) -> None:
    first, second = house.run(Reply("One")), house.run(Reply("Two"))
    page = house.read(limit=1)
    assert ([item.run_id for item in page.recordings], page.next_after) == ([second], second)
    assert [item.run_id for item in house.read(limit=1, after=page.next_after).recordings] == [first]
    assert house.read(bundle="other").recordings == []
    clock = house.store.clock
    assert isinstance(clock, ManualClock)
    clock.advance(timedelta(days=31))
    assert house.read(since="2000-01-01T00:00:00Z").recordings == [], "maxAge is 30 days"


def test_matching_survives_redaction() -> None:
    before = {"tool": "pay", "arguments": {"to": MAIL, "password": "hunter2"}}
    digest = subject_digest(json.dumps(before), "personal")
    assert digest == subject_digest(json.dumps(redacted_json(before, "personal")), "personal")
    assert digest != subject_digest(json.dumps(before), "secrets")
    assert recorded_key("clerk.pay:2:0a1b2c3d+look@0a1b2c3d") == "clerk.pay:2+look"


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["lookup", "pay", "send"]),
        st.fixed_dictionaries({}, optional={"id": st.integers(0, 9), "amount": st.sampled_from([60, 120, 1200])}),
    ),
    max_size=4,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
def test_whatever_a_candidate_calls_no_tool_is_entered(
    house: RecordedHouse, calls: list[tuple[str, dict[str, object]]]
) -> None:
    if not house.witness.read_text():
        house.run(LOOK, PAY, DONE)
    candidate = copy.deepcopy(SPEC)
    del candidate["tools"]["pay"]["review"]
    candidate["tools"]["pay"] |= {"capabilities": [], "effects": True}
    # The house compares what its tools have written.
    house.rehearse(*(Reply(calls=[Call(name, arguments)]) for name, arguments in calls), DONE, spec=candidate)
