"""Feed mutated files to everything that reads what people write, for as long as wanted.

    make fuzz SECONDS=600 SEED=7

Half of the inputs are mutated bytes, half are files whose structure was mutated. Each has to end in a value or a refusal, in
bounded time and memory. An input that breaks this is written to the working directory.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic, process_time
from types import FrameType
from typing import Never

from fuzz.structures import Node, mutated, written

from kneo.api.spec_loader import SkillsChange, SpecLoader, SpecRequest
from kneo.clock import SystemClock
from kneo.controller.differences import policy_difference
from kneo.controller.stages.verify import check_spec
from kneo.errors import Invalid, KneoError
from kneo.settings import from_env
from kneo.spec.coverage.environment_gates import guarded_steps
from kneo.spec.coverage.policy import check_policy, policy_report
from kneo.spec.diff import bounded_changes, compare_specs, diff
from kneo.spec.diff.weakening import weakenings
from kneo.spec.documents import as_github, as_sarif, as_text
from kneo.spec.environment import parse_environment
from kneo.spec.graph import as_dot, as_mermaid, compiled, explained, linted, spec_graph
from kneo.spec.index import SpecIndex
from kneo.spec.lint import check
from kneo.spec.models.environment import with_gates
from kneo.spec.policy import PolicyFlags
from kneo.spec.project import parse_project
from kneo.spec.reading.inline import NoFiles
from kneo.spec.reading.load import SourceFile, load_spec, load_tree, resolve
from kneo.spec.reading.migrate import migrate
from kneo.spec.reading.reader import read_json, read_yaml
from kneo.spec.reading.yaml import write_yaml
from kneo.trust import root_edit
from kneo.trust.dsse import TrustedKey, parse_envelope, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.root import TRUST_ROOT_TYPE, TrustRoot, parse_root, root_payload, verify_chain
from kneo.trust.statement import PAYLOAD_TYPE, build_bundle, parse_approval, parse_bundle
from kneo.trust.verify import VerifiedBundle, bundle_path, verify_bundle

ROOT = Path(__file__).parents[2]
SECONDS_PER_INPUT = 2.0
"""Processor time, so that a busy machine finds nothing that is not there."""

MEMORY_BYTES = 1 << 30
"""Address space of the process, interpreter and libraries included; the largest input is 200 kB."""

NASTY = [
    b"[" * 300, b"{" * 300, b"- " * 300, b"? " * 50, b"&a *a ", b"!!python/object:x ", b"<<: ", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800",
    b"9" * 400, b"1e999", b"---\n", b"...\n", b"%YAML 1.3\n", b"|\n", b">-\n ", b"'", b'"', b"# ", b": ", b"\t", b"\r", b"\xc2\x85", b"\xe2\x80\xa8",
    b"null", b"true", b"{}", b"[]", b"__delete__: true", b"version: v0\n", b"kind: loop", b"kind: router", b"review: {before: true}", b"human_review: {}",
    b"when: {any_of: [{not: {type: always}}]}", b"steps: [[[]]]", b"choices: [{id: a}]", b"(a+)+$", b"0o17", b"010", b"2026-01-01",
]  # fmt: skip

Target = Callable[[bytes], object]


BASE = load_spec(b"agent: {name: root}\nworkflow: [root]", file="base.yaml").spec


def _load(data: bytes) -> object:
    """Do with a spec everything that a command does, as far as it gets."""
    loaded = resolve(load_spec(data, file="f.yaml", rules=check), NoFiles())
    shown = [as_sarif(loaded.diagnostics, tool_version="0"), as_github(loaded.diagnostics)]
    sources = {document.file: document.text for document in loaded.documents}
    shown += [as_text(found, sources) for found in loaded.diagnostics]
    policy_report(loaded.spec, loaded.diagnostics).flat()
    spec = loaded.spec
    if spec is not None:
        check_policy(spec, loaded.diagnostics, EVERYTHING)
        drawn = spec_graph(spec)
        shown += [as_mermaid(drawn), as_dot(drawn), diff(None, spec).to_markdown(), diff(BASE, spec).to_text()]
        write_yaml(loaded.tree)
    return shown


def _overlay(data: bytes) -> object:
    return load_spec(b"agent: {name: root}", file="f.yaml", overlays=[SourceFile("o.yaml", data)], rules=check)


EVERYTHING = PolicyFlags(
    fail_on_warnings=True,
    require_human_review=True,
    require_tool_permissions=True,
    deny_unrestricted_tools=True,
    require_guardrails=True,
)


ENVIRONMENT = b"""
apiVersion: kneo/v1
kind: Environment
metadata: {name: prod}
spec:
  policy: {enabled: true}
  signatures: {roles: [release], threshold: 1}
  approvals: {required: 1}
  people: {ann: {groups: [finance], roles: [approver]}}
  humans: {payers: {candidates: {groups: [finance]}}}
  gates:
    - {name: money, match: {kinds: [tool], tools: ["pay*"]}, before: {human: payers}}
    - {name: all, match: {steps: ["*"]}, before: {human: payers}, after: {human: payers}}
  models: {allow: [{provider: dummy, names: ["*"]}]}
  tools: {allow: ["*"], deny: ["shell*"], mcp: {pinned: true}}
"""
RICH = b"""
version: v1
agent:
  name: root
  skills: [brief]
  model: {provider: dummy, name: dummy}
  strategy: {type: react}
  memory: {policy: sliding_window, max_messages: 20}
  guardrails: {input: [{id: g, type: regex, config: {patterns: [x]}, action: block}]}
  tools: {include: [paint, look, find, note], permissions: {allow_network: true, allowed_domains: [a.example]}}
  output_schema: {type: object, properties: {a: {type: string, pattern: x}}, required: [a]}
skills: {brief: {content: Be brief., description: How.}}
mcp_servers: {crm: {transport: stdio, command: /usr/bin/crm}}
tools:
  paint: {description: P., a2a: {url: "https://a.example", keys: [{kty: OKP, crv: Ed25519, x: AA}]}, review: {before: boss}}
  look: {description: L., http: {url: "https://a.example/{id}", method: POST, headers: {A: b}}, parameters: {id: {type: string}}}
  find: {description: F., mcp: {server: crm, name: find, pin: {description: F., schema_digest: "sha256:%064d"}}}
  note: {description: N., implementation: acme.note, capabilities: [filesystem_write]}
workflow:
  type: sequential
  steps:
    - {id: a, kind: agent, ref: root, review: {before: {human: boss, when: {type: always}}, after: true}, on_error: retry}
    - {id: r, kind: router, selector: {conditions: [{when: {type: output_contains, value: x}, choice: u}], default: u},
       choices: {u: {steps: [{id: b, kind: function, ref: f}]}, v: {steps: [{id: h, kind: human, ref: boss}]}}}
    - {id: l, kind: loop, max_iterations: 2, until: {any_of: [{not: {type: always}}]}, steps: [{id: c, kind: workflow, ref: w}]}
    - {id: i, kind: condition, when: {type: variable_equals, key: a, value: 1}, steps: [root], else: [root]}
    - {id: p, kind: parallel, steps: [{id: d, kind: guardrail, ref: root}, root]}
components:
  functions: {f: {implementation: acme.f}}
  humans:
    boss: {candidates: {groups: [finance]}, fields: [{name: n, type: int}], quorum: {approvals: 2}, timeout: 2d,
           on_timeout: reject, options: [a, b], escalate: [{after: 1h, to: ann}]}
  workflows:
    w: {type: graph, start: a, max_steps: 9, nodes: {a: {id: a, kind: function, ref: f}, b: {id: b, kind: agent, ref: root}},
        edges: [{from: a, to: b, condition: {type: always}}]}
""".replace(b"%064d", b"0" * 64)
RULES = parse_environment(ENVIRONMENT, file="environments/prod.yaml")
RULES_BEFORE = parse_environment(
    b"""
apiVersion: kneo/v1
kind: Environment
metadata: {name: prod}
spec: {policy: {enabled: true}, signatures: {roles: [release], threshold: 1}}
""",
    file="environments/prod.yaml",
)
PLAIN: dict[str, object] = {"agent": {"name": "root"}}
KEY = PrivateKey.generate()
NOW = SystemClock().now()


def _trust() -> TrustRoot:
    me = TrustedKey(KEY.public, "ann")
    paths = {"release": root_edit.EVERYTHING}
    expires = NOW + timedelta(days=1)
    document = root_edit.first_root({"root": [me], "release": [me]}, expires=expires, paths=paths)
    envelope = serialise(sign(TRUST_ROOT_TYPE, root_payload(document), KEY))
    return verify_chain(parse_envelope(envelope).digest, [envelope], NOW)


TRUST = _trust()


def _signed(spec: dict[str, object]) -> VerifiedBundle:
    """Return a spec as a bundle that a person signed without a look at it, verified."""
    statement = build_bundle(
        name="mail",
        version="1.0.0",
        seq=1,
        prev=None,
        environments=["prod"],
        issued_at=NOW,
        approved_by="ann",
        spec=spec,
        depends_on=[],
    )
    return verify_bundle(
        serialise(sign(PAYLOAD_TYPE, statement.payload, KEY)),
        root=TRUST,
        signatures=RULES.spec.signatures,
        path=bundle_path("mail", "1.0.0"),
        environment="prod",
        now=NOW,
        first_seen=NOW,
    )


def _release(data: bytes) -> object:
    """Do with a signed spec what the controller does: check it under an environment's rules, and compare it."""
    value = read_yaml(data, file="f").value
    if not isinstance(value, dict):
        return None
    bundle = _signed(value)
    try:
        check_spec(bundle, (RULES, RULES_BEFORE), "bundles/mail/1.0.0.dsse.json")
    except KneoError as refusal:
        return refusal
    spec = load_tree(dict(bundle.spec)).spec
    assert spec is not None, "it was checked"
    views = [guarded_steps(SpecIndex.of(with_gates(spec, (gate,))), gate.name) for gate in RULES.gates]
    return views, bounded_changes(compare_specs(None, bundle.spec)), bounded_changes(compare_specs(bundle.spec, PLAIN))


def _request(data: bytes) -> object:
    """Do with a spec in a request what the operations on specs and the start of a run do."""
    value = read_yaml(data, file="f").value
    if not isinstance(value, dict):
        return None
    loader, order = SpecLoader(SETTINGS), SpecRequest(spec=value)
    loaded = loader.whole(order, SkillsChange(add=["a"], disable=["b"]))
    linted(loaded.diagnostics)
    if loaded.spec is not None:
        spec_graph(loaded.spec).as_json()
    if loaded.valid:
        assert loaded.spec is not None
        compiled(loaded.spec)
        explained(loaded.spec)
    return migrate(value)


def _environment(data: bytes) -> object:
    """Do with an environment file what the controller does: compare it with the one in force."""
    after = parse_environment(data, file="f.yaml")
    changes = [weakenings(before, after) for before in (RULES, RULES_BEFORE)]
    return changes, weakenings(after, RULES), policy_difference(RULES, after), policy_difference(after, RULES)


SETTINGS = from_env({}, ROOT)
TARGETS: dict[str, Target] = {
    "yaml": lambda data: read_yaml(data, file="f").locations(),
    "json": lambda data: read_json(data, file="f").locations(),
    "spec": _load,
    "overlay": _overlay,
    "release": _release,
    "request": _request,
    "environment": _environment,
    "project": lambda data: parse_project(data, file="f.yaml"),
    "trust root": parse_root,
    "envelope": parse_envelope,
    "statement": parse_bundle,
    "approval": parse_approval,
}


def corpus() -> list[bytes]:
    """Return files to start from."""
    files = sorted(
        [
            *ROOT.glob("examples/*.yaml"),
            *ROOT.glob("schemas/*.json"),
            *ROOT.glob("environments/*.yaml"),
            *ROOT.glob("tests/fixtures/specs/*.yaml"),
        ]
    )
    signed = sorted([*ROOT.glob("environments/**/*.json"), *ROOT.glob("bundles/**/*.json")])
    payloads = [base64.b64decode(json.loads(path.read_bytes())["payload"]) for path in signed]
    own = [ENVIRONMENT, RICH, b"", b"agent: {name: a}", b'{"agent": {"name": "a"}}']
    return [path.read_bytes() for path in [*files, *signed]] + payloads + own


def mutations(seed: int) -> Iterator[bytes]:
    """Yield files with parts cut, repeated, swapped and spoiled, without end: as bytes, and as the nodes that they hold."""
    dice = random.Random(seed)
    files = corpus()
    trees = [tree for file in files if (tree := _tree(file)) is not None]
    while True:
        if dice.random() < 0.5:
            tree = mutated(dice.choice(trees), dice, trees)
            yield written(tree, as_json=dice.random() < 0.3)[:200_000]
            continue
        data = bytearray(dice.choice(files))
        for _ in range(dice.randint(1, 6)):
            _mutate(data, dice, files)
        yield bytes(data[:200_000])


def _tree(file: bytes) -> Node:
    """Return the nodes of a file; ``None`` where it is not one of YAML."""
    try:
        return read_yaml(file, file="f").value
    except Invalid:
        return None


def _mutate(data: bytearray, dice: random.Random, files: list[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    end = min(len(data), at + dice.randint(0, 80))
    kind = dice.randrange(6)
    if kind == 0:
        data[at:at] = dice.choice(NASTY) * dice.choice([1, 1, 1, 50])
    elif kind == 1:
        del data[at:end]
    elif kind == 2:
        data[at:at] = data[at:end] * dice.choice([1, 3, 200])
    elif kind == 3 and data:
        data[at % len(data)] = dice.randrange(256)
    elif kind == 4:
        data[at:end] = bytes(dice.randrange(256) for _ in range(dice.randint(0, 8)))
    else:
        other = dice.choice(files)
        start = dice.randrange(len(other) + 1)
        data[at:at] = other[start : start + dice.randint(0, 400)]


def try_one(data: bytes) -> str | None:
    """Return what is wrong with how an input was handled; None when nothing is."""
    for name, target in TARGETS.items():
        start = process_time()
        try:
            with _stopped_after(5 * SECONDS_PER_INPUT):
                target(data)
        except KneoError:
            pass
        except Exception as error:  # noqa: BLE001 - finding these is the purpose; MemoryError is one of them
            return f"{name}: {type(error).__name__}: {error}"
        if process_time() - start > SECONDS_PER_INPUT:
            return f"{name}: took {process_time() - start:.1f} s"
    return None


class DoesNotEndError(Exception):
    """An input has had its time several times over."""


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Raise after so much processor time, so that an input that never ends is reported like any other."""

    def stop(_signal: int, _frame: FrameType | None) -> Never:
        raise DoesNotEndError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def peak_megabytes() -> int:
    """Return the most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def fuzz(seconds: float, seed: int) -> tuple[int, bytes | None, str | None]:
    """Try inputs for some time; return how many, and the first that was not handled."""
    until = monotonic() + seconds
    for tried, data in enumerate(mutations(seed), start=1):
        problem = try_one(data)
        if problem is not None:
            return tried, data, problem
        if monotonic() > until:
            return tried, None, None
    raise AssertionError


def main() -> int:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    tried, data, problem = fuzz(chosen.seconds, chosen.seed)
    sys.stdout.write(f"{tried} inputs through {len(TARGETS)} readers, at most {peak_megabytes()} MB in use\n")
    if data is None:
        return 0
    Path("fuzz-failure.bin").write_bytes(data)
    sys.stdout.write(f"{problem}\nThe input is in fuzz-failure.bin.\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
