"""The backend on the local database: the same results as those of a service."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from cli import compose
from cli.backend import Json, P, Query, V
from cli.watch import poll
from kneo import registry
from kneo.api import task_views
from kneo.api.context import EVERYTHING, Context, Principal, Waiting
from kneo.api.operation import Operation
from kneo.api.run_views import TraceEventView
from kneo.api.runs import get_run
from kneo.api.status_words import in_published_words, speaks_published
from kneo.clock import sleep
from kneo.project import read_config
from kneo.records.run import Run, RunStatus
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.runtime.engine.wait import SettledRun
from kneo.service import receipts as decisions
from kneo.service import task_acts, task_links, wire
from kneo.service.task_query import task_page
from kneo.service.task_stats import task_stats
from kneo.settings import Settings
from kneo.store import history, task_feed, task_statistics, tasks
from kneo.tasks.inbox import decide
from kneo.trust.answer import open_answer
from kneo.trust.dsse import read_envelope
from kneo.trust.keys import KeyId

if TYPE_CHECKING:
    from cli.runs.local_runs import Driver

LOOK_SECONDS = 0.5
"""How often to look whether something has happened."""


class LocalBackend:
    """The operations on the local database. Steps are executed here unless another process executes them."""

    over_http = False

    def __init__(self, settings: Settings, *, existing: bool = False) -> None:
        self.settings = settings
        self.store = compose.find_store(settings) if existing else compose.make_store(settings)
        self.actor = getpass.getuser()
        self.published = speaks_published(settings.status_words, "")

    def close(self) -> None:
        self.store.close()

    # Whoever only looks does not import what knows specs and executes them, which takes longer than looking.

    @cached_property
    def driver(self) -> Driver:
        """What executes runs."""
        from cli.runs.local_runs import Driver

        return Driver(self.settings, self.store, self.actor)

    @cached_property
    def context(self) -> Context:
        """What operations work with in this process."""
        return Context(
            store=self.store,
            settings=self.settings,
            principal=Principal(self.actor, frozenset({EVERYTHING})),
            project=read_config(self.settings),
            make_starter=lambda: compose.make_starter(self.settings, self.store),
            settle=self._settle,
            drive=self._drive,
        )

    def _drive(self, run_id: str) -> Run:
        return self.driver.drive(run_id)

    def _settle(self, waiting: Waiting[object]) -> SettledRun:
        run_id = waiting.settling.run_id
        if waiting.settled is not None and waiting.seconds <= 0:
            self.driver.drive_aside(run_id)
            return waiting.settled
        return self.driver.settle(run_id)

    def call(self, operation: Operation[P, V], /, *args: P.args, **kwargs: P.kwargs) -> V:
        view = operation(self.context, *args, **kwargs)
        return in_published_words(view) if self.published else view

    def follow(self, run_id: str, *, until_pause: bool) -> Iterator[Json]:
        def look(known: int) -> tuple[str, Sequence[Json]]:
            status = self.call(get_run, run_id).status
            with self.store.read() as tx:
                events = history.list_trace(tx, run_id, limit=1000, offset=known)
            return str(status), [vars(TraceEventView.of(one)) for one in events]

        return poll(look, run_id, until_pause=until_pause)

    def tasks(self, query: Query) -> Json:
        with self.store.read() as tx:
            return task_page(tx, query, self.actor)

    def task(self, continuation_id: str) -> Json:
        # What an answer leads to takes the interpreter, which lists of tasks do without.
        from kneo.service.task_detail import task_detail

        with self.store.read() as tx:
            return task_detail(tx, continuation_id)

    def resume(self, continuation_id: str, answer: Mapping[str, object]) -> Json:
        said = task_acts.read_answer(answer, self._content_limit)
        actor = _reviewer(said.statement) or self.actor
        answered = decide(self.store, continuation_id, said, actor=actor, pin=self.settings.trust_root)
        run = self.driver.drive(answered.run_id)
        return self._resumed(run, answered)

    def answer_to_sign(self, continuation_id: str, answer: Mapping[str, object], keyid: str | None) -> Json:
        # Nobody is authenticated here; whoever signs is who their key says they are.
        actor = self._owner(keyid) if keyid is not None else self.actor
        limit = self._content_limit
        return decisions.answer_to_sign(self.store, continuation_id, answer, actor=actor, limit=limit)

    def make_link(self, continuation_id: str, order: Mapping[str, object]) -> Json:
        return task_links.make_link(self.store, continuation_id, order, actor=self.actor, at=self.settings.public_url)

    def links(self, continuation_id: str) -> Json:
        return task_links.list_links(self.store, continuation_id)

    def revoke_link(self, continuation_id: str, link_id: str) -> Json:
        return task_links.revoke_link(self.store, continuation_id, link_id, actor=self.actor)

    def act(self, continuation_id: str, verb: str, body: Mapping[str, object]) -> Json:
        return task_acts.act(self.store, continuation_id, verb, body, actor=self.actor)

    def task_history(self, continuation_id: str) -> Json:
        return task_acts.history(self.store, continuation_id)

    def follow_tasks(self, after: str | None) -> Iterator[Json]:
        position = task_feed.find_cursor(self.store, after).position
        while True:
            found = task_feed.events_after(self.store, position)
            for at, item in found:
                position = at
                yield task_views.event(item)
            if not found:
                sleep(LOOK_SECONDS)

    def task_summary(self) -> Json:
        with self.store.read() as tx:
            return task_views.summary(task_statistics.summary(tx))

    def task_stats(self, query: Query) -> Json:
        environment, workflow_name = _text(query, "environment"), _text(query, "workflow_name")
        return task_stats(self.store, str(query["since"]), environment, workflow_name)

    def resume_many(self, items: Sequence[Mapping[str, object]]) -> Json:
        limit, pin = self._content_limit, self.settings.trust_root
        answer = task_acts.decide_all(self.store, items, actor=self.actor, limit=limit, pin=pin)
        results = answer["results"]
        assert isinstance(results, list)
        for run_id in dict.fromkeys(item["run_id"] for item in results if item["run_id"] is not None):
            self.driver.drive(run_id)
        return answer

    @property
    def _content_limit(self) -> int:
        return self.settings.limits.human_content_chars

    def _owner(self, keyid: str) -> str:
        with self.store.read() as tx:
            key = registry.trust_root(tx, self.settings.trust_root).keys.get(KeyId(keyid))
        return key.principal if key is not None else self.actor

    # ---- answers --------------------------------------------------------------------------------------------------

    def _resumed(self, run: Run, answered: HumanTask) -> Json:
        answer = wire.human_resumed(run, answered, self._open_task(run), published=self.published)
        if run.status is RunStatus.RUNNING:
            program = f"The program that executes the workflow {run.workflow_name} continues the run {run.id}"
            answer["note"] = f"The answer is recorded. {program}; start that program if it is not running."
        return answer

    def _open_task(self, run: Run) -> HumanTask | None:
        if run.status is not RunStatus.PAUSED:
            return None
        with self.store.read() as tx:
            return next(iter(tasks.of_run(tx, run.id, UNRESOLVED)), None)


def _reviewer(statement: Mapping[str, object] | None) -> str | None:
    """Read whose answer a statement says it is; whether they signed it is looked at before it counts."""
    return open_answer(read_envelope(statement)).said.reviewer if statement is not None else None


def _text(values: Mapping[str, object], name: str) -> str | None:
    value = values.get(name)
    return str(value) if value is not None else None
