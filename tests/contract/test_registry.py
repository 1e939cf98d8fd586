"""A registry with a long history, and one with an environment that this version cannot read."""

from __future__ import annotations

import pytest
from gates.asking import declare
from operation_context import operation_context

from kneo.api.agents import list_agents
from kneo.api.environments import get_environment, list_environments
from kneo.api.specs import list_skills
from kneo.errors import Invalid
from kneo.records.release import (
    BundleRecord,
    Condition,
    ConditionType,
    EnvironmentRecord,
    Promotion,
    PromotionKind,
    Release,
)
from kneo.registry import explain
from kneo.store import releases
from kneo.store.engine import Store
from kneo.tasks.people import identities_of


def test_a_digest_is_traced_however_many_promotions_came_after_it(store: Store) -> None:
    digests = [f"sha256:{number:064x}" for number in range(1_002)]
    made = [
        Promotion(
            id=f"prom_{number:04}",
            environment="prod",
            bundle="mail",
            kind=PromotionKind.PROMOTE,
            from_digest=None,
            to_digest=digest,
            version=str(number),
            actor="controller",
            revision="main",
            audit_event_id=f"evt_{number:04}",
            at="",
        )
        for number, digest in enumerate(digests)
    ]
    with store.write() as tx:
        releases.insert_promotions(tx, made)
    with store.read() as tx:
        found = explain.trace(tx, digests[0])
        assert [item.version for item in found.promotions] == ["0"]
        assert len(releases.list_promotions(tx, "prod", limit=2)) == 2


def test_an_environment_that_cannot_be_read_hides_no_other(store: Store) -> None:
    declare(store)
    unreadable = EnvironmentRecord(
        name="old", declaration=b"kind: Other", policy_digest="", revision="main", pending=(), updated_at=""
    )
    stalled = Condition(type=ConditionType.STALLED, status=True, reason="Invalid", message="", revision="main")
    with store.write() as tx:
        releases.put_environments(tx, [unreadable])
        releases.put_conditions(tx, "environment/new", [stalled])
    with store.read() as tx:
        assert {"user:ann", "role:prod/reviewer"} <= identities_of(tx, "ann")
    context = operation_context(store)
    assert [item.name for item in list_environments(context).environments] == ["new", "old", "prod"]
    assert get_environment(context, "old").approvals is None
    assert list_agents(context).count == 0
    with pytest.raises(Invalid):
        list_agents(context, "old")


def test_a_release_that_cannot_be_read_hides_no_skills(store: Store) -> None:
    digest = f"sha256:{1:064x}"
    bundle = BundleRecord(
        digest=digest,
        name="old",
        version="1",
        seq=1,
        prev=None,
        payload=b"[]",
        envelope=b"[]",
        spec_digest=digest,
        signers=(),
        first_seen_at="",
        revision="main",
    )
    release = Release(
        environment="prod",
        bundle="old",
        version="1",
        digest=digest,
        revision="main",
        promotion_id="prom_1",
        since="",
    )
    with store.write() as tx:
        releases.insert_bundles(tx, [bundle])
        releases.put_releases(tx, [release])
    assert list_skills(operation_context(store)).skills == []
