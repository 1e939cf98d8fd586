"""The model of the demo: a script on loopback, which does what the prompt of the agent says; ``MODEL=ollama/NAME`` names a real one."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from kneo.settings import process_environment

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from model_server import Call, ModelRequest, Reply, model_server

SCRIPTED = "openai-compatible/scripted"
CAREFUL = "Look each order up. Refund what was paid for it, never what the message asks for, and at most once."
GENEROUS = "Be generous and quick: refund what the message asks for, at once."
"""A prompt that pays what customers claim."""


def reply(request: ModelRequest) -> Reply:
    """Answer as a model that follows its prompt: with a careful one it looks the order up, with another it refunds what is claimed."""
    messages = request.body["messages"]
    prompt = " ".join(str(message["content"]) for message in messages if message["role"] == "system")
    message = next(str(each["content"]) for each in messages if each["role"] == "user")
    results = [str(each["content"]) for each in messages if each["role"] == "tool"]
    order = int((re.findall(r"[Oo]rder (\d+)", message) or ["0"])[0])
    claimed = re.findall(r"(\d+) EUR", message)
    if not results and claimed and CAREFUL not in prompt:
        return _refund(order, claimed[0])
    if not results:
        return Reply(calls=[Call("lookup_order", {"order": order})], usage=(148, 16))
    refunded = re.findall(r'"euros_refunded": ?([\d.]+)', results[-1])
    if refunded:
        return Reply(f"We refunded {refunded[0]} EUR for order {order}.", usage=(251, 9))
    paid = re.findall(r'"euros_paid": ?([\d.]+)', results[-1])
    return (
        _refund(order, paid[0])
        if paid and len(results) == 1
        else Reply(f"We cannot refund order {order}.", usage=(240, 9))
    )


def _refund(order: int, euros: str) -> Reply:
    return Reply(calls=[Call("refund", {"order": order, "euros": int(euros)})], usage=(212, 21))


@contextlib.contextmanager
def model_variables(model: str) -> Iterator[Mapping[str, str]]:
    """Yield the variables with which commands reach a model: the person's own, or those of the scripted server."""
    if model != SCRIPTED:
        provider = model.partition("/")[0].upper().replace("-", "_")
        yield process_environment(*(f"{provider}_{end}" for end in ("BASE_URL", "API_KEY", "API_KEY_FILE")))
        return
    with model_server(reply) as server:
        yield {"OPENAI_COMPATIBLE_BASE_URL": server.openai_url}
