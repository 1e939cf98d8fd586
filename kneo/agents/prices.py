"""What a reply of a model costs: the environment's price, else the one that the library knows, else unknown.

An unknown cost is ``None`` and never 0: a budget could not be kept with it.
"""

from __future__ import annotations

from pydantic_ai.messages import ModelResponse
from pydantic_ai.usage import RequestUsage

from kneo.spec.models.agent import ModelChoice
from kneo.spec.models.providers import PROVIDERS
from kneo.spec.policy import ModelPrice, ModelRules


def cost_micros(choice: ModelChoice, reply: ModelResponse, rules: ModelRules | None) -> int | None:
    """Return the cost of a reply in millionths of a US dollar; ``None`` where the price or the usage is unknown."""
    usage = reply.usage
    if not usage.input_tokens and not usage.output_tokens:
        return None
    price = _stated_price(choice, reply.model_name, rules)
    if price is not None:
        # Dollars per million tokens are millionths of a dollar per token.
        return round(usage.input_tokens * price.input + usage.output_tokens * price.output)
    return _known_cost(choice, reply)


def is_priced(choice: ModelChoice, rules: ModelRules | None) -> bool:
    """Tell whether the cost of a model's replies can be known."""
    if _stated_price(choice, None, rules) is not None:
        return True
    provider = PROVIDERS.get(choice.provider)
    names = {"responses": "openai", "chat": "openai", "messages": "anthropic", "gemini": "google"}
    probe = ModelResponse(
        parts=[],
        usage=RequestUsage(input_tokens=1, output_tokens=1),
        model_name=choice.name,
        provider_name=names[provider.wire] if provider is not None else None,
    )
    return _known_cost(choice, probe) is not None


def _stated_price(choice: ModelChoice, reported: str | None, rules: ModelRules | None) -> ModelPrice | None:
    if rules is None:
        return None
    return rules.prices.get(choice.name) or (rules.prices.get(reported) if reported else None)


def _known_cost(choice: ModelChoice, reply: ModelResponse) -> int | None:
    """Return the cost by the prices that come with the library; other servers set their own prices."""
    provider = PROVIDERS.get(choice.provider)
    if provider is None or not provider.has_prices:
        return None
    try:
        return round(reply.cost().total_price * 1_000_000)
    except (AssertionError, LookupError, ValueError):
        return None
