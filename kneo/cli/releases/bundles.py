"""``kneo bundles``: the accepted bundles of the registry, and the difference of two versions."""

from __future__ import annotations

from typing import Annotated

import typer

from kneo.api.bundles import BundleDiffView, BundleListView, diff_bundle_versions
from kneo.api.bundles import list_bundles as list_bundles_
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions

app = typer.Typer(no_args_is_help=True)


@app.command("list")
@examples("kneo bundles list", "kneo bundles list --json")
def list_bundles(*, options: ServiceOptions) -> None:
    """List bundles with their newest version and the environments that release it."""
    with options.open() as opened:
        listed = opened.call(list_bundles_)
    render.emit(listed, as_json=options.as_json, text=lambda: _show_list(listed))


def _show_list(listed: BundleListView) -> None:
    if not listed.bundles:
        render.text("No bundles.")
        return
    rows = [
        [one.name, one.version, render.short_digest(one.digest), ", ".join(one.signers), ", ".join(one.served_in)]
        for one in listed.bundles
    ]
    render.table("", ["Bundle", "Newest", "Digest", "Signed by", "Released to"], rows)


@app.command("diff")
@examples("kneo bundles diff announcement", "kneo bundles diff announcement --from 1.0.0 --to 1.2.0 --json")
def diff(
    name: Annotated[str, typer.Argument(metavar="BUNDLE", help="Name of the bundle.")],
    before: Annotated[
        str | None, typer.Option("--from", help="A version or digest; by default the one before.")
    ] = None,
    after: Annotated[str | None, typer.Option("--to", help="A version or digest; by default the newest.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Compare two accepted versions of a bundle, the most dangerous change first."""
    with options.open() as opened:
        found = opened.call(diff_bundle_versions, name, before, after)
    render.emit(found, as_json=options.as_json, text=lambda: _show_diff(found))


def _show_diff(found: BundleDiffView) -> None:
    render.text(f"{found.name} {found.from_version or 'nothing'} → {found.to_version}: {found.summary}")
    if found.changes:
        rows = [[one.danger, one.area, one.message, one.path] for one in found.changes]
        render.table("", ["Danger", "Area", "Change", "Where"], rows)
    if found.more:
        render.text(f"{found.more} further changes are left out.")
