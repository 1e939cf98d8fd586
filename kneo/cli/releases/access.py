"""The command that states what a person may do in an environment."""

from __future__ import annotations

from typing import Annotated

import typer

from kneo.api.access import AccessView, check_access
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions

app = typer.Typer(no_args_is_help=True)


@app.callback()
def access() -> None:
    """Explain what people may do in an environment."""


@app.command()
@examples("kneo access check ann payments-prod", "kneo access check ann payments-prod --scope runs:read --json")
def check(
    who: Annotated[str, typer.Argument(metavar="WHO", help="The name of a person, or `me`.")],
    environment: Annotated[str, typer.Argument(metavar="ENV")],
    scope: Annotated[str | None, typer.Option("--scope", help="Only this scope.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Explain what a person may do in an environment, and which line or role says so."""

    def show(answer: AccessView) -> None:
        for item in answer.scopes:
            render.line(render.DONE if item.allowed else render.CAREFUL, f"{item.scope}  {item.because}")

    options.show_existing(check_access, show, environment, who, scope)
