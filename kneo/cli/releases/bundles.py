"""``kneo bundles`` and ``kneo promote``: accepted bundles, compared, and promoted to another environment in Git."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from kneo.api.bundles import BundleDiffView, BundleListView, diff_bundle_versions
from kneo.api.bundles import list_bundles as list_bundles_
from kneo.cli import render
from kneo.cli.clone import OWN_ACCESS, Clone, GitAccess
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.cli.files import write_whole
from kneo.cli.options import JsonOption
from kneo.cli.project import read_environment
from kneo.cli.repository import ConfigRepository
from kneo.controller.source.address import git_environment, git_options, parse_address, write_askpass
from kneo.controller.source.mirror import app_tokens
from kneo.errors import Conflict, NotFound
from kneo.settings import GitCredentials, from_env
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import ReleasePin

app = typer.Typer(no_args_is_help=True)


@app.command("list")
@examples("kneo bundles list", "kneo bundles list --json")
def list_bundles(*, options: ServiceOptions) -> None:
    """List bundles with their newest version and the environments that release it."""
    options.show(list_bundles_, _show_list)


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
    options.show(diff_bundle_versions, _show_diff, name, before, after)


def _show_diff(found: BundleDiffView) -> None:
    render.text(f"{found.name} {found.from_version or 'nothing'} → {found.to_version}: {found.summary}")
    if found.changes:
        rows = [[one.danger, one.area, one.message, one.path] for one in found.changes]
        render.table("", ["Danger", "Area", "Change", "Where"], rows)
    if found.more:
        render.text(f"{found.more} further changes are left out.")


@examples(
    "kneo promote research-agent --from staging --to prod",
    "kneo promote research-agent --from staging --to prod --branch promote-1.4.0 --push",
)
def promote(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE")],
    source: Annotated[str, typer.Option("--from", help="The environment that has the version.")],
    to: Annotated[str, typer.Option("--to", help="The environment to promote to.")],
    branch: Annotated[str | None, typer.Option("--branch", help="Commit on this branch.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Push the branch to origin.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Promote a release from one environment to another (as a commit)."""
    clone = Clone.find(Path.cwd())
    repository = ConfigRepository(clone.root)
    pin = _pin(repository, source, bundle)
    read_environment(repository, to)
    path = repository.environment_file(to)
    assert path is not None, "the file was read"
    if clone.is_dirty(path):
        msg = f"{path} has changes that are not committed."
        raise Conflict(msg, code="working_copy_dirty", hint="Commit or undo them first.")
    before = path.read_text(encoding="utf-8")
    after = named(before, pin)
    changed = parse_environment(after.encode(), file=str(path))
    if not any(item.bundle == bundle and item.version == pin.version for item in changed.spec.releases):
        raise _unusual(pin)
    if after == before:
        msg = f"{to} already has {bundle} {pin.version}."
        raise Conflict(msg, code="nothing_to_promote")
    pushed_branch = _pushed_branch(clone, branch) if push else None
    with contextlib.ExitStack() as stack:
        # Problems of a push that are known in advance are found before a file is written.
        access = stack.enter_context(login(from_env().git, clone.push_url())) if push else OWN_ACCESS
        if branch is not None:
            clone.switch(branch)
        write_whole(path, after.encode())
        commit = clone.commit([path], f"Promote {bundle} {pin.version} from {source} to {to}")
        if pushed_branch is not None:
            clone.push(pushed_branch, access)
    answer = {"bundle": bundle, "version": pin.version, "from": source, "to": to, "commit": commit, "pushed": push}
    render.emit(
        answer,
        as_json=as_json,
        text=lambda: render.success(f"Promoted {bundle} {pin.version} from {source} to {to}: commit {commit}"),
    )


def _pushed_branch(clone: Clone, branch: str | None) -> str:
    if clone.origin() is None:
        msg = "This clone has no remote repository called origin, so nothing can be pushed."
        raise Conflict(msg, code="no_remote", hint="Add one with git remote add origin URL, or leave out --push.")
    name = branch or clone.branch()
    if name is None:
        msg = "No branch is checked out, so there is none to push."
        raise Conflict(msg, code="no_branch", hint="Name one with --branch, or leave out --push.")
    return name


def _pin(repository: ConfigRepository, environment: str, bundle: str) -> ReleasePin:
    for item in read_environment(repository, environment).spec.releases:
        if item.bundle == bundle:
            return item
    msg = f"environments/{environment}.yaml does not name {bundle}."
    raise NotFound(msg, code="bundle_not_found")


_ENTRY = r"(?m)^(?P<indent>[ \t]*)-[ \t]*\{{[^}}\n]*\bbundle:[ \t]*[\"']?{name}[\"']?[ \t]*[,}}][^\n]*$"
_BLOCK = (
    r"(?m)^(?P<indent>[ \t]*)-[ \t]+bundle:[ \t]*[\"']?{name}[\"']?[ \t]*(?:#[^\n]*)?\n(?:(?P=indent)[ \t]+[^\n]*\n?)*"
)
_EMPTY = re.compile(r"(?m)^(?P<indent>[ \t]*)releases:[ \t]*\[[ \t]*\][ \t]*$")
_LIST = re.compile(r"(?m)^(?P<indent>[ \t]*)releases:[ \t]*(?:#[^\n]*)?\n")


def named(text: str, pin: ReleasePin) -> str:
    """Write a version into an environment file and leave everything else, comments included, as it is."""
    entry = _entry(pin)
    name = re.escape(pin.bundle)
    for pattern, end in ((_ENTRY, ""), (_BLOCK, "\n")):
        match = re.search(pattern.format(name=name), text)
        if match:
            return f"{text[: match.start()]}{match['indent']}{entry}{end}{text[match.end() :]}"
    empty = _EMPTY.search(text)
    if empty:
        line = f"{empty['indent']}releases:\n{empty['indent']}  {entry}"
        return f"{text[: empty.start()]}{line}{text[empty.end() :]}"
    known = _LIST.search(text)
    if known is None:
        raise _unusual(pin)
    return f"{text[: known.end()]}{known['indent']}  {entry}\n{text[known.end() :]}"


def _entry(pin: ReleasePin) -> str:
    digest = f', digest: "{pin.digest}"' if pin.digest else ""
    return f"- {{bundle: {pin.bundle}, version: {pin.version}{digest}}}"


def _unusual(pin: ReleasePin) -> Conflict:
    msg = "The file has no list of releases in the usual form."
    return Conflict(msg, code="unusual_file", hint=f"Write {_entry(pin)} below spec.releases yourself.")


_ONE_HOST = ("credential.helper=", "http.followRedirects=false", "push.recurseSubmodules=no")
"""Git options that keep a token from other helpers and hosts."""


@contextlib.contextmanager
def login(credentials: GitCredentials, url: str) -> Iterator[GitAccess]:
    """Log in to the push address of a clone for the duration of a block.

    Without credentials in the settings, the operator's own configuration of git applies.

    Raises:
        Invalid: the address is not supported, or a file of the credentials is missing.
        Transient: a GitHub App got no token.
    """
    if credentials == GitCredentials():
        yield OWN_ACCESS
        return
    address = parse_address(url)
    if address.protocol == "ssh" and credentials.known_hosts_file is None and credentials.ssh_key_file is None:
        yield OWN_ACCESS
        return
    tokens = app_tokens(credentials, address, write=True)
    with tempfile.TemporaryDirectory(prefix="kneo-push-") as folder:
        askpass = Path(folder) / "askpass"
        write_askpass(askpass)
        environment = git_environment(credentials, address, askpass, tokens.token() if tokens else None)
        settings = _ONE_HOST if "GIT_ASKPASS" in environment else ()
        options = tuple(part for setting in settings for part in ("-c", setting))
        yield GitAccess((*options, *git_options(credentials)), {"LC_ALL": "C", **environment})
