"""The policies of a spec: what telemetry may carry of its runs, and statements of what every run does.

``policies.project_defaults`` has the project's ``policy_defaults``, which fill what the spec itself leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kneo.spec.models.spec import Spec

PROJECT_DEFAULTS = "project_defaults"


@dataclass(frozen=True, kw_only=True)
class TracingPolicy:
    """The content that spans may carry where the operator's settings allow it; a spec only withholds.

    Attributes:
        messages: Inputs, outputs and the messages of models.
        tool_results: Results of tool calls.
    """

    messages: bool = True
    tool_results: bool = True


def tracing_policy(spec: Spec) -> TracingPolicy:
    """Return the tracing policy of a spec. A value that is neither true nor false withholds, as lint refuses it."""
    stated = {**_tracing(spec.policies.get(PROJECT_DEFAULTS)), **_tracing(spec.policies)}
    return TracingPolicy(
        messages=stated.get("include_messages", True) is True,
        tool_results=stated.get("include_tool_results", True) is True,
    )


def _tracing(policies: object) -> Mapping[str, object]:
    found = policies.get("tracing") if isinstance(policies, Mapping) else None
    return found if isinstance(found, Mapping) else {}
