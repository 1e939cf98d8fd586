"""Specs in the form in which they are executed: validated, spelled in bytes and compiled, each of it once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from kneo.digest import Digest, canonical_json, digest_of
from kneo.runtime.program import Program, compile_program
from kneo.spec.models import Spec
from kneo.spec.models.environment_gates import EnvironmentGate, read_spec

CheckSpec = Callable[[Mapping[str, object]], Spec]
"""Validates a spec somebody brought along; raises ``Invalid`` with its diagnostics."""

KEPT = 64
"""Specs kept ready. What was refused is looked at again."""


class FrozenSpec:
    """A spec and the exact bytes that stand for it."""

    def __init__(self, spec: Spec, body: bytes) -> None:
        self.spec = spec
        self.body = body
        self.digest: Digest = digest_of(body)
        self._programs: dict[str, Program] = {}

    def program(self, target: str) -> Program:
        """Return what it executes.

        Raises:
            Invalid: this version cannot execute it.
        """
        if target not in self._programs:
            self._programs[target] = compile_program(self.spec, target)
        return self._programs[target]


class Freezer:
    """Freezes specs, and knows the latest ones again.

    Args:
        check_spec: How a spec that does not come from the registry is validated.
    """

    def __init__(self, check_spec: CheckSpec) -> None:
        self._check = check_spec
        self._brought = lru_cache(KEPT)(self._freeze_text)
        self._served = lru_cache(KEPT)(self._freeze_body)
        self._gated = lru_cache(KEPT)(self._freeze_gated)

    def brought(self, tree: Mapping[str, object]) -> FrozenSpec:
        """Validate a spec that came along.

        Raises:
            Invalid: ``spec_invalid``.
        """
        try:
            text = json.dumps(tree)
        except (TypeError, ValueError, RecursionError):
            return self._freeze(tree)
        return self._brought(text)

    def served(self, tree: Mapping[str, object]) -> FrozenSpec:
        """Freeze a spec that was verified already."""
        return self._served(canonical_json(tree))

    def gated(self, frozen: FrozenSpec, gates: Sequence[EnvironmentGate]) -> FrozenSpec:
        """Freeze a spec together with the questions that an environment adds."""
        told = [one.model_dump(mode="json", by_alias=True, exclude_unset=True) for one in gates]
        return self._gated(frozen.body, canonical_json(told))

    def _freeze_gated(self, body: bytes, gates: bytes) -> FrozenSpec:
        whole = canonical_json({**json.loads(body), "environment_gates": json.loads(gates)})
        return FrozenSpec(read_spec(whole), whole)

    def _freeze_text(self, text: str) -> FrozenSpec:
        return self._freeze(json.loads(text))

    def _freeze(self, tree: Mapping[str, object]) -> FrozenSpec:
        spec = self._check(tree)
        return FrozenSpec(spec, canonical_json(spec.model_dump(mode="json", by_alias=True, exclude_unset=True)))

    def _freeze_body(self, body: bytes) -> FrozenSpec:
        return FrozenSpec(Spec.model_validate_json(body), body)
