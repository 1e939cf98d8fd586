"""The agent card of a served agent, signed with the service key as a JSON Web Signature."""

from __future__ import annotations

from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from a2a.utils.constants import PROTOCOL_VERSION_0_3, PROTOCOL_VERSION_1_0, TransportProtocol
from a2a.utils.signing import ProtectedHeader, create_agent_card_signer

from kneo.api.agents import AgentView
from kneo.trust.keys import PrivateKey

TEXT, JSON = "text/plain", "application/json"
KEY_SCHEME = "apiKey"


def signed_card(agent: AgentView, address: str, path: str, key: PrivateKey) -> dict[str, object]:
    """Return the card of an agent, signed.

    Args:
        agent: The agent.
        address: The address of this service.
        path: The path of the agent below it.
        key: The service key.
    """
    url = f"{address}{path}"
    bearer = HTTPAuthSecurityScheme(scheme="bearer", description="An API key with the scopes runs:read and runs:write.")
    card = AgentCard(
        name=agent.bundle,
        description=agent.description,
        version=agent.version,
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding=TransportProtocol.JSONRPC.value, protocol_version=version)
            for version in (PROTOCOL_VERSION_1_0, PROTOCOL_VERSION_0_3)
        ],
        capabilities=AgentCapabilities(streaming=True, push_notifications=False, extended_agent_card=False),
        security_schemes={KEY_SCHEME: SecurityScheme(http_auth_security_scheme=bearer)},
        security_requirements=[SecurityRequirement(schemes={KEY_SCHEME: StringList(list=[])})],
        default_input_modes=[TEXT, JSON],
        default_output_modes=[TEXT],
        skills=[
            AgentSkill(
                id=agent.bundle,
                name=agent.agent_name,
                description=agent.description,
                tags=[agent.environment, agent.bundle],
            )
        ],
    )
    jwk = key.public.jwk()
    header: ProtectedHeader = {
        "kid": jwk["kid"],
        "alg": jwk["alg"],
        "jku": f"{address}/.well-known/jwks.json",
        "typ": "JOSE",
    }
    return agent_card_to_dict(create_agent_card_signer(key.dump(), header)(card))
