"""A context in which tests call operations in process."""

from __future__ import annotations

from typing import NoReturn

from kneo.api.operation import Context, Principal
from kneo.roles import EVERYTHING
from kneo.settings import Settings, from_env
from kneo.store.engine import Store


def operation_context(store: Store, actor: str = "ann", settings: Settings | None = None) -> Context:
    """Make the context of a caller who may call every operation, in a process that executes no run."""
    return Context(
        store=store,
        settings=settings or from_env(),
        principal=Principal(actor, frozenset({EVERYTHING})),
        project=None,
        make_starter=_no_runs,
        settle=_no_runs,
        drive=_no_runs,
    )


def _no_runs(*_: object) -> NoReturn:
    msg = "this process executes no run"
    raise AssertionError(msg)
