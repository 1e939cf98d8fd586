"""The difference between what Git declares and what the registry serves. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from controller.stages.verify import Candidate, UnchangedBundle, unchanged_bundle
from kneo.records.release import BundleRecord, PromotionKind, Release
from kneo.trust.verified import UNSEQUENCED


@dataclass(frozen=True)
class Promote:
    """Serve a bundle that is newer than what is served, or new."""

    bundle: Candidate
    current: Release | None


@dataclass(frozen=True)
class Rollback:
    """Serve a bundle that is older than the one served here now."""

    bundle: Candidate
    current: Release | None


@dataclass(frozen=True)
class Retire:
    """Stop serving a bundle that Git no longer names."""

    current: Release


Action = Promote | Rollback | Retire


@dataclass(frozen=True)
class ReleasePlan:
    """What one commit would change in one environment."""

    environment: str
    revision: str
    actions: tuple[Action, ...]
    standing: Mapping[str, UnchangedBundle]
    """What stays as it is because Git and the registry agree, by bundle name."""


def make_plan(
    environment: str,
    revision: str,
    *,
    desired: Mapping[str, Candidate | UnchangedBundle],
    kept: Collection[str],
    observed: Mapping[str, Release],
    known: Mapping[str, BundleRecord],
) -> ReleasePlan:
    """Compare.

    Args:
        environment: Its name.
        revision: The commit that declares.
        desired: Bundles that Git names and that were verified, by name.
        kept: Names that Git names with a bundle that was refused; what they serve now stays as it is.
        observed: What is served, by bundle name.
        known: Every bundle ever accepted, by digest.
    """
    actions: list[Action] = []
    standing: dict[str, UnchangedBundle] = {}
    for name, bundle in sorted(desired.items()):
        current = observed.get(name)
        if isinstance(bundle, UnchangedBundle) or (current is not None and current.digest == bundle.digest):
            standing[name] = bundle if isinstance(bundle, UnchangedBundle) else unchanged_bundle(bundle)
            continue
        before = known.get(current.digest) if current is not None else None
        # What another environment serves makes nothing older here.
        older = before is not None and UNSEQUENCED < bundle.record.seq < before.seq
        actions.append(Rollback(bundle, current) if older else Promote(bundle, current))
    actions += [Retire(observed[name]) for name in sorted(observed.keys() - desired.keys() - set(kept))]
    return ReleasePlan(environment, revision, tuple(actions), standing)


def name_of(action: Action) -> str:
    """Which bundle an action is about."""
    return action.current.bundle if isinstance(action, Retire) else action.bundle.name


def version_of(action: Action) -> str:
    """Which version an action would bring, or take away."""
    return action.current.version if isinstance(action, Retire) else action.bundle.version


def kind_of(action: Action) -> PromotionKind:
    """What an action is called in an environment's history."""
    if isinstance(action, Retire):
        return PromotionKind.RETIRE
    return PromotionKind.ROLLBACK if isinstance(action, Rollback) else PromotionKind.PROMOTE
