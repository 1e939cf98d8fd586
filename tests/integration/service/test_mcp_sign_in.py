"""How clients of MCP find where their people sign in: protected-resource metadata (RFC 9728)."""

from __future__ import annotations

from pathlib import Path

import httpx
from oidc_issuer import OidcIssuer, running
from service_bench import serving


def test_a_client_without_a_key_learns_of_the_issuer(tmp_path: Path) -> None:
    with (
        running(OidcIssuer()) as issuer,
        serving(
            tmp_path,
            f"sqlite:///{tmp_path / 'kneo.sqlite'}",
            KNEO_SERV_OIDC_ISSUER=issuer.url,
            KNEO_SERV_OIDC_AUDIENCE="kneo",
            KNEO_SERV_OIDC_ROLES="agents=caller",
            KNEO_SERV_PUBLIC_URL="https://kneo.example",
        ) as house,
    ):
        refused = httpx.post(f"{house.url}/v1/mcp/prod/payments", json={})
        path = "/.well-known/oauth-protected-resource/v1/mcp/prod/payments"
        named = f'Bearer resource_metadata="https://kneo.example{path}"'
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, named)
        found = httpx.get(f"{house.url}{path}")
        assert found.json() == {
            "resource": "https://kneo.example/v1/mcp/prod/payments",
            "authorization_servers": [issuer.url],
            "scopes_supported": ["calls:make"],
            "bearer_methods_supported": ["header"],
        }
        odd = httpx.post(f"{house.url}/v1/mcp/prod/a%22%0d%0ab", json={}).headers["www-authenticate"]
        assert odd.count('"') == 2
        assert httpx.get(f"{house.url}/v1/runs").headers["www-authenticate"] == "Bearer"


def test_without_an_issuer_there_is_nothing_to_sign_in_at(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}") as house:
        assert httpx.post(f"{house.url}/v1/mcp/prod/payments", json={}).headers["www-authenticate"] == "Bearer"
        path = "/.well-known/oauth-protected-resource/v1/mcp/prod/payments"
        assert httpx.get(f"{house.url}{path}").status_code == 404
