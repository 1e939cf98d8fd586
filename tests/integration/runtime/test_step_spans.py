"""Spans of steps: what they carry of inputs and outputs, by the operator's settings and the policies of the spec."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import Engine, step
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kneo import telemetry as spans
from kneo.records.run import RunStatus
from kneo.runtime.engine.start import StartRequest
from kneo.settings import Tracing
from kneo.store.engine import Store

SOURCE = """
def shout(text): return text.upper()
async def whisper(text): return text.lower()
"""


@pytest.mark.parametrize(("policies", "is_carried"), [({}, True), ({"tracing": {"include_messages": False}}, False)])
def test_a_spec_keeps_inputs_and_outputs_out_of_spans(
    policies: dict[str, object], is_carried: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans._state, "tracer", provider.get_tracer("kneo"))
    switches = Tracing(enabled=True, record_arguments=True, record_results=True)
    monkeypatch.setattr(spans._state, "tracing", switches)
    engine = Engine(store, tmp_path / "code", SOURCE)
    tree = {**engine.tree([step("shout"), step("whisper")]), "policies": policies}
    run = engine.drive(engine.starter.start(StartRequest(input="In", requester="bob", spec=tree)))
    assert run.status is RunStatus.SUCCEEDED
    steps = [each for each in exporter.get_finished_spans() if each.name == "kneo.step"]
    carried = [(each.attributes or {}).keys() & {"kneo.input", "kneo.output"} for each in steps]
    assert carried == [{"kneo.input", "kneo.output"} if is_carried else set()] * 2
