"""Operations: functions that can be asked for by name, with their scope and their place in HTTP.

An operation is a plain function of a ``Context`` and typed parameters that returns a view, a frozen dataclass:

    @operation("GET", "/runs/{run_id}", scope="runs:read")
    def get_run(context: Context, run_id: str) -> RunView: ...

Parameters named in the path are part of it. A parameter whose type is a model is the body of the request, every other one
is part of the query. The name of the function is the operation's id, its docstring the description of the operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Concatenate, Generic, Literal, ParamSpec, TypeVar, get_origin
from urllib.parse import quote

from pydantic import BaseModel

if TYPE_CHECKING:  # a command that only names operations does without a database
    from kneo.store.engine import Store

P = ParamSpec("P")
V = TypeVar("V")

Method = Literal["GET", "POST", "PUT", "DELETE"]


@dataclass(frozen=True)
class Context:
    """What operations work with.

    Attributes:
        store: The database.
        actor: The name of the caller, who is allowed to do what the operation's scope says.
    """

    store: Store
    actor: str


@dataclass(frozen=True)
class HttpRequest:
    """A call of an operation as an HTTP request; ``path`` is below the version, with its values percent-encoded."""

    method: Method
    path: str
    query: Mapping[str, object]
    body: BaseModel | None


@dataclass(frozen=True)
class Operation(Generic[P, V]):
    """A function that can be asked for. Call it with a context and the function's own parameters.

    Attributes:
        function: What it does.
        method: The method of its HTTP request.
        path: The path of its HTTP request, without the version: ``/runs/{run_id}``.
        scope: What the caller has to be allowed.
    """

    function: Callable[Concatenate[Context, P], V]
    method: Method
    path: str
    scope: str

    def __call__(self, context: Context, /, *args: P.args, **kwargs: P.kwargs) -> V:
        return self.function(context, *args, **kwargs)

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
    def view(self) -> type[V]:
        """The type of what the operation returns."""
        view: type[V] = self.signature.return_annotation
        return view

    def request(self, *args: P.args, **kwargs: P.kwargs) -> HttpRequest:
        """Return the HTTP request that stands for a call with these parameters. Parameters of value ``None`` are left out."""
        bound = self.signature.bind(*args, **kwargs).arguments
        path, query, body = self.path, {}, None
        for name, value in bound.items():
            if f"{{{name}}}" in self.path:
                path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
            elif isinstance(value, BaseModel):
                body = value
            elif value is not None:
                query[name] = value
        return HttpRequest(self.method, path, query, body)

    @cached_property
    def body(self) -> str | None:
        """The name of the parameter that is the body of the request; ``None`` where there is none."""
        models = (name for name, one in self.signature.parameters.items() if _is_model(one.annotation))
        return next(models, None)


def _is_model(annotation: object) -> bool:
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel)


def operation(
    method: Method, path: str, *, scope: str
) -> Callable[[Callable[Concatenate[Context, P], V]], Operation[P, V]]:
    """Make an operation of a function; see the module."""
    return lambda function: Operation(function, method, path, scope)


def operations_of(module: ModuleType) -> Iterator[Operation[..., object]]:
    """Yield the operations that a module defines, in the order of its text."""
    for value in vars(module).values():
        if isinstance(value, Operation) and value.function.__module__ == module.__name__:
            yield value
