"""Getting the program of a run: the frozen bytes, re-hashed, then compiled. Nothing else is ever executed."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from kneo.digest import digest_of
from kneo.errors import Untrusted
from kneo.records.run import Run
from kneo.runtime.program import Program, compile_program
from kneo.spec.models import Spec
from kneo.spec.models.environment_gates import read_spec
from kneo.store import runs
from kneo.store.engine import Store

CACHED_PROGRAMS = 64


class ProgramLoader:
    """Loads and keeps compiled programs by the digest of their spec; safe for many threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._programs: OrderedDict[tuple[str, str], Program] = OrderedDict()
        self._lock = Lock()

    def load(self, run: Run) -> Program:
        """Return the program a run was started with.

        Raises:
            Untrusted: the stored spec is missing or is not what the run was started with.
            Invalid: this version cannot execute it.
        """
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
        """Return the program if it is here already."""
        key = (run.spec_digest, run.target)
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
            return self._programs.get(key)

    def _read(self, run: Run) -> Spec:
        with self.store.read() as tx:
            body = runs.load_spec(tx, run.spec_digest)
        if body is None or digest_of(body) != run.spec_digest:
            found = digest_of(body) if body is not None else "nothing"
            msg = f"The run {run.id} was started with the spec {run.spec_digest}, but the store holds {found}."
            raise Untrusted(msg, code="spec_tampered", hint="Restore the row from a backup; do not start it again.")
        return read_spec(body)
