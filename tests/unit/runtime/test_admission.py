from __future__ import annotations

from kneo.runtime.engine.admission import StepAdmission


def admission_with(*sessions: str) -> tuple[StepAdmission, list[str]]:
    admission, woken = StepAdmission(), list[str]()
    for session in sessions:
        assert admission.enter(session, lambda: None, alone=False)
    return admission, woken


def test_any_number_of_sessions_executes_steps() -> None:
    admission, _ = admission_with("a", "b", "c")
    assert admission.enter("b", lambda: None, alone=False)


def test_a_suspected_session_waits_for_the_others_and_none_begins_meanwhile() -> None:
    admission, woken = admission_with("a", "b")
    assert not admission.enter("suspect", lambda: woken.append("suspect"), alone=True)
    assert not admission.enter("c", lambda: woken.append("c"), alone=False)
    # A session with several steps at once ends what it has begun.
    assert admission.enter("a", lambda: None, alone=False)
    admission.leave("a")
    admission.leave("b")
    assert set(woken) == {"suspect"}
    assert admission.enter("suspect", lambda: None, alone=True)
    assert not admission.enter("c", lambda: woken.append("c"), alone=False)
    admission.leave("suspect")
    assert "c" in woken
    assert admission.enter("c", lambda: None, alone=False)


def test_two_suspected_sessions_take_turns() -> None:
    admission, woken = admission_with()
    assert admission.enter("first", lambda: None, alone=True)
    assert not admission.enter("second", lambda: woken.append("second"), alone=True)
    admission.leave("first")
    assert woken == ["second"]
    assert admission.enter("second", lambda: None, alone=True)


def test_a_suspected_session_that_ends_while_it_waits_holds_up_no_other() -> None:
    admission, woken = admission_with("a")
    assert not admission.enter("suspect", lambda: None, alone=True)
    assert not admission.enter("b", lambda: woken.append("b"), alone=False)
    admission.remove("suspect")
    assert woken == ["b"]
    assert admission.enter("b", lambda: None, alone=False)
