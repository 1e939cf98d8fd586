"""The names of the API keys of the service on this database: the people whom its processes know without a declaration.

The service writes them when it starts. Workers and commands, which may have no key themselves, read them here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kneo.names import person_key
from kneo.store import project_metadata
from kneo.store.engine import Tx

KEY = "api_key_names"


def read(tx: Tx) -> Mapping[str, str]:
    """Return the names of API keys by their person key; empty where the service needs no key."""
    listed = project_metadata.read(tx, KEY).get("names")
    return {person_key(str(name)): str(name) for name in listed} if isinstance(listed, list) else {}


def put(tx: Tx, names: Collection[str]) -> None:
    """Replace the names of API keys, where they differ from what is stored."""
    listed = sorted(names)
    if project_metadata.read(tx, KEY).get("names", []) != listed:
        project_metadata.write(tx, KEY, {"names": listed})
