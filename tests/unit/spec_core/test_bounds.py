"""Bounds of the fields of files: each is enforced, at its smallest and at its largest value."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from pydantic import BaseModel

import kneo.spec
from kneo.spec.environment import parse_environment
from kneo.spec.reading.validate import InvalidDeclaration

CALL = {"bundle": "pay"}
GRANT = {"tools": ["refund"], "uses": 100, "expires": "30d"}
PLAN = {"steps": ["5%", "100%"], "stopIf": [{"metric": "failed", "worseBy": "50%"}]}


def evidence(**fields: object) -> list[Mapping[str, object]]:
    rule = {
        "name": "rehearsed",
        "type": "rehearsal",
        "environment": "staging",
        "signers": {"role": "evaluator"},
        "require": [{"metric": "unsafe", "atMost": 0}],
    }
    return [rule | fields]


def releases(**fields: object) -> list[Mapping[str, object]]:
    return [{"bundle": "pay", "version": "1.0.0", "canary": PLAN | fields}]


def steps(count: int) -> list[str]:
    return [*(f"{share}%" for share in range(1, count)), "100%"]


def limits(**fields: object) -> Mapping[str, object]:
    return {"sandbox": {"limits": fields}}


def parse(**spec: object) -> None:
    whole = {"policy": {"enabled": True}, "signatures": {"roles": ["release"], "threshold": 1}} | spec
    file = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"}, "spec": whole}
    parse_environment(json.dumps(file).encode(), file="environments/prod.json")


BOUNDS: list[tuple[str, list[object], list[object]]] = [
    (
        "quotas",
        [{"stored": size} for size in ("64Ki", "65536Ki", "1Gi", "10240Gi", "10Ti")],
        [{"stored": size} for size in ("63Ki", "10241Gi", "11Ti", "1", "64KB", "0Ki", "1.5Gi", "", "64Ki\n")],
    ),
    (
        "tools",
        [limits(memory=size) for size in ("16Mi", "16384Ki", "65536Mi", "64Gi")],
        [limits(memory=size) for size in ("15Mi", "65Gi", "1Ti")],
    ),
    ("tools", [limits(read=["/srv"], write=["/data"])], [limits(read=["/data/../etc"]), limits(write=["data"])]),
    (
        "tools",
        [limits(net=["*.shop.example:443"])],
        [limits(net=[each]) for each in ("shop.example", "*", "10.0.0.1:443")],
    ),
    ("protocols", [{"calls": [CALL] * 100}], [{"calls": [CALL] * 101}]),
    (
        "evidence",
        [[{**evidence()[0], "name": f"rule{number}"} for number in range(20)]],
        [[{**evidence()[0], "name": f"rule{number}"} for number in range(21)]],
    ),
    (
        "evidence",
        [evidence(require=[{"metric": "unsafe", "notWorseThan": "current", "margin": 0.5}])],
        [
            evidence(require=[{"metric": "unsafe", "notWorseThan": "current", "margin": -0.5}]),
            evidence(require=[{"metric": "pass_rate", "atLeast": 1}]),
            evidence(type="canary"),
        ],
    ),
    (
        "evidence",
        [evidence(type="canary", require=[{"metric": name, "atMost": 0.1}]) for name in ("failed", "control.cost")],
        [evidence(type="canary", require=[{"metric": "control.unsafe", "atMost": 0.1}])],
    ),
    (
        "grants",
        [[GRANT | {"uses": 10_000, "expires": "90d"}]],
        [[GRANT | {"uses": 10_001}], [GRANT | {"expires": "91d"}]],
    ),
    ("releases", [releases(steps=steps(10))], [releases(steps=steps(11))]),
]


@pytest.mark.parametrize(
    ("key", "good", "bad"), BOUNDS, ids=[f"{key}-{number}" for number, (key, *_) in enumerate(BOUNDS)]
)
def test_a_value_is_accepted_within_its_bounds_alone(key: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        parse(**{key: value})
    for value in bad:
        with pytest.raises(InvalidDeclaration) as refused:
            parse(**{key: value})
        assert key in str(refused.value), value


def models() -> Iterator[type[BaseModel]]:
    for module in pkgutil.walk_packages(kneo.spec.__path__, "kneo.spec."):
        importlib.import_module(module.name)
    found = [BaseModel]
    for model in found:
        found += [each for each in model.__subclasses__() if each not in found]
    return (model for model in found if model.__module__.startswith("kneo."))


def test_no_field_repeats_a_bound_of_its_type() -> None:
    """Of two bounds of the same kind pydantic enforces that of the type, and the field's has no effect."""
    kinds = {"MaxLen", "MinLen", "Ge", "Gt", "Le", "Lt"}
    twice = [
        f"{model.__module__}.{model.__name__}.{name}: {kind}"
        for model in models()
        for name, field in model.model_fields.items()
        for kind, count in Counter(type(each).__name__ for each in field.metadata).items()
        if count > 1 and kind in kinds
    ]
    assert not twice
