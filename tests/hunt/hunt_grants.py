"""Random calls, votes, revocations, rejections, releases and days against a model of the limits of standing grants.

Law 1: a call is covered by the grant that the model names, or asked about with the reason that the model names. Law 2: a grant has the
uses, the totals and the end of the model. Law 3: the tool refunded what was covered or approved, once each, and nothing else.

Condition, limits and totals are computed here with decimals, from the arguments alone; nothing of the product decides in the model.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from grant_house import PEOPLE, RULE, GrantHouse, grant_house
from hunt.report import Budget, Finding, Report
from installation_key import find_key

from kneo.clock import ManualClock, SystemClock
from kneo.records.grant import Grant
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.timers import end_expired_grants
from kneo.store.migrate import open_store

STEPS = 24
MOST_BY_RULE = Decimal(500)
RULES = {"open": [RULE], "tight": [{**RULE, "uses": 4}], "none": []}
"""Rules of the environment; the tight one allows no grant of more than four uses."""


@dataclass
class GrantModel:
    """What the model knows of a grant."""

    release: int
    most: Decimal
    """The largest amount that its condition allows."""
    uses: int
    per_run: int | None
    per_day: int | None
    total: Decimal
    expires: datetime
    is_active: bool
    used: list[tuple[str, str, Decimal]] = field(default_factory=list)
    """The run, the day and the amount of each use."""
    ended: str | None = None

    @property
    def spent(self) -> Decimal:
        return sum((amount for _, _, amount in self.used), Decimal(0))


@dataclass
class Case:
    """One environment, its grants and its runs."""

    house: GrantHouse
    pick: random.Random
    rule: str = "open"
    ben_is_known: bool = True
    release: int = 1
    newest: int = 1
    grants: dict[str, GrantModel] = field(default_factory=dict)
    records: dict[str, Grant] = field(default_factory=dict)
    asked: dict[str, tuple[Run, int, Decimal]] = field(default_factory=dict)
    """Runs with one call that waits for people, with its release and its amount."""
    allowed: list[Decimal] = field(default_factory=list)
    """The amounts of calls that were covered or approved, and whose runs ended."""
    kept: list[Decimal] = field(default_factory=list)
    """The amounts of covered calls of runs that wait for another call."""
    broken: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        return self.house.store.clock.now()

    def play(self) -> None:
        moves = [self.call, self.grant, self.revoke, self.answer, self.publish, self.wait, self.change_rules]
        self.house.release()
        self.grant()
        for _ in range(STEPS):
            self.pick.choices(moves, [14, 4, 1, 2, 1, 2, 1])[0]()
            self.check()

    def say(self, law: str) -> None:
        self.broken.append(law)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # ---- moves ------------------------------------------------------------------------------------------------------

    def grant(self) -> None:
        if self.rule == "none" or not self.ben_is_known:
            return
        most, uses = Decimal(self.pick.choice([10, 50, 500])), self.pick.randint(1, 4 if self.rule == "tight" else 8)
        total = Decimal(self.pick.choice(["0.3", "10", "10", "20", "60.5", "900"]))
        per_run, per_day = self.pick.choice([None, None, 1, 2]), self.pick.choice([None, None, 2])
        lasts = timedelta(hours=self.pick.choice([5, 8, 30, 24 * 14]))
        made = self.house.create(
            when=f"args.amount <= {most} && args.currency == 'EUR'",
            uses=uses,
            uses_per_run=per_run,
            uses_per_day=per_day,
            total={"amount": float(total)},
            expires_in=lasts,
        )
        is_active = self.pick.random() < 0.85
        if is_active:
            made = self.house.approve(made)
        self.records[made.id] = made
        self.grants[made.id] = GrantModel(
            self.release, most, uses, per_run, per_day, total, self.now + lasts, is_active
        )

    def revoke(self) -> None:
        open_ones = [grant_id for grant_id in self.of_release(self.release) if self.grants[grant_id].expires > self.now]
        if open_ones:
            chosen = self.pick.choice(open_ones)
            self.house.revoke(self.records[chosen])
            self.grants[chosen].ended = "revoked"

    def answer(self) -> None:
        """Approve or reject a call that waits for people."""
        if not self.asked or not self.ben_is_known:
            return
        run, release, amount = self.asked.pop(self.pick.choice(sorted(self.asked)))
        [task] = self.house.open(run)
        if self.pick.random() < 0.3:
            self.house.say(task, "rejected", "ann")
            for grant_id in self.of_release(release):
                self.grants[grant_id].ended = "rejected"
        else:
            for name in ("ann", "ben"):
                self.house.say(task, "approved", name)
            self.allowed.append(amount)
        self.house.drive(run)

    def publish(self) -> None:
        """Release another version, or go back to an earlier one."""
        if self.newest > 1 and self.pick.random() < 0.4:
            target = self.pick.randint(1, self.newest)
            self.house.serve(f"1.{target}.0")
        else:
            self.newest += 1
            target = self.newest
            self.house.release(self.house.spec(description=f"Refunds, version {target}."))
        if target != self.release:
            for grant_id in self.of_release(self.release):
                self.grants[grant_id].ended = "replaced"
        self.release = target

    def wait(self) -> None:
        self.house.store.clock.advance(timedelta(hours=self.pick.choice([1, 7, 24])))  # type: ignore[attr-defined]
        if self.pick.random() < 0.3:
            end_expired_grants(self.house.store)
            for grant in self.grants.values():
                if grant.ended is None and grant.expires <= self.now:
                    grant.ended = "expired"

    def change_rules(self) -> None:
        self.rule = self.pick.choice(["open", "open", "open", "tight", "none"])
        self.ben_is_known = self.pick.random() < 0.8
        people = PEOPLE if self.ben_is_known else {name: each for name, each in PEOPLE.items() if name != "ben"}
        self.house.serve(f"1.{self.release}.0", grants=RULES[self.rule], people=people)

    def call(self) -> None:
        number = self.pick.choice([1, 1, 1, 2, 3])
        amounts = [
            Decimal(self.pick.choice(["0.1", "0.2", "1", "4.5", "5", "7", "9.99", "10", "49.5", "700"]))
            for _ in range(number)
        ]
        run = self.house.refunds(*map(float, amounts))
        expected = [self.cover(run.id, amount) for amount in amounts]
        found = []
        for task in sorted(self.house.all_tasks(run), key=lambda task: task.id):
            about = task.metadata.get("grant")
            known = about if isinstance(about, dict) else {}
            by = task.decision.by if task.decision is not None else None
            found.append((known["id"], None) if by == "grant" else (None, known.get("not_covered")))
        if sorted(found, key=str) != sorted(expected, key=str):
            self.say(f"{run.id} with {[str(each) for each in amounts]} is {found}; the model says {expected}")
        waits = [amount for amount, (grant_id, _) in zip(amounts, expected, strict=True) if grant_id is None]
        covered = [amount for amount, (grant_id, _) in zip(amounts, expected, strict=True) if grant_id is not None]
        (self.kept if waits else self.allowed).extend(covered)
        self.count("asked" if waits else "covered")
        if run.status is not (RunStatus.PAUSED if waits else RunStatus.SUCCEEDED):
            self.say(f"{run.id} is {run.status}")
        if len(amounts) == 1 and waits:
            self.asked[run.id] = (run, self.release, amounts[0])

    # ---- the model --------------------------------------------------------------------------------------------------

    def of_release(self, release: int) -> list[str]:
        return sorted(each for each, grant in self.grants.items() if grant.ended is None and grant.release == release)

    def cover(self, run_id: str, amount: Decimal) -> tuple[str | None, str | None]:
        """Return the grant that covers a call, or the reason why the first one does not; count the use."""
        if self.rule == "none":
            return None, None
        first = None
        for grant_id in self.of_release(self.release):
            reason = self.obstacle(self.grants[grant_id], run_id, amount)
            if reason is None:
                grant = self.grants[grant_id]
                grant.used.append((run_id, str(self.now.date()), amount))
                grant.ended = "used_up" if len(grant.used) == grant.uses else None
                return grant_id, None
            first = first or reason
        over = [
            (grant_id, grant.ended)
            for grant_id, grant in self.grants.items()
            if grant.release == self.release and grant.ended in {"used_up", "expired"}
        ]
        return None, first or (max(over)[1] if over else None)

    def obstacle(self, grant: GrantModel, run_id: str, amount: Decimal) -> str | None:
        today = str(self.now.date())
        if grant.expires <= self.now:
            return "expired"
        if amount > grant.most or amount > MOST_BY_RULE:
            return "condition"
        if self.rule == "tight" and grant.uses > 4:
            return "limits"
        if grant.per_run is not None and sum(run == run_id for run, _, _ in grant.used) >= grant.per_run:
            return "limits"
        if grant.per_day is not None and sum(day == today for _, day, _ in grant.used) >= grant.per_day:
            return "limits"
        if grant.spent + amount > grant.total:
            return "total"
        if not grant.is_active:
            return "quorum"
        return None if self.ben_is_known else "not_a_candidate"

    def check(self) -> None:
        for grant_id, grant in self.grants.items():
            found = self.house.grant(self.records[grant_id])
            uses = self.house.uses(found)
            if [run_id for _, run_id in uses] != [run_id for run_id, _, _ in grant.used] or found.uses != len(uses):
                self.say(f"{grant_id} has the uses {uses}, {found.uses}; the model {grant.used}")
            if Decimal(found.totals.get("amount", "0")) != grant.spent or found.ended != grant.ended:
                self.say(f"{grant_id} has {dict(found.totals)} and ended {found.ended}; the model {grant}")
            if len(grant.used) > grant.uses or grant.spent > grant.total:
                self.say(f"{grant_id} exceeds its limits: {grant}")
        left = [Decimal(str(amount)) for amount in self.house.refunded()]
        for amount in self.allowed:
            if amount not in left:
                self.say(f"{amount} was not refunded")
            else:
                left.remove(amount)
        further = list(self.kept)
        for amount in left:
            if amount not in further:
                self.say(f"{amount} was refunded and neither covered nor approved")
            else:
                further.remove(amount)


@contextmanager
def playing(seed: int) -> Iterator[Case]:
    folder, patch = Path(tempfile.mkdtemp(prefix="kneo-hunt-")), pytest.MonkeyPatch()
    store = open_store(f"sqlite:///{folder / 'kneo.db'}", ManualClock(SystemClock().now()), find_key)
    try:
        with grant_house(store, folder, patch) as house:
            yield Case(house, random.Random(seed))
    finally:
        store.close()
        patch.undo()
        shutil.rmtree(folder)


def hunt(budget: Budget) -> Report:
    """Play cases, until the budget is used up."""
    report = Report(counts={"covered": 0, "asked": 0})
    for seed in budget.seeds():
        report.cases += 1
        with playing(seed) as case:
            case.play()
            for what, number in case.counts.items():
                report.count(what, number)
            for grant in case.grants.values():
                report.count(grant.ended or "open")
            report.findings.extend(Finding(seed, "a grant decides as its limits say", each) for each in case.broken[:1])
    return report
