"""The backend of a command: a service over HTTP, or the local database. Results are the same."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, cast

import typer
from pydantic import BaseModel, ValidationError

from kneo import __version__
from kneo.api.operation import Operation
from kneo.cli import render
from kneo.cli.backend import Backend, P, V
from kneo.cli.options import JsonOption, OptionGroup
from kneo.cli.profiles import load_profiles
from kneo.errors import InvalidValue
from kneo.project import read_config
from kneo.settings import Settings, from_env
from kneo.telemetry import configure_tracing

ServiceUrlOption = Annotated[
    str | None, typer.Option("--service-url", help="Address of a service; by default the local database.")
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="Saved service address and key (kneo config profile).")
]


@dataclass(frozen=True)
class Address:
    url: str
    key: str = field(repr=False)


def choose(settings: Settings, service_url: str | None, profile: str | None) -> Address | None:
    """Return the address of the service to call; ``None`` for the local database.

    In this order: ``--service-url`` with the key of ``--profile``, ``--profile``, the project's own service, the active
    profile.

    Raises:
        NotFound: there is no such profile.
    """
    saved = load_profiles(settings.profiles_path)
    if profile is not None:
        named = saved.get(profile)
        return Address(service_url or named.service_url, named.api_key or settings.client_api_key)
    if service_url is not None:
        return Address(service_url, settings.client_api_key)
    config = read_config(settings)
    if config is not None and config.service.default_url is not None:
        return Address(config.service.default_url, settings.client_api_key)
    active = saved.profiles.get(saved.active or "")
    return Address(active.service_url, active.api_key or settings.client_api_key) if active is not None else None


@contextlib.contextmanager
def backend(service_url: str | None, profile: str | None, *, existing: bool = False) -> Iterator[Backend]:
    """Open the backend of a command, and close it afterwards.

    Args:
        service_url: The address of a service.
        profile: The name of a profile.
        existing: Whether a missing local database is an error; else it is created.

    Raises:
        NotFound: ``no_database``.
    """
    settings = from_env()
    address = choose(settings, service_url, profile)
    opened: Backend
    with contextlib.ExitStack() as stack:
        if address is not None:
            # The HTTP library is imported here, so that local commands do without it.
            opened = importlib.import_module("kneo.cli.client").ServiceBackend(address.url, address.key, settings)
        else:
            # Runs that this process drives are traced as in a service.
            stack.enter_context(configure_tracing(settings.tracing, version=__version__))
            # The database library is imported here, so that calls of a service do without it.
            opened = cast(
                "Backend", importlib.import_module("kneo.cli.local").LocalBackend(settings, existing=existing)
            )
        stack.callback(opened.close)
        yield opened


@dataclass(frozen=True)
class ServiceOptions(OptionGroup):
    """The options of a command that calls the operations of a service or of the local database."""

    service_url: ServiceUrlOption = None
    profile: ProfileOption = None
    as_json: JsonOption = False

    def open(self, *, existing: bool = False) -> contextlib.AbstractContextManager[Backend]:
        """Open the backend; see ``backend``."""
        return backend(self.service_url, self.profile, existing=existing)

    def call(self, operation: Operation[P, V], /, *args: P.args, **kwargs: P.kwargs) -> V:
        """Call one operation of the backend; a local database must exist."""
        with self.open(existing=True) as opened:
            return opened.call(operation, *args, **kwargs)

    def show(self, operation: Operation[P, V], text: Callable[[V], None], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call one operation of the backend, and print its view as JSON or with ``text``."""
        with self.open() as opened:
            view = opened.call(operation, *args, **kwargs)
        render.emit(view, as_json=self.as_json, text=lambda: text(view))

    def show_existing(
        self, operation: Operation[P, V], text: Callable[[V], None], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Do the same where a local database must exist."""
        view = self.call(operation, *args, **kwargs)
        render.emit(view, as_json=self.as_json, text=lambda: text(view))


M = TypeVar("M", bound=BaseModel)


def request(model: type[M], **values: object) -> M:
    """Build a request. Values of ``None`` are left out.

    Raises:
        InvalidValue: the request does not accept a value.
    """
    try:
        return model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InvalidValue(first["msg"].removeprefix("Value error, "), field=field) from error
