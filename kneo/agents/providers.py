"""The providers of models on this machine: which provider an agent has, whether it can be used, and its connection.

Imports no model library, so that the start of a run is cheap.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kneo.agents.public_addresses import is_address, is_public
from kneo.agents.secrets import Secrets
from kneo.distribution import install_extra
from kneo.errors import Invalid
from kneo.settings import OWN_PREFIX, Settings
from kneo.spec.models.agent import UNNAMED, Agent, ModelChoice
from kneo.spec.models.environment import EnvironmentSpec
from kneo.spec.models.providers import DUMMY, EXTRA_KEYS, PROVIDERS, ModelProvider, WireFormat
from kneo.spec.modules import ModelCheck
from kneo.spec.policy import ModelConnection, ModelRules
from kneo.spec.project import ProjectConfig


@dataclass(frozen=True, kw_only=True)
class ProviderConnection:
    """The connection of one request: address and key of a provider."""

    provider: ModelProvider
    wire: WireFormat
    base_url: str
    key: str | None = field(repr=False)

    @property
    def address(self) -> str:
        """The host and the port for messages: the rest of an address may hold credentials."""
        try:
            parts = urlsplit(self.base_url)
            host, port = parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
        except ValueError:
            host = port = None
        if host is None or port is None:
            return "its address"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, kw_only=True)
class OperatorConnections:
    """What the operator of this machine states about providers.

    Attributes:
        secret: Reads variables and files of secrets; addresses are read with it too.
        key_variables: The project's ``secrets.provider_env``.
    """

    secret: Secrets
    key_variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, project: ProjectConfig | None) -> OperatorConnections:
        """Return the connections of a process."""
        return cls(secret=settings.secret, key_variables=project.secrets.provider_env if project is not None else {})


def is_installed(provider: ModelProvider) -> bool:
    """Tell whether the library of a provider is installed, without importing it."""
    try:
        found = [importlib.util.find_spec(name) for name in ("pydantic_ai", provider.module)]
    except ModuleNotFoundError:  # the package above the module is missing
        return False
    return None not in found


def provider_name(agent_name: str, agent: Agent) -> str:
    """Return the provider of an agent, as its runtime preferences choose it.

    ``bridge`` and ``native`` use the same loop; they differ in the field that can name another provider than the model.

    Raises:
        Invalid: ``provider_not_configured``: the agent has no model, or prefers an adapter and allows nothing else.
    """
    if agent.model is None:
        msg = f"The agent {agent_name} has no model."
        raise Invalid(msg, code="provider_not_configured", hint="Give it model: {provider: dummy, name: dummy}.")
    stated = agent.runtime_preferences
    if stated is None:
        return agent.model.provider
    mode = stated.preferred_mode or "bridge"
    if mode == "adapter" and stated.fallback_mode is not None:
        mode = stated.fallback_mode
    if mode == "adapter":
        adapter = f"the runtime adapter {stated.adapter_ref}" if stated.adapter_ref else "a runtime adapter"
        msg = f"The agent {agent_name} prefers {adapter}, which this version does not have."
        hint = "Write preferred_mode: bridge, or add fallback_mode: bridge."
        raise Invalid(msg, code="provider_not_configured", hint=hint)
    if stated.allowed_modes and mode not in stated.allowed_modes:
        msg = f"The agent {agent_name} does not allow the runtime {mode}."
        raise Invalid(msg, code="provider_not_configured", hint=f"Add {mode} to allowed_modes.")
    named = stated.bridge_provider if mode == "bridge" else stated.native_provider
    return named or agent.model.provider


def choices(agent_name: str, agent: Agent) -> tuple[ModelChoice, ...]:
    """Return the models of an agent in the order in which they are asked, the fallbacks last.

    Raises:
        Invalid: ``provider_not_configured``: the agent has no model, or its runtime is not available.
    """
    provider = provider_name(agent_name, agent)
    assert agent.model is not None
    if any(choice.provider == DUMMY for choice in agent.model.fallbacks):
        msg = (
            f"The agent {agent_name} has the provider dummy as a fallback, which never stands in for another provider."
        )
        raise Invalid(msg, code="provider_not_configured", hint="Remove it from model.fallbacks.")
    first = agent.model if agent.model.provider == provider else agent.model.model_copy(update={"provider": provider})
    return (first, *agent.model.fallbacks)


def check_models(
    agent_name: str,
    agent: Agent,
    operator: OperatorConnections | None = None,
    rules: ModelRules | None = None,
    *,
    installed: Callable[[ModelProvider], bool] = is_installed,
) -> None:
    """Refuse an agent whose models cannot be asked, before anything runs. The dummy never stands in for another provider.

    Args:
        agent_name: For the message.
        agent: The agent.
        operator: The connections of this machine; ``None`` in a process that executes no steps and so has no keys.
        rules: The rules of the run's environment; ``None`` where there is no environment.
        installed: Whether a provider's library is installed.

    Raises:
        Invalid: ``provider_not_configured``, ``model_not_allowed`` or ``model_host_denied``.
    """
    for choice in choices(agent_name, agent):
        if rules is not None:
            check_allowed(agent_name, choice, rules)
        if choice.provider == DUMMY:
            continue
        provider = find_provider(agent_name, choice)
        if operator is None:
            continue
        if not installed(provider):
            msg = f"The agent {agent_name} needs the provider {choice.provider}, whose library is not installed here."
            hint = f"Install it: {install_extra(provider.extra)}."
            raise Invalid(msg, code="provider_not_configured", hint=hint, lacking="library")
        connect(agent_name, choice, provider, operator, rules)


def model_check(settings: Settings, project: ProjectConfig | None) -> ModelCheck:
    """Return the check of models for lint: what the start of a run on this machine would refuse."""
    operator = OperatorConnections.of(settings, project)

    def check(agent_name: str, agent: Agent, rules: EnvironmentSpec | None) -> Invalid | None:
        try:
            check_models(agent_name, agent, operator, rules.models if rules is not None else None)
        except Invalid as refusal:
            return refusal
        return None

    return check


def find_provider(agent_name: str, choice: ModelChoice) -> ModelProvider:
    """Return the provider of a model.

    Raises:
        Invalid: ``provider_not_configured``: there is none of this name.
    """
    provider = PROVIDERS.get(choice.provider)
    if provider is not None:
        return provider
    if choice.provider == UNNAMED:
        msg = f"The model {choice.name} of the agent {agent_name} names no provider."
    else:
        msg = f"The agent {agent_name} needs the provider {choice.provider!r}, which this version does not have."
    hint = f"Available here: {', '.join((DUMMY, *PROVIDERS))}."
    raise Invalid(msg, code="provider_not_configured", hint=hint)


def check_allowed(agent_name: str, choice: ModelChoice, rules: ModelRules) -> None:
    """Refuse a model that the environment does not allow.

    Raises:
        Invalid: ``model_not_allowed``.
    """
    if rules.permits(choice.provider, choice.name):
        return
    listed = ", ".join(f"{each.provider}/{name}" for each in rules.allow or () for name in each.names) or "none"
    msg = (
        f"The agent {agent_name} needs the model {choice.provider}/{choice.name}, which the environment does not allow."
    )
    raise Invalid(msg, code="model_not_allowed", hint=f"Allowed by models.allow: {listed}.")


def connect(
    agent_name: str,
    choice: ModelChoice,
    provider: ModelProvider,
    operator: OperatorConnections,
    rules: ModelRules | None,
) -> ProviderConnection:
    """Return the connection of a model: the environment's, else the operator's, else the spec's, else the usual one.

    A bundle that moves to another environment must not choose that environment's key or address, so the environment wins.

    Raises:
        Invalid: ``provider_not_configured`` or ``model_host_denied``.
    """
    _check_extra(choice, provider)
    stated = rules.connections.get(provider.name, ModelConnection()) if rules is not None else ModelConnection()
    spec_url, spec_key = _text(choice, "base_url"), _text(choice, "api_key_ref")
    base_url = stated.base_url or operator.secret(provider.url_variable)
    if base_url is None and spec_url is not None:
        check_host(choice, provider, spec_url, rules)
        base_url = spec_url
    base_url = base_url or provider.default_url
    if base_url is None:
        msg = f"The agent {agent_name} needs the provider {provider.name}, which has no address on this machine."
        raise Invalid(
            msg,
            code="provider_not_configured",
            hint=f"Set {provider.url_variable}, such as https://host/v1.",
            lacking="address",
        )
    named = stated.api_key_ref or operator.key_variables.get(provider.name) or spec_key
    variable = named or provider.key_variable
    key = operator.secret(variable)
    if key is None and (provider.needs_key or named is not None):
        msg = f"The agent {agent_name} needs the key {variable} of the provider {provider.name}, which is not set here."
        hint = f"Set {variable}, or {variable}_FILE to the path of a file with the key."
        raise Invalid(msg, code="provider_not_configured", hint=hint, lacking="key")
    wire: WireFormat = "chat" if choice.extra.get("api") == "chat" else provider.wire
    return ProviderConnection(provider=provider, wire=wire, base_url=_whole_url(provider, base_url), key=key)


def _check_extra(choice: ModelChoice, provider: ModelProvider) -> None:
    unknown = sorted(choice.extra.keys() - {*EXTRA_KEYS})
    if unknown:
        msg = f"model.extra of {choice.provider}/{choice.name} has the key {unknown[0][:40]!r}, which has no effect."
        raise Invalid(msg, code="provider_not_configured", hint=f"Known keys: {', '.join(EXTRA_KEYS)}.")
    api = choice.extra.get("api")
    if api is not None and api != provider.wire and not (api == "chat" and provider.wire == "responses"):
        msg = f"model.extra.api is {str(api)[:40]!r}, which the provider {choice.provider} does not have."
        raise Invalid(msg, code="provider_not_configured", hint="Only openai has two: responses and chat.")
    ref = _text(choice, "api_key_ref")
    if ref is not None and ref.upper().startswith(OWN_PREFIX):
        msg = f"model.extra.api_key_ref is {ref[:80]!r}; the settings of Kneo are no keys of providers."
        raise Invalid(msg, code="provider_not_configured")


def _text(choice: ModelChoice, key: str) -> str | None:
    value = choice.extra.get(key)
    if value is None or isinstance(value, str):
        return value or None
    msg = f"model.extra.{key} of {choice.provider}/{choice.name} must be text."
    raise Invalid(msg, code="provider_not_configured")


def check_host(choice: ModelChoice, provider: ModelProvider, url: str, rules: ModelRules | None) -> None:
    """Refuse an address that a spec names: a spec must not send a key, or a conversation, to a host of its own choice.

    Hosts on the machine and in its network are the operator's to name, by a variable or an environment.

    Raises:
        Invalid: ``model_host_denied``.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower().rstrip(".")
    except ValueError:
        host = ""
    shown = f"The address {url[:200]!r} of the model {choice.name}"
    if not host or parts.username is not None or parts.scheme not in {"https", "http"}:
        msg = f"{shown} is not the address of a server."
        raise Invalid(msg, code="model_host_denied", hint="Write https://host/path, without a user name.")
    if rules is not None and host not in rules.hosts:
        hint = f"Add {host} to models.hosts of the environment, or state the address in its models.connections."
        raise Invalid(
            f"{shown} is not on a host of the environment's models.hosts.", code="model_host_denied", hint=hint
        )
    if rules is None and (parts.scheme != "https" or not _is_public(host)):
        hint = f"An operator names other addresses with {provider.url_variable}."
        raise Invalid(f"{shown} is not a public https address.", code="model_host_denied", hint=hint)


def _is_public(host: str) -> bool:
    if is_address(host):
        return is_public(host)
    # A name; numbers such as 127.1 and 0x7f000001 are addresses too for some resolvers.
    last = host.rpartition(".")[2]
    return "." in host and not last[0].isdigit() and last not in _PRIVATE_SUFFIXES


_PRIVATE_SUFFIXES = frozenset({"localhost", "local", "internal", "lan", "home", "corp", "arpa"})


def _whole_url(provider: ModelProvider, url: str) -> str:
    """Return an address without a slash at its end; that of Ollama with ``/v1``, which people leave out."""
    url = url.rstrip("/")
    return f"{url}/v1" if provider.name == "ollama" and not urlsplit(url).path else url
