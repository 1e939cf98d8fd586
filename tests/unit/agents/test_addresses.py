"""Domain lists and public addresses: what the tools of an agent may reach."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from kneo.agents.addresses import MAX_ADDRESSES, HostRules
from kneo.agents.public_addresses import is_public
from kneo.errors import Forbidden, Invalid
from kneo.spec.models.agent import Agent

ANY = HostRules(allowed=("*",))


def code_of(rules: HostRules, url: str) -> str:
    with pytest.raises(Forbidden) as refused:
        rules.check_url(url)
    return refused.value.code


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "168.63.129.16", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1",
        "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "3fff::1", "not-an-address", "",
    ],
)  # fmt: skip
def test_addresses_inside_a_network_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:800::200e"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_a_domain_covers_its_subdomains_and_denied_ones_win() -> None:
    rules = HostRules(allowed=("a.example", "*.b.example"), denied=(".private.a.example",))
    for host in ("a.example", "A.EXAMPLE.", "www.a.example", "x.b.example"):
        rules.check_url(f"https://{host}/x")
    for host in ("b.example", "nota.example", "a.example.evil.example", "private.a.example", "x.private.a.example"):
        assert code_of(rules, f"https://{host}/x") == "domain_denied"
    assert code_of(HostRules(), "https://a.example/") == "domain_denied"
    assert code_of(HostRules(allowed=("*",), denied=("*",)), "https://a.example/") == "domain_denied"
    HostRules(allowed=("bücher.example",)).check_url("https://xn--bcher-kva.example/")
    HostRules(allowed=("xn--bcher-kva.example",)).check_url("https://bücher.example/")


@pytest.mark.parametrize(
    "pattern", ["https://a.example", "a.example:8443", "a.example/x", "", "*", "a*.example", "a b"]
)
def test_a_pattern_that_is_no_domain_is_refused_and_not_ignored(pattern: str) -> None:
    rules = HostRules(allowed=("*",), denied=(pattern,))
    with pytest.raises(Forbidden if pattern == "*" else Invalid):
        rules.check_host("b.example")


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/", "ftp://a.example/", "file:///etc/passwd", "gopher://a.example/", "a.example/x", "/x", "",
        "https://user@a.example/", "https://user:pass@a.example/", "https://a.example@b.example/",
        "https://a.example\\@b.example/", "https://a.example /", "https://a.example\t/", "https://a.exa\nmple/",
        "https://a.example%20/", "https://[::1%25eth0]/", f"https://a.example/{'x' * 8001}", "https://a.example:x/",
    ],
)  # fmt: skip
def test_a_url_that_is_not_plain_https_is_refused(url: str) -> None:
    assert code_of(ANY, url) == "url_denied"


def test_plain_http_is_for_services_that_the_environment_names() -> None:
    rules = HostRules(allowed=("crm.internal",), inside=frozenset({"crm.internal:8080", "[::1]:80"}))
    rules.check_url("http://crm.internal:8080/x")
    assert code_of(rules, "http://crm.internal/x") == "url_denied"
    assert code_of(rules, "http://crm.internal:8081/x") == "url_denied"
    assert code_of(rules, "http://[::1]/x") == "domain_denied"
    assert rules.is_inside("::1", 80)
    assert rules.is_inside("CRM.internal.", 8080)


def addresses(rules: HostRules, host: str, found: Sequence[str]) -> tuple[str, ...]:
    async def resolver(_host: str, _port: int) -> Sequence[str]:
        return found

    return asyncio.run(rules.addresses(host, 443, resolver))


def test_every_address_of_a_name_has_to_be_public() -> None:
    assert addresses(ANY, "a.example", ["8.8.8.8", "2606:4700:4700::1111", "8.8.8.8"]) == (
        "8.8.8.8",
        "2606:4700:4700::1111",
    )
    for found in (["8.8.8.8", "10.0.0.1"], ["127.0.0.1"], [f"8.8.{n}.8" for n in range(MAX_ADDRESSES + 1)]):
        with pytest.raises(Forbidden, match="inside a network") as refused:
            addresses(ANY, "a.example", found)
        assert refused.value.code == "address_denied"
    with pytest.raises(OSError, match="no address"):
        addresses(ANY, "a.example", [])
    inside = HostRules(allowed=("*",), inside=frozenset({"crm.internal:443"}))
    assert addresses(inside, "crm.internal", ["10.0.0.1"]) == ("10.0.0.1",)


def test_url_shaped_arguments_are_checked_wherever_they_are() -> None:
    rules = HostRules(allowed=("a.example",), denied=("x.a.example",))
    rules.check_arguments(
        {"url": "https://a.example/x", "text": "see https://b.example/ and // here", "n": 1, "http": ":"}
    )
    for value in (
        "https://b.example/", "  https://b.example/ ", "HTTPS://B.EXAMPLE/", "https://x.a.example", "//b.example/x",
        "ftp://b.example", "file:///etc/passwd", "https:/b.example", "https:\\\\b.example", "https://a.example@b.example",
        "https://a.example\\@b.example/", "http://127.1/",
        # Clients drop these characters, wherever they stand.
        "ht\ttps://b.example/", "h\nttps://b.example/", "\x00https://b.example/", "https\x01://b.example/", "/\r/b.example/",
    ):  # fmt: skip
        for arguments in ({"url": value}, {"deep": [{"list": [value]}]}, {value: 1}):
            with pytest.raises(Forbidden):
                rules.check_arguments(arguments)
    HostRules().check_arguments({"url": "https://b.example/"})
    with pytest.raises(Forbidden):
        HostRules(denied=("b.example",)).check_arguments({"url": "https://b.example/"})
    HostRules(denied=("b.example",)).check_arguments({"url": "https://c.example/"})


def test_an_argument_that_is_too_large_to_be_checked_is_refused() -> None:
    with pytest.raises(Forbidden, match="cannot be checked"):
        HostRules(denied=("b.example",)).check_arguments({"list": [0] * 100_001})


def test_the_rules_of_an_agent_are_those_of_its_permissions() -> None:
    agent = Agent.model_validate(
        {"name": "a", "tools": {"permissions": {"allowed_domains": ["a.example"], "denied_domains": ["b.example"]}}}
    )
    assert HostRules.of(agent, ["CRM:1"]) == HostRules(
        allowed=("a.example",), denied=("b.example",), inside=frozenset({"crm:1"})
    )
    assert HostRules.of(Agent(name="a")) == HostRules()
