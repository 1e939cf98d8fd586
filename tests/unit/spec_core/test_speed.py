"""Checking specs stays quick: what it costs, how it grows, and what it does not import."""

import subprocess
import sys
from time import process_time

from kneo.spec.lint import check
from kneo.spec.reading.load import load_spec

AGENT = """\
    a{n}:
      name: a{n}
      system_prompt: You are agent {n}.
      model: {{provider: dummy, name: d, temperature: 0.2}}
      strategy: {{type: react, max_iterations: 5}}
      tools:
        include: [t]
        permissions:
          allow_network: true
          allow_shell: false
          allowed_domains: [example.org]
      guardrails:
        input:
          - {{id: g, type: keyword, config: {{keywords: [x]}}}}
"""


def spec(agents, steps):
    lines = ["agent: {name: root}\nworkflow:\n  type: sequential\n  steps:\n"]
    lines += [
        f"    - id: s{n}\n      kind: agent\n      ref: a{n % agents}\n      on_error: fail\n" for n in range(steps)
    ]
    lines += ["components:\n  agents:\n", *(AGENT.format(n=n) for n in range(agents))]
    return "".join([*lines, "tools:\n  t: {description: d, implementation: m.f}\n"]).encode()


def seconds(data):
    """Return the least processor time of several tries, which a busy machine disturbs least."""
    best = 10.0
    for _ in range(5):
        start = process_time()
        loaded = load_spec(data, file="s.yaml", rules=check)
        best = min(best, process_time() - start)
        assert loaded.valid, loaded.diagnostics
    return best


def test_a_large_spec_is_linted_at_once():
    data = spec(agents=50, steps=600)
    assert data.count(b"\n") > 3000
    assert seconds(data) < 0.5


def test_cost_grows_with_the_number_of_steps_and_not_faster():
    seconds(spec(5, 10))
    hundred, thousand = seconds(spec(5, 100)), seconds(spec(5, 1000))
    assert thousand < 20 * hundred + 0.1


def test_checking_imports_nothing_heavy():
    program = (
        "import sys, kneo.cli.main, kneo.cli.specs.spec;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "fastapi",
        "sqlalchemy",
        "httpx",
        "cryptography",
        "git",
        "uvicorn",
        "alembic",
        "rich",
        "jsonschema",
        "re2",
        "asyncio",
    }
    assert heavy.isdisjoint(loaded)
