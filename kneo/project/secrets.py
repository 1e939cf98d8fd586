"""Which secrets a project speaks of and which of them are set. Their values are never looked at."""

from __future__ import annotations

from collections.abc import Iterable

from kneo.redaction import REDACTED
from kneo.settings import variables_set
from kneo.spec.models.agent import PROVIDER_VARIABLES
from kneo.spec.project import SERVICE_TOKENS, ProjectConfig, provider_variable

Inventory = dict[str, dict[str, dict[str, object]]]


def secret_inventory(
    config: ProjectConfig | None,
    *,
    providers: Iterable[str] = (),
    extras: Iterable[str] = (),
    service_tokens: bool = True,
) -> Inventory:
    """Say which secrets there are.

    Args:
        config: The project's config, which names its own variables; None where there is no project.
        providers: Look at these only; left out: all that the project, or Kneo, knows.
        extras: Further names; each stands for a variable of the project, or for itself.
        service_tokens: Whether the service's own keys are listed too.

    Returns:
        Entries by group (``providers``, ``extra``, ``service_tokens``) and name.
    """
    known = config.provider_variables() if config is not None else dict(PROVIDER_VARIABLES)
    named = tuple(providers)
    chosen = {name: known.get(name, provider_variable(name)) for name in named} if named else known
    more = dict(config.secrets.extra_env) if config is not None else {}
    wanted = tuple(extras)
    extra = {name: more.get(name, name) for name in wanted} if wanted else more
    tokens = {name: name for name in SERVICE_TOKENS} if service_tokens else {}
    present = variables_set([*chosen.values(), *extra.values(), *tokens.values()])
    groups = [("providers", "provider", chosen), ("extra", "extra", extra)]
    if service_tokens:
        groups.append(("service_tokens", "service", tokens))
    return {
        group: {name: _entry(f"{kind}:{name}", variable, variable in present) for name, variable in listed.items()}
        for group, kind, listed in groups
    }


def _entry(name: str, variable: str, present: bool) -> dict[str, object]:
    return {
        "name": name,
        "env_var": variable,
        "present": present,
        "value": REDACTED if present else None,
        "status": "present" if present else "missing",
        "expires_at": None,
        "last_checked": None,
    }
