"""What no answer may do, beside what schemathesis checks by itself; loaded by it through ``SCHEMATHESIS_HOOKS``."""

from __future__ import annotations

import schemathesis
from schemathesis import Case, CheckContext, Response

AWAY = {"no_controller", "no_service_key", "too_many_streams", "queue_full"}
"""Why a healthy service without a controller may say 503."""

NO_HTTP = "Invalid HTTP request received."
"""What the server says of bytes that are no request; they never reach the application."""


@schemathesis.check
def fails_only_where_it_must(ctx: CheckContext, response: Response, case: Case) -> None:
    """A 5xx is a bug, unless it says that somebody else is away and when to come back."""
    if response.status_code >= 500:
        said = response.json()
        assert response.status_code == 503, f"{response.status_code}: {said}"
        assert said["error"] in AWAY, said
        assert response.headers.get("retry-after"), "no Retry-After"


@schemathesis.check
def refuses_in_one_shape(ctx: CheckContext, response: Response, case: Case) -> None:
    """Every refusal has a code and a message, at the top and in the detail."""
    if response.status_code < 400 or not case.path.startswith("/v1") or response.text == NO_HTTP:
        return
    said = response.json()
    assert isinstance(said["error"], str), said
    assert isinstance(said["message"], str), said
    if isinstance(said["detail"], dict):
        assert (said["detail"]["error"], said["detail"]["message"]) == (said["error"], said["message"])
    assert response.headers.get("x-request-id"), "no X-Request-ID"


@schemathesis.check
def means_what_it_describes(ctx: CheckContext, response: Response, case: Case) -> None:
    """A request that the description allows is never refused for its shape, only for a value.

    The detail of a refused shape is a list of fields, of which none is a ``value_error``; the detail of a refused value
    repeats code and message, or is such an error of a field's own check.
    """
    if response.status_code == 422 and case.meta is not None and case.meta.generation.mode.is_positive:
        refusal = response.json()
        fields = refusal["detail"] if isinstance(refusal["detail"], list) else []
        assert all(field["type"] == "value_error" for field in fields), refusal
