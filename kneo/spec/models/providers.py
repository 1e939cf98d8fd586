"""Who can answer for agents: the providers that specs may name, and those that are available in this version."""

from __future__ import annotations

from collections.abc import Mapping

PROVIDER_VARIABLES: Mapping[str, str] = {
    "openai": "OPENAI_API_KEY",
    "openai-agents": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GOOGLE_API_KEY",
    "google-adk": "GOOGLE_API_KEY",
}
"""Where providers' keys are looked for when the project does not say."""

KNOWN_PROVIDERS = ("dummy", *PROVIDER_VARIABLES, "ollama")

AVAILABLE_PROVIDERS = ("dummy",)
"""A run that needs another one is refused at its start."""

UNNAMED = "default"
"""What the short form of a model (``model: NAME``) has for its provider."""
