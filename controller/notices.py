"""What a pass has to say to people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controller.gates import Allowed
from controller.plan import Action, Retire, kind_of, name_of, version_of
from kneo.notify.outbox import Notice
from kneo.state.release import Pending, PromotionKind

PHASES = {
    PromotionKind.PROMOTE: "promoted",
    PromotionKind.ROLLBACK: "rolled_back",
    PromotionKind.RETIRE: "retired",
}


def notices_of(
    environment: str, revision: str, done: Iterable[tuple[Action, Allowed]], news: Iterable[Pending]
) -> Iterator[Notice]:
    """Tell what happened, what waits now, and what was refused."""
    for action, _ in done:
        yield Notice(
            environment=environment,
            bundle=name_of(action),
            version=version_of(action),
            digest=action.current.digest if isinstance(action, Retire) else action.bundle.digest,
            phase=PHASES[kind_of(action)],
            reason="",
            message="",
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
