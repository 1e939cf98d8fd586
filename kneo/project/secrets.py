"""The inventory of a project's secrets: their names and whether they are set, never their values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kneo.errors import Invalid
from kneo.redaction import REDACTED
from kneo.settings import Settings, variables_set
from kneo.spec.models.providers import PROVIDER_VARIABLES
from kneo.spec.project import SERVICE_TOKENS, ProjectConfig, provider_variable


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A secret by name, and whether its environment variable, or a file in its place, is set."""

    name: str
    env_var: str
    present: bool
    value: str | None
    status: Literal["present", "missing"]
    expires_at: str | None = None
    last_checked: str | None = None


Inventory = dict[str, dict[str, Secret]]
"""Secrets by group (``providers``, ``extra``, ``service_tokens``) and name."""


def secret_inventory(
    config: ProjectConfig | None,
    *,
    providers: Iterable[str] = (),
    extras: Iterable[str] = (),
    service_tokens: bool = True,
    folder: Path | None = None,
) -> Inventory:
    """List the secrets of a project.

    Args:
        config: The project's config, which names its own variables; None where there is no project.
        providers: Only these; by default all that the project or Kneo declares.
        extras: Further names; each stands for a variable of the project, or for itself.
        service_tokens: Whether the service's own keys are listed too.
        folder: The folder of secrets, one file for each; see ``KNEO_SERV_SECRETS_DIR``.

    Returns:
        The secrets by group and name.
    """
    known = config.provider_variables() if config is not None else dict(PROVIDER_VARIABLES)
    named = tuple(providers)
    chosen = {name: known.get(name, provider_variable(name)) for name in named} if named else known
    more = dict(config.secrets.extra_env) if config is not None else {}
    names = tuple(extras)
    extra = {name: more.get(name, name) for name in names} if names else more
    tokens = {name: name for name in SERVICE_TOKENS} if service_tokens else {}
    present = variables_set([*chosen.values(), *extra.values(), *tokens.values()], folder=folder)
    groups = [("providers", "provider", chosen), ("extra", "extra", extra)]
    if service_tokens:
        groups.append(("service_tokens", "service", tokens))
    return {
        group: {name: _secret(f"{kind}:{name}", variable, variable in present) for name, variable in listed.items()}
        for group, kind, listed in groups
    }


def require_provider_secrets(settings: Settings, config: ProjectConfig | None) -> None:
    """Refuse to start a worker without a provider's key, where ``KNEO_SERV_REQUIRE_PROVIDER_SECRETS`` asks for that.

    Raises:
        Invalid: ``provider_not_configured``.
    """
    if not settings.models.require_secrets or config is None or not config.secrets.provider_env:
        return
    providers = config.secrets.provider_env
    inventory = secret_inventory(config, providers=providers, service_tokens=False, folder=settings.secrets_dir)
    missing = [secret for secret in inventory["providers"].values() if not secret.present]
    if missing:
        named = ", ".join(f"{secret.env_var} ({secret.name.partition(':')[2]})" for secret in missing)
        msg = f"KNEO_SERV_REQUIRE_PROVIDER_SECRETS is set, and keys of the project's providers are missing: {named}."
        hint = "Set each variable, or its _FILE twin, or remove the provider from secrets.provider_env of the project."
        raise Invalid(msg, code="provider_not_configured", hint=hint)


def _secret(name: str, variable: str, present: bool) -> Secret:
    return Secret(
        name=name,
        env_var=variable,
        present=present,
        value=REDACTED if present else None,
        status="present" if present else "missing",
    )
