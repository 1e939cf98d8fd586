"""Alerts and dashboard: each metric and label is one that the code exposes, each expression parses, each alert has a runbook."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from builders import build_run
from deploy_files import DEPLOY, ROOT, library, program
from engine import Engine
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from kneo.cli.serve.worker import WorkerMetrics
from kneo.clock import SystemClock
from kneo.controller import metrics as controller_metrics
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.runtime.engine.assemble import LockedWorker, worker_on
from kneo.service.access_log import RequestMetrics
from kneo.service.events import Streams
from kneo.service.metrics import Metrics
from kneo.store import runs, usage
from kneo.store.engine import WORKER_LOCK, Store
from kneo.store.migrate import open_store

FOLDER = DEPLOY / "observability"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
PANELS = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
RUNBOOKS = (ROOT / "docs" / "operations" / "runbooks.md").read_text()
NAME = re.compile(r"\bkneo_\w+")


def expressions() -> Iterator[str]:
    yield from (alert["expr"] for alert in ALERTS)
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])


@pytest.fixture
def exposed(migrated_file: Callable[[str], Path], tmp_path: Path) -> Iterator[Mapping[str, set[str]]]:
    """Yield all samples that services, workers and controllers expose, each with its labels."""
    store = open_store(f"sqlite:///{migrated_file('kneo.sqlite')}", SystemClock())
    with closing(store), store.shared(WORKER_LOCK) as lock, controller_samples():
        engine = Engine(store, tmp_path / "code", "")
        worker = LockedWorker(lock, lambda beat: worker_on(store, engine.driver(), concurrency=1, beat=beat))
        use_model(store)
        service = Metrics(store, Streams(1, 1, 1.0))
        RequestMetrics(service.registry).count(None, "GET", 200, 0.1)
        service.delivered("github", "accepted")
        families = [*service.registry.collect(), *REGISTRY.collect(), *WorkerMetrics(worker).collect()]
        found: dict[str, set[str]] = {}
        for sample in (sample for family in families for sample in family.samples):
            assert found.setdefault(sample.name, set(sample.labels)) == set(sample.labels), sample
        yield found


@contextmanager
def controller_samples() -> Iterator[None]:
    """Let each metric of the controller have a sample."""
    assert controller_metrics.READY is not None
    mark = "of this test"
    used = []
    for metric in vars(controller_metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            for count in range(1, 4):
                with suppress(ValueError):
                    metric.labels(*[mark] * count)
                    used.append((metric, [mark] * count))
    assert len(used) > 5
    try:
        yield
    finally:
        for metric, labels in used:
            metric.remove(*labels)


def use_model(store: Store) -> None:
    """Record that a run used a model."""
    facts = {"provider": "openai", "model": "gpt", "agent": "writer", "input_tokens": 1, "output_tokens": 1}
    at = {"started_at": "2026-01-31T12:00:00Z", "completed_at": "2026-01-31T12:00:01Z"}
    entry = ConversationEntry(
        conversation="agent~0",
        name="model:1",
        number=1,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        facts=facts,
        **at,
    )
    with store.write() as tx:
        run = build_run()
        runs.insert_run(tx, run)
        acquired = runs.acquire(tx, run.id, "claim")
        assert acquired is not None
        usage.record_usage(tx, acquired, [entry])


SELECTOR = re.compile(r"\b(kneo_\w+)(?:\{([^}]*)\})?")
AGGREGATION = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)\s*(?=\()")
OF_THE_SCRAPE = frozenset({"instance", "job"})
"""Labels that Prometheus adds to every sample."""


def labels_of(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the metrics of an expression, each with the labels by which it is selected or aggregated."""
    for metric in SELECTOR.finditer(expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", metric[2] or ""))
        for clause in AGGREGATION.finditer(expression):
            if clause.end() < metric.start() < end_of(expression, clause.end()):
                labels |= set(re.findall(r"\w+", clause[1]))
        yield metric[1], labels


def end_of(expression: str, opening: int) -> int:
    """Return the position of the parenthesis that closes an opening one."""
    depth = 0
    for position in range(opening, len(expression)):
        depth += {"(": 1, ")": -1}.get(expression[position], 0)
        if depth == 0:
            return position
    raise AssertionError(expression)


def wrong_labels(expression: str, exposed: Mapping[str, set[str]]) -> set[str]:
    """Return the labels of an expression that its metrics do not have."""
    return {
        f"{name}: {label}" for name, labels in labels_of(expression) for label in labels - exposed[name] - OF_THE_SCRAPE
    }


def test_every_metric_is_exposed_under_this_name_with_these_labels(exposed: Mapping[str, set[str]]) -> None:
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(named) > 20
    assert named - exposed.keys() == set()
    assert {wrong for expression in expressions() for wrong in wrong_labels(expression, exposed)} == set()


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ('max by (environment) (kneo_drift_objects{env="prod"})', {"kneo_drift_objects: env"}),
        ("max by (env) (kneo_drift_objects) > sum(kneo_runs)", {"kneo_drift_objects: env"}),
        (
            "sum by (model) (max by (environment, kind) (rate(kneo_model_tokens_total[5m])))",
            {"kneo_model_tokens_total: kind"},
        ),
        ('sum by (instance) (kneo_runs{status!="paused"}) / max without (queue) (kneo_runs)', {"kneo_runs: queue"}),
    ],
)
def test_a_label_that_a_metric_does_not_have_is_found(
    exposed: Mapping[str, set[str]], expression: str, wrong: set[str]
) -> None:
    assert wrong_labels(expression, exposed) == wrong


@pytest.mark.parametrize("expression", [*expressions()])
def test_every_expression_parses(expression: str) -> None:
    library("promql_parser")
    from promql_parser import parse

    parse(expression)


def test_an_alert_of_a_gauge_that_several_processes_expose_aggregates_them() -> None:
    for alert in ALERTS:
        assert re.search(r"\b(max|min|sum|absent)\b", alert["expr"]), alert["alert"]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {alert["alert"] for alert in ALERTS} == set(re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE))
    for alert in ALERTS:
        assert alert["annotations"]["runbook"] == f"docs/operations/runbooks.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in {"critical", "warning"}
        section = RUNBOOKS.split(f"## {alert['alert']}\n")[1].split("\n## ")[0]
        assert alert["annotations"]["summary"] in section
        assert "**Do.**" in section


def test_prometheus_accepts_the_alerts() -> None:
    check = [program("promtool"), "check", "rules", FOLDER / "alerts.yaml"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_have_ids_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
