"""The backend of tools that are HTTP requests: arguments into the request, the response into the call's result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode

from kneo.agents.addresses import HostRules
from kneo.agents.http import HttpFailed, WebRequest, WebResponse
from kneo.agents.secrets import CallSecrets
from kneo.agents.tools.kinds import BackendContext, BackendKind
from kneo.agents.turn import ToolCall
from kneo.errors import Invalid
from kneo.spec.models.spec import HttpTool

_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.-]{1,100})\}")
_ORIGIN = re.compile(r"https?://[^/?#{}\\\s]+(?=[/?#]|$)", re.IGNORECASE)
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_MISSING = object()


class HttpTools:
    """Makes the requests of HTTP tools."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context

    async def call(self, call: ToolCall) -> object:
        """Make the request of a call.

        Raises:
            Forbidden: the host, an address, a header or a secret is refused.
            Invalid: the arguments do not make a request.
            HttpFailed: no response came, or one of status 400 and above.
        """
        http = call.tool.http
        assert http is not None
        declared = call.tool.parameters.get("properties")
        names = frozenset(declared if isinstance(declared, Mapping) else ()) | call.arguments.keys()
        request = make_request(http, Template(names, call.arguments), call.idempotency_key)
        request = replace(request, secret_headers=self._context.fill(call, http.secret_headers))
        rules = await self._context.rules(call.turn.environment)
        hosts = HostRules.of(call.turn.agent, rules.inside)
        seconds = call.tool.timeout_seconds or self._context.settings.agents.tool_seconds
        response = await self._context.client(hosts).send(request, seconds)
        return read_response(request.method, response, call.secrets)


@dataclass(frozen=True)
class Template:
    """The arguments of a call, for texts with ``{name}``. Other braces are text.

    Attributes:
        names: The tool's parameters.
    """

    names: frozenset[str]
    arguments: Mapping[str, object]

    def used(self, text: str) -> frozenset[str]:
        """Return the parameters that a text names."""
        return frozenset(_PLACEHOLDER.findall(text)) & self.names

    def value(self, text: str) -> object:
        """Return the argument that is the whole text, ``_MISSING`` where it is left out, or the text with its arguments."""
        whole = _PLACEHOLDER.fullmatch(text)
        if whole is not None and whole[1] in self.names:
            return self.arguments.get(whole[1], _MISSING)
        return self.text(text)

    def text(self, text: str, encode: Callable[[str], str] = str) -> str:
        """Return a text with its arguments.

        Raises:
            Invalid: ``argument_missing``, or ``argument_invalid`` for one that is no text, number or boolean.
        """
        return _PLACEHOLDER.sub(
            lambda found: encode(self._scalar(found[1])) if found[1] in self.names else found[0], text
        )

    def _scalar(self, name: str) -> str:
        value = self.arguments.get(name)
        if value is None:
            msg = f"The request needs the argument {name}, which is left out."
            raise Invalid(msg, code="argument_missing")
        return scalar_text(name, value)


def scalar_text(name: str, value: object) -> str:
    """Return a text, number or boolean as it stands in a request.

    Raises:
        Invalid: ``argument_invalid``: it is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    msg = f"The argument {name} stands in a text of the request, so it has to be a text, a number or a boolean."
    raise Invalid(msg, code="argument_invalid")


def make_request(http: HttpTool, template: Template, idempotency_key: str) -> WebRequest:
    """Put the arguments of a call into the request of its tool, without its secrets.

    Raises:
        Invalid: ``argument_missing``, ``argument_invalid`` or ``url_invalid``.
    """
    headers = {}
    for name, text in http.headers.items():
        value = template.value(text)
        if value is not _MISSING and value is not None:
            headers[name] = scalar_text(name, value)
    # Only characters that a header can have; the same key gives the same header.
    headers = {name: value for name, value in headers.items() if name.lower() != "idempotency-key"}
    headers["Idempotency-Key"] = quote(idempotency_key, safe="!#$&'()*+,/:;=?@[]~<>|^`{}%")
    body, media_type = _body(http, template)
    if body is not None and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = media_type
    return WebRequest(url=_url(http, template), method=http.method, headers=headers, body=body)


def read_response(method: str, response: WebResponse, secrets: CallSecrets) -> object:
    """Return a response as the result of its call. Of one that is cut, only the part of a secret at its end is hidden here.

    Raises:
        HttpFailed: the status is 400 or above, or a redirect without a target.
    """
    text = response.body.decode("utf-8", errors="replace").replace("\0", "\ufffd")
    text = secrets.hide_divided(text) if response.is_cut else text
    if response.status >= 300:
        msg = f"The server answers {method} with the status {response.status}: {text or 'no text'}"
        raise HttpFailed(msg, code="http_status")
    if response.is_cut:
        return f"{text} [cut: more than {len(response.body)} bytes]"
    if not text:
        return {"status": response.status}
    if response.media_type == "application/json" or response.media_type.endswith("+json"):
        try:
            value: object = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return text
        return value
    return text


def _url(http: HttpTool, template: Template) -> str:
    origin = _ORIGIN.match(http.url)
    if origin is None:
        msg = f"{http.url[:200]!r} is not an https URL whose host is written out."
        raise Invalid(msg, code="url_invalid", hint="Arguments stand in the path and the query, as {name}.")
    path, mark, query = http.url[origin.end() :].partition("#")[0].partition("?")
    segments = [_segment(each, template) for each in path.split("/")]
    query = template.text(query, _encoded)
    more = urlencode([pair for name, text in http.query.items() for pair in _pairs(name, template.value(text))])
    query = "&".join(part for part in (query, more) if part)
    return origin[0] + "/".join(segments) + ("?" + query if query or mark else "")


def _segment(text: str, template: Template) -> str:
    """Return a part of the path; an argument must not change which resource the others name."""
    made = template.text(text, _encoded)
    if template.used(text) and made in {"", ".", ".."}:
        msg = f"The argument of {text!r} in the path is {made!r}, which names another resource."
        raise Invalid(msg, code="argument_invalid")
    return made


def _encoded(text: str) -> str:
    return quote(text, safe="")


def _pairs(name: str, value: object) -> Iterator[tuple[str, str]]:
    if value is _MISSING or value is None:
        return
    for each in value if isinstance(value, list | tuple) else (value,):
        yield name, scalar_text(name, each)


def _body(http: HttpTool, template: Template) -> tuple[bytes | None, str]:
    if http.body is None:
        if http.method not in _WITH_BODY:
            return None, ""
        texts = [http.url, *http.headers.values(), *http.query.values()]
        elsewhere = frozenset().union(*(template.used(text) for text in texts))
        value: object = {name: each for name, each in template.arguments.items() if name not in elsewhere}
    else:
        value = _filled_in(http.body, template)
    if value is _MISSING:
        return None, ""
    if isinstance(value, str):
        return value.encode(), "text/plain; charset=utf-8"
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(), "application/json"


def _filled_in(value: object, template: Template) -> object:
    """Return a JSON value with its arguments; fields and items of arguments that are left out are left out."""
    match value:
        case str() as text:
            return template.value(text)
        case Mapping() as fields:
            made = {name: _filled_in(each, template) for name, each in fields.items()}
            return {name: each for name, each in made.items() if each is not _MISSING}
        case list() | tuple() as items:
            return [each for each in (_filled_in(item, template) for item in items) if each is not _MISSING]
        case _:
            return value


def _no_constant(name: str) -> object:
    raise ValueError(name)


KIND = BackendKind(open=HttpTools)
