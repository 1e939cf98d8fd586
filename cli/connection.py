"""Which backend a command talks to: a profile, an address, or the database beside us."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import typer

from cli.backend import Backend
from kneo.errors import Invalid, NotFound
from kneo.settings import Settings, from_env

ServiceUrlOption = Annotated[
    str | None, typer.Option("--service-url", help="Ask this service instead of working locally.")
]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="Use a saved service address and key.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Address:
    url: str
    key: str


def choose(settings: Settings, service_url: str | None, profile: str | None) -> Address | None:
    """Decide whom to ask; ``None`` means the database beside us.

    A profile's address can be replaced by ``--service-url``, which keeps the profile's key. Without either, the active
    profile is used.

    Raises:
        NotFound: there is no such profile.
    """
    saved = _profiles(settings.profiles_path)
    if profile is not None:
        if profile not in saved.profiles:
            known = ", ".join(sorted(saved.profiles)) or "none"
            msg = f"There is no profile {profile!r}; saved: {known}."
            raise NotFound(msg, hint="kneo config profile set NAME --service-url URL")
        address = saved.profiles[profile]
        return Address(service_url or address.url, address.key)
    if service_url is not None:
        return Address(service_url, settings.client_api_key)
    return saved.profiles.get(saved.active or "")


@contextlib.contextmanager
def backend(service_url: str | None, profile: str | None) -> Iterator[Backend]:
    """Open whatever a command talks to, and close it afterwards."""
    settings = from_env()
    address = choose(settings, service_url, profile)
    # Each side costs imports the other one does not need: HTTP here, the database there.
    if address is not None:
        made = importlib.import_module("cli.client").ServiceBackend(
            address.url, address.key, settings.client_timeout_seconds
        )
    else:
        made = importlib.import_module("cli.local").LocalBackend(settings)
    opened = cast("Backend", made)
    try:
        yield opened
    finally:
        opened.close()


@dataclass(frozen=True)
class _Saved:
    active: str | None
    profiles: dict[str, Address]


def _profiles(path: Path) -> _Saved:
    if not path.is_file():
        return _Saved(None, {})
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["profiles"].items()
        profiles = {name: Address(str(item["service_url"]), str(item["api_key"] or "")) for name, item in entries}
        return _Saved(content.get("active"), profiles)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is not a file of profiles."
        raise Invalid(msg, hint="Fix or remove it; kneo config profile set makes a new one.") from error
