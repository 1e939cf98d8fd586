"""Pages: how a function becomes a page of the console.

    pages = Pages(MenuEntry("runs", "Runs", "/runs", "runs:read"))

    @pages.get("/runs/{run_id}", scope="runs:read")
    def show_run(request: PageRequest) -> Page:
        run = request.call(get_run, request.path["run_id"])
        return Page("run.html", {"run": run}, live="runs")

A function runs in a thread. It reads and changes through operations of ``kneo.api`` only, so that rights and redaction are the API's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ParamSpec, TypeVar
from urllib.parse import parse_qsl, urlencode

from starlette.responses import Response

from kneo.api.operation import Context, Operation, Waiting
from kneo.errors import Invalid, InvalidValue, KneoError
from kneo.service.console.session import SignedIn

P = ParamSpec("P")
V = TypeVar("V")
R = TypeVar("R", bound=Response)

MAX_FIELDS = 500
"""Fields of a form or a query."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Form:
    """The fields of a form or of a query, in their order."""

    def __init__(self, fields: Sequence[tuple[str, str]] = ()) -> None:
        self.fields = tuple((name, value.replace("\r\n", "\n")) for name, value in fields)

    @classmethod
    def parse(cls, text: str) -> Form:
        """Parse ``application/x-www-form-urlencoded`` text.

        Raises:
            Invalid: the text has too many fields.
        """
        try:
            return cls(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
        except ValueError as error:
            msg = f"The form has more than {MAX_FIELDS} fields, or text that is not UTF-8."
            raise Invalid(msg, code="invalid_form") from error

    def get(self, name: str, default: str = "") -> str:
        """Return the value of a field.

        Raises:
            Invalid: ``invalid_form``: the field is there twice, for example a rejection and an approval.
        """
        values = self.all(name)
        if len(values) > 1:
            msg = f"The form has the field {name} more than once."
            raise Invalid(msg, code="invalid_form", hint="Send each field once.")
        return values[0] if values else default

    def all(self, name: str) -> list[str]:
        """Return every value of a field."""
        return [value for key, value in self.fields if key == name]

    def time(self, name: str) -> str | None:
        """Return the time of a filter as operations take it: a day is its first moment (UTC), an empty field no filter."""
        text = self.get(name).strip()
        return f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text or None

    def below(self, prefix: str) -> dict[str, list[str]]:
        """Return the values of the fields whose names begin with a prefix, by the rest of the name."""
        found: dict[str, list[str]] = {}
        for key, value in self.fields:
            if key.startswith(prefix):
                found.setdefault(key.removeprefix(prefix), []).append(value)
        return found

    def with_values(self, **values: str | None) -> str:
        """Return the query with other values; ``None`` removes a field. For links to another page of a list."""
        kept = [(name, value) for name, value in self.fields if name not in values]
        return "?" + urlencode([*kept, *((name, value) for name, value in values.items() if value is not None)])

    def __bool__(self) -> bool:
        return bool(self.fields)


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """A request for a page.

    Attributes:
        context: The context of operations, with the person who is signed in.
        signed_in: The person and the session.
        path: The parameters in the path.
        query: The query.
        form: The fields of a submitted form.
        cookies: The cookies.
        url: The path and query of this request.
        now: The time.
        address: The peer address.
        secure: Whether the browser reaches the service over https.
    """

    context: Context
    signed_in: SignedIn
    path: Mapping[str, str]
    query: Form
    form: Form
    cookies: Mapping[str, str]
    url: str
    now: datetime
    address: str
    secure: bool

    @property
    def person(self) -> str:
        """The name of the person who is signed in."""
        return self.context.actor

    def may(self, *scopes: str) -> bool:
        """Return whether the person has all these scopes."""
        return all(self.context.principal.may(scope) for scope in scopes)

    def call(self, operation: Operation[P, V], *args: P.args, **kwargs: P.kwargs) -> V:
        """Call an operation as the person, who needs its scopes.

        Raises:
            KneoError: as the operation raises it.
        """
        self._require(operation)
        result = operation.begin(self.context, *args, **kwargs)
        assert not isinstance(result, Waiting), f"{operation.id} waits for a run; use begin"
        return result

    def begin(self, operation: Operation[P, V], *args: P.args, **kwargs: P.kwargs) -> str:
        """Call an operation that works on a run, without waiting for the run; return the run's id.

        Raises:
            KneoError: as the operation raises it.
        """
        self._require(operation)
        result = operation.begin(self.context, *args, **kwargs)
        assert isinstance(result, Waiting), f"{operation.id} does not wait for a run; use call"
        return result.settling.run_id

    def reason(self, most: int, missing: str) -> str:
        """Return the reason that the form states, in one line.

        Args:
            most: Characters of a reason.
            missing: The message where there is none; empty where none is needed.

        Raises:
            InvalidValue: ``reason_required`` or ``input_too_large``.
        """
        reason = " ".join(self.form.get("reason").split())
        if not reason and missing:
            raise InvalidValue(missing, code="reason_required")
        if len(reason) > most:
            msg = f"The reason is {len(reason)} characters long; at most {most} are accepted."
            raise InvalidValue(msg, code="input_too_large")
        return reason

    def _require(self, operation: Operation[P, V]) -> None:
        for scope in operation.scopes:
            self.context.principal.require(scope)


@dataclass(frozen=True)
class Page:
    """A page: a template and its values.

    Attributes:
        template: The template's file name.
        values: The template's variables, besides those of every page.
        problem: The error that refused a form; the page shows what was typed, with the error's status.
        live: The mark that refreshes the page when it changes: ``inbox``, ``environments`` or ``runs``.
    """

    template: str
    values: Mapping[str, object] = field(default_factory=dict)
    problem: KneoError | None = None
    live: str = ""


@dataclass(frozen=True)
class SeeOther:
    """The page to show after a form was accepted."""

    url: str


Shown = Page | SeeOther | Response
"""The result of a page function; a response of its own is a file to download."""


def download(response: R, name: str) -> R:
    """Return a response that a browser stores as a file."""
    response.headers["content-disposition"] = f'attachment; filename="{name}"'
    return response


PageFunction = Callable[[PageRequest], Shown]


@dataclass(frozen=True)
class MenuEntry:
    """An entry of the main navigation.

    Attributes:
        name: The name, which is also its icon's.
        title: The text.
        path: The path below the console.
        scope: The scope that a person needs to see it.
    """

    name: str
    title: str
    path: str
    scope: str


@dataclass(frozen=True)
class PageRoute:
    """A page function, its method, its path below the console and the scopes that it needs."""

    method: str
    path: str
    function: PageFunction
    scopes: tuple[str, ...]
    place: MenuEntry | None


class Pages:
    """The pages of an area.

    Args:
        place: The area's entry in the main navigation; ``None`` for pages outside of it.
    """

    def __init__(self, place: MenuEntry | None = None) -> None:
        self.place = place
        self.routes: list[PageRoute] = []

    def get(self, path: str, *, scope: str | tuple[str, ...] = ()) -> Callable[[PageFunction], PageFunction]:
        """Register a function that shows a page."""
        return self._register("GET", path, scope)

    def post(self, path: str, *, scope: str | tuple[str, ...] = ()) -> Callable[[PageFunction], PageFunction]:
        """Register a function that accepts a form."""
        return self._register("POST", path, scope)

    def _register(self, method: str, path: str, scope: str | tuple[str, ...]) -> Callable[[PageFunction], PageFunction]:
        scopes = (scope,) if isinstance(scope, str) else scope

        def register(function: PageFunction) -> PageFunction:
            self.routes.append(PageRoute(method, path, function, scopes, self.place))
            return function

        return register
