"""The providers of models: the extra, the key and the address that each needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

WireFormat: TypeAlias = Literal["responses", "chat", "messages", "gemini"]


@dataclass(frozen=True, kw_only=True)
class ModelProvider:
    """A provider.

    Attributes:
        wire: The format of requests; one whose format is ``responses`` also serves ``chat``.
        extra: The extra of this package with the provider's library: ``pip install 'kneo[EXTRA]'``.
        module: The library's module.
        key_variable: The variable of the key; a project or an environment can name another one.
        url_variable: The variable with which an operator names another address.
        default_url: The address without one; ``None`` where every installation has its own.
        needs_key: Whether requests without a key are refused. A server on one's own machine takes any.
        has_prices: Whether the prices of its models are known without an environment that states them.
    """

    name: str
    wire: WireFormat
    extra: str
    module: str
    key_variable: str
    url_variable: str
    default_url: str | None
    needs_key: bool = True
    has_prices: bool = False


def _compatible(name: str, default_url: str | None = None) -> ModelProvider:
    """Return a provider whose servers speak OpenAI's chat format."""
    prefix = name.upper().replace("-", "_")
    return ModelProvider(
        name=name,
        wire="chat",
        extra="openai",
        module="openai",
        key_variable=f"{prefix}_API_KEY",
        url_variable=f"{prefix}_BASE_URL",
        default_url=default_url,
        needs_key=False,
    )


def _openai(name: str) -> ModelProvider:
    return ModelProvider(
        name=name,
        wire="responses",
        extra="openai",
        module="openai",
        key_variable="OPENAI_API_KEY",
        url_variable="OPENAI_BASE_URL",
        default_url="https://api.openai.com/v1",
        has_prices=True,
    )


def _google(name: str) -> ModelProvider:
    return ModelProvider(
        name=name,
        wire="gemini",
        extra="google",
        module="google.genai",
        key_variable="GOOGLE_API_KEY",
        url_variable="GOOGLE_GEMINI_BASE_URL",
        default_url="https://generativelanguage.googleapis.com",
        has_prices=True,
    )


PROVIDERS: Mapping[str, ModelProvider] = {
    each.name: each
    for each in (
        _openai("openai"),
        _openai("openai-agents"),
        ModelProvider(
            name="anthropic",
            wire="messages",
            extra="anthropic",
            module="anthropic",
            key_variable="ANTHROPIC_API_KEY",
            url_variable="ANTHROPIC_BASE_URL",
            default_url="https://api.anthropic.com",
            has_prices=True,
        ),
        _google("google"),
        _google("google-adk"),
        _compatible("openai-compatible"),
        _compatible("ollama", "http://127.0.0.1:11434/v1"),
        _compatible("vllm", "http://127.0.0.1:8000/v1"),
        _compatible("litellm", "http://127.0.0.1:4000/v1"),
        _compatible("azure"),
    )
}
"""Every provider but ``dummy``, which needs nothing."""

DUMMY = "dummy"
"""The provider that answers once, with its input."""

KNOWN_PROVIDERS = (DUMMY, *PROVIDERS)
"""Every provider that an agent can name."""

PROVIDER_VARIABLES: Mapping[str, str] = {each.name: each.key_variable for each in PROVIDERS.values() if each.needs_key}
"""Where providers' keys are looked for when the project does not say."""

EXTRA_KEYS = ("base_url", "api_key_ref", "api")
"""The keys of ``model.extra``; no other has an effect."""
