"""Programs of runs: frozen bytes, re-hashed, then compiled. A run executes exactly those bytes."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from threading import Lock

from kneo import registry
from kneo.digest import Digest, canonical_json, digest_of
from kneo.errors import Invalid, Untrusted
from kneo.records.run import STATE_VERSION, Run
from kneo.runtime.interpreter.program import Program
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.environment import EnvironmentGate, read_spec
from kneo.spec.models.spec import Spec
from kneo.store import runs
from kneo.store.engine import Store, Tx
from kneo.trust.verify import VerifiedBundle

CACHED_PROGRAMS, KNOWN_PAIRS = 64, 1_000

ADDED_GATES = "environment_gates"
"""The part of a frozen spec with the gates that its environment added."""


class ProgramLoader:
    """A cache of compiled programs by the digest of their spec; safe for many threads.

    Args:
        store: The database.
        pin: The digest of this process's first trust root; see ``registry.trust_root``.
    """

    def __init__(self, store: Store, pin: Digest | None = None) -> None:
        self.store = store
        self.pin = pin
        self._programs: OrderedDict[tuple[str, str], Program] = OrderedDict()
        self._released: set[tuple[str, str]] = set()
        """Bundles and the specs of runs that were made of them, by their digests."""
        self._lock = Lock()

    def check(self, tx: Tx, run: Run) -> None:
        """Check that a run executes the spec of its bundle, and that the stored bundle is the one that was accepted.

        Raises:
            Untrusted: ``spec_tampered``, or as ``registry.check_accepted``.
        """
        if run.release is None:
            return
        bundle = registry.check_accepted(tx, run.release, self.pin)
        pair = (run.release.digest, run.spec_digest)
        if pair in self._released:
            return
        tree = json.loads(_read_spec(tx, run))
        tree.pop(ADDED_GATES, None)
        if canonical_json(tree) != registry.released_spec(bundle):
            msg = f"The run {run.id} would execute {run.spec_digest}, which is not the spec of its bundle {run.release.digest}."
            raise Untrusted(msg, code="spec_tampered", hint="Restore the row from a backup; do not start it again.")
        with self._lock:
            if len(self._released) >= KNOWN_PAIRS:
                self._released.clear()
            self._released.add(pair)

    def load(self, run: Run, *, is_checked: bool = False) -> Program:
        """Return the program that a run was started with.

        Args:
            run: The run.
            is_checked: Whether the caller has called ``check`` since it read the run.

        Raises:
            Untrusted: the stored spec is missing or is not the one that the run was started with; or as ``check``.
            Invalid: this version cannot execute it.
        """
        if not is_checked and run.release is not None:
            with self.store.read() as tx:
                self.check(tx, run)
        known = self.cached(run)
        if known is not None:
            return known
        key = (run.spec_digest, run.target)
        program = compile_program(self._read(run), run.target)
        with self._lock:
            self._programs[key] = program
            while len(self._programs) > CACHED_PROGRAMS:
                self._programs.popitem(last=False)
        return program

    def cached(self, run: Run) -> Program | None:
        """Return the program if it is in the cache."""
        key = (run.spec_digest, run.target)
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
            return self._programs.get(key)

    def _read(self, run: Run) -> Spec:
        with self.store.look() as tx:
            return read_spec(_read_spec(tx, run))


def _read_spec(tx: Tx, run: Run) -> bytes:
    body = runs.load_spec(tx, run.spec_digest)
    if body is None or digest_of(body) != run.spec_digest:
        found = digest_of(body) if body is not None else "nothing"
        msg = f"The run {run.id} was started with the spec {run.spec_digest}, but the store holds {found}."
        raise Untrusted(msg, code="spec_tampered", hint="Restore the row from a backup; do not start it again.")
    return body


CheckSpec = Callable[[Mapping[str, object]], Spec]
"""Validates an inline spec; raises ``Invalid`` with its diagnostics."""

KEPT = 64
"""Frozen specs that are kept. Refused specs are validated again."""


class FrozenSpec:
    """A spec and its exact bytes."""

    def __init__(self, spec: Spec, body: bytes) -> None:
        self.spec = spec
        self.body = body
        self.digest: Digest = digest_of(body)
        self._programs: dict[str, Program] = {}

    def program(self, target: str) -> Program:
        """Return the compiled program.

        Raises:
            Invalid: this version cannot execute it.
        """
        if target not in self._programs:
            self._programs[target] = compile_program(self.spec, target)
        return self._programs[target]


class SpecFreezer:
    """Freezes specs, and keeps the latest ones.

    Args:
        check_spec: Validates specs that do not come from the registry.
    """

    def __init__(self, check_spec: CheckSpec) -> None:
        self._check = check_spec
        self._inline = lru_cache(KEPT)(self._freeze_text)
        self._released: dict[Digest, FrozenSpec] = {}
        self._with_gates = lru_cache(KEPT)(self._freeze_gated)

    def inline(self, tree: Mapping[str, object]) -> FrozenSpec:
        """Validate and freeze an inline spec.

        Raises:
            Invalid: ``spec_invalid``.
        """
        try:
            text = json.dumps(tree)
        except (TypeError, ValueError, RecursionError):
            return self._freeze(tree)
        return self._inline(text)

    def released(self, bundle: VerifiedBundle) -> FrozenSpec:
        """Freeze the spec of a release, once for the same bundle."""
        frozen = self._released.get(bundle.digest)
        if frozen is None:
            body = canonical_json(bundle.spec)
            frozen = FrozenSpec(Spec.model_validate_json(body), body)
            if len(self._released) >= KEPT:
                self._released.clear()
            self._released[bundle.digest] = frozen
        return frozen

    def with_gates(self, frozen: FrozenSpec, gates: Sequence[EnvironmentGate]) -> FrozenSpec:
        """Freeze a spec with the gates that an environment adds."""
        added = [one.model_dump(mode="json", by_alias=True, exclude_unset=True) for one in gates]
        return self._with_gates(frozen.body, canonical_json(added))

    def _freeze_gated(self, body: bytes, gates: bytes) -> FrozenSpec:
        whole = canonical_json({**json.loads(body), ADDED_GATES: json.loads(gates)})
        return FrozenSpec(read_spec(whole), whole)

    def _freeze_text(self, text: str) -> FrozenSpec:
        return self._freeze(json.loads(text))

    def _freeze(self, tree: Mapping[str, object]) -> FrozenSpec:
        spec = self._check(tree)
        return FrozenSpec(spec, canonical_json(spec.model_dump(mode="json", by_alias=True, exclude_unset=True)))


State = Mapping[str, object]


def migrate_state(state: State, version: int) -> State:
    """Return a state in today's format.

    Raises:
        Invalid: ``state_too_new``: a newer version of Kneo wrote it.
    """
    if version > STATE_VERSION:
        msg = f"The run's state has version {version}; this version of Kneo knows {STATE_VERSION}."
        raise Invalid(msg, code="state_too_new", hint="Run it with the newer version.")
    for number in range(version, STATE_VERSION):
        state = _STEPS[number](state)
    return state


def _from_1(frame: State) -> State:
    """Texts became values; a leaf and a gate became a step in a phase; a child moved under its slot."""
    if "child" in frame:
        child = frame["child"]
        assert isinstance(child, Mapping)
        inner = _from_1(child)
        index = frame["index"]
        # A nested sequence is what a step does now, not what stands in its place.
        wrapped = inner if "phase" in inner else _as_body(inner)
        return {"node": frame["node"], "index": index, "children": {str(index): wrapped}}
    kept = {"node": frame["node"], "input": {"text": frame["input"]}, "attempt": frame.get("attempt", 0)}
    if "task" not in frame:
        return {**kept, "phase": "body", "failures": frame["attempt"]}
    asked = {"task": frame["task"]} if frame["task"] else {}
    return {**kept, "phase": "step", **asked}


def _as_body(inner: State) -> State:
    return {
        "node": inner["node"],
        # What a nested workflow was given was not kept; it is needed only by retries, which did not exist for it.
        "input": {"text": ""},
        "attempt": 0,
        "phase": "body",
        "children": {"body": inner},
    }


def _as_it_is(frame: State) -> State:
    """Take a state to which a version only added what older programs would not understand."""
    return frame


def _with_chosen_branches(frame: State) -> State:
    """Keep the branch that each condition is in, where a repetition would evaluate its condition again.

    Whether a person decided on it was not kept; a repetition on the same input comes to the same branch either way.
    """
    moved = {}
    for name in ("children", "stuck"):
        inner = frame.get(name)
        if isinstance(inner, Mapping):
            moved[name] = {slot: _with_chosen_branches(child) for slot, child in inner.items()}
    body = moved.get("children", {}).get("body")
    slots = set(body.get("children", {})) if body is not None else set()  # type: ignore[call-overload]
    chosen = {"chosen": slots.pop()} if len(slots) == 1 and slots < {"then", "else"} else {}
    return {**frame, **moved, **chosen}


_STEPS: Mapping[int, Callable[[State], State]] = {
    1: _from_1,
    2: _as_it_is,
    3: _with_chosen_branches,
    4: _as_it_is,
    5: _as_it_is,
}
