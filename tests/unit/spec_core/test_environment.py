from datetime import UTC, datetime, timedelta

import pytest

from kneo.spec.documents import Unreadable
from kneo.spec.environment import parse_environment
from kneo.spec.reading.validate import InvalidDeclaration

FULL = """\
apiVersion: kneo/v1
kind: Environment
metadata: {name: prod}
spec:
  releases:
    - {bundle: research-agent, version: 1.4.0, digest: "sha256:%s"}
    - {bundle: other, version: 0.1.0}
  inlineSpecs: false
  people:
    ann: {groups: [editors], roles: [approver]}
  promoteFrom: staging
  policy:
    enabled: true
    fail_on_warnings: false
    blocked_diagnostic_codes: []
    require_human_review: true
    require_tool_permissions: true
    deny_unrestricted_tools: true
    require_guardrails: false
  signatures: {accept: [dsse], roles: [release], threshold: 1}
  approvals: {required: 1, roles: [approver], exclude: [bundle_signer], expires: 7d, signed: false}
  windows: [{deny: "Fri 16:00 - Mon 08:00", timezone: Europe/Berlin}, {allow: "* 06:00 - 20:00"}]
  soak: 24h
  prune: {maxPercent: 20}
  atomic: true
  suspend: false
""" % ("a" * 64)

LEAST = """\
apiVersion: kneo/v1
kind: Environment
metadata: {name: dev}
spec:
  policy: {}
  signatures: {roles: [release], threshold: 1}
"""


def parse(text):
    return parse_environment(text.encode(), file="environments/prod.yaml")


def refusal(text):
    with pytest.raises(InvalidDeclaration) as caught:
        parse(text)
    return caught.value


def test_the_whole_file():
    environment = parse(FULL)
    spec = environment.spec
    assert environment.name == "prod"
    assert [(pin.bundle, pin.version) for pin in spec.releases] == [("research-agent", "1.4.0"), ("other", "0.1.0")]
    assert spec.people["ann"].roles == ("approver",)
    assert spec.policy.require_human_review
    assert spec.signatures.threshold == 1
    assert spec.approvals.expires == timedelta(days=7)
    assert spec.soak == timedelta(hours=24)
    assert [window.effect for window in environment.windows] == ["deny", "allow"]
    assert not environment.windows[0].is_open(datetime(2026, 11, 21, 12, tzinfo=UTC)), "a Saturday"
    assert spec.atomic


def test_the_least_file_is_careful():
    spec = parse(LEAST).spec
    assert not spec.inline_specs
    assert spec.signatures.accept == ("dsse",)
    assert spec.prune.max_percent == 20
    assert not spec.allow_self


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("  policy: {}\n", "", (5, 3), "policy is required"),
        ("  signatures: {roles: [release], threshold: 1}\n", "", (5, 3), "signatures is required"),
        ("threshold: 1", "threshold: 0", (6, 45), "at least 1"),
        ("roles: [release], ", "", (6, 15), "roles is required"),
        ("roles: [release]", "roles: []", (6, 23), "at least 1"),
        ("threshold: 1}", "threshold: 1, accept: []}", (6, 56), "at least 1"),
        ("threshold: 1}", "threshold: 1, accept: [pgp]}", (6, 57), "'dsse' or 'hmac-v1'"),
        ("policy: {}", "policy: {require_human_reviews: true}", (5, 12), "Did you mean require_human_review?"),
        ("policy: {}", "policy: {enabled: yes}", (5, 21), "true or false, not text"),
        ("kind: Environment", "kind: Enviroment", (2, 7), "Did you mean Environment?"),
        ("spec:\n", "spec:\n  autonomous: true\n", (5, 3), "not a key"),
        ("spec:\n", "spec:\n  promoteFrom: dev\n", (5, 16), "itself"),
        ("spec:\n", "spec:\n  soak: 3h\n", (5, 9), "promoteFrom"),
        ("spec:\n", "spec:\n  soak: 3\n", (5, 9), "duration"),
        ("spec:\n", "spec:\n  soak: 999999999d\n", (5, 9), "ten years"),
        ("spec:\n", "spec:\n  releases: [{bundle: a, version: 1.10}]\n", (5, 35), "quotes"),
        ("spec:\n", "spec:\n  releases: [{bundle: ../a, version: v}]\n", (5, 23), "letters, digits"),
        ("spec:\n", "spec:\n  releases: [{bundle: a, version: v}, {bundle: a, version: w}]\n", (5, 48), "twice"),
        ("spec:\n", "spec:\n  releases: [{bundle: a, version: v, digest: abc}]\n", (5, 46), "64"),
        ("spec:\n", "spec:\n  windows: [{deny: sometimes}]\n", (5, 13), "not a window"),
        ("spec:\n", 'spec:\n  windows: [{deny: "* 01:00 - 02:00", allow: "* 01:00 - 02:00"}]\n', (5, 13), "either"),
        ("spec:\n", 'spec:\n  windows: [{deny: "* 01:00 - 02:00", timezone: ../x}]\n', (5, 13), "time zone"),
        ("spec:\n", "spec:\n  approvals: {exclude: [everybody]}\n", (5, 25), "bundle_signer"),
    ],
)
def test_refusals_say_where(old, new, place, words):
    assert old in LEAST
    error = refusal(LEAST.replace(old, new, 1))
    assert words in str(error)
    assert (error.findings[0].line, error.findings[0].column) == place
    assert str(error).startswith(f"environments/prod.yaml:{place[0]}:{place[1]}: ")


@pytest.mark.parametrize("text", ["", "[]", "text", "3"])
def test_other_shapes_are_refused(text):
    assert "must be a map" in str(refusal(text))


def test_unreadable_bytes_are_refused():
    with pytest.raises(Unreadable):
        parse_environment(b"[" * 100_000, file="environments/prod.yaml")


def test_the_policy_digest_covers_everything_but_what_runs_and_whether():
    digest = parse(FULL).policy_digest
    assert parse(FULL.replace("1.4.0", "1.5.0").replace("suspend: false", "suspend: true")).policy_digest == digest
    assert parse("# a comment\n" + FULL).policy_digest == digest
    for old, new in [
        ("threshold: 1", "threshold: 2"),
        ("name: prod", "name: prd"),
        ("soak: 24h", "soak: 1h"),
        ("groups: [editors]", "groups: [writers]"),
        ("  atomic: true\n", ""),
    ]:
        assert parse(FULL.replace(old, new)).policy_digest != digest, old


def test_twenty_thousand_releases_are_read():
    lines = "".join(f'    - {{bundle: b{n}, version: 1.0.0, digest: "sha256:{n:064x}"}}\n' for n in range(20_000))
    environment = parse(LEAST + "  releases:\n" + lines)
    assert len(environment.spec.releases) == 20_000
