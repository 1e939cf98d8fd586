"""Addresses of the public internet. Pure."""

from __future__ import annotations

import ipaddress

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT
        "168.63.129.16/32",  # the platform address of Azure's virtual machines
        "192.0.0.0/24",  # protocol assignments, and the metadata address of a cloud
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments, with Teredo, which embeds IPv4 addresses
        "2002::/16",  # 6to4, which embeds IPv4 addresses
        "3fff::/20",  # documentation
    )
)
_UNICAST = ipaddress.ip_network("2000::/3")
"""Public IPv6 addresses. NAT64 (64:ff9b::/96), mapped and compatible IPv4 addresses are outside of it."""


def is_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Return whether an address is of the public internet: not loopback, private, link-local, shared or embedded."""
    plain = address.partition("%")[0]
    if not is_address(plain):
        return False
    ip = ipaddress.ip_address(plain)
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)
