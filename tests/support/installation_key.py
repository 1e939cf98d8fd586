"""The service key of the installation that tests simulate, the same in each process of a test."""

from __future__ import annotations

import base64

from kneo.trust.keys import PrivateKey

_ED25519 = bytes.fromhex("302e020100300506032b657004220420")
"""The beginning of an Ed25519 key in PKCS#8; its 32 bytes follow."""


def _key() -> PrivateKey:
    text = base64.b64encode(_ED25519 + bytes(range(32))).decode()
    return PrivateKey.load(f"-----BEGIN {'PRIVATE KEY'}-----\n{text}\n-----END {'PRIVATE KEY'}-----\n".encode())


SERVICE_KEY = _key()


def installation_variables(database_url: str) -> dict[str, str]:
    """Return the variables of processes on a database; on SQLite they create a key of their own."""
    return {} if database_url.startswith("sqlite") else {"KNEO_SERV_SERVICE_KEY": SERVICE_KEY.dump().decode()}


def find_key() -> PrivateKey:
    """Return the key, for stores that a test opens."""
    return SERVICE_KEY
