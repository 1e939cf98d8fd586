"""``kneo approve --key`` against a service that lies: what is signed is what the person named. The service is the attacker."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kneo.cli.project import read_environment
from kneo.cli.repository import ConfigRepository
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import parse_approval, parse_bundle

Kneo = Callable[..., Any]
OTHER = "sha256:" + "e" * 64
RULES = "sha256:" + "b" * 64


class Service:
    """Answers as it is told, and keeps what it was sent."""

    def __init__(self) -> None:
        self.waiting: list[dict[str, object]] = []
        self.sent: list[dict[str, object]] = []
        self.url = ""

    def offers(self, **item: object) -> None:
        self.waiting = [
            {
                "phase": "waiting",
                "environment": "prod",
                "id": "pend_1",
                "bundle": "announcement",
                "version": "1.0.0",
                "gate": "approvals",
                "reason": "AwaitingApproval",
                "message": "0 of 1",
                "who": [],
                "kind": "promote",
                "digest": OTHER,
                "subject": OTHER,
                "policy_digest": RULES,
                "since": "",
                "about": None,
                **item,
            }
        ]

    def signed(self) -> Any:
        (order,) = self.sent
        return parse_approval(parse_envelope(str(order["envelope"]).encode()).payload)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"promotions": made.waiting, "count": len(made.waiting)})

        def do_POST(self) -> None:
            made.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            names = (
                "id",
                "subject",
                "policy_digest",
                "keyid",
                "decision",
                "origin",
                "payload_digest",
                "expires_at",
                "first_seen_at",
            )
            approval = dict.fromkeys(names, "") | {"signed": True, "reason": None}
            approval |= {"subject_name": "announcement", "environment": "prod", "principal": "approver"}
            self._answer({"approval": approval, "result": {}, "environment": None})

        def _answer(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def key(kneo: Kneo, tmp_path: Path) -> str:
    made = kneo("init", "acme", "--json").json
    return str(made["keys"]["approver"])


@pytest.fixture
def approve(kneo: Kneo, service: Service, key: str) -> Callable[..., Any]:
    return lambda *words: kneo("approve", *words, "--key", key, "--service-url", service.url)


def _digests(tmp_path: Path) -> tuple[str, str]:
    """The digests of the bundle and of prod's rules that the clone has."""
    repository = ConfigRepository(tmp_path / "acme")
    bundle = repository.bundle_file("announcement", "1.0.0").read_bytes()
    return parse_bundle(parse_envelope(bundle).payload).digest, read_environment(repository, "prod").policy_digest


@pytest.mark.parametrize(
    ("words", "item"),
    [
        (("prod/announcement@1.0.0",), {"subject": RULES}),
        (("prod/announcement@1.0.0",), {"subject": RULES, "digest": RULES}),
        (("prod/announcement@1.0.0",), {"kind": "policy", "gate": "policy"}),
        (("prod/announcement@1.0.0",), {"environment": "staging"}),
        ((f"prod/{RULES}",), {"digest": RULES, "subject": OTHER}),
        (("prod/announcement",), {"about": {"prune": {"environment": "prod", "revision": "x", "count": 1, "releases": OTHER}}}),
        (("prod", "--policy"), {"gate": "policy", "kind": "policy"}),
        (("prod", "--policy"), {"gate": "policy", "kind": "policy", "bundle": "environments/dev.yaml", "subject": RULES}),
        ((f"prod@{OTHER}", "--policy"), {"gate": "policy", "bundle": "environments/prod.yaml", "subject": RULES}),
        (("prod", "--prune"), {"gate": "prune"}),
    ],
)  # fmt: skip
def test_nothing_but_what_was_named_is_signed(
    words: tuple[str, ...], item: dict[str, object], service: Service, approve: Callable[..., Any]
) -> None:
    service.offers(**item)
    answer = approve(*words, "--yes")
    assert answer.status in {1, 3}, answer.err
    assert "Nothing was signed" in answer.err or "differs from the subject" in answer.err
    assert service.sent == []


@pytest.mark.parametrize("words", [("prod/announcement@1.1.0",), (f"prod/{RULES}",), ("prod/other",)])
def test_what_was_named_and_does_not_wait_is_not_found(
    words: tuple[str, ...], service: Service, approve: Callable[..., Any]
) -> None:
    service.offers()
    assert approve(*words, "--yes").status == 4
    assert service.sent == []


def test_the_clone_has_the_last_word(
    service: Service, approve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, rules = _digests(tmp_path)
    monkeypatch.chdir(tmp_path / "acme")
    service.offers(policy_digest=rules)
    refused = approve("prod/announcement@1.0.0", "--yes")
    assert (refused.status, service.sent) == (3, [])
    assert "bundles/announcement/1.0.0.dsse.json in this folder" in refused.err
    service.offers(digest=digest, subject=digest)
    refused = approve("prod/announcement@1.0.0", "--yes")
    assert (refused.status, service.sent) == (3, [])
    assert "environments/prod.yaml in this folder" in refused.err
    service.offers(
        gate="policy", kind="policy", bundle="environments/prod.yaml", subject=RULES, digest=None, version="x"
    )
    assert (approve("prod", "--policy", "--yes").status, service.sent) == (3, [])
    service.offers(digest=digest, subject=digest, policy_digest=rules)
    done = approve("prod/announcement", "--reason", "Read the diff")
    assert done.status == 0, done.err
    assert "in this folder is the same" in done.err
    assert digest in done.err
    said = service.signed()
    assert (said.predicate.bundle_digest, said.predicate.policy_digest) == (digest, rules)
    assert (said.subject_name, said.predicate.reason) == ("announcement", "Read the diff")


def test_nobody_there_to_confirm_and_nothing_exact_named(
    service: Service, approve: Callable[..., Any], tmp_path: Path
) -> None:
    service.offers()
    refused = approve("prod/announcement")
    assert (refused.status, service.sent) == (2, [])
    assert "--yes" in refused.err
    output = tmp_path / "kept.dsse.json"
    refused = approve("prod/announcement@1.0.0")  # the service alone says what that version is
    assert (refused.status, service.sent) == (2, [])
    assert "cannot be shown" in refused.err
    assert approve(f"prod/{OTHER}", "--output", output).status == 0
    assert service.signed().predicate.bundle_digest == OTHER
    assert output.read_text() == service.sent[0]["envelope"]


def test_rules_are_signed_under_the_name_of_their_file(
    service: Service, approve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, rules = _digests(tmp_path)
    monkeypatch.chdir(tmp_path / "acme")
    service.offers(
        gate="policy",
        kind="policy",
        bundle="environments/prod.yaml",
        subject=rules,
        policy_digest=rules,
        digest=None,
    )
    assert approve("prod", "--policy").status == 0
    assert (service.signed().subject_name, service.signed().predicate.bundle_digest) == (
        "environments/prod.yaml",
        rules,
    )
