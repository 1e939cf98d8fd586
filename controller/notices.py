"""What a pass has to say to people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from controller.stages.gates import Allowed
from controller.stages.plan import Action, Retire, kind_of, name_of, version_of
from controller.stages.report import Drift
from kneo.notify.outbox import Notice
from kneo.records.release import Pending, PromotionKind, Release

PHASES = {
    PromotionKind.PROMOTE: "promoted",
    PromotionKind.ROLLBACK: "rolled_back",
    PromotionKind.RETIRE: "retired",
}


def notices_of_changes(
    environment: str, revision: str, at: str, done: Iterable[tuple[Action, Allowed]], why: str = ""
) -> Iterator[Notice]:
    """Tell what happened.

    Args:
        environment: Where.
        revision: The commit.
        at: When.
        done: What.
        why: The words of whoever asked for it by hand.
    """
    for action, _ in done:
        yield Notice(
            environment=environment,
            bundle=name_of(action),
            version=version_of(action),
            digest=action.current.digest if isinstance(action, Retire) else action.bundle.digest,
            phase=PHASES[kind_of(action)],
            reason="",
            message=why,
            revision=revision,
            at=at,
        )


def notices_of_findings(
    environment: str, revision: str, news: Iterable[Pending], drift: Iterable[Drift], served: Mapping[str, Release]
) -> Iterator[Notice]:
    """Tell what waits now, what was refused, and what is served and should not be."""
    for found in drift:
        yield Notice(
            environment=environment,
            bundle=found.bundle,
            version=served[found.bundle].version,
            digest=found.digest,
            phase="drifted",
            reason=found.reason,
            message=found.message,
            revision=revision,
        )
    for item in news:
        yield Notice(
            environment=environment,
            bundle=item.bundle,
            version=item.version,
            digest=item.digest,
            phase="refused" if item.gate == "verify" else "waiting",
            reason=item.reason,
            message=item.message,
            revision=revision,
            who=item.who,
        )
