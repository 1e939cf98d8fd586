"""``kneo.guard``: functions of a program that people approve in Kneo and the program calls itself."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from integration.service.test_calls import CALLS, Later, decide, spec
from kneo_process import eventually
from served_agents import served_agents
from service_bench import Bench, Json

from kneo.guard import CallInterrupted, CallRefused, CallWaiting, Guard
from kneo.tasks import lifecycle


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with served_agents(tmp_path_factory.mktemp("guard"), {"payments": spec()}, calls=CALLS) as made:
        yield made


@pytest.fixture
def guard(house: Bench, monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setenv("KNEO_API_KEY", "caller-key")
    return Guard(house.url, env="prod", bundle="payments", wait=60)


def waiting(house: Bench, branch: str) -> Json:
    """Return the call about a branch, once it waits for people."""

    def find() -> Json | None:
        calls = house.get("/calls", role="caller", status="waiting")["calls"]
        return next((each for each in calls if each["questions"] and branch in each["questions"][0]["prompt"]), None)

    return eventually(find)


def test_a_function_is_called_once_with_the_decided_arguments(house: Bench, guard: Guard) -> None:
    called: list[str] = []

    @guard
    def delete_branch(branch: str) -> str:
        called.append(branch)
        return f"deleted {branch}"

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(delete_branch, "old")
        decide(house, waiting(house, "old"), decision="edited", arguments={"branch": "older"})
        assert result.result(60) == "deleted older"
    assert called == ["older"]


def test_an_async_function_under_another_name_is_guarded_too(house: Bench, guard: Guard) -> None:
    @guard(name="delete_branch", session="s1")
    async def remove(branch: str) -> str:
        return f"removed {branch}"

    async def work() -> str:
        result = asyncio.ensure_future(remove(branch="later"))
        call = await asyncio.to_thread(waiting, house, "later")
        await asyncio.to_thread(decide, house, call, decision="approved")
        return await result

    assert asyncio.run(work()) == "removed later"


def test_what_people_reject_is_not_called(house: Bench, guard: Guard) -> None:
    @guard
    def delete_branch(branch: str) -> str:
        raise AssertionError(branch)

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(delete_branch, branch="main")
        decide(house, waiting(house, "main"), decision="rejected", comment="never")
        with pytest.raises(CallRefused, match="never"):
            result.result(60)
    with pytest.raises(CallRefused, match="is a required property"):
        Guard(house.url, env="prod", bundle="payments")(_named("delete_branch"))()
    with pytest.raises(CallRefused, match="has no tool"):
        Guard(house.url, env="prod", bundle="payments")(_named("unknown"))()


def _named(name: str) -> Callable[..., None]:
    def function(branch: str = "") -> None:
        raise AssertionError(name, branch)

    function.__name__ = name
    return function


def test_twenty_attempts_under_one_key_begin_a_call_once(house: Bench, guard: Guard) -> None:
    called: list[str] = []

    @guard
    def delete_branch(branch: str) -> str:
        called.append(branch)
        return "deleted"

    with pytest.raises(CallWaiting):
        guard(name="delete_branch", wait=0)(delete_branch.__wrapped__).keyed("pr-1", branch="once")
    decide(house, waiting(house, "once"), decision="approved")
    with ThreadPoolExecutor(20) as threads:
        results = list(threads.map(lambda _: _tried(lambda: delete_branch.keyed("pr-1", branch="once")), range(20)))
    assert called == ["once"]
    assert set(map(type, results)) <= {str, CallInterrupted}
    assert delete_branch.keyed("pr-1", branch="once") == "deleted"


def test_an_attempt_that_begins_after_another_has_reported_returns_the_reported_result(
    house: Bench, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def delete_branch(branch: str) -> str:
        called.append(branch)
        return "deleted"

    with pytest.raises(CallWaiting):
        guard(name="delete_branch", wait=0)(delete_branch).keyed("pr-late", branch="late")  # type: ignore[attr-defined]
    decide(house, waiting(house, "late"), decision="approved")

    def call_first(request: httpx.Request) -> None:
        if request.url.path.endswith("/begin"):
            assert guard(delete_branch).keyed("pr-late", branch="late") == "deleted"  # type: ignore[attr-defined]

    later = Guard(house.url, env="prod", bundle="payments")
    monkeypatch.setitem(later._options, "event_hooks", {"request": [call_first]})
    assert later(delete_branch).keyed("pr-late", branch="late") == "deleted"  # type: ignore[attr-defined]
    assert called == ["late"]


KILLED = """
import os, signal
from kneo.guard import Guard
guard = Guard({url!r}, "caller-key", env="prod", bundle="payments", wait=60)
@guard
def delete_branch(branch):
    os.kill(os.getpid(), signal.SIGKILL)
delete_branch.keyed("pr-2", branch="lost")
"""


def test_a_call_of_a_program_that_was_killed_has_the_result_that_people_looked_up(
    house: Bench, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED.format(url=house.url)]) as program:
        call = waiting(house, "lost")
        decide(house, call, decision="approved")
        assert program.wait(60) == -signal.SIGKILL
    again = guard(_named("delete_branch"))
    with pytest.raises(CallInterrupted):
        again.keyed("pr-2", branch="lost")
    monkeypatch.setattr(house.store, "clock", Later(house.store.clock))
    lifecycle.process_due(house.store)
    monkeypatch.undo()
    decide(house, waiting(house, "lost"), decision="provided", content="it was deleted")
    assert again.keyed("pr-2", branch="lost") == "it was deleted"


def _tried(work: Callable[[], str]) -> object:
    try:
        return work()
    except CallInterrupted as error:
        return error


def test_an_error_of_the_function_is_reported_and_raised(house: Bench, guard: Guard) -> None:
    @guard
    def delete_branch(branch: str) -> str:
        msg = f"no branch {branch}"
        raise LookupError(msg)

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(lambda: delete_branch.keyed("pr-3", branch="gone"))
        decide(house, waiting(house, "gone"), decision="approved")
        with pytest.raises(LookupError):
            result.result(60)
    with pytest.raises(CallRefused, match="LookupError: no branch gone"):
        delete_branch.keyed("pr-3", branch="gone")


def test_nothing_is_called_without_the_service() -> None:
    guard = Guard("http://127.0.0.1:9", "key", env="prod", bundle="payments")
    with pytest.raises(httpx.ConnectError):
        guard(_named("delete_branch"))()


def test_the_module_imports_httpx_alone() -> None:
    script = "import sys, kneo.guard; print([name for name in sys.modules if name.startswith('kneo.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['kneo.guard']"
