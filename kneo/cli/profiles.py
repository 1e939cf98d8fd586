"""Saved service addresses: ``profiles.json``, readable by its owner only, because it contains API keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from kneo.cli.files import PRIVATE_FILE, read_bytes, write_whole
from kneo.errors import Invalid, NotFound, Usage
from kneo.spec.documents import ReadLimits
from kneo.spec.reading.reader import read_json

MAX_BYTES = 1_048_576


@dataclass(frozen=True)
class Profile:
    service_url: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Profiles:
    """The content of the file.

    Attributes:
        active: The profile that is used when none is named.
    """

    active: str | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def get(self, name: str) -> Profile:
        """Return a profile.

        Raises:
            NotFound: there is no profile of that name.
        """
        if name not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or "none"
            message = f"There is no profile {name[:60]!r}; saved: {known}."
            raise NotFound(message, hint="Save it: kneo config profile set NAME --service-url URL")
        return self.profiles[name]

    def with_profile(self, name: str, profile: Profile, *, activate: bool) -> Profiles:
        """Return the profiles with one added or replaced."""
        return Profiles(name if activate else self.active, {**self.profiles, name: profile})

    def using(self, name: str) -> Profiles:
        """Return the profiles with another active one.

        Raises:
            NotFound: there is no profile of that name.
        """
        self.get(name)
        return replace(self, active=name)

    def without(self, name: str) -> Profiles:
        """Return the profiles without one; if it was the active one, none is active."""
        others = {each: profile for each, profile in self.profiles.items() if each != name}
        return Profiles(None if self.active == name else self.active, others)


def load_profiles(path: Path) -> Profiles:
    """Read the saved profiles; without a file there are none.

    Raises:
        Invalid: the file is not valid.
    """
    if not path.is_file():
        return Profiles()
    data = read_bytes(path, max_bytes=MAX_BYTES, what="file of profiles")
    content = read_json(data, file=str(path), limits=ReadLimits(max_depth=8)).value
    try:
        return _parse(content)
    except (KeyError, TypeError, AttributeError) as error:
        message = f"{path} is not a valid profiles file."
        raise Invalid(message, hint="Fix or remove it; kneo config profile set creates a new one.") from error


def save_profiles(path: Path, saved: Profiles) -> None:
    """Replace the file atomically, with a mode that only its owner can read."""
    profiles = {
        name: {"api_key": profile.api_key, "service_url": profile.service_url}
        for name, profile in saved.profiles.items()
    }
    text = json.dumps({"active": saved.active, "profiles": profiles}, indent=2, sort_keys=True)
    write_whole(path, f"{text}\n".encode(), mode=PRIVATE_FILE)


def check_url(url: str) -> str:
    """Return a service's address without its trailing slash.

    Raises:
        Usage: it is not an http or https address.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = f"{url[:100]!r} is not the address of a service."
        raise Usage(message, hint="Write it like http://127.0.0.1:8000.")
    return url.rstrip("/")


def _parse(content: object) -> Profiles:
    if not isinstance(content, dict) or not isinstance(content["profiles"], dict):
        raise TypeError
    active = content.get("active")
    profiles = {
        name: Profile(str(entry["service_url"]), str(entry["api_key"]) if entry.get("api_key") else None)
        for name, entry in content["profiles"].items()
    }
    return Profiles(active if isinstance(active, str) and active in profiles else None, profiles)
