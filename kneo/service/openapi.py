"""The OpenAPI description: FastAPI's, completed with scopes, errors and idempotency keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from kneo.api.operation import ANY_KEY
from kneo.service.routing import VERSION, RouteEntry, RouteTable

Tree = dict[str, object]

SECURITY: Tree = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Kneo-Api-Key"},
}

PROBLEM: Tree = {
    "type": "object",
    "title": "Problem",
    "description": "An error. The same fields are at the top level and in `detail`; for a 422 of field validation `detail` is the list of fields.",
    "required": ["error", "message", "detail"],
    "properties": {
        "error": {"type": "string", "description": "A stable code.", "examples": ["not_found"]},
        "message": {"type": "string", "description": "What happened, where, and what to do next."},
        "detail": {
            "anyOf": [
                {"type": "object", "additionalProperties": True},
                {"type": "array", "items": {"type": "object", "additionalProperties": True}},
            ]
        },
    },
    "additionalProperties": True,
}

MEANINGS: Mapping[int, tuple[str, str]] = {
    400: ("The request cannot be parsed.", "invalid_request"),
    401: ("The API key is missing or unknown.", "unauthorized"),
    403: ("The key lacks the scope, or the requested release is not approved.", "forbidden"),
    404: ("The object does not exist.", "not_found"),
    409: (
        "The object has changed or is in another state, or the idempotency key belongs to another request.",
        "conflict",
    ),
    413: ("The body is too large.", "payload_too_large"),
    422: ("A field or a query parameter is not valid.", "validation_error"),
    429: ("Too many requests under this key; see Retry-After.", "rate_limited"),
    431: ("The head of the request, its address and headers, is too large.", "headers_too_large"),
    500: ("Internal error; the log of the service has the details.", "internal_error"),
    503: ("Try again later; see Retry-After.", "try_again"),
}

KEY_PARAMETER: Tree = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A request with the same key is executed once; a retry gets the first response. Each API key has its own idempotency keys.",
    "schema": {"type": "string", "maxLength": 256},
}


def describe(app: FastAPI, routes: RouteTable, api: Callable[[], APIRouter]) -> None:
    """Make an application serve its complete description at ``/openapi.json``: the routes of the API, then its own."""
    known = {(operation.method.lower(), VERSION + operation.template): operation for operation in routes}

    def openapi() -> Tree:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app, api(), known)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # this is how FastAPI wants it replaced


def _complete(app: FastAPI, api: APIRouter, known: Mapping[tuple[str, str], RouteEntry]) -> Tree:
    tree = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        routes=[*api.routes, *app.routes],
        tags=TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    components = _map(tree, "components")
    components["securitySchemes"] = SECURITY
    components["responses"] = {f"Refused{status}": _refusal(status) for status in MEANINGS}
    schemas = _map(components, "schemas")
    schemas["Problem"] = PROBLEM
    for gone in ("HTTPValidationError", "ValidationError"):
        schemas.pop(gone, None)
    for path, verbs in _map(tree, "paths").items():
        for verb, described in cast("Tree", verbs).items():
            operation = known.get((verb, path))
            if operation is not None:
                _complete_one(cast("Tree", described), operation)
    return tree


def _complete_one(described: Tree, operation: RouteEntry) -> None:
    responses = _map(described, "responses")
    responses.pop("422", None)
    for status in _refusals(described, operation):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/Refused{status}"})
    if operation.required:
        scopes = [need.scope for need in operation.required]
        described["security"] = [{"bearer": []}, {"apiKey": []}]
        described["x-required-scopes"] = scopes
        text = described.get("description") or described.get("summary") or ""
        needs = "any key" if scopes == [ANY_KEY] else f"`{'` and `'.join(scopes)}`"
        described["description"] = f"{text}\n\nNeeds {needs}."
    if operation.takes_key and operation.required:
        parameters = cast("list[Tree]", described.setdefault("parameters", []))
        parameters.append(KEY_PARAMETER)


def _refusals(described: Tree, operation: RouteEntry) -> list[int]:
    statuses = [431, 500, 503, *operation.errors]
    if operation.required:
        statuses += [401, 403, 422, 429]
    if "{" in operation.template:
        statuses += [404]
    if operation.method != "GET":
        statuses += [400, 409, 413, 422]
    if described.get("parameters"):
        statuses += [400, 422]
    return sorted(set(statuses))


def _refusal(status: int) -> Tree:
    meaning, code = MEANINGS[status]
    example = {"error": code, "message": meaning}
    return {
        "description": meaning,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "example": {**example, "detail": example},
            }
        },
    }


def _map(tree: Tree, name: str) -> Tree:
    return cast("Tree", tree.setdefault(name, {}))


DESCRIPTION = """Run signed releases of agents and workflows, decide human tasks, and read the audit log.

Every path is also served without `/v1`. Unknown fields and query parameters are refused with 422, after the checks of the
API key (401) and its scope (403). Every response has the header `X-Request-ID`."""

TAGS: list[Tree] = [
    {"name": "identity", "description": "Show the caller of a key: name, scopes, groups and roles."},
    {"name": "inbox", "description": "List the human tasks and pending changes that wait for the caller."},
    {"name": "runs", "description": "Start, inspect and control runs."},
    {"name": "sessions", "description": "List and delete what agents remember of earlier runs."},
    {"name": "human tasks", "description": "Review and decide human tasks."},
    {"name": "specs", "description": "Check specs before they run."},
    {"name": "policies", "description": "Manage the server-side policies of environments."},
    {"name": "environments", "description": "Show and control releases, holds and suspensions."},
    {"name": "promotions", "description": "Show pending changes and past promotions; approve and reject."},
    {"name": "bundles", "description": "Read signed bundles."},
    {"name": "hooks", "description": "Webhooks of Git hosts."},
    {"name": "audit", "description": "Read and verify the audit log."},
    {"name": "security", "description": "List configured credentials, never their values."},
    {"name": "health", "description": "Liveness, readiness and metrics."},
]
