"""Cookies of the console: one name by scheme, for the session, the sign-in and the browser of notifications."""

from __future__ import annotations

from datetime import timedelta

import pytest
from starlette.responses import Response

from kneo.digest import hash_text
from kneo.service.console.security import PUSH, SESSION, SIGN_INS, cookie_name, read_cookie, set_cookie
from kneo.service.console.session import push_browser


@pytest.mark.parametrize("name", [SESSION, SIGN_INS, PUSH])
@pytest.mark.parametrize("secure", [True, False])
def test_over_https_a_cookie_belongs_to_this_origin_alone(name: str, *, secure: bool) -> None:
    response = Response()
    set_cookie(response, name, "value", secure=secure, lasts=timedelta(minutes=10))
    (header,) = response.headers.getlist("set-cookie")
    first, *attributes = header.split("; ")
    assert first == f"{'__Host-' if secure else ''}{name}=value"
    assert {"HttpOnly", "Max-Age=600", "Path=/", "SameSite=lax"} <= set(attributes)
    assert ("Secure" in attributes) is secure
    assert not any(each.startswith("Domain") for each in attributes), "browsers refuse a __Host- cookie with one"


def test_the_name_of_the_other_scheme_is_not_read() -> None:
    both = {cookie_name(PUSH, secure=True): "mine", cookie_name(PUSH, secure=False): "another's"}
    assert read_cookie(both, PUSH, secure=True) == "mine"
    assert push_browser(both, secure=True) == hash_text("mine")
    assert push_browser({cookie_name(PUSH, secure=False): "another's"}, secure=True) == ""


def test_an_empty_value_removes_the_cookie() -> None:
    response = Response()
    set_cookie(response, SESSION, "", secure=True, lasts=timedelta(minutes=10))
    assert "Max-Age=0" in response.headers["set-cookie"]
