"""Rules for the policies of a spec: a policy has an effect, or states what every run does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.documents import Path
from kneo.spec.index import SpecIndex
from kneo.spec.policies import PROJECT_DEFAULTS

CODE = "E_FIELD_UNSUPPORTED"


@dataclass(frozen=True)
class _Policy:
    """The values of a policy, and the field or setting that does what other values ask for."""

    values: tuple[object, ...]
    instead: str = ""


_ELSEWHERE = "Environment files have the policy of an environment, and agents have tools.permissions and guardrails."

_POLICIES: Mapping[str, Mapping[str, _Policy]] = {
    "checkpointing": {
        "enabled": _Policy((True,), "Every step is recorded. retention.runs_days of the project deletes ended runs."),
        "mode": _Policy(
            ("step", "node"), "Every step is recorded. retention.runs_days of the project deletes ended runs."
        ),
    },
    "logging": {"level": _Policy(("info",), "Set KNEO_SERV_LOG_LEVEL for the process.")},
    "tracing": {
        "enabled": _Policy((True,), "Every run has a trace. include_messages: false keeps content out of spans."),
        "include_messages": _Policy((True, False)),
        "include_tool_results": _Policy((True, False)),
    },
    "guardrails": {
        "enable_default_input_filter": _Policy((False,), "Write the checks under guardrails.input of the agent."),
        "enable_default_output_review": _Policy(
            (False,), "Write a check with action: human_review under guardrails.output of the agent."
        ),
    },
}


def policies(index: SpecIndex) -> Iterator[Diagnostic]:
    """Policies have an effect, or state what every run does."""
    stated = index.spec.policies
    yield from _policies({name: each for name, each in stated.items() if name != PROJECT_DEFAULTS}, ("policies",))
    if PROJECT_DEFAULTS in stated:
        yield from _policies(stated[PROJECT_DEFAULTS], ("policies", PROJECT_DEFAULTS))


def _policies(stated: object, path: Path) -> Iterator[Diagnostic]:
    if not isinstance(stated, Mapping):
        yield error(CODE, f"{path[-1]} is no map of policies.", path, suggestion=_known(_POLICIES))
        return
    for name, fields in stated.items():
        known = _POLICIES.get(name)
        if known is None:
            yield error(CODE, f"{name[:80]} is no policy of a spec.", (*path, name), suggestion=_ELSEWHERE)
        elif not isinstance(fields, Mapping):
            yield error(CODE, f"{name} is no map of fields.", (*path, name), suggestion=_known(known))
        else:
            yield from _fields(known, fields, (*path, name))


def _fields(known: Mapping[str, _Policy], fields: Mapping[str, object], path: Path) -> Iterator[Diagnostic]:
    for name, value in fields.items():
        policy = known.get(name)
        if policy is None:
            yield error(CODE, f"{name[:80]} is no field of {path[-1]}.", (*path, name), suggestion=_known(known))
        elif not any(value is each or (isinstance(each, str) and value == each) for each in policy.values):
            # 1 equals true, and is no value of a switch.
            message = f"{path[-1]}.{name}: {str(value)[:80]} is not supported."
            hint = policy.instead or "Write true or false."
            yield error(CODE, message, (*path, name), suggestion=hint)


def _known(names: Mapping[str, object]) -> str:
    return f"Known here: {', '.join(names)}."
