"""Routes of protocols: signed cards of served agents and the key of their signatures, and messages to agents."""

from __future__ import annotations

import asyncio
from typing import Annotated
from urllib.parse import quote

from fastapi import Body, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from kneo.api.agents import AgentView, find_agent, list_agents
from kneo.api.calls import MAKE, read_served
from kneo.api.operation import Principal
from kneo.api.run_start import Wait, seconds_of
from kneo.errors import NotFound
from kneo.extension_points import import_with_extra
from kneo.extensions.protocols.calls import AgentCalls
from kneo.extensions.protocols.claude_code import ToolUse
from kneo.service.auth import Require
from kneo.service.context import Service, ServiceDep
from kneo.service.events import LimitedResponse
from kneo.service.routing import VERSION, ApiRouter, JsonResponse, Responses
from kneo.service.sign_in_providers import WELL_KNOWN, accepts_tokens, address_of, metadata_of
from kneo.store.service_key import missing_key
from kneo.trust.keys import PrivateKey

router = ApiRouter(
    tags=["protocols"],
    errors={
        "get_only_agent_card": (400, 404),
        "get_signing_keys": (400,),
        "get_protected_resource": (404,),
        "send_to_bundle_tools": (404,),
        "answer_claude_code_hook": (404,),
    },
    own_keys={"send_to_agent", "send_to_mcp_server", "send_to_bundle_tools", "answer_claude_code_hook"},
)

CARD = ".well-known/agent-card.json"

PURPOSE = "This protocol"

SpecReader = Annotated[Principal, Depends(Require("specs:read"))]
AgentCaller = Annotated[Principal, Depends(Require("runs:read"))]

JSON_OBJECT: Responses = {
    200: {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}
}
MESSAGES: Responses = {
    200: {
        "description": "A response of JSON-RPC 2.0, or server-sent events of such responses.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


@router.get(f"/a2a/{{environment}}/{{bundle}}/{CARD}", operation_id="get_agent_card", responses=JSON_OBJECT)
def get_agent_card(
    environment: str, bundle: str, request: Request, service: ServiceDep, principal: SpecReader
) -> JsonResponse:
    """Read the signed agent card of a bundle that an environment serves over Agent2Agent."""
    return _card(request, service, find_agent(service.context(principal), environment, bundle, "a2a"))


@router.get(f"/{CARD}", operation_id="get_only_agent_card", responses=JSON_OBJECT)
def get_only_agent_card(request: Request, service: ServiceDep, principal: SpecReader) -> JsonResponse:
    """Read the agent card of the only agent that is served over Agent2Agent; with several, read each at its own path."""
    agents = list_agents(service.context(principal), protocol="a2a").agents
    if len(agents) != 1:
        paths = [f"{VERSION}{_path(agent)}/{CARD}" for agent in agents]
        msg = f"{len(agents)} agents are served over Agent2Agent, so this address names none of them."
        hint = "Read a card at its own path." if paths else "Name bundles under spec.protocols.a2a of an environment."
        raise NotFound(msg, code="no_single_agent", hint=hint, cards=paths[:100])
    return _card(request, service, agents[0])


@router.get("/.well-known/jwks.json", operation_id="get_signing_keys", responses=JSON_OBJECT)
def get_signing_keys(service: ServiceDep) -> JsonResponse:
    """Read the public key of this service, which signs agent cards, as a JSON Web Key Set."""
    return JsonResponse({"keys": [_key(service).public.jwk()]})


@router.post("/a2a/{environment}/{bundle}", operation_id="send_to_agent", response_class=Response, responses=MESSAGES)
async def send_to_agent(
    environment: str, bundle: str, request: Request, service: ServiceDep, principal: AgentCaller
) -> Response:
    """Send a message of Agent2Agent, version 1.0 or 0.3, to a bundle that an environment serves.

    Sending needs the scope runs:write, answering a question human:write. The id of a message is its idempotency key.
    """
    agent = await run_in_threadpool(find_agent, service.context(principal), environment, bundle, "a2a")
    module = await run_in_threadpool(import_with_extra, "kneo.extensions.protocols.a2a.server", "a2a", PURPOSE)
    response: Response = await module.serve_request(
        request, AgentCalls(service, principal, agent, "a2a"), address_of(request.scope, service.settings)
    )
    return response


@router.post(
    "/mcp/{environment}",
    operation_id="send_to_mcp_server",
    response_class=Response,
    responses=MESSAGES,
    dependencies=[Depends(Require("specs:read"))],
)
async def send_to_mcp_server(
    environment: str,
    request: Request,
    service: ServiceDep,
    principal: Annotated[Principal, Depends(Require("runs:write"))],
) -> Response:
    """Send a message of MCP over streamable HTTP: the tools are the bundles that the environment serves over MCP.

    Reading a run needs the scope runs:read, answering a question human:write. `_meta.idempotencyKey` of a call is its idempotency
    key.
    """
    await run_in_threadpool(list_agents, service.context(principal), environment, "mcp")
    module = await run_in_threadpool(import_with_extra, "kneo.extensions.protocols.mcp.server", "mcp", PURPOSE)
    tools = module.AgentTools(service, principal, environment, address_of(request.scope, service.settings))
    response = module.McpResponse(tools, service.settings.limits.body_bytes)
    return LimitedResponse(response, service.streams, principal.name)


@router.post(
    "/mcp/{environment}/{bundle}", operation_id="send_to_bundle_tools", response_class=Response, responses=MESSAGES
)
async def send_to_bundle_tools(
    environment: str,
    bundle: str,
    request: Request,
    service: ServiceDep,
    principal: Annotated[Principal, Depends(Require("calls:make"))],
    wait: Wait = None,
) -> Response:
    """Send a message of MCP over streamable HTTP to the tools of a bundle that the environment serves to the caller.

    A call that people have to approve waits at most as long as `wait`, and then returns their link. `_meta.idempotencyKey` of a call
    is its idempotency key, `_meta["kneo/session_id"]` groups the calls of a conversation.
    """
    seconds = seconds_of(wait, service.settings.http.call_wait_seconds)
    served = await run_in_threadpool(read_served, service.context(principal), environment, bundle)
    gateway = await run_in_threadpool(import_with_extra, "kneo.extensions.protocols.mcp.gateway", "mcp", PURPOSE)
    server = await run_in_threadpool(import_with_extra, "kneo.extensions.protocols.mcp.server", "mcp", PURPOSE)
    address = address_of(request.scope, service.settings)
    gone = asyncio.Event()
    tools = gateway.BundleTools(service, principal, served, environment, address, seconds, gone.is_set)
    response = server.McpResponse(tools, service.settings.limits.body_bytes, gone.set)
    return LimitedResponse(response, service.streams, principal.name)


@router.get(
    f"{WELL_KNOWN}{VERSION}/mcp/{{environment}}/{{bundle}}",
    operation_id="get_protected_resource",
    responses=JSON_OBJECT,
)
def get_protected_resource(environment: str, bundle: str, request: Request, service: ServiceDep) -> JsonResponse:
    """Read at which issuer people sign in to call the tools of a bundle over MCP (RFC 9728). It is the same for bundles that do not exist."""
    settings = service.settings
    if not accepts_tokens(settings):
        msg = "People do not sign in here: the service accepts API keys alone."
        raise NotFound(msg, hint="Set KNEO_SERV_OIDC_ISSUER and KNEO_SERV_OIDC_AUDIENCE.")
    resource = (
        f"{address_of(request.scope, settings)}{VERSION}/mcp/{quote(environment, safe='')}/{quote(bundle, safe='')}"
    )
    return JsonResponse(metadata_of(resource, settings, MAKE))


@router.post(
    "/hooks/claude-code/{environment}/{bundle}",
    operation_id="answer_claude_code_hook",
    response_class=Response,
    responses=JSON_OBJECT,
)
async def answer_claude_code_hook(
    environment: str,
    bundle: str,
    request: Request,
    event: Annotated[dict[str, object], Body()],
    service: ServiceDep,
    principal: Annotated[Principal, Depends(Require("calls:make"))],
    wait: Wait = None,
) -> JsonResponse:
    """Decide a call of a tool of Claude Code before it is made, or take its result: the hooks PreToolUse, PostToolUse and PostToolUseFailure.

    A call that is not approved within `wait` is denied, and so is one at which anything goes wrong.
    """
    seconds = seconds_of(wait, service.settings.http.call_wait_seconds)
    served = await run_in_threadpool(read_served, service.context(principal), environment, bundle)
    use = ToolUse(service, principal, environment, served, seconds, event, request.is_disconnected)
    return JsonResponse(await use.answer())


def _card(request: Request, service: Service, agent: AgentView) -> JsonResponse:
    module = import_with_extra("kneo.extensions.protocols.a2a.server", "a2a", PURPOSE)
    return JsonResponse(
        module.signed_card(
            agent, address_of(request.scope, service.settings), f"{VERSION}{_path(agent)}", _key(service)
        )
    )


def _path(agent: AgentView) -> str:
    return f"/a2a/{quote(agent.environment, safe='')}/{quote(agent.bundle, safe='')}"


def _key(service: Service) -> PrivateKey:
    key = service.store.find_key()
    if key is None:
        raise missing_key()
    return key
