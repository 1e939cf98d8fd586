"""Feed mutated files to everything that reads what people write, for as long as wanted.

    python tests/fuzz/fuzz_spec.py --seconds 600 --seed 7

Whatever the bytes: a value or a refusal, in bounded time. An input that breaks this is written to the working directory.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, perf_counter

from kneo.errors import Invalid
from kneo.spec.environment import parse_environment
from kneo.spec.load import load_spec
from kneo.spec.project import parse_project
from kneo.spec.reader import read_json, read_yaml
from kneo.spec.rules import check

ROOT = Path(__file__).parents[2]
SECONDS_PER_INPUT = 2.0

NASTY = [
    b"[" * 300, b"{" * 300, b"- " * 300, b"? " * 50, b"&a *a ", b"!!python/object:x ", b"<<: ", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800",
    b"9" * 400, b"1e999", b"---\n", b"...\n", b"%YAML 1.3\n", b"|\n", b">-\n ", b"'", b'"', b"# ", b": ", b"\t", b"\r", b"\xc2\x85", b"\xe2\x80\xa8",
    b"null", b"true", b"{}", b"[]", b"__delete__: true", b"version: v0\n", b"kind: loop", b"kind: router", b"review: {before: true}", b"human_review: {}",
    b"when: {any_of: [{not: {type: always}}]}", b"steps: [[[]]]", b"choices: [{id: a}]", b"(a+)+$", b"0o17", b"010", b"2026-01-01",
]  # fmt: skip

Target = Callable[[bytes], object]


def _load(data: bytes) -> object:
    return load_spec(data, file="f.yaml", rules=check)


TARGETS: dict[str, Target] = {
    "yaml": lambda data: read_yaml(data, file="f").places(),
    "json": lambda data: read_json(data, file="f").places(),
    "spec": _load,
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
        start = perf_counter()
        try:
            target(data)
        except Invalid:
            pass
        except Exception as error:  # noqa: BLE001 - finding these is the purpose
            return f"{name}: {type(error).__name__}: {error}"
        if perf_counter() - start > SECONDS_PER_INPUT:
            return f"{name}: took {perf_counter() - start:.1f} s"
    return None


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
    tried, data, problem = fuzz(chosen.seconds, chosen.seed)
    sys.stdout.write(f"{tried} inputs\n")
    if data is None:
        return 0
    Path("fuzz-failure.bin").write_bytes(data)
    sys.stdout.write(f"{problem}\nThe input is in fuzz-failure.bin.\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
