"""Functions of modules that a spec names: their import, the check that their module defines them, and one call of one.

The standard library alone: the launcher of a sandbox imports this, and then the module.
"""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from kneo.errors import Forbidden, Invalid, KneoError
from kneo.function_context import (
    BindsArguments,
    ToolContext,
    ToolResult,
    WaitForAnswer,
    bind_arguments,
    is_async_function,
    parameters_of,
    read_step_context,
)

MAX_WRAPPERS = 50
"""Decorators around one function, and callables inside callables."""

MAX_ERROR_CHARS = 100_000

Owns = Callable[[str], bool]
"""Whether specs may name a module."""


def import_function(implementation: str, owns: Owns, check: Callable[[ModuleType], None]) -> Callable[..., object]:
    """Import the function behind a dotted name.

    Args:
        implementation: The name.
        owns: Whether specs may name a module.
        check: Refuses a module of another place.

    Raises:
        Invalid: ``implementation_invalid``: the module fails to import, or has no such function.
        Forbidden: ``implementation_forbidden``: the module only imports the function.
    """
    module_name, _, attribute = implementation.rpartition(".")
    module = _import_module(module_name, implementation)
    check(module)
    return _function_of(module, module_name, attribute, owns)


def _import_module(name: str, implementation: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        msg = f"The module {name} of {implementation} failed to import: {type(error).__name__}: {error}"
        raise Invalid(msg, code="implementation_invalid") from error


def _function_of(module: ModuleType, name: str, attribute: str, owns: Owns) -> Callable[..., object]:
    function: Callable[..., object] | None = getattr(module, attribute, None)
    if not callable(function):
        msg = f"The module {name} has no function {attribute}."
        raise Invalid(msg, code="implementation_invalid")
    foreign = next(_foreign(function, owns), None)
    if foreign is not None:
        msg = f"{name}.{attribute} is {foreign}, which a spec may not name: {name} only imports or wraps it."
        hint = f"Define a function in {name} that does exactly what is needed, and name that."
        raise Forbidden(msg, code="implementation_forbidden", hint=hint)
    return function


def _foreign(thing: object, owns: Owns, depth: int = 0) -> Iterator[str]:
    """Yield the foreign parts of a callable: those that no allowed module defines.

    The name that an object has for its own module (``__module__``) is copied by decorators, so it has to be allowed and is not
    enough: the namespace that a function's code was made in counts.
    """
    if depth > MAX_WRAPPERS:
        yield "wrapped too many times"
    elif isinstance(thing, partial):
        yield from _foreign(thing.func, owns, depth + 1)
    elif not _says_ours(thing, owns):
        yield f"{getattr(thing, '__module__', None) or 'an object of'} {_name(thing)}"
    elif hasattr(thing, "__wrapped__"):
        yield from _foreign(thing.__wrapped__, owns, depth + 1)
    elif isinstance(thing, MethodType):
        yield from _foreign(thing.__func__, owns, depth + 1)
    elif isinstance(thing, FunctionType | BuiltinFunctionType):
        if not _defines(thing, owns):
            yield f"{thing.__module__} {_name(thing)}"
    else:
        for part in _called(thing):
            yield from _foreign(part, owns, depth + 1)


def _defines(function: FunctionType | BuiltinFunctionType, owns: Owns) -> bool:
    """Return whether an allowed module defines a function."""
    if isinstance(function, BuiltinFunctionType):
        place = function.__self__
        return isinstance(place, ModuleType) and owns(place.__name__)
    stated = function.__globals__.get("__name__")
    module = sys.modules.get(stated) if isinstance(stated, str) else None
    return module is not None and module.__dict__ is function.__globals__ and owns(module.__name__)


def _says_ours(thing: object, owns: Owns) -> bool:
    stated = getattr(thing, "__module__", None)
    return isinstance(stated, str) and stated in sys.modules and owns(stated)


def _called(thing: object) -> Iterator[object]:
    """Yield the functions that a call of a class or an object executes."""
    made = thing if isinstance(thing, type) else None
    names = ("__new__", "__init__") if made else ("__call__",)
    for name in names:
        owner = next((each for each in (made or type(thing)).__mro__ if name in each.__dict__), object)
        if owner is not object:
            part = owner.__dict__[name]
            yield part.__func__ if isinstance(part, staticmethod | classmethod) else part
    if made and type(made) is not type:
        yield from (part for part in (vars(type(made)).get("__call__"),) if part is not None)


def _name(thing: object) -> str:
    return str(getattr(thing, "__qualname__", None) or f"an object of {type(thing).__qualname__}")[:200]


# ---- in a sandbox -----------------------------------------------------------------------------------------------


class _Loader(SourceFileLoader):
    """Executes a module from the bytes that the worker read."""

    def __init__(self, name: str, path: str, data: bytes) -> None:
        super().__init__(name, path)
        self._data = data

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the signature of all loaders
        code: CodeType = self.source_to_code(self._data, self.path)
        return code


class _Finder:
    """Finds the modules whose bytes the worker read, before any other finder does."""

    def __init__(self, sources: Mapping[str, tuple[str, str | None]]) -> None:
        self._sources = sources

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname not in self._sources:
            return None
        place, data = self._sources[fullname]
        if data is None:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [place]
            return spec
        folder, _, file = place.rpartition("/")
        loader = _Loader(fullname, place, base64.b64decode(data))
        places = [folder] if file == "__init__.py" else None
        return spec_from_file_location(fullname, place, loader=loader, submodule_search_locations=places)


class SandboxModule:
    """The module of a sandbox, which has imported it.

    Args:
        task: ``implementation``, the dotted name of a function of the module, for messages; ``sources``, paths and bytes of its
            modules by name; ``allow``, prefixes of modules that specs may name; ``paths``, where other modules are found.
    """

    def __init__(self, task: Mapping[str, Any]) -> None:
        sys.path[:] = task["paths"]
        self._sources, self._allow = task["sources"], task["allow"]
        sys.meta_path.insert(0, _Finder(self._sources))
        sys.dont_write_bytecode = True
        self._name, _, _ = task["implementation"].rpartition(".")
        self._module = _import_module(self._name, task["implementation"])
        if any(_is_async(each) for each in vars(self._module).values()):
            importlib.import_module("asyncio")  # once, for all calls

    def _owns(self, module: str) -> bool:
        listed = any(module == prefix or module.startswith(f"{prefix}.") for prefix in self._allow)
        return listed if self._allow else module in self._sources

    def call(self, request: Mapping[str, Any]) -> dict[str, object]:
        """Call the function that a request of the worker names, and return the answer.

        Raises:
            Forbidden: ``tool_review_missing``, for the ``gates`` of a tool.
        """
        function = _function_of(self._module, self._name, request["function"], self._owns)
        if request["gates"] is not None and isinstance(function, BindsArguments):
            check_review(request["name"], function.review, request["gates"])
        parameters = parameters_of(function)
        try:
            if "arguments" in request:
                positional, named = bind_arguments(
                    function, parameters, request["arguments"], ToolContext(**request["context"])
                )
                return {"value": self._call_tool(partial(function, *positional, **named))}
            context = read_step_context(request["context"])
            takes_context = any(each.name == "context" for each in parameters or ())
            named = {"context": context} if takes_context else {}
            return _answer(self._awaited(function(request["text"], **named)))
        except WaitForAnswer as waiting:
            return {"waiting": waiting.request.as_json()}

    def _call_tool(self, call: Callable[[], object]) -> object:
        try:
            result = self._awaited(call())
        except Exception:
            raise
        except BaseException as error:  # noqa: BLE001 - of the tool
            raise tool_exited(error) from None
        return checked_result(result)

    @staticmethod
    def _awaited(result: object) -> object:
        if not inspect.isawaitable(result):
            return result

        async def wait() -> object:
            return await result

        return importlib.import_module("asyncio").run(wait())


def _is_async(thing: object) -> bool:
    """Return whether a thing is an async function or tool, by its type alone: proxies of libraries raise for ``__class__``."""
    return issubclass(type(thing), FunctionType | BindsArguments) and is_async_function(thing)  # type: ignore[arg-type]


def tool_exited(error: BaseException) -> Invalid:
    """Return the error of a tool that raised something else than an ``Exception``."""
    msg = f"The tool tried to end its process: {type(error).__name__}({str(error)[:200]})."
    return Invalid(msg, code="tool_exited", hint="Return a result, or raise an Exception.")


def check_review(tool: str, required: Collection[str], declared: Collection[str]) -> None:
    """Refuse a function that declares gates which the tool of the spec does not have.

    Raises:
        Forbidden: ``tool_review_missing``.
    """
    missing = [each for each in required if each not in declared]
    if missing:
        msg = (
            f"The function of the tool {tool} requires a person ({', '.join(missing)}), and the spec has no such gate."
        )
        hint = f"Declare tools.{tool}.review.{missing[0]} in the spec."
        raise Forbidden(msg, code="tool_review_missing", hint=hint)


def checked_result(result: object) -> object:
    """Return a tool's result as a JSON value.

    Raises:
        Invalid: ``tool_result_invalid``: JSON cannot represent it.
    """
    if isinstance(result, ToolResult):
        result = result.output
    try:
        value: object = json.loads(json.dumps(result, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"The tool returned {type(result).__name__}, which JSON cannot represent: {str(error)[:300]}"
        hint = "Return a text, or values that JSON can represent."
        raise Invalid(msg, code="tool_result_invalid", hint=hint) from None
    return value


def _answer(result: object) -> dict[str, object]:
    """Return what a step's function returned as JSON: values of JSON as they are, others as their texts."""
    if is_dataclass(result) and not isinstance(result, type):
        return {"text": str(result), "value": asdict(result)}
    if isinstance(result, str | int | float | bool | dict | list | tuple | None):
        return {"value": result}
    return {"text": str(result)}


def error_of(error: BaseException) -> dict[str, object]:
    """Return an exception as an answer."""
    if isinstance(error, KneoError):
        kind = "Forbidden" if isinstance(error, Forbidden) else "Invalid"
        return {"error": {"type": error.code, "message": error.message, "hint": error.hint, "kind": kind}}
    name = type(error).__name__
    return {"error": {"type": name, "message": (str(error) or name)[:MAX_ERROR_CHARS]}}
