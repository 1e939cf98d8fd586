"""A few seconds of what ``make fuzz`` does for hours."""

from fuzz import fuzz_spec


def test_mutated_files_are_answered() -> None:
    tried, data, problem = fuzz_spec.fuzz(seconds=3, seed=20261121)
    assert problem is None, (problem, data)
    assert tried > 20
