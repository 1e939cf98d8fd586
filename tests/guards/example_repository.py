"""Sign ``specs/``, ``bundles/`` and ``environments/`` of this repository with new keys: ``make example-renew``.

The private keys exist only in the memory of this program, so no signature can be added later. A change of the spec or of the
rules of an environment, and the expiry of the trust root, need a renewal of the whole example.
"""

from __future__ import annotations

import re
import shutil
import sys
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from kneo.cli.files import write_whole  # noqa: E402
from kneo.cli.releases.subjects import Subject, sign_decision  # noqa: E402
from kneo.cli.repository import ConfigRepository  # noqa: E402
from kneo.cli.specs.bundle_code import collect_code  # noqa: E402
from kneo.cli.specs.signing import Place, sign_bundle  # noqa: E402
from kneo.cli.specs.trust_roots import TrustFiles  # noqa: E402
from kneo.clock import SystemClock  # noqa: E402
from kneo.digest import Digest  # noqa: E402
from kneo.spec.environment import parse_environment  # noqa: E402
from kneo.spec.lint import check  # noqa: E402
from kneo.spec.models.spec import Spec  # noqa: E402
from kneo.spec.reading.load import load_spec  # noqa: E402
from kneo.trust.dsse import TrustedKey  # noqa: E402
from kneo.trust.keys import PrivateKey  # noqa: E402
from kneo.trust.statement import ApprovalDecision, BundleSource  # noqa: E402

NAME, VERSION = "announcement", "1.0.0"
ENVIRONMENTS = ("dev", "staging", "prod")
LIFE = timedelta(days=366)
"""The longest life of an approval; an empty database admits the example for as long."""
README = ROOT / "README.md"
PIN = re.compile(r"(kneo up --repo \. --trust-root )(sha256:[0-9a-f]{64})")
"""The command in the README, with the digest of the trust root."""


def renew(folder: Path) -> Digest:
    """Sign the example in a folder with new keys; return the digest of its trust root."""
    root, release, approver = (PrivateKey.generate() for _ in range(3))
    now = SystemClock().now()
    repository = ConfigRepository(folder)
    repository.trust_file.unlink(missing_ok=True)
    shutil.rmtree(folder / "bundles", ignore_errors=True)
    others = {
        "release": TrustedKey(release.public, "maintainer"),
        "approver": TrustedKey(approver.public, "approver"),
    }
    digest = TrustFiles(repository.trust_file).begin(root, "maintainer", now + LIFE, others)
    path = f"specs/{NAME}.yaml"
    tree = load_spec((folder / path).read_bytes(), file=path, rules=check).tree
    bundle = sign_bundle(
        Place(NAME, VERSION, repository.bundle_file(NAME, VERSION)),
        tree,
        environments=sorted(ENVIRONMENTS),
        approved_by="maintainer",
        key=release,
        source=BundleSource(path=path),
        now=now,
        code=collect_code(Spec.model_validate(tree), [ROOT]).code,
    )
    file_name = f"{approver.keyid.removeprefix('sha256:')}.dsse.json"
    for name in ENVIRONMENTS:
        file = f"environments/{name}.yaml"
        shutil.rmtree(folder / f"environments/{name}.approvals", ignore_errors=True)
        rules = parse_environment((folder / file).read_bytes(), file=file).policy_digest
        for subject, subject_digest, target in (
            (file, rules, f"environments/{name}.approvals"),
            (NAME, bundle.statement.digest, f"bundles/{NAME}/{VERSION}.approvals"),
        ):
            if subject == NAME and name != "prod":
                continue
            about = Subject(environment=name, name=subject, digest=subject_digest, policy_digest=rules)
            envelope = sign_decision(
                about, ApprovalDecision.APPROVE, approver, now, now + LIFE, "Example of the repository"
            )
            write_whole(folder / target / file_name, envelope)
    return digest


def main() -> None:
    digest = renew(ROOT)
    README.write_text(PIN.sub(rf"\g<1>{digest}", README.read_text()))
    print(f"Renewed. Trust root: {digest}")


if __name__ == "__main__":
    main()
