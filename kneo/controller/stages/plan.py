"""The difference between the declared releases and the registry. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kneo.controller.stages.verify import Candidate, UnchangedBundle, Verified, unchanged_bundle
from kneo.records.release import BundleRecord, PromotionKind, Release
from kneo.spec.models.canary import CanaryPlan
from kneo.spec.models.environment import Environment
from kneo.trust.verify import UNSEQUENCED


@dataclass(frozen=True)
class Promote:
    """Release a new bundle, or a newer version of a released one."""

    bundle: Candidate
    current: Release | None


@dataclass(frozen=True)
class Rollback:
    """Release an older version than the current release."""

    bundle: Candidate
    current: Release | None


@dataclass(frozen=True)
class Retire:
    """Remove the release of a bundle that Git no longer declares."""

    current: Release


Action = Promote | Rollback | Retire


@dataclass(frozen=True)
class ReleasePlan:
    """The changes of one commit in one environment."""

    environment: str
    revision: str
    actions: tuple[Action, ...]
    unchanged: Mapping[str, UnchangedBundle]
    """Releases that Git and the registry agree on, by bundle name."""

    canaries: Mapping[str, CanaryPlan] = field(default_factory=dict)
    """The declared canary plans, by bundle name."""


def make_plan(
    environment: Environment,
    revision: str,
    verified: Verified,
    served: Mapping[str, Release],
    known: Mapping[str, BundleRecord],
) -> ReleasePlan:
    """Compare the declared releases of an environment with the current ones.

    Args:
        environment: The environment's file.
        revision: The commit.
        verified: The declared bundles; the current release of a rejected one stays.
        served: Current releases, by bundle name.
        known: Every bundle ever accepted, by digest.
    """
    actions: list[Action] = []
    rejected = {rejection.bundle for rejection in verified.rejected}
    unchanged: dict[str, UnchangedBundle] = {}
    for name, bundle in sorted(verified.desired.items()):
        current = served.get(name)
        if isinstance(bundle, UnchangedBundle) or (current is not None and current.digest == bundle.digest):
            unchanged[name] = bundle if isinstance(bundle, UnchangedBundle) else unchanged_bundle(bundle)
            continue
        before = known.get(current.digest) if current is not None else None
        # Only this environment's release counts, not newer versions of another environment.
        older = before is not None and UNSEQUENCED < bundle.record.seq < before.seq
        actions.append(Rollback(bundle, current) if older else Promote(bundle, current))
    actions += [Retire(served[name]) for name in sorted(served.keys() - verified.desired.keys() - rejected)]
    return ReleasePlan(environment.name, revision, tuple(actions), unchanged, environment.canaries)


def name_of(action: Action) -> str:
    """Return the bundle name of an action."""
    return action.current.bundle if isinstance(action, Retire) else action.bundle.name


def version_of(action: Action) -> str:
    """Return the version that an action releases or removes."""
    return action.current.version if isinstance(action, Retire) else action.bundle.version


def kind_of(action: Action) -> PromotionKind:
    """Return the kind of promotion in an environment's history."""
    if isinstance(action, Retire):
        return PromotionKind.RETIRE
    return PromotionKind.ROLLBACK if isinstance(action, Rollback) else PromotionKind.PROMOTE
