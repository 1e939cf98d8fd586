"""Answers signed by whoever gives them, over HTTP and with the commands a reviewer has."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from gates.signing import KEYS, trust
from service_bench import DRAFT, PUBLISH, Bench, spec_of

from kneo.api.decisions import TaskDecision
from kneo.api.operation import Operation
from kneo.cli.client import P, ServiceBackend, V
from kneo.cli.main import run
from kneo.cli.people.statements import fetch_statement
from kneo.errors import Untrusted
from kneo.records.task import DecisionKind
from kneo.settings import from_env
from kneo.store import releases
from kneo.trust.keys import PrivateKey

Json = dict[str, object]
Kneo = Callable[..., Json]

ASK: Json = {"id": "approve", "kind": "human", "ref": "board"}
BOARD = {"board": {"description": "Publish?", "receipt": "signed_by_reviewer"}}


@pytest.fixture(scope="module", autouse=True)
def _trusted(bench: Bench) -> None:
    trust(bench.store)


@pytest.fixture
def waiting(bench: Bench) -> Json:
    """A run that waits for somebody's signed word."""
    found = bench.start(spec_of(DRAFT, ASK, PUBLISH, humans=BOARD))
    assert found["status"] == "paused"
    return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reviewer's own machine, with their key on it and the service's public one."""
    (tmp_path / "me.pem").write_bytes(KEYS["reviewer"].dump())
    (tmp_path / "me.pub").write_text(KEYS["reviewer"].public.pem)
    (tmp_path / "other.pem").write_bytes(PrivateKey.generate().dump())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KNEO_SERV_API_KEY", "reviewer-key")
    return tmp_path


@pytest.fixture
def kneo(bench: Bench, desk: Path, capsys: pytest.CaptureFixture[str]) -> Kneo:
    def call(*words: str, expect: int = 0, asks: bool = True) -> Json:
        capsys.readouterr()
        status = run([*words, *(["--service-url", bench.url] if asks else []), "--json"])
        said = capsys.readouterr()
        assert status == expect, said.out + said.err
        found: Json = json.loads(said.out or said.err)
        return found

    assert desk.exists()
    return call


def request_of(waiting: Json) -> str:
    return str(waiting["metadata"]["pending_human_request"]["request_id"])  # type: ignore[index]


def task_of(waiting: Json) -> str:
    return str(waiting["continuation_id"])


def answer_with(waiting: Json, *words: str) -> list[str]:
    return ["human", "resume", task_of(waiting), "--request-id", request_of(waiting), *words]


def fields(verdict: Mapping[str, object]) -> list[str]:
    problems = verdict["problems"]
    assert isinstance(problems, list)
    return [problem["field"] for problem in problems]


def test_one_command_signs_and_answers_and_the_receipt_proves_it_offline(
    bench: Bench, waiting: Json, kneo: Kneo, desk: Path
) -> None:
    assert kneo("human", "get", task_of(waiting))["receipt"] == "signed_by_reviewer"
    done = kneo(*answer_with(waiting, "--edit", "better words", "--key", "me.pem"))
    assert done["status"] == "succeeded", done
    shown = kneo("human", "receipt", "show", task_of(waiting))
    kneo("human", "receipt", "key", "--output", "service.pem", expect=0)
    (desk / "receipt.json").write_text(json.dumps(shown))
    verify = ["human", "receipt", "verify", "receipt.json", "--key", "service.pem"]
    told = kneo(*verify, "--reviewer-key", "reviewer=me.pub", asks=False)
    assert told["receipts"][0]["signed_by"] == ["reviewer"]  # type: ignore[index]
    assert kneo(*verify, asks=False)["receipts"][0]["signed_by"] == []  # type: ignore[index]
    (desk / "other.pub").write_text(PrivateKey.load((desk / "other.pem").read_bytes()).public.pem)
    wrong = kneo(*verify, "--reviewer-key", "reviewer=other.pub", asks=False, expect=3)
    assert fields(wrong) == ["voters[0].statement.signature"]
    assert bench.post("/receipts/verify", shown)["receipts"][0]["signed_by"] == ["reviewer"]


def test_the_trust_root_names_the_keys_offline_too(bench: Bench, waiting: Json, kneo: Kneo, desk: Path) -> None:
    kneo(*answer_with(waiting, "--approve", "--key", "me.pem"))
    (desk / "receipt.json").write_text(json.dumps(kneo("human", "receipt", "show", task_of(waiting))))
    kneo("human", "receipt", "key", "--output", "service.pem")
    with bench.store.read() as tx:
        _, pin, envelope = releases.trust_chain(tx)[0]
    (desk / "environments").mkdir()
    (desk / "environments" / "trust.json").write_bytes(envelope)
    verify = [
        "human",
        "receipt",
        "verify",
        "receipt.json",
        "--key",
        "service.pem",
        "--trust",
        "environments/trust.json",
    ]
    told = kneo(*verify, "--trust-root", pin, asks=False)
    assert told["receipts"][0]["signed_by"] == ["reviewer"]  # type: ignore[index]
    assert kneo(*verify, "--trust-root", "sha256:" + "0" * 64, asks=False, expect=3)["error"] == "RootNotPinned"


def test_a_changed_statement_is_named_by_its_field(waiting: Json, kneo: Kneo, desk: Path) -> None:
    kneo(*answer_with(waiting, "--approve", "--key", "me.pem"))
    shown = kneo("human", "receipt", "show", task_of(waiting))
    kneo("human", "receipt", "key", "--output", "service.pem")
    envelope = shown["statements"][0]  # type: ignore[index]
    tree = json.loads(base64.b64decode(envelope["payload"]))
    tree["predicate"]["gate"] = "another.step"
    envelope["payload"] = base64.b64encode(json.dumps(tree).encode()).decode()
    (desk / "receipt.json").write_text(json.dumps(shown))
    told = kneo("human", "receipt", "verify", "receipt.json", "--key", "service.pem", asks=False, expect=3)
    assert fields(told) == ["voters[0].statement.gate"]


def test_an_answer_is_signed_on_another_machine(waiting: Json, kneo: Kneo, desk: Path) -> None:
    task, request = task_of(waiting), request_of(waiting)
    kneo("human", "statement", task, "--request-id", request, "--approve", "-o", "answer.json")
    assert json.loads((desk / "answer.json").read_bytes())["signatures"] == []
    kneo(*answer_with(waiting, "--approve", "--statement", "answer.json"), expect=1)
    said = kneo("human", "sign", "answer.json", "--key", "me.pem", asks=False)["said"]
    assert (said["task"], said["decision"], said["reviewer"]) == (task, "approved", "reviewer")  # type: ignore[index]
    refused = kneo(*answer_with(waiting, "--reject", "--statement", "answer.json"), expect=3)
    assert (refused["error"], refused["field"]) == ("SubjectMismatch", "decision")
    assert kneo(*answer_with(waiting, "--approve", "--statement", "answer.json"))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        ([], "signature_required", 1),
        (["--key", "other.pem"], "SignatureInvalid", 3),
        (["--key", "nothing.pem"], "not_found", 4),
        (["--key", "me.pem", "--statement", "x.json"], "invalid_request", 2),
        (["--signer", "true"], "invalid_request", 2),
    ],
)
def test_what_is_not_signed_as_it_has_to_be_is_refused(
    bench: Bench, waiting: Json, kneo: Kneo, words: list[str], code: str, status: int
) -> None:
    before = bench.get(f"/human-tasks/{task_of(waiting)}")
    assert kneo(*answer_with(waiting, "--approve", *words), expect=status)["error"] == code
    assert bench.get(f"/human-tasks/{task_of(waiting)}") == before


def test_somebody_elses_statement_is_no_use(bench: Bench, waiting: Json, kneo: Kneo, desk: Path) -> None:
    kneo("human", "statement", task_of(waiting), "--request-id", request_of(waiting), "--approve", "-o", "answer.json")
    kneo("human", "sign", "answer.json", "--key", "me.pem", asks=False)
    stolen = json.loads((desk / "answer.json").read_bytes())
    refused = bench.answer(waiting, role="admin", statement=stolen, expect=403)
    assert refused["error"] == "WrongSigner"
    assert bench.answer(waiting, role="reviewer", statement=stolen)["status"] == "succeeded"
    again = bench.answer(waiting, role="reviewer", statement=stolen, expect=409)
    assert again["error"] == "human_task_decided"


def test_many_answers_carry_a_statement_each(bench: Bench, kneo: Kneo, desk: Path) -> None:
    items = []
    for number in range(2):
        waiting = bench.start(spec_of(DRAFT, ASK, PUBLISH, humans=BOARD))
        task, request = task_of(waiting), request_of(waiting)
        item: Json = {"continuation_id": task, "request_id": request, "decision": "approved"}
        if number == 0:
            kneo("human", "statement", task, "--request-id", request, "--approve", "-o", "answer.json")
            kneo("human", "sign", "answer.json", "--key", "me.pem", asks=False)
            item["statement"] = json.loads((desk / "answer.json").read_bytes())
        items.append(item)
    found = bench.post("/human-tasks/batch", {"items": items}, role="reviewer")
    assert [result["error"] for result in found["results"]] == [None, "signature_required"]


def test_other_ways_to_answer_say_that_they_cannot_sign(bench: Bench, waiting: Json) -> None:
    task = task_of(waiting)
    assert bench.post(f"/human-tasks/{task}/links", {}, role="reviewer", expect=403)["error"] == "signature_required"
    refused = bench.post(f"/runs/{waiting['run_id']}/input", {"value": "yes"}, role="reviewer", expect=403)
    assert refused["error"] == "signature_required"
    assert "--key" in refused["message"]


def test_what_to_sign_is_refused_where_the_answer_would_be(bench: Bench, waiting: Json) -> None:
    path, request = f"/human-tasks/{task_of(waiting)}/statement", request_of(waiting)
    body = {"request_id": request, "decision": "approved"}
    before = bench.get(f"/human-tasks/{task_of(waiting)}")
    told = bench.post(path, body, role="reviewer")
    assert base64.b64decode(told["payload"]).startswith(b'{"_type":"https://in-toto.io/Statement/v1"')
    assert bench.get(f"/human-tasks/{task_of(waiting)}") == before
    bench.post(path, body, role="viewer", expect=403)
    assert bench.post(path, body | {"request_id": "r"}, role="reviewer", expect=409)["error"] == "request_mismatch"
    bench.post(path, body | {"expires_in": "25h"}, role="reviewer", expect=422)
    bench.post(path, body | {"surplus": 1}, role="reviewer", expect=422)
    bench.post("/human-tasks/cont_none/statement", body, role="reviewer", expect=404)


class Lying(ServiceBackend):
    """A service that gives other bytes to sign than those of the answer."""

    lie: Mapping[str, object]
    other: str | None = None

    def call(self, operation: Operation[P, V], /, *args: P.args, **kwargs: P.kwargs) -> V:
        if operation.id == "get_answer_to_sign":
            task, body = args
            args = (self.other or task, type(body).model_validate({**body.model_dump(), **self.lie}))
        return super().call(operation, *args, **kwargs)


@pytest.mark.parametrize(
    ("lie", "field"),
    [
        ({"decision": "approved", "content": None}, "decision"),
        ({"content": "worse words"}, "content"),
        ({"comment": "put into my mouth"}, "comment"),
        ({"feedback": "put into my mouth"}, "feedback"),
    ],
)
@pytest.mark.usefixtures("desk")
def test_nothing_is_signed_but_what_was_said(bench: Bench, waiting: Json, lie: Json, field: str) -> None:
    asked = Lying(bench.url, "reviewer-key", from_env())
    asked.lie = lie
    answer = TaskDecision(request_id=request_of(waiting), decision=DecisionKind.EDITED, content="better words")
    with pytest.raises(Untrusted) as caught:
        fetch_statement(asked, task_of(waiting), answer, keyid=None)
    assert (caught.value.code, caught.value.details["field"]) == ("SubjectMismatch", field)
    other = bench.start(spec_of(DRAFT, ASK, PUBLISH, humans=BOARD))
    asked.other, asked.lie = task_of(other), {"request_id": request_of(other)}
    with pytest.raises(Untrusted, match="task differs"):
        fetch_statement(asked, task_of(waiting), answer, keyid=None)
    asked.close()
