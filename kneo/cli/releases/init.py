"""``kneo init``: a config repository with a signed example, and its keys."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kneo import __version__, distribution
from kneo.cli import render
from kneo.cli.clone import Clone
from kneo.cli.commands import examples
from kneo.cli.files import write_secret, write_whole
from kneo.cli.options import JsonOption
from kneo.cli.releases.subjects import Subject, sign_decision
from kneo.cli.repository import ConfigRepository, KnownRoots
from kneo.cli.specs.bundle_code import collect_code
from kneo.cli.specs.keys import load_private
from kneo.cli.specs.signing import Place, SignedBundle, sign_bundle
from kneo.cli.specs.trust_roots import TrustFiles
from kneo.clock import SystemClock
from kneo.digest import Digest
from kneo.errors import Conflict, Invalid, Usage
from kneo.names import person_key
from kneo.settings import Settings, from_env
from kneo.spec.environment import parse_environment
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_spec
from kneo.trust.dsse import TrustedKey
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import ApprovalDecision, BundleSource

VERSION = "1.0.0"
ENVIRONMENTS = ("dev", "staging", "prod")
ROOT_LIFE = timedelta(days=365)

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_NAME_CHARS = 60
WHEEL = "python3 -m pip wheel --no-deps --wheel-dir .github/wheels /path/to/a/clone/of/kneo"
"""The command that puts the wheel of a clone of Kneo into the repository, where no package index has Kneo. A bare name of a folder would
be one of an index to pip."""

LOCK = "uv pip compile --generate-hashes --universal .github/kneo.in --output-file .github/kneo.txt"
"""The command that creates the lock file from which CI installs, with the hashes of Kneo and of what it needs."""

_TEMPLATES = Path(__file__).with_name("templates")
MODEL = "openai/gpt-5-mini"


class RepositoryTemplate(StrEnum):
    """The example of a new repository."""

    WORKFLOW = "workflow"
    """An announcement that a person approves; it needs no model."""
    AGENT = "agent"
    """A support agent that refunds, with tools, tests and a suite."""
    GATEWAY = "gateway"
    """The tools of that agent, for an agent that runs elsewhere."""

    @property
    def bundle(self) -> str:
        """The name of the example, unless another one is given."""
        return "announcement" if self is RepositoryTemplate.WORKFLOW else "support"


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    directory: Path
    name: str
    key_file: Path
    """The key of the role release; those of root and approver are created in the same folder."""

    principal: str
    approver: str
    template: RepositoryTemplate = RepositoryTemplate.WORKFLOW
    model: str = MODEL
    """The model of the agent, as PROVIDER/NAME."""

    @property
    def key_files(self) -> dict[str, Path]:
        """The private key files, by role."""
        return {
            "root": self.key_file.with_name("root.pem"),
            "release": self.key_file,
            "approver": self.key_file.with_name("approver.pem"),
        }

    @property
    def module(self) -> str:
        """The Python module with the functions of the example."""
        kind = "functions" if self.template is RepositoryTemplate.WORKFLOW else "tools"
        return f"{self.name.replace('-', '_')}_{kind}"

    def files(self) -> dict[str, str]:
        """The generated files, with their templates."""
        own = {
            RepositoryTemplate.WORKFLOW: {
                f"{self.module}.py": "workflow/functions.py.txt",
                f"evals/{self.name}.yaml": "workflow/suite.yaml",
            },
            RepositoryTemplate.AGENT: {
                f"{self.module}.py": "agent/tools.py.txt",
                "tests/test_tools.py": "agent/test_tools.py.txt",
                f"evals/{self.name}.yaml": "agent/suite.yaml",
            },
            RepositoryTemplate.GATEWAY: {
                f"{self.module}.py": "agent/tools.py.txt",
                "tests/test_tools.py": "agent/test_tools.py.txt",
                ".mcp.json": "gateway/mcp.json",
            },
        }
        return {
            ".gitignore": "gitignore",
            ".github/actions/check/action.yml": "action-check.yml",
            ".github/actions/sign/action.yml": "action-sign.yml",
            ".github/kneo.in": "requirements.in",
            ".github/workflows/config-check.yml": "workflow-config-check.yml",
            ".github/workflows/config-sign.yml": "workflow-config-sign.yml",
            ".github/workflows/kneo.yml": "workflow.yml",
            ".github/workflows/sign.yml": "workflow-sign.yml",
            "README.md": f"{self.template}/README.md",
            f"specs/{self.name}.yaml": f"{self.template}/spec.yaml",
            **{f"environments/{name}.yaml": f"{name}.yaml" for name in ENVIRONMENTS},
            **own[self.template],
        }

    def words(self, trust_root: Digest) -> dict[str, str]:
        """The values of the names between @ in the templates; parts first, which have names of their own."""
        is_workflow = self.template is RepositoryTemplate.WORKFLOW
        provider, _, model = self.model.partition("/")
        return {
            "# @RULES@\n": "" if is_workflow else _template(f"{self.template}/rules.yaml"),
            "# @TESTS@\n": "" if is_workflow else _template("tests-job.yml"),
            "@ROLES@": "" if is_workflow else ", finance",
            "@NAME@": self.name,
            "@MODULE@": self.module,
            "@DIRECTORY@": self.directory.name,
            "@TRUST_ROOT@": trust_root,
            "@KNEO@": distribution.requirement(__version__),
            "# @GET@\n": "" if distribution.INDEX_NAME else _template("get-wheel.txt"),
            "@MCP@": distribution.install_extra("mcp"),
            "@VERSION@": __version__,
            "@PRINCIPAL@": self.principal,
            "@APPROVER_NAME@": self.approver,
            "@APPROVER@": json.dumps(self.approver),
            "@PROVIDER@": json.dumps(provider),
            "@MODEL@": json.dumps(model),
        }


@dataclass(frozen=True)
class Made:
    """The result of the command."""

    trust_root: Digest
    bundle: SignedBundle


@examples("kneo init acme", "kneo init acme --template agent", "kneo init acme --name announcement --json")
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is empty or does not exist.")],
    *,
    template: Annotated[
        RepositoryTemplate,
        typer.Option(
            help="workflow: an announcement that a person approves, without a model; agent: a support agent that refunds, with tools, "
            "tests and a suite; gateway: its tools, for an agent that runs elsewhere."
        ),
    ] = RepositoryTemplate.WORKFLOW,
    name: Annotated[
        str | None, typer.Option(help="The example's name. Default: announcement; with a template of tools support.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="PROVIDER/NAME", help="Model of the agent template.")] = MODEL,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Private key that signs bundles, created unless it exists; outside DIR."),
    ] = None,
    principal: Annotated[
        str, typer.Option(help="Owner of the root and release keys; also the name of the owner's API key.")
    ] = "owner",
    approver: Annotated[
        str, typer.Option(help="Owner of the approver key, who approves releases to prod; another person.")
    ] = "approver",
    as_json: JsonOption = False,
) -> None:
    """Create a config repository with keys, trust root, environments, a signed example and CI; all committed.

    The private keys are outside of it, in DIR-keys/ or next to --key: root.pem changes the trust root, release.pem
    signs bundles, approver.pem approves releases to prod. Give each to its owner. This machine pins the trust root, so
    that kneo up --repo DIR needs no more options.
    """
    settings = from_env()
    target = directory.absolute()
    key_file = (key or target.with_name(f"{target.name}-keys") / "release.pem").absolute()
    request = Request(target, template.bundle if name is None else name, key_file, principal, approver, template, model)
    _check(request)
    result = make_repository(request, settings)
    predicate = result.bundle.statement.predicate
    answer = {
        "directory": str(target),
        "key": str(request.key_file),
        "keys": {role: str(path) for role, path in request.key_files.items()},
        "principals": {"root": principal, "release": principal, "approver": approver},
        "trust_root": result.trust_root,
        "bundle": f"{predicate.name}@{predicate.version}",
        "environments": list(ENVIRONMENTS),
        "digest": result.bundle.statement.digest,
    }
    render.emit(answer, as_json=as_json, text=lambda: _print(directory, request, result))


def make_repository(request: Request, settings: Settings) -> Made:
    """Create the repository, completely or not at all.

    Raises:
        KneoError: a file cannot be written, git refused, or the key cannot be used.
    """
    with ExitStack() as stack:
        keys = {role: stack.enter_context(_key(path, settings)) for role, path in request.key_files.items()}
        draft = stack.enter_context(_draft(request.directory))
        repository = ConfigRepository(draft)
        clone = Clone.create(draft)
        try:
            trust_root = _begin(request, repository, keys)
            _write_templates(request, draft, trust_root)
            bundle = _sign(request, repository, keys["release"])
            _approve(request, draft, bundle, keys["approver"])
            clone.commit([draft], f"Begin with {request.name} {VERSION}", plain=True)
        finally:
            clone.close()
        KnownRoots(settings.known_roots_path).remember(request.directory, trust_root)
    return Made(trust_root, bundle)


def _begin(request: Request, repository: ConfigRepository, keys: Mapping[str, PrivateKey]) -> Digest:
    others = {
        "release": TrustedKey(keys["release"].public, request.principal),
        "approver": TrustedKey(keys["approver"].public, request.approver),
    }
    if keys["approver"].keyid in {keys["root"].keyid, keys["release"].keyid}:
        msg = f"{request.key_files['approver']} contains the key of another role; the approver needs a separate key."
        raise Usage(msg, hint="Move it; kneo init creates a new one.")
    expires = SystemClock().now() + ROOT_LIFE
    return TrustFiles(repository.trust_file).begin(keys["root"], request.principal, expires, others)


def _approve(request: Request, folder: Path, bundle: SignedBundle, key: PrivateKey) -> None:
    """Approve the environment files and the first release to prod, as people do later with ``kneo approve``.

    The approvals are kept in Git, so that an empty database accepts them for as long as the trust root lasts.
    """
    file_name = f"{key.keyid.removeprefix('sha256:')}.dsse.json"
    reason, now = "First release, created by kneo init", SystemClock().now()
    for name in ENVIRONMENTS:
        path = f"environments/{name}.yaml"
        rules = parse_environment((folder / path).read_bytes(), file=path)
        digest = rules.policy_digest
        subject = Subject(environment=name, name=path, digest=digest, policy_digest=digest)
        envelope = sign_decision(subject, ApprovalDecision.APPROVE, key, now, now + ROOT_LIFE, reason)
        write_whole(folder / f"environments/{name}.approvals" / file_name, envelope)
        if rules.spec.approvals is not None and rules.spec.approvals.required:
            release = replace(subject, name=request.name, digest=bundle.statement.digest)
            envelope = sign_decision(release, ApprovalDecision.APPROVE, key, now, now + ROOT_LIFE, reason)
            write_whole(folder / f"bundles/{request.name}/{VERSION}.approvals" / file_name, envelope)


def _check(request: Request) -> None:
    if not _NAME.fullmatch(request.name) or len(request.name) > _NAME_CHARS:
        msg = f"{request.name[:80]!r} cannot be the name of a bundle here."
        raise Usage(msg, hint=f"Use lower-case words with dashes between them, at most {_NAME_CHARS} characters.")
    is_empty = request.directory.is_dir() and not any(request.directory.iterdir())
    if not is_empty and (request.directory.exists() or request.directory.is_symlink()):
        msg = f"{request.directory} exists and is not empty; nothing was changed."
        raise Conflict(msg, hint="Choose another folder, or empty this one.", file=str(request.directory))
    if request.key_file.name in {"root.pem", "approver.pem"}:
        msg = f"{request.key_file.name} is the name of another role's key; the release key needs a name of its own."
        raise Usage(msg, hint="Name it release.pem, or choose another folder.")
    if not all(request.model.partition("/")):
        msg = f"{request.model[:80]!r} is no model."
        raise Usage(msg, hint=f"Name its provider and the model, such as {MODEL}.")
    if person_key(request.principal) == person_key(request.approver):
        msg = f"{request.approver[:80]!r} signs releases, so another person has to approve them."
        raise Usage(msg, hint="Name two people: --principal NAME --approver NAME.")
    if request.key_file.resolve().is_relative_to(request.directory.resolve()):
        msg = f"The private key {request.key_file} would be inside the repository."
        raise Usage(msg, hint="Choose a path outside of it.")


@contextmanager
def _key(path: Path, settings: Settings) -> Iterator[PrivateKey]:
    """Use an existing key, or create one that is removed when the block fails."""
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
    """A temporary folder that becomes ``directory`` on success, and is removed on failure."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    except OSError as error:
        msg = f"{directory} cannot be made: {error.strerror}."
        raise Invalid(msg, file=str(directory)) from error
    try:
        draft.chmod(0o755)  # mkdtemp creates a private folder; a repository has the usual permissions.
        yield draft
        if directory.exists():
            # The empty folder may be a working directory, so files move into it; the folder is not replaced.
            for path in draft.iterdir():
                path.replace(directory / path.name)
        else:
            draft.replace(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_templates(request: Request, folder: Path, trust_root: Digest) -> None:
    words = request.words(trust_root)
    for path, template in request.files().items():
        content = _template(template)
        for word, value in words.items():
            content = content.replace(word, value)
        write_whole(folder / path, content.encode())


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


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
        code=collect_code(Spec.model_validate(loaded.tree), [repository.root]).code,
    )


def _print(directory: Path, request: Request, result: Made) -> None:
    render.success(f"{directory} is a config repository with one commit.")
    render.text(
        f"  bundle      {request.name} {VERSION}, released to {', '.join(ENVIRONMENTS)}\n"
        f"  keys        {request.key_file.parent}: keep them safe, apart, and out of every repository\n"
        f"              {request.key_files['root'].name} changes who is trusted, {request.key_file.name} signs bundles,\n"
        f"              {request.key_files['approver'].name} approves releases to prod ({request.approver})\n"
        f"  trust root  {result.trust_root}\n"
        f"\nNext: kneo up --repo {directory}\nNext steps are in {directory / 'README.md'}.\n"
        "Before CI runs, in that folder; then commit what is written:\n"
        + "\n".join(f"  {command}" for command in ((LOCK,) if distribution.INDEX_NAME else (WHEEL, LOCK)))
    )
