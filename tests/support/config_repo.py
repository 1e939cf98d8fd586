"""A real config repository under a test's control: keys, trust root, bundles, environment files, commits."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from kneo.cli.specs.bundle_code import collect_code
from kneo.clock import SystemClock
from kneo.digest import Digest, digest_of
from kneo.settings import process_environment
from kneo.spec.environment import parse_environment
from kneo.spec.models.spec import Spec
from kneo.trust.dsse import TrustedKey, add_signature, parse_envelope, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.result import Metric, build_result, decimal_text
from kneo.trust.root import TRUST_ROOT_TYPE, RootDocument, root_payload
from kneo.trust.root_edit import EVERYTHING, add_key, first_root, next_root, remove_key, revoke_key
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, Dependency, build_approval, build_bundle

GIT_ENV = {
    **process_environment("PATH"),
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.com",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.com",
}

SUITE = Digest("sha256:" + "5" * 64)
"""The digest of a suite of cases."""

FUNCTIONS = """
import json
from pathlib import Path

OUT = Path(__file__).with_name("published.jsonl")


def publish(text, context):
    with OUT.open("a") as file:
        file.write(json.dumps({"key": context.idempotency_key, "run": context.run_id, "text": text}) + "\\n")
    return f"published: {text}"


def boom(text):
    raise RuntimeError("boom")
"""


def announcement(**changes: object) -> dict[str, object]:
    """The spec of the tour: draft, ask, publish."""
    spec: dict[str, object] = {
        "version": "v1",
        "agent": {"name": "announcer", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {
            "type": "sequential",
            "name": "announcement",
            "steps": [
                {"id": "draft", "kind": "agent", "ref": "writer"},
                {"id": "approve", "kind": "human", "ref": "editor"},
                {"id": "publish", "kind": "function", "ref": "publish"},
            ],
        },
        "components": {
            "agents": {"writer": {"name": "writer", "model": {"provider": "dummy", "name": "dummy"}}},
            "functions": {"publish": {"implementation": "test_functions.publish"}},
            "humans": {"editor": {"description": "Publish this announcement?"}},
        },
    }
    return spec | changes


class ConfigRepo:
    """A config repository in a folder, with one release key unless told otherwise."""

    def __init__(self, folder: Path, *, environments: Sequence[str] = ("dev", "prod"), expires_in: int = 365) -> None:
        self.folder = folder
        self.key = PrivateKey.generate()
        self.stranger = PrivateKey.generate()
        self.now = SystemClock().now() - timedelta(minutes=1)
        self._digests: dict[str, list[Digest]] = {}
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        (folder / "test_functions.py").write_text(FUNCTIONS)
        (folder / ".gitignore").write_text("published.jsonl\n__pycache__/\n.kneo/\n")
        me = TrustedKey(self.key.public, "ann")
        document = first_root(
            {"root": [me], "release": [me], "approver": [me]},
            expires=self.now + timedelta(days=expires_in),
            paths={"release": EVERYTHING},
        )
        payload = root_payload(document)
        self.pin = digest_of(payload)
        self.root = document
        self.people = {"ann": self.key}
        self.write("environments/trust.json", serialise(sign(TRUST_ROOT_TYPE, payload, self.key)))
        for name in environments:
            self.environment(name, {}, inlineSpecs=name == "dev")
        self.commit("Begin")

    # ---- git ------------------------------------------------------------------------------------------------------

    def git(self, *arguments: str, dated: str | None = None) -> str:
        """Run git; ``dated`` is what it takes for the time."""
        env = GIT_ENV | ({"GIT_AUTHOR_DATE": dated, "GIT_COMMITTER_DATE": dated} if dated else {})
        done = subprocess.run(
            ["git", "-C", str(self.folder), *arguments], check=True, capture_output=True, text=True, env=env
        )
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.head()

    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    # ---- files ----------------------------------------------------------------------------------------------------

    def write(self, path: str, content: bytes) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def environment(self, name: str, releases: Mapping[str, str], **spec: object) -> None:
        """Write an environment file that names these versions; ``digests`` pins some of them, ``canaries`` are plans."""
        digests: Mapping[str, str] = spec.pop("digests", {})  # type: ignore[assignment]
        plans: Mapping[str, object] = spec.pop("canaries", {})  # type: ignore[assignment]
        content = {
            "apiVersion": "kneo/v1",
            "kind": "Environment",
            "metadata": {"name": name},
            "spec": {
                "releases": [
                    {
                        "bundle": bundle,
                        "version": version,
                        **({"digest": digests[bundle]} if bundle in digests else {}),
                        **({"canary": plans[bundle]} if bundle in plans else {}),
                    }
                    for bundle, version in releases.items()
                ],
                "policy": {"enabled": True},
                "signatures": {"accept": ["dsse"], "roles": ["release"], "threshold": 1},
                "code": "any",
                **spec,
            },
        }
        self.write(f"environments/{name}.yaml", yaml.safe_dump(content, sort_keys=False).encode())

    def bundle(
        self,
        name: str,
        version: str,
        spec: Mapping[str, object] | None = None,
        *,
        keys: Sequence[PrivateKey] = (),
        environments: Sequence[str] = ("dev", "prod"),
        seq: int | None = None,
        prev: Digest | None = None,
        needs: Mapping[str, Digest] | None = None,
        with_code: bool = False,
    ) -> Digest:
        """Sign a bundle into the repository, with the code of its functions as the folder has it now, or without."""
        history = self._digests.setdefault(name, [])
        statement = build_bundle(
            name=name,
            version=version,
            seq=seq or len(history) + 1,
            prev=prev or (history[-1] if history else None),
            environments=list(environments),
            issued_at=self.now,
            approved_by="ann",
            spec=spec or announcement(),
            code=collect_code(Spec.model_validate(spec), [self.folder]).code if with_code else None,
            depends_on=[Dependency(name=other, digest=digest) for other, digest in (needs or {}).items()],
        )
        signers = keys or (self.key,)
        envelope = sign(PAYLOAD_TYPE, statement.payload, signers[0])
        for key in signers[1:]:
            envelope = add_signature(envelope, key)
        self.write(f"bundles/{name}/{version}.dsse.json", serialise(envelope))
        history.append(statement.digest)
        return statement.digest

    def other_spec(self) -> dict[str, object]:
        """A spec that asks another question."""
        spec = announcement()
        components = spec["components"]
        assert isinstance(components, dict)
        components["humans"] = {"editor": {"description": "Another question?"}}
        return spec

    def release(self, environment: str, name: str, version: str, spec: Mapping[str, object] | None = None) -> Digest:
        """Sign a bundle, name it in an environment, commit."""
        digest = self.bundle(name, version, spec)
        self.environment(environment, {name: version}, inlineSpecs=environment == "dev")
        self.commit(f"Release {name} {version} to {environment}")
        return digest

    # ---- trust ----------------------------------------------------------------------------------------------------

    def person(self, name: str, role: str) -> PrivateKey:
        """Give somebody a key for a role in the next trust root."""
        key = PrivateKey.generate()
        self.people[name] = key
        self.next_root(add_key(self.root, key.public, principal=name, roles=[role]))
        return key

    def revoke(self, name: str, *, compromised_since: datetime | None = None) -> None:
        """Revoke somebody's key in the next trust root, as of when this repository was made: that is before anybody
        saw it on a clock that stands still, however long a test takes."""
        keyid = self.people[name].keyid
        at = self.now
        self.next_root(revoke_key(self.root, keyid, at=at, reason="lost", compromised_since=compromised_since))

    def drop(self, name: str) -> None:
        """Take somebody's key out of the next trust root."""
        self.next_root(remove_key(self.root, self.people[name].keyid))

    def next_root(self, document: RootDocument) -> None:
        """Sign this as the trust root that follows the present one."""
        before = self.folder / "environments/trust.json"
        self.write(f"environments/roots/{self.root.version}.json", before.read_bytes())
        self.root = next_root(document)
        self.write("environments/trust.json", serialise(sign(TRUST_ROOT_TYPE, root_payload(self.root), self.key)))

    def approve(
        self,
        environment: str,
        name: str,
        version: str,
        person: str,
        *,
        days: int = 7,
        file: str | None = None,
        decision: ApprovalDecision = ApprovalDecision.APPROVE,
        issued_at: datetime | None = None,
    ) -> Path:
        """Put somebody's signed decision beside a bundle; ``file`` is another name for it than the usual."""
        path = self.folder / f"environments/{environment}.yaml"
        statement = build_approval(
            bundle_name=name,
            bundle_digest=parse_envelope((self.folder / f"bundles/{name}/{version}.dsse.json").read_bytes()).digest,
            environment=environment,
            policy_digest=parse_environment(path.read_bytes(), file=path.name).policy_digest,
            decision=decision,
            issued_at=issued_at or SystemClock().now(),
            expires=SystemClock().now() + timedelta(days=days),
        )
        key = self.people[person]
        stem = file or key.keyid.removeprefix("sha256:")
        target = f"bundles/{name}/{version}.approvals/{stem}.dsse.json"
        self.write(target, serialise(sign(PAYLOAD_TYPE, statement.payload, key)))
        return self.folder / target

    def attest(
        self,
        name: str,
        version: str,
        person: str,
        *,
        passed: int = 40,
        failed: int = 0,
        metrics: Mapping[str, tuple[str, int]] | None = None,
        digest: Digest | None = None,
        issued_at: datetime | None = None,
        file: str | None = None,
        **fields: Any,
    ) -> Path:
        """Put somebody's signed result of an evaluation next to a bundle."""
        rate = decimal_text(Decimal(passed) / (passed + failed))
        stated = {"pass_rate": (rate, passed + failed), **(metrics or {})}
        values: dict[str, Any] = {
            "type": "eval",
            "suite": "support",
            "suite_digest": SUITE,
            "scripted": False,
            **fields,
        }
        statement = build_result(
            bundle_name=name,
            bundle_digest=digest
            or parse_envelope((self.folder / f"bundles/{name}/{version}.dsse.json").read_bytes()).digest,
            issued_at=issued_at or SystemClock().now(),
            metrics={key: Metric(value=value, samples=samples) for key, (value, samples) in stated.items()},
            passed=[f"case-{number}" for number in range(passed)],
            failed=[f"bad-{number}" for number in range(failed)],
            **values,
        )
        stem = file or statement.digest.removeprefix("sha256:")[:12]
        target = f"bundles/{name}/{version}.evidence/{stem}.dsse.json"
        self.write(target, serialise(sign(PAYLOAD_TYPE, statement.payload, self.people[person])))
        return self.folder / target

    def agree(self, environment: str, person: str = "ann", *, days: int = 7) -> None:
        """Put somebody's signed approval of an environment file beside it."""
        path = f"environments/{environment}.yaml"
        digest = parse_environment((self.folder / path).read_bytes(), file=path).policy_digest
        statement = build_approval(
            bundle_name=path,
            bundle_digest=digest,
            environment=environment,
            policy_digest=digest,
            decision=ApprovalDecision.APPROVE,
            issued_at=SystemClock().now(),
            expires=SystemClock().now() + timedelta(days=days),
        )
        key = self.people[person]
        stem = f"{key.keyid.removeprefix('sha256:')[:16]}-{digest.removeprefix('sha256:')[:8]}"
        envelope = serialise(sign(PAYLOAD_TYPE, statement.payload, key))
        self.write(f"environments/{environment}.approvals/{stem}.dsse.json", envelope)

    # ---- damage and effects ---------------------------------------------------------------------------------------

    def tamper(self, name: str, version: str) -> None:
        """Change one byte of what was signed."""
        path = self.folder / f"bundles/{name}/{version}.dsse.json"
        value = json.loads(path.read_bytes())
        payload = bytearray(parse_envelope(path.read_bytes()).payload)
        position = payload.index(b"announcer")
        payload[position] ^= 1
        value["payload"] = base64.b64encode(bytes(payload)).decode()
        path.write_text(json.dumps(value))

    def published(self) -> list[dict[str, str]]:
        """What the publish step did so far."""
        path = self.folder / "published.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
