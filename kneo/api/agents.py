"""Operations on served agents: the releases that other programs may call by a protocol.

An environment's file names the bundles of each protocol under ``protocols``. A protocol gives nobody a right: its callers have
the API keys, scopes and limits of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from kneo import registry
from kneo.api.operation import Context, operation
from kneo.api.page import Word
from kneo.api.subjects import BUNDLE
from kneo.errors import Forbidden, KneoError
from kneo.spec.models.environment import Environment
from kneo.spec.models.spec import Spec
from kneo.store import releases
from kneo.store.engine import Tx

Protocol: TypeAlias = Literal["a2a", "mcp"]


@dataclass(frozen=True, kw_only=True)
class AgentView:
    """A release that other programs may call."""

    environment: str
    bundle: str
    version: str
    digest: str
    agent_name: str
    description: str
    protocols: list[str]
    target: Annotated[Literal["workflow", "agent"], Field(description="What a call executes.")]


@dataclass(frozen=True, kw_only=True)
class AgentListView:
    """Served agents, by environment and bundle."""

    agents: list[AgentView]
    count: int


@operation("GET", "/agents", scope="specs:read", errors=(404,), about=BUNDLE)
def list_agents(context: Context, environment: Word | None = None, protocol: Protocol | None = None) -> AgentListView:
    """List the releases that environments serve over Agent2Agent or MCP."""
    with context.store.read() as tx:
        names = [registry.declared(tx, environment).name] if environment is not None else releases.environment_names(tx)
        found = [
            agent
            for name in names
            for agent in _agents_of(tx, context, name)
            if protocol is None or protocol in agent.protocols
        ]
    return AgentListView(agents=found, count=len(found))


def find_agent(context: Context, environment: str, bundle: str, protocol: Protocol) -> AgentView:
    """Return a served agent; its release is verified.

    Raises:
        NotFound: there is no such environment.
        Forbidden: ``bundle_not_approved``: it is not released there; ``protocol_not_enabled``: it is not served by the protocol.
        Untrusted: the stored bundle fails verification.
    """
    with context.store.read() as tx:
        rules = registry.declared(tx, environment)
        agent = _agent(tx, context, rules, bundle)
    if protocol not in agent.protocols:
        msg = f"{environment} does not serve {agent.bundle} over {protocol}."
        hint = f"Name the bundle under spec.protocols.{protocol} of environments/{environment}.yaml."
        raise Forbidden(msg, code="protocol_not_enabled", hint=hint, environment=environment, bundle=agent.bundle)
    return agent


def _agents_of(tx: Tx, context: Context, environment: str) -> list[AgentView]:
    """Return the served agents of an environment, without releases that could not run; none where its file cannot be read."""
    try:
        rules = registry.declared(tx, environment)
    except KneoError:
        return []
    found = []
    for release in registry.list_served(tx, rules.name):
        if not rules.spec.protocols.serving(release.bundle):
            continue
        try:
            found.append(_agent(tx, context, rules, release.bundle))
        except KneoError:
            continue
    return found


def _agent(tx: Tx, context: Context, rules: Environment, bundle: str) -> AgentView:
    pin, hmac_key = context.settings.trust_root, context.settings.spec_signing_key
    resolved = registry.resolve(tx, bundle, rules.name, pin=pin, hmac_key=hmac_key)
    spec = Spec.model_validate(resolved.bundle.spec)
    return AgentView(
        environment=rules.name,
        bundle=resolved.release.bundle,
        version=resolved.release.version,
        digest=resolved.release.digest,
        agent_name=spec.agent.name,
        description=spec.agent.description or f"{resolved.release.bundle} in {rules.name}.",
        protocols=list(rules.spec.protocols.serving(resolved.release.bundle)),
        target="workflow" if spec.allows("workflow") else "agent",
    )
