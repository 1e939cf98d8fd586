"""The card of a remote agent: where its messages go, signed by a key that the spec names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import httpx
import jwt
from a2a.client import A2ACardResolver
from a2a.types import AgentCard
from a2a.utils.signing import SignatureVerificationError, create_signature_verifier

from kneo.errors import Untrusted

_ALGORITHMS = frozenset({"EdDSA", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"})
"""Signatures by a key pair; with a shared secret, each party that can check a card could sign one."""


async def fetch_card(http: httpx.AsyncClient, url: str, keys: Sequence[Mapping[str, object]]) -> AgentCard:
    """Fetch the card of an agent, and check its signature where keys are named.

    Raises:
        Untrusted: ``card_untrusted``: none of the keys has signed the card.
    """
    card = await A2ACardResolver(http, url).get_agent_card()
    if keys:
        check_signature(card, keys)
    return card


def check_signature(card: AgentCard, keys: Sequence[Mapping[str, object]]) -> None:
    """Refuse a card that none of the keys has signed. The addresses of keys in a signature are not read.

    Raises:
        Untrusted: ``card_untrusted``.
    """
    for key in keys:
        try:
            public = jwt.PyJWK(dict(key))
            if public.algorithm_name not in _ALGORITHMS:
                continue
            create_signature_verifier(partial(_always, public), [public.algorithm_name])(card)
        except (SignatureVerificationError, jwt.PyJWTError):
            continue
        return
    msg = f"No key of the spec has signed the card of the agent {card.name[:100]!r}."
    hint = "Compare tools.NAME.a2a.keys with the JSON Web Key Set of the service."
    raise Untrusted(msg, code="card_untrusted", hint=hint)


def _always(key: jwt.PyJWK, _kid: str | None, _jku: str | None) -> jwt.PyJWK:
    return key
