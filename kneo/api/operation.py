"""Operations: functions with their scopes and their place in HTTP, their context, and request fields that several share.

An operation is a plain function of a ``Context`` and typed parameters that returns a view, a frozen dataclass:

    @operation("GET", "/runs/{run_id}", scope="runs:read", about=RUN)
    def get_run(context: Context, run_id: str) -> RunView: ...

An operation that starts work on a run returns ``Waiting``, from which its caller gets the view:

    @run_operation("POST", "/runs", scope="runs:write", about=ENVIRONMENT)
    def create_run(context: Context, body: RunCreate) -> Waiting[RunStartedView]: ...

``about`` states what the operation is about: an environment, a run, a task and so on, or ``None`` for the service. Where a parameter
names one, it is checked before the function is called; in any case the function reads only environments in which the caller has the
scope.

Parameters named in the path are part of the path. A parameter whose type is a model is the body of the request, every other one
is part of the query. The name of the function is the operation's id, its docstring the description of the operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from types import ModuleType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
)
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from kneo.errors import Forbidden, InvalidValue
from kneo.names import MAX_ENVIRONMENT_CHARS, check_environment_name
from kneo.roles import may

if TYPE_CHECKING:
    from kneo.api.subjects import OperationSubject
    from kneo.registry.access import Access
    from kneo.runtime.engine.start import Starter
    from kneo.runtime.engine.wait import RunSettled, SettledRun
    from kneo.settings import Settings
    from kneo.spec.project import ProjectConfig
    from kneo.store.engine import Store, Tx


V_co = TypeVar("V_co", covariant=True)

ANY_KEY = "any"
"""The scope of operations that every authenticated caller may call."""


@dataclass(frozen=True)
class Principal:
    """A caller: the name of a person, the scopes and roles of the person's key or token, and when the token expires."""

    name: str
    scopes: frozenset[str]
    expires_at: datetime | None = None
    roles: frozenset[str] = frozenset()

    def may(self, scope: str) -> bool:
        """Return whether the caller has a scope."""
        return scope == ANY_KEY or may(self.scopes, scope)

    def require(self, scope: str) -> None:
        """Check that the caller has a scope.

        Raises:
            Forbidden: the caller has not; the scope is in the details.
        """
        if not self.may(scope):
            msg = f"Missing required scope: {scope}"
            raise Forbidden(msg, required_scope=scope)


DEFAULT_WAIT = 120.0
"""Seconds that a request waits for its run by default."""


@dataclass(frozen=True)
class Waiting(Generic[V_co]):
    """Work in progress on a run, and the view of its result. The caller waits; the operation does not.

    Attributes:
        settling: The condition to wait for: the run is paused or has ended.
        view: Builds the view of the run at that time.
        seconds: The longest time to wait; with zero the view is built from ``settled``.
        settled: The present run, where the time to wait may be zero.
        notified: Whether the run's change notifies waiters. A vote below the quorum does not.
        delivers: Whether the view records that its result was returned: it is built in a thread, and not for a caller that has
            gone.
    """

    settling: RunSettled
    view: Callable[[SettledRun], V_co]
    seconds: float = DEFAULT_WAIT
    settled: SettledRun | None = None
    notified: bool = True
    delivers: bool = False


def _unknown_caller(_tx: Tx, _name: str) -> Principal | None:
    return None


def _count_nothing(_environment: str) -> None: ...


class RequestQuota(Protocol):
    """The quota ``requests_per_minute`` of environments, for one request."""

    def limits(self, tx: Tx) -> Mapping[str, int]:
        """Return the quotas of the environments that have one."""
        ...

    def count(self, environment: str, limit: int) -> None:
        """Count the request, at most once.

        Raises:
            QuotaExceeded: as many requests were counted in this minute.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """The context of an operation.

    Attributes:
        store: The database.
        settings: The settings of this process.
        principal: The caller, who has the operation's scope.
        project: The config of the project that this process works in.
        make_starter: Creates the starter of runs; called by operations that start one.
        settle: Waits for a run in the command line, where the caller does not.
        drive: Executes a run's next steps in the command line, where no worker does.
        tools: The tools of this process, which specs may name.
        over_http: Whether the caller was authenticated by a service. In the command line the caller is the owner of the
            process.
        count_hidden: Counts a request about an environment that the caller may not read.
        find_access: Returns what a caller may do in each environment; ``None`` for the owner of the process, whom none limits.
        request_quota: Counts requests about environments; ``None`` for the owner of the process.
        find_caller: Returns a person of an API key or of the issuer, with the scopes of the key or issuer.
        via: The chat program in which the caller decides; ``None`` where the caller authenticated itself.
        on_behalf: The owner of the process where the caller is another person, whose part the owner tries.
    """

    store: Store
    settings: Settings
    principal: Principal
    project: ProjectConfig | None
    make_starter: Callable[[], Starter]
    settle: Callable[[Waiting[object]], SettledRun]
    drive: Callable[[str], object]
    tools: frozenset[str] = frozenset()
    over_http: bool = False
    via: str | None = None
    on_behalf: str | None = None
    find_caller: Callable[[Tx, str], Principal | None] = _unknown_caller
    count_hidden: Callable[[str], None] = _count_nothing
    find_access: Callable[[Tx, Principal], Access | None] | None = None
    request_quota: RequestQuota | None = None

    @property
    def actor(self) -> str:
        """The name of the caller."""
        return self.principal.name

    def scopes_in(self, tx: Tx, environment: str) -> frozenset[str]:
        """Return the scopes of the caller in an environment."""
        access = self.find_access(tx, self.principal) if self.find_access is not None else None
        return self.principal.scopes if access is None else access.scopes.get(environment, frozenset())

    def within(self, scopes: Collection[str]) -> Context:
        """Return this context with the database as the caller reads it: the environments in which the caller has these scopes.

        The owner of the process reads everything.
        """
        find, required = self.find_access, [scope for scope in scopes if scope != ANY_KEY]
        if find is None:
            return self

        def reach(tx: Tx) -> frozenset[str] | None:
            access = find(tx, self.principal)
            return access.reach(required) if access is not None else None

        return replace(self, store=self.store.limited(reach))


P = ParamSpec("P")
V = TypeVar("V")

Json = dict[str, object]
Method = Literal["GET", "POST", "PUT", "DELETE"]

DONE: Mapping[int, str] = {200: "Done."}
SETTLED: Mapping[int, str] = {200: "The run is paused or has ended.", 202: "The run continues; read it again later."}
"""The statuses of an operation that waits for a run: 202 when the waiting time ended before the run paused or ended."""


@dataclass(frozen=True)
class HttpRequest:
    """A call of an operation as an HTTP request; ``path`` is below the version, with its values percent-encoded."""

    method: Method
    path: str
    query: Mapping[str, object]
    body: BaseModel | None


@dataclass(frozen=True)
class Operation(Generic[P, V]):
    """A function of a ``Context``. Call it with a context and the function's own parameters.

    Attributes:
        function: The implementation.
        method: The HTTP method.
        path: The HTTP path, without the version: ``/runs/{run_id}``.
        scopes: The required scopes, all of them.
        statuses: The HTTP statuses of success, the usual one first, and their descriptions.
        errors: Statuses of errors in addition to those that follow from the method and the path.
        aliases: Older HTTP paths.
        key_scope: The scope of its idempotency keys, where that is not the operation's id.
        about: What its environment follows from; ``None`` for an operation about the service.
        shows_secret: Whether its response holds a ``OneTimeSecret``. Such a response is stored nowhere, also not under an
            idempotency key: a repetition is refused.
        is_live: Whether a repetition under an idempotency key gets the present state of what the first request made, instead of
            the first response.
    """

    function: Callable[Concatenate[Context, P], V | Waiting[V]]
    method: Method
    path: str
    scopes: tuple[str, ...]
    statuses: Mapping[int, str]
    errors: tuple[int, ...] = ()
    aliases: tuple[str, ...] = ()
    key_scope: str | None = None
    shows_secret: bool = False
    is_live: bool = False
    about: OperationSubject | None = None

    def __call__(self, context: Context, /, *args: P.args, **kwargs: P.kwargs) -> V:
        result = self.begin(context, *args, **kwargs)
        return result.view(context.settle(result)) if isinstance(result, Waiting) else result

    def begin(self, context: Context, /, *args: P.args, **kwargs: P.kwargs) -> V | Waiting[V]:
        """Call the function for a caller who has access to its subject, with what the caller reads.

        Raises:
            NotFound: the subject does not exist, or stands in an environment that the caller may not read.
            Forbidden: the caller reads the environment, and does not have the operation's scopes there.
            QuotaExceeded: the environment had as many requests in this minute as its file allows.
        """
        self.check(context, self.signature.bind(*args, **kwargs).arguments)
        return self.function(context.within(self.scopes), *args, **kwargs)

    def check(self, context: Context, values: Mapping[str, object]) -> None:
        """Check that the caller has access to the subject of a call, and count the request; see ``begin``."""
        if self.about is None or context.find_access is None:
            return
        required = [scope for scope in self.scopes if scope != ANY_KEY]
        quota = context.request_quota
        with context.store.look() as tx:
            limits = quota.limits(tx) if quota is not None else {}
            if not limits and context.find_access(tx, context.principal) is None:
                return
        with context.store.read() as tx:
            access = context.find_access(tx, context.principal)
            found = self.about.find_readable(tx.unlimited, access, values, context.count_hidden)
        chosen = values.get("environment")
        counted = found
        if not found and isinstance(chosen, str) and (access is None or access.is_readable(chosen)):
            counted = (chosen,)  # a list of one environment
        # A request about a bundle of several environments is about none of them.
        if quota is not None and len(counted) == 1 and counted[0] in limits:
            quota.count(counted[0], limits[counted[0]])
        if access is not None:
            access.check(found, required)

    @property
    def id(self) -> str:
        """The stable id of the operation."""
        return self.function.__name__

    @cached_property
    def signature(self) -> inspect.Signature:
        """The parameters without the context, and the view."""
        whole = inspect.signature(self.function, eval_str=True)
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    @property
    def waits(self) -> bool:
        """Whether the function returns ``Waiting``."""
        return get_origin(self.signature.return_annotation) is Waiting

    @property
    def view(self) -> type[V]:
        """The type of the view."""
        annotation = self.signature.return_annotation
        view: type[V] = get_args(annotation)[0] if self.waits else annotation
        return view

    def request(self, *args: P.args, **kwargs: P.kwargs) -> HttpRequest:
        """Return the HTTP request of a call with these parameters.

        Parameters of value ``None`` are left out.
        """
        bound = self.signature.bind(*args, **kwargs).arguments
        path, query, body = self.path, {}, None
        for name, value in bound.items():
            if f"{{{name}}}" in self.path:
                path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
            elif isinstance(value, BaseModel):
                body = value
            elif value is not None:
                query[name.removesuffix("_")] = value
        return HttpRequest(self.method, path, query, body)

    @cached_property
    def body(self) -> str | None:
        """The name of the parameter that is the body of the request; ``None`` where there is none."""
        models = (name for name, one in self.signature.parameters.items() if _is_model(one.annotation))
        return next(models, None)


def _is_model(annotation: object) -> bool:
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel)


def operation(
    method: Method,
    path: str,
    *,
    scope: str | tuple[str, ...],
    statuses: Mapping[int, str] = DONE,
    about: OperationSubject | None,
    errors: tuple[int, ...] = (),
    shows_secret: bool = False,
) -> Callable[[Callable[Concatenate[Context, P], V]], Operation[P, V]]:
    """Declare a function as an operation; the parameters are the attributes of ``Operation``."""
    scopes = (scope,) if isinstance(scope, str) else scope
    return lambda function: Operation(
        function, method, path, scopes, statuses, errors, shows_secret=shows_secret, about=about
    )


def run_operation(
    method: Method,
    path: str,
    *,
    scope: str,
    statuses: Mapping[int, str] = SETTLED,
    about: OperationSubject | None,
    errors: tuple[int, ...] = (),
    aliases: tuple[str, ...] = (),
    key_scope: str | None = None,
    is_live: bool = False,
) -> Callable[[Callable[Concatenate[Context, P], Waiting[V]]], Operation[P, V]]:
    """Declare a function that starts work on a run as an operation; the parameters are the attributes of ``Operation``."""
    return lambda function: Operation(
        function, method, path, (scope,), statuses, errors, aliases, key_scope, is_live=is_live, about=about
    )


def operations_of(module: ModuleType) -> Iterator[Operation[..., object]]:
    """Yield the operations of a module, in the order of its text."""
    for value in vars(module).values():
        if isinstance(value, Operation) and value.function.__module__ == module.__name__:
            yield value


MAX_NAMES = 1_000
"""Entries of a list of names or paths; ``KNEO_SERV_MAX_LIST_ITEMS`` may lower the limit."""

PAGE_SIZE = "limit"
"""The parameter of an operation that is the number of items on a page."""

Name = Annotated[str, Field(max_length=4_096)]


def _check_environment(name: str) -> str:
    try:
        return check_environment_name(name)
    except InvalidValue as error:
        raise ValueError(error.message) from None


OneTimeSecret = Annotated[str, Field(json_schema_extra={"format": "password"})]
"""A field of a view whose value is shown once and is not stored, such as a token.

The operation declares it with ``shows_secret``; a test compares the two.
"""

EnvironmentName = Annotated[
    str, Field(min_length=1, max_length=MAX_ENVIRONMENT_CHARS), AfterValidator(_check_environment)
]

Flag = StrictBool
"""A boolean as in JSON; ``0`` and ``"yes"`` are refused."""


def _is_number(value: object) -> object:
    if isinstance(value, str | bool):
        msg = "a number, not a text or a boolean"
        raise ValueError(msg)  # noqa: TRY004 - this is how a field is refused
    return value


AsNumber = BeforeValidator(_is_number)
"""A number as in JSON.

The annotation follows the bounds of a field, which the description would otherwise lose.
"""


def check_size(field: str, size: int, limit: int) -> None:
    """Check the size of a field.

    Raises:
        InvalidValue: ``input_too_large``.
    """
    if size > limit:
        msg = f"{field} is {size} long; at most {limit} is accepted."
        raise InvalidValue(msg, code="input_too_large", field=field, limit=limit)


def bound_lists(parameters: Mapping[str, object], most: int) -> dict[str, object]:
    """Return the parameters of a request with a page of at most ``most`` items.

    Raises:
        InvalidValue: ``input_too_large``: a list in the request has more entries.
    """
    for name, value in parameters.items():
        if isinstance(value, list):
            check_size(name, len(value), most)
        elif isinstance(value, BaseModel):
            _check_lists(value, most)
    limit = parameters.get(PAGE_SIZE)
    return {**parameters, PAGE_SIZE: min(limit, most)} if isinstance(limit, int) else dict(parameters)


def _check_lists(body: BaseModel, most: int) -> None:
    """Check the lists that a body declares; a list inside content, such as metadata, is a value."""
    for name, declared in type(body).model_fields.items():
        value = getattr(body, name)
        if isinstance(value, BaseModel):
            _check_lists(value, most)
        elif isinstance(value, list) and any(get_origin(kind) is list for kind in _kinds(declared.annotation)):
            check_size(name, len(value), most)
            for part in value:
                if isinstance(part, BaseModel):
                    _check_lists(part, most)


def _kinds(annotation: object) -> tuple[object, ...]:
    """Return an annotation, and the members of a union such as ``list[str] | None``."""
    return annotation, *get_args(annotation)


def check_length(field: str, value: object, limit: int) -> None:
    """Check how many characters a field has that a person wrote.

    Raises:
        InvalidValue: ``input_too_large``.
    """
    length = len(str(value or ""))
    if length > limit:
        msg = f"{field} is {length} characters long; at most {limit} are accepted."
        raise InvalidValue(msg, code="input_too_large", field=field, limit=limit)


class Body(BaseModel):
    """The base of request bodies. Unknown fields are refused: a typing error would otherwise be ignored."""

    model_config = ConfigDict(extra="forbid")
