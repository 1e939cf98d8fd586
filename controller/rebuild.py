"""Following the commits of a repository one after the other into an empty registry, as if it had been there all the time.

What an environment serves follows from the commits before the newest one as well: a version that was promoted while the
environment before it still served it, a release that a broken file keeps. So a registry that is lost is rebuilt from all of them.

The dates of commits are their authors' own. They count for one thing only, how long an environment had served a bundle, and
never make that longer than the time since the bundle was signed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from controller.registry_state import Served
from controller.source.snapshot import SourceSnapshot
from controller.stages.gates import CommitTimes


@dataclass
class CommitCalendar:
    """Since when environments served what they serve, by the dates of the commits that were replayed so far.

    Args:
        now: No commit is taken to be later than this.
    """

    now: datetime
    _at: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    _since: dict[tuple[str, str], datetime] = field(default_factory=dict)

    def begin(self, commit: SourceSnapshot, following: SourceSnapshot | None) -> CommitTimes:
        """Come to a commit.

        Args:
            commit: It.
            following: The one after it; None for the newest.
        """
        self._at = max(self._at, self._date(commit))
        until = max(self._at, self._date(following)) if following is not None else self.now
        return CommitTimes(since=dict(self._since), at=self._at, until=until)

    def end(self, after: Served) -> None:
        """Note what is served now."""
        self._since = {
            (environment, release.digest): self._since.get((environment, release.digest), self._at)
            for environment, served in after.items()
            for release in served.values()
        }

    def _date(self, commit: SourceSnapshot) -> datetime:
        # A commit without a readable date is as late as can be: nothing was served for long because of it.
        if commit.committed_at is None:
            return self.now
        return min(self.now, datetime.fromtimestamp(commit.committed_at, UTC))
