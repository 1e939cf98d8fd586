"""Policies add up: combining them is a join, and nothing that was asked for is lost in it."""

from environment_policies import environment_with
from hypothesis import given
from hypothesis import strategies as st

from kneo.spec.diff.weakening import weakenings
from kneo.spec.policy import NO_POLICY, PolicyFlags, strictest

CODES = st.lists(st.sampled_from(["E_A", "E_B", "W_C"]), unique=True).map(lambda codes: tuple(sorted(codes)))
FLAGS = st.builds(
    PolicyFlags,
    enabled=st.booleans(),
    fail_on_warnings=st.booleans(),
    blocked_diagnostic_codes=CODES,
    require_human_review=st.booleans(),
    require_tool_permissions=st.booleans(),
    deny_unrestricted_tools=st.booleans(),
    require_guardrails=st.booleans(),
)


def flag_weakenings(before: PolicyFlags, after: PolicyFlags) -> tuple[str, ...]:
    return weakenings(environment_with(before), environment_with(after))


@given(FLAGS, FLAGS, FLAGS)
def test_combining_is_a_join(one: PolicyFlags, two: PolicyFlags, three: PolicyFlags) -> None:
    assert strictest(one, two) == strictest(two, one)
    assert strictest(one, strictest(two, three)) == strictest(strictest(one, two), three) == strictest(one, two, three)
    assert strictest(one, one) == strictest(one) == strictest(one, NO_POLICY)


@given(FLAGS, FLAGS)
def test_a_combination_weakens_neither(one: PolicyFlags, two: PolicyFlags) -> None:
    both = strictest(one, two)
    assert flag_weakenings(one, both) == flag_weakenings(two, both) == ()


@given(FLAGS, FLAGS)
def test_nothing_is_weakened_exactly_where_the_new_one_absorbs_the_old(old: PolicyFlags, new: PolicyFlags) -> None:
    asks_as_much = strictest(old, new) == strictest(new)
    switched_off = old.enabled and not new.enabled
    assert (flag_weakenings(old, new) == ()) == asks_as_much or switched_off
