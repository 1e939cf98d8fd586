"""``kneo trust``: edit and sign the next trust root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.options import JsonOption, OptionGroup, time_after
from kneo.cli.repository import TRUST_PATH, find_repository
from kneo.cli.specs.keys import load_private, load_public
from kneo.cli.specs.trust_roots import RootChain, TrustFiles
from kneo.clock import SystemClock, isoformat, parse_time
from kneo.errors import NotFound, Untrusted, Usage
from kneo.trust.root import ROOT_ROLE, RootDocument
from kneo.trust.root_edit import EVERYTHING, add_key, remove_key, revoke_key, set_expiry, set_role

app = typer.Typer()

DEFAULT_LIFE = "365d"
MIN_PREFIX = 8
"""Shortest beginning of a key id that is accepted for it, in hex digits."""

File = Annotated[Path | None, typer.Option("--file", help="Trust root file. Default: that of the repository.")]
KeyName = Annotated[str, typer.Argument(metavar="KEY", help="Key id, its first digits, or a PEM file.")]


@dataclass(frozen=True)
class EditOptions(OptionGroup):
    """The options of a command that begins the next version of the trust root."""

    key: Annotated[list[Path], typer.Option("--key", help="Private key file that signs the new version; repeatable.")]
    file: File = None
    expires: Annotated[str | None, typer.Option("--expires", help="Lifetime of a new version, for example 365d.")] = (
        None
    )
    as_json: JsonOption = False

    def edit(self, change: Callable[[RootDocument], RootDocument]) -> None:
        """Change the trust root, sign it and print it."""

        def change_all(document: RootDocument) -> RootDocument:
            return change(set_expiry(document, time_after(self.expires)) if self.expires else document)

        files = _files(self.file)
        files.edit(change_all, [load_private(path) for path in self.key], SystemClock().now())
        _answer(files, as_json=self.as_json, edited=True)


@app.command("init")
@examples("kneo trust init --key root.pem --principal ann")
def init(
    *,
    key: Annotated[Path, typer.Option("--key", help="Private key file of the first person, who gets every role.")],
    principal: Annotated[str, typer.Option(help="Owner of the key.")] = "owner",
    file: File = None,
    expires: Annotated[str, typer.Option("--expires", help="Lifetime of the trust root.")] = DEFAULT_LIFE,
    as_json: JsonOption = False,
) -> None:
    """Create a trust root with one key for the roles root, release and approver."""
    files = _files(file)
    files.begin(load_private(key), principal, time_after(expires))
    _answer(files, as_json=as_json)


@app.command()
@examples("kneo trust show --json")
def show(*, file: File = None, as_json: JsonOption = False) -> None:
    """Show the keys, roles, expiry and missing signatures of the trust root."""
    _answer(_files(file), as_json=as_json)


@app.command("add-key")
@examples("kneo trust add-key bob.pem --principal bob --role approver --key root.pem")
def add(
    public: Annotated[Path, typer.Argument(metavar="PEM", help="New key file; the public half is enough.")],
    *,
    principal: Annotated[str, typer.Option(help="Owner of the key.")],
    role: Annotated[
        list[str], typer.Option("--role", help="Role of the key: root, release, approver or a new one; repeatable.")
    ],
    path: Annotated[
        list[str] | None,
        typer.Option("--path", help="Paths that a new role may sign, for example bundles/team-*/*; repeatable."),
    ] = None,
    options: EditOptions,
) -> None:
    """Add a person's key to roles. A new role has a threshold of one."""
    new = load_public(public)

    def change(document: RootDocument) -> RootDocument:
        changed = add_key(document, new, principal=principal, roles=role)
        for name in role:
            if path:
                changed = set_role(changed, name, paths=path)
            elif name not in document.roles and name != ROOT_ROLE:
                changed = set_role(changed, name, paths=EVERYTHING)
        return changed

    options.edit(change)


@app.command("remove-key")
@examples("kneo trust remove-key bob.pem --key root.pem")
def remove(
    name: KeyName,
    *,
    role: Annotated[list[str] | None, typer.Option("--role", help="Remove it from this role only; repeatable.")] = None,
    options: EditOptions,
) -> None:
    """Remove a key. All its signatures become void; to keep earlier ones valid, use kneo trust revoke."""
    options.edit(lambda d: remove_key(d, _find_key(d, name), roles=role))


@app.command()
@examples('kneo trust revoke bob.pem --reason "left the team" --key root.pem')
def revoke(
    name: KeyName,
    *,
    reason: Annotated[str, typer.Option(help="Reason of the revocation.")],
    at: Annotated[str | None, typer.Option(help="Time of the revocation. Default: now.")] = None,
    compromised_since: Annotated[
        str | None, typer.Option(help="Also void signatures first seen from this time on.")
    ] = None,
    options: EditOptions,
) -> None:
    """Revoke a key as of a given time. Earlier signatures stay valid unless --compromised-since is set."""
    moment = parse_time(at) if at else SystemClock().now()
    since = parse_time(compromised_since) if compromised_since else None

    def change(document: RootDocument) -> RootDocument:
        return revoke_key(document, _find_key(document, name), at=moment, reason=reason, compromised_since=since)

    options.edit(change)


@app.command("set-role")
@examples("kneo trust set-role release --threshold 2 --key root.pem")
def change_role(
    role: Annotated[str, typer.Argument(help="Name of the role.")],
    *,
    threshold: Annotated[int | None, typer.Option(help="Number of people who have to sign.")] = None,
    path: Annotated[list[str] | None, typer.Option("--path", help="Paths that the role may sign; repeatable.")] = None,
    options: EditOptions,
) -> None:
    """Change the threshold or the paths of a role."""
    if threshold is None and not path:
        msg = "There is nothing to change."
        raise Usage(msg, hint="Pass --threshold, --path, or both.")
    options.edit(lambda d: set_role(d, role, threshold=threshold, paths=path))


@app.command()
@examples("kneo trust sign --expires 365d --key root.pem")
def sign(
    *,
    options: EditOptions,
) -> None:
    """Sign the present trust root, or renew it with --expires."""
    if options.expires:
        options.edit(lambda document: document)
        return
    files = _files(options.file)
    files.sign([load_private(path) for path in options.key])
    _answer(files, as_json=options.as_json, edited=True)


def _find_key(document: RootDocument, name: str) -> str:
    if Path(name).is_file():
        return load_public(Path(name)).keyid
    digits = name.removeprefix("sha256:")
    found = [k for k in document.keys if k.removeprefix("sha256:").startswith(digits)]
    if len(digits) < MIN_PREFIX or len(found) != 1:
        what = "No key" if not found else "More than one key"
        msg = f"{what} of the trust root is called {name!r}."
        raise NotFound(
            msg, hint=f"Pass the id, at least {MIN_PREFIX} of its digits, or a PEM file; see kneo trust show."
        )
    return found[0]


def _files(file: Path | None) -> TrustFiles:
    repository = find_repository(Path.cwd())
    return TrustFiles(file or (repository.trust_file if repository else TRUST_PATH))


def _answer(files: TrustFiles, *, as_json: bool, edited: bool = False) -> None:
    chain = files.read()
    missing = chain.missing(SystemClock().now())
    document = chain.newest.document
    view = document.model_dump(mode="json", by_alias=True, exclude_none=True)
    value = {
        "version": document.version,
        "digest": chain.newest.digest,
        "first": chain.first,
        "expires": view["expires"],
        "complete": missing is None,
        "roles": view["roles"],
        "keys": view["keys"],
        "revoked": view["revoked"],
    }
    commit = [str(path) for path in files.files_of(chain)]
    if edited:
        value["commit"] = commit

    def show() -> None:
        _print(files.file, chain, missing)
        if edited:
            render.text(f"\nCommit together: {' '.join(commit)}")

    render.emit(value, as_json=as_json, text=show)


def _print(file: Path, chain: RootChain, missing: Untrusted | None) -> None:
    document = chain.newest.document
    render.text(
        f"{file}\n  version  {document.version}\n  digest   {chain.newest.digest}\n"
        f"  pin      {chain.first} (the digest of the first root, for --trust-root)\n"
        f"  expires  {isoformat(document.expires)}"
    )
    rows = [
        [name, role.threshold, document.keys[keyid].principal, f"{keyid[:19]}…", " ".join(role.paths or ())]
        for name, role in sorted(document.roles.items())
        for keyid in role.keys
    ]
    render.table("", ["Role", "Needs", "Person", "Key", "May sign"], rows)
    for revocation in document.revoked:
        owner = document.keys[revocation.keyid].principal if revocation.keyid in document.keys else "?"
        when = isoformat(revocation.at)
        since = revocation.compromised_since
        others = f" (compromised since {isoformat(since)})" if since is not None else ""
        render.text(f"  revoked  {revocation.keyid[:19]}… of {owner} from {when}{others}: {revocation.reason}")
    if missing is None:
        render.success("All required signatures are present.")
    else:
        render.warning(missing.message, missing.hint)
