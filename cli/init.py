"""``kneo init``: a config repository that works, and the key that signs for it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.clone import Clone
from cli.files import write_secret, write_whole
from cli.keys import load_private
from cli.known_roots import KnownRoots
from cli.repository import ConfigRepository
from cli.signing import Place, SignedBundle, sign_bundle
from cli.trust_roots import TrustFiles
from kneo import __version__
from kneo.clock import SystemClock
from kneo.digest import Digest
from kneo.errors import Conflict, Invalid, Usage
from kneo.settings import Settings, from_env
from kneo.spec.load import load_spec
from kneo.spec.rules import check
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import BundleSource

VERSION = "1.0.0"
ENVIRONMENTS = ("dev", "staging", "prod")
ROOT_LIFE = timedelta(days=365)

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_NAME_CHARS = 60
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Request:
    """What is to be made."""

    directory: Path
    name: str
    key_file: Path
    principal: str

    @property
    def module(self) -> str:
        return f"{self.name.replace('-', '_')}_functions"

    def files(self) -> dict[str, str]:
        """Every file that is written from a template, and the template."""
        return {
            ".gitignore": "gitignore",
            ".github/actions/check/action.yml": "action-check.yml",
            ".github/actions/sign/action.yml": "action-sign.yml",
            ".github/workflows/config-check.yml": "workflow-config-check.yml",
            ".github/workflows/config-sign.yml": "workflow-config-sign.yml",
            ".github/workflows/kneo.yml": "workflow.yml",
            ".github/workflows/sign.yml": "workflow-sign.yml",
            "README.md": "README.md",
            f"{self.module}.py": "functions.py.txt",
            f"specs/{self.name}.yaml": "spec.yaml",
            **{f"environments/{name}.yaml": f"{name}.yaml" for name in ENVIRONMENTS},
        }


@dataclass(frozen=True)
class Made:
    """What was made."""

    trust_root: Digest
    bundle: SignedBundle


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is empty or does not exist.")],
    *,
    name: Annotated[str, typer.Option(help="The example's name.")] = "announcement",
    key: Annotated[
        Path | None, typer.Option("--key", help="Private key to make, or to use if it exists; outside DIR.")
    ] = None,
    principal: Annotated[str, typer.Option(help="Whose key it is; also the name of their API key.")] = "owner",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a config repository that works: keys, trust root, environments, a signed example, CI; all committed.

    The private key is kept outside of it, in DIR-keys/release.pem unless --key says otherwise. This machine remembers
    the trust root, so that kneo up --repo DIR needs no more.
    """
    settings = from_env()
    target = directory.absolute()
    request = Request(
        target, name, (key or target.with_name(f"{target.name}-keys") / "release.pem").absolute(), principal
    )
    _check(request)
    made = make_repository(request, settings)
    predicate = made.bundle.statement.predicate
    answer = {
        "directory": str(target),
        "key": str(request.key_file),
        "trust_root": made.trust_root,
        "bundle": f"{predicate.name}@{predicate.version}",
        "environments": list(ENVIRONMENTS),
        "digest": made.bundle.statement.digest,
    }
    render.emit(answer, as_json=as_json, text=lambda: _print(directory, request, made))


def make_repository(request: Request, settings: Settings) -> Made:
    """Make everything, or leave everything as it was.

    Raises:
        KneoError: a file cannot be written, git refused, or the key cannot be used.
    """
    with _key(request.key_file, settings) as private, _draft(request.directory) as draft:
        repository = ConfigRepository(draft)
        clone = Clone.create(draft)
        try:
            trust_root = TrustFiles(repository.trust_file).begin(
                private, request.principal, SystemClock().now() + ROOT_LIFE
            )
            _write_templates(request, draft, trust_root)
            bundle = _sign(request, repository, private)
            clone.commit([draft], f"Begin with {request.name} {VERSION}", plain=True)
        finally:
            clone.close()
        KnownRoots(settings.known_roots_path).remember(request.directory, trust_root)
    return Made(trust_root, bundle)


def _check(request: Request) -> None:
    if not _NAME.fullmatch(request.name) or len(request.name) > _NAME_CHARS:
        msg = f"{request.name[:80]!r} cannot be the name of a bundle here."
        raise Usage(msg, hint=f"Use lower-case words with dashes between them, at most {_NAME_CHARS} characters.")
    if request.directory.is_dir() and not any(request.directory.iterdir()):
        pass
    elif request.directory.exists() or request.directory.is_symlink():
        msg = f"{request.directory} exists and is not empty; nothing was changed."
        raise Conflict(msg, hint="Choose another folder, or empty this one.", file=str(request.directory))
    if request.key_file.resolve().is_relative_to(request.directory.resolve()):
        msg = f"The private key {request.key_file} would be inside the repository, for everybody to copy."
        raise Usage(msg, hint="Choose a place outside of it.")


@contextmanager
def _key(path: Path, settings: Settings) -> Iterator[PrivateKey]:
    """Use the key that is there, or make one, which goes away again when what it is for fails."""
    if path.exists():
        yield load_private(path)
        return
    folder_is_new = not path.parent.exists()
    private = PrivateKey.generate()
    write_secret(path, private.dump(settings.key_passphrase or None))
    try:
        yield private
    except BaseException:
        path.unlink(missing_ok=True)
        if folder_is_new:
            path.parent.rmdir()
        raise


@contextmanager
def _draft(directory: Path) -> Iterator[Path]:
    """A folder to work in that becomes ``directory`` when all went well, and vanishes when not."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    except OSError as error:
        msg = f"{directory} cannot be made: {error.strerror}."
        raise Invalid(msg, file=str(directory)) from error
    try:
        draft.chmod(0o755)  # mkdtemp makes it private; a repository follows the usual rules
        yield draft
        if directory.exists():
            # Somebody may stand in the empty folder, so its content is put into it rather than it being replaced.
            for path in draft.iterdir():
                path.replace(directory / path.name)
        else:
            draft.replace(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_templates(request: Request, folder: Path, trust_root: Digest) -> None:
    words = {
        "@NAME@": request.name,
        "@MODULE@": request.module,
        "@DIRECTORY@": request.directory.name,
        "@TRUST_ROOT@": trust_root,
        "@VERSION@": __version__,
    }
    for path, template in request.files().items():
        content = (_TEMPLATES / template).read_text(encoding="utf-8")
        for word, value in words.items():
            content = content.replace(word, value)
        write_whole(folder / path, content.encode())


def _sign(request: Request, repository: ConfigRepository, key: PrivateKey) -> SignedBundle:
    path = f"specs/{request.name}.yaml"
    loaded = load_spec((repository.root / path).read_bytes(), file=path, rules=check)
    assert loaded.valid, "the template is a spec"
    place = Place(request.name, VERSION, repository.bundle_file(request.name, VERSION))
    return sign_bundle(
        place,
        loaded.tree,
        environments=sorted(ENVIRONMENTS),
        approved_by=request.principal,
        key=key,
        source=BundleSource(path=path),
        now=SystemClock().now(),
    )


def _print(directory: Path, request: Request, made: Made) -> None:
    render.success(f"{directory} is a config repository with one commit.")
    render.text(
        f"  bundle      {request.name} {VERSION}, released to {', '.join(ENVIRONMENTS)}\n"
        f"  key         {request.key_file}: keep it safe, and out of every repository\n"
        f"  trust root  {made.trust_root}\n"
        f"\nNext: kneo up --repo {directory}\nThe tour is in {directory / 'README.md'}."
    )
