"""Signing in at an issuer, in a browser that enforces cookies, redirects and the content security policy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from oidc_issuer import OidcIssuer, running
from service_bench import listening, serving, url_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def issuer() -> Iterator[OidcIssuer]:
    with running(OidcIssuer()) as made:
        yield made


def test_a_person_signs_in_at_the_issuer(chromium: Browser, issuer: OidcIssuer, tmp_path: Path) -> None:
    listener = listening()
    # localhost is another site than 127.0.0.1, as the issuer is another site than the service.
    public = url_of(listener, "localhost")
    variables = {
        "KNEO_SERV_OIDC_ISSUER": issuer.url,
        "KNEO_SERV_OIDC_CLIENT_ID": "console",
        "KNEO_SERV_OIDC_CLIENT_SECRET": "s+cret",
        "KNEO_SERV_OIDC_ROLES": "operators=operator",
        "KNEO_SERV_PUBLIC_URL": public,
    }
    issuer.person = {"sub": "Ivy"}
    messages: list[str] = []
    paths = [*sys.path]
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0, listener=listener, **variables):
        context = chromium.new_context()
        context.set_default_timeout(120_000)
        context.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
        page = context.new_page()
        page.goto(f"{public}/console/runs")
        page.get_by_role("link", name="Sign in with 127.0.0.1").click()
        page.wait_for_url(f"{public}/console/runs")
        assert "Ivy" in page.content()
        assert page.evaluate("document.cookie") == ""
        assert [cookie["name"] for cookie in context.cookies()] == ["kneo_session"]
        context.close()
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)
    assert messages == []
