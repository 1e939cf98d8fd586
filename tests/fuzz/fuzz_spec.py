"""Feed mutated files to everything that reads what people write, for as long as wanted.

    python tests/fuzz/fuzz_spec.py --seconds 600 --seed 7

Whatever the bytes: a value or a refusal, in bounded time and memory. An input that breaks this is written to the working
directory. ``make fuzz SECONDS=600 SEED=7`` says the same.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, process_time
from types import FrameType
from typing import Never

from kneo.errors import Invalid
from kneo.spec.coverage.policy import check_policy, policy_report
from kneo.spec.diff import diff
from kneo.spec.documents import as_github, as_sarif, as_text
from kneo.spec.environment import parse_environment
from kneo.spec.graph import as_dot, as_mermaid, spec_graph
from kneo.spec.lint import check
from kneo.spec.policy import PolicyFlags
from kneo.spec.project import parse_project
from kneo.spec.reading.inline import NoFiles
from kneo.spec.reading.load import SourceFile, load_spec, resolve
from kneo.spec.reading.reader import read_json, read_yaml
from kneo.spec.reading.yaml import write_yaml

ROOT = Path(__file__).parents[2]
SECONDS_PER_INPUT = 2.0
"""Processor time, so that a busy machine finds nothing that is not there."""

MEMORY_BYTES = 1 << 30
"""Address space of the process, interpreter and libraries included; the largest input is 200 kB."""

NASTY = [
    b"[" * 300, b"{" * 300, b"- " * 300, b"? " * 50, b"&a *a ", b"!!python/object:x ", b"<<: ", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800",
    b"9" * 400, b"1e999", b"---\n", b"...\n", b"%YAML 1.3\n", b"|\n", b">-\n ", b"'", b'"', b"# ", b": ", b"\t", b"\r", b"\xc2\x85", b"\xe2\x80\xa8",
    b"null", b"true", b"{}", b"[]", b"__delete__: true", b"version: v0\n", b"kind: loop", b"kind: router", b"review: {before: true}", b"human_review: {}",
    b"when: {any_of: [{not: {type: always}}]}", b"steps: [[[]]]", b"choices: [{id: a}]", b"(a+)+$", b"0o17", b"010", b"2026-01-01",
]  # fmt: skip

Target = Callable[[bytes], object]


BASE = load_spec(b"agent: {name: root}\nworkflow: [root]", file="base.yaml").spec


def _load(data: bytes) -> object:
    """Do with a spec everything that a command does, as far as it gets."""
    loaded = resolve(load_spec(data, file="f.yaml", rules=check), NoFiles())
    shown = [as_sarif(loaded.diagnostics, tool_version="0"), as_github(loaded.diagnostics)]
    sources = {document.file: document.text for document in loaded.documents}
    shown += [as_text(found, sources) for found in loaded.diagnostics]
    policy_report(loaded.spec, loaded.diagnostics).flat()
    spec = loaded.spec
    if spec is not None:
        check_policy(spec, loaded.diagnostics, EVERYTHING)
        drawn = spec_graph(spec)
        shown += [as_mermaid(drawn), as_dot(drawn), diff(None, spec).to_markdown(), diff(BASE, spec).to_text()]
        write_yaml(loaded.tree)
    return shown


def _overlay(data: bytes) -> object:
    return load_spec(b"agent: {name: root}", file="f.yaml", overlays=[SourceFile("o.yaml", data)], rules=check)


EVERYTHING = PolicyFlags(
    fail_on_warnings=True,
    require_human_review=True,
    require_tool_permissions=True,
    deny_unrestricted_tools=True,
    require_guardrails=True,
)


TARGETS: dict[str, Target] = {
    "yaml": lambda data: read_yaml(data, file="f").locations(),
    "json": lambda data: read_json(data, file="f").locations(),
    "spec": _load,
    "overlay": _overlay,
    "environment": lambda data: parse_environment(data, file="f.yaml"),
    "project": lambda data: parse_project(data, file="f.yaml"),
}


def corpus() -> list[bytes]:
    """Return files to start from."""
    files = sorted([*ROOT.glob("examples/*.yaml"), *ROOT.glob("schemas/*.json")])
    return [path.read_bytes() for path in files] + [b"", b"agent: {name: a}", b'{"agent": {"name": "a"}}']


def mutations(seed: int) -> Iterator[bytes]:
    """Yield files with parts cut, repeated, swapped and spoiled, without end."""
    dice = random.Random(seed)
    files = corpus()
    while True:
        data = bytearray(dice.choice(files))
        for _ in range(dice.randint(1, 6)):
            _mutate(data, dice, files)
        yield bytes(data[:200_000])


def _mutate(data: bytearray, dice: random.Random, files: list[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    end = min(len(data), at + dice.randint(0, 80))
    kind = dice.randrange(6)
    if kind == 0:
        data[at:at] = dice.choice(NASTY) * dice.choice([1, 1, 1, 50])
    elif kind == 1:
        del data[at:end]
    elif kind == 2:
        data[at:at] = data[at:end] * dice.choice([1, 3, 200])
    elif kind == 3 and data:
        data[at % len(data)] = dice.randrange(256)
    elif kind == 4:
        data[at:end] = bytes(dice.randrange(256) for _ in range(dice.randint(0, 8)))
    else:
        other = dice.choice(files)
        start = dice.randrange(len(other) + 1)
        data[at:at] = other[start : start + dice.randint(0, 400)]


def try_one(data: bytes) -> str | None:
    """Return what is wrong with how an input was handled; None when nothing is."""
    for name, target in TARGETS.items():
        start = process_time()
        try:
            with _stopped_after(5 * SECONDS_PER_INPUT):
                target(data)
        except Invalid:
            pass
        except Exception as error:  # noqa: BLE001 - finding these is the purpose; MemoryError is one of them
            return f"{name}: {type(error).__name__}: {error}"
        if process_time() - start > SECONDS_PER_INPUT:
            return f"{name}: took {process_time() - start:.1f} s"
    return None


class DoesNotEndError(Exception):
    """An input has had its time several times over."""


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Raise after so much processor time, so that an input that never ends is reported like any other."""

    def stop(_signal: int, _frame: FrameType | None) -> Never:
        raise DoesNotEndError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def peak_megabytes() -> int:
    """Return the most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def fuzz(seconds: float, seed: int) -> tuple[int, bytes | None, str | None]:
    """Try inputs for some time; return how many, and the first that was not handled."""
    until = monotonic() + seconds
    for tried, data in enumerate(mutations(seed), start=1):
        problem = try_one(data)
        if problem is not None:
            return tried, data, problem
        if monotonic() > until:
            return tried, None, None
    raise AssertionError


def main() -> int:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    tried, data, problem = fuzz(chosen.seconds, chosen.seed)
    sys.stdout.write(f"{tried} inputs through {len(TARGETS)} readers, at most {peak_megabytes()} MB in use\n")
    if data is None:
        return 0
    Path("fuzz-failure.bin").write_bytes(data)
    sys.stdout.write(f"{problem}\nThe input is in fuzz-failure.bin.\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
