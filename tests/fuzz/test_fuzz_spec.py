"""A few seconds of what ``fuzz_spec.py`` does for hours."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("fuzz_spec", Path(__file__).with_name("fuzz_spec.py"))
fuzz_spec = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz_spec)


def test_mutated_files_are_answered():
    tried, data, problem = fuzz_spec.fuzz(seconds=3, seed=20261121)
    assert problem is None, (problem, data)
    assert tried > 20
