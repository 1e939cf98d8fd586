"""Build and sign bundles: a spec that is frozen for its environments, as the next version in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from kneo.cli import render
from kneo.cli.clone import Clone
from kneo.cli.files import write_whole
from kneo.cli.repository import ConfigRepository, read_bundle, repository_of
from kneo.cli.specs.check import Checked, check, require_usable
from kneo.digest import Digest, digest_of_json
from kneo.errors import Conflict, Invalid, NotFound, Usage
from kneo.spec.code import BundleCode
from kneo.spec.documents import Diagnostic, Severity
from kneo.spec.reading.load import load_tree
from kneo.spec.reading.migrate import bring_to_v1
from kneo.trust.dsse import Envelope, add_signature, parse_envelope, serialise, sign
from kneo.trust.keys import SigningKey
from kneo.trust.statement import PAYLOAD_TYPE, BundleSource, BundleStatement, build_bundle, parse_bundle
from kneo.trust.verify import parse_bundle_path


@dataclass(frozen=True)
class Place:
    """Name, version and file of a bundle to sign."""

    name: str
    version: str
    file: Path

    @property
    def repository(self) -> ConfigRepository | None:
        return repository_of(self.file)


@dataclass(frozen=True)
class SignedBundle:
    """A signed bundle."""

    file: Path
    statement: BundleStatement
    signers: tuple[str, ...]
    """Key ids of all signatures in the envelope."""

    added: bool
    """Whether the signature was added to an existing bundle."""

    skipped: tuple[Path, ...] = ()
    """Files in the folder that are no bundles, ignored in the numbering."""


def place_of(output: Path | None, name: str | None, version: str | None, repository: ConfigRepository | None) -> Place:
    """Return name, version and file from the options; a path in bundles/ sets name and version.

    Raises:
        Usage: the options are incomplete or contradict each other.
    """
    hint = "Pass --output bundles/NAME/VERSION.dsse.json, or --name and --version in a config repository."
    if output is None:
        if repository is None or name is None or version is None:
            msg = "The bundle has no output file."
            raise Usage(msg, hint=hint)
        output = repository.bundle_file(name, version)
    named = parse_bundle_path("/".join(output.absolute().parts[-3:]))
    if named is None and (name is None or version is None):
        msg = f"{output} does not set name and version of the bundle."
        raise Usage(msg, hint=hint)
    found = named or (str(name), str(version))
    if (name or found[0], version or found[1]) != found:
        msg = f"{output} is the place of {found[0]} {found[1]}, not of {name or found[0]} {version or found[1]}."
        raise Usage(msg, hint="Omit --name and --version, or change --output.")
    return Place(*found, output)


def sign_bundle(
    place: Place,
    spec: Mapping[str, object],
    *,
    environments: Sequence[str],
    approved_by: str,
    key: SigningKey,
    source: BundleSource | None,
    now: datetime,
    code: BundleCode | None,
) -> SignedBundle:
    """Sign a resolved spec with its code as a new version, or add a signature to the existing version.

    Raises:
        Conflict: the version was signed already with other content.
        Invalid: the folder holds another bundle's versions, or a field is out of its bounds.
    """
    if place.file.exists():
        return _add_signature(place, spec, environments, key, code)
    line = read_line(place)
    statement = build_bundle(
        name=place.name,
        version=place.version,
        seq=line.seq,
        prev=line.prev,
        environments=environments,
        issued_at=now,
        approved_by=approved_by,
        spec=spec,
        source=source,
        code=code,
    )
    envelope = sign(PAYLOAD_TYPE, statement.payload, key)
    write_whole(place.file, serialise(envelope))
    return replace(_signed(place, envelope, statement, added=False), skipped=line.unreadable)


@dataclass(frozen=True)
class Line:
    """The sequence number of a new version, and the version before it."""

    seq: int
    prev: Digest | None
    unreadable: tuple[Path, ...]


def read_line(place: Place) -> Line:
    """Return the next sequence number and the digest of the newest version.

    A file that is no bundle is ignored, so that one damaged version does not stop later ones. If it was accepted before the
    damage, the controller refuses the repeated number.

    Raises:
        Invalid: the folder holds another bundle's versions.
    """
    newest: BundleStatement | None = None
    unreadable: list[Path] = []
    for path in sorted(place.file.parent.glob("*.dsse.json")):
        try:
            statement = read_statement(path)[1]
        except Invalid:
            unreadable.append(path)
            continue
        if statement.predicate.name != place.name:
            msg = f"{path} is a version of {statement.predicate.name}, not of {place.name}."
            raise Invalid(msg, hint="One folder holds the versions of one bundle.", file=str(path))
        if newest is None or statement.predicate.seq > newest.predicate.seq:
            newest = statement
    if newest is None:
        return Line(1, None, tuple(unreadable))
    return Line(newest.predicate.seq + 1, newest.digest, tuple(unreadable))


def read_statement(path: Path) -> tuple[Envelope, BundleStatement]:
    """Parse a bundle without verification.

    Raises:
        NotFound, Invalid: it is not there, or not a bundle.
    """
    envelope = parse_envelope(read_bundle(path), file=str(path))
    if envelope.payload_type != PAYLOAD_TYPE:
        msg = f"{path} holds {envelope.payload_type}, not a bundle."
        raise Invalid(msg, code="Malformed", file=str(path))
    return envelope, parse_bundle(envelope.payload, file=str(path))


def source_of(spec: Path) -> BundleSource | None:
    """Return repository, commit and path of a spec; no commit for a file with uncommitted changes."""
    try:
        clone = Clone.find(spec.absolute().parent)
    except (NotFound, Invalid):
        return None
    try:
        path = spec.resolve().relative_to(clone.root.resolve())
        commit = None if clone.is_dirty(path) else clone.head()
        return BundleSource.model_validate(
            {"repo": clone.origin(), "commit": commit, "path": path.as_posix()}, by_name=True
        )
    finally:
        clone.close()


def _add_signature(
    place: Place, spec: Mapping[str, object], environments: Sequence[str], key: SigningKey, code: BundleCode | None
) -> SignedBundle:
    envelope, statement = read_statement(place.file)
    predicate = statement.predicate
    wanted = {"spec": digest_of_json(spec), "environments": sorted(environments), "code": code and code.digest}
    present = {
        "spec": digest_of_json(predicate.spec),
        "environments": sorted(predicate.environments),
        "code": statement.code and statement.code.digest,
    }
    different = [name for name, value in wanted.items() if value != present[name]]
    if different or (predicate.name, predicate.version) != (place.name, place.version):
        what = " and ".join(different) or "name"
        msg = f"{place.file} was signed before, and its {what} differs."
        raise Conflict(
            msg, hint="A version is signed once and never changed; choose the next one.", file=str(place.file)
        )
    envelope = add_signature(envelope, key)
    write_whole(place.file, serialise(envelope))
    return _signed(place, envelope, statement, added=True)


def _signed(place: Place, envelope: Envelope, statement: BundleStatement, *, added: bool) -> SignedBundle:
    signers = tuple(signature.keyid for signature in envelope.signatures)
    return SignedBundle(place.file, statement, signers, added)


def freeze(spec: Path, environments: Sequence[str], *, as_json: bool) -> Mapping[str, object]:
    """Resolve a spec for its environments. Warnings are printed.

    Raises:
        typer.Exit: it is not valid in one of them; the findings are printed.
        Conflict: it differs between them.
    """
    checked = {environment: check(spec, environment) for environment in environments}
    _require_usable(checked.values(), as_json=as_json)
    return _same({environment: each.file.loaded.tree for environment, each in checked.items()})


def freeze_as_written(spec: Path, environment: str, *, as_json: bool) -> Mapping[str, object]:
    """Return a spec as its author wrote it, migrated to v1, for the format that published tools compare byte for byte.

    Where overlays, a project's defaults or other files add to the file, the spec is resolved, so that the signed spec
    is the one that runs. Warnings are printed.

    Raises:
        typer.Exit: it is not valid in this environment; the findings are printed.
    """
    checked = check(spec, environment)
    _require_usable([checked], as_json=as_json)
    resolved = checked.file.loaded.tree
    value = checked.file.loaded.documents[0].value
    assert isinstance(value, dict), "what is usable is a map"
    written = bring_to_v1(value).tree
    alone = load_tree(written).tree
    return written if digest_of_json(alone) == digest_of_json(resolved) else resolved


def _require_usable(checks: Iterable[Checked], *, as_json: bool) -> None:
    warned: set[tuple[str, str | None]] = set()
    for checked in checks:
        require_usable(checked, as_json=as_json)
        for found in checked.findings:
            known = (found.code, found.path_text)
            if found.severity is Severity.WARNING and known not in warned:
                warned.add(known)
                _warn(found)


def _warn(found: Diagnostic) -> None:
    where = f"{found.file}:{found.line}: " if found.file else ""
    render.warning(f"{where}{found.code}: {found.message}", found.suggestion)


def _same(trees: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
    """Remove the name of the environment that a project's defaults write into ``metadata``: a bundle may have several."""
    (first, tree), *others = trees.items()
    if not others:
        return tree
    wanted = _without_environment(tree)
    for name, other in others:
        if digest_of_json(_without_environment(other)) != digest_of_json(wanted):
            msg = f"The spec differs between {first} and {name}: their overlays or defaults differ."
            raise Conflict(msg, hint=f"Sign a version for each: --env {first}, and another with --env {name}.")
    return wanted


def _without_environment(tree: Mapping[str, object]) -> dict[str, object]:
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict) or "environment" not in metadata:
        return dict(tree)
    rest = {key: value for key, value in metadata.items() if key != "environment"}
    whole = {key: value for key, value in tree.items() if key != "metadata"}
    return {**whole, "metadata": rest} if rest else whole
