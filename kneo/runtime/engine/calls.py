"""The start of a call: one tool call of a released bundle, which a program states that the environment serves the tool to.

A call without an idempotency key joins the same call of the caller that is open: its binding is written with the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from kneo import registry
from kneo.agents.tool_calls.questions import argument_misfits
from kneo.agents.tools.kinds import schema_of
from kneo.clock import new_id
from kneo.digest import canonical_json, digest_of_json
from kneo.errors import Forbidden, InvalidValue, NotFound
from kneo.records.run import Run
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.wait import find_run
from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.models.spec import Spec, Tool
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import audit, idempotency, runs
from kneo.store.engine import Tx
from kneo.store.idempotency import AlreadyExecuted, KeyedRequest, KeyOf
from kneo.tasks.served_calls import served_tools

CALL_PREFIX = "call:"
"""The beginning of the key of a call; its digest follows."""


@dataclass(frozen=True, kw_only=True)
class StatedCall:
    """A call as a program states it; ``protocol`` is the way that it came."""

    environment: str
    bundle: str
    tool: str
    arguments: Mapping[str, object]
    session_id: str | None = None
    protocol: str

    @cached_property
    def text(self) -> str:
        """The input of its run."""
        return canonical_json({"tool": self.tool, "arguments": dict(self.arguments)}).decode()


@dataclass(frozen=True, kw_only=True)
class ServedBundle:
    """A release whose tools an environment serves to a caller."""

    spec: Spec
    bundle: str
    version: str
    digest: str
    tools: Mapping[str, Tool]


def find_served(tx: Tx, starter: Starter, caller: str, environment: str, bundle: str) -> ServedBundle:
    """Return the release of a bundle with the tools that its environment serves to a caller.

    Raises:
        NotFound: ``call_not_served``; also where there is no such environment or release.
        Untrusted, Transient: as ``registry.resolve``.
    """
    try:
        rules = registry.declared(tx, environment)
        found = registry.resolve(tx, bundle, environment, pin=starter.pin, hmac_key=starter.hmac_key)
    except (NotFound, Forbidden):
        raise _not_served(environment, bundle, caller) from None
    release = found.release
    spec = starter.freezer.released(found.bundle).spec
    declared = [name for name in callable_tools(spec.agent) if name in spec.tools]
    names = served_tools(tx, rules, release.bundle, caller, declared) if spec.allows(CALL_TARGET) else ()
    if not names:
        raise _not_served(environment, bundle, caller)
    tools = {name: spec.tools[name] for name in names}
    return ServedBundle(spec=spec, bundle=release.bundle, version=release.version, digest=release.digest, tools=tools)


def _not_served(environment: str, bundle: str, caller: str) -> NotFound:
    msg = f"{environment[:80]} serves no tools of {bundle[:200]} to {caller}."
    hint = "An environment serves tools under spec.protocols.calls, of bundles whose targets name call."
    return NotFound(msg, code="call_not_served", hint=hint)


def _tool_of(served: ServedBundle, environment: str, name: str, caller: str) -> Tool:
    if name not in served.tools:
        msg = f"{served.bundle} in {environment} has no tool {name[:80]} for {caller}."
        raise NotFound(msg, code="tool_not_found", hint="GET /v1/calls/tools lists the tools.")
    return served.tools[name]


def start(starter: Starter, caller: str, stated: StatedCall) -> tuple[Run, bool]:
    """Start the run of a call, or find the one that an earlier request has started.

    Args:
        starter: Starts runs.
        caller: The name of the caller.
        stated: The call.

    Returns:
        The run, and whether the call joins one without an idempotency key.

    Raises:
        NotFound: ``call_not_served`` or ``tool_not_found``.
        InvalidValue: ``invalid_arguments``.
        KneoError: as ``Starter.start``.
    """
    made = idempotency.made()
    if made is not None:
        return find_run(starter.store, made), False
    served, tool = _check(starter, caller, stated)
    order = StartRequest(
        input=stated.text,
        requester=caller,
        target=CALL_TARGET,
        environment=stated.environment,
        bundle=served.digest,
        metadata={"protocol": stated.protocol},
        origin={"tool": stated.tool, "session_id": stated.session_id},
    )
    if idempotency.current.get() is not None or not (tool.has_effects or tool.review is not None):
        return starter.start(order), False
    return _join(starter, order, _key(caller, [stated.environment, served.digest, stated.text, stated.session_id]))


def join_key(run: Run) -> KeyOf:
    """Return the key under which the same call, sent again without a key, finds the run of a call."""
    assert run.release is not None
    session = run.metadata.get("session_id")
    return _key(run.requester, [run.release.environment, run.release.digest, run.input_text, session])


def _key(caller: str, call: list[object]) -> KeyOf:
    return KeyOf(principal=caller, scope=idempotency.JOINED_CALL, key=f"{CALL_PREFIX}{digest_of_json(call)}")


def _check(starter: Starter, caller: str, stated: StatedCall) -> tuple[ServedBundle, Tool]:
    """Check rule, caller, tool and arguments of a call; a refusal for lack of rights is audited."""
    try:
        with starter.store.read() as tx:
            served = find_served(tx, starter, caller, stated.environment, stated.bundle)
        tool = _tool_of(served, stated.environment, stated.tool, caller)
    except NotFound as error:
        error.recorded = True
        facts = {"target": CALL_TARGET, "bundle": stated.bundle[:200], "tool": stated.tool[:200], "error": error.code}
        with starter.store.write() as tx:
            audit.record(tx, "run.refused", actor=caller, metadata=facts | {"message": error.message})
        raise
    misfit = argument_misfits(schema_of(tool), stated.arguments)
    if misfit is not None:
        raise InvalidValue(misfit, code="invalid_arguments", tool=stated.tool)
    return served, tool


def _join(starter: Starter, order: StartRequest, key: KeyOf) -> tuple[Run, bool]:
    attempt = new_id("req", starter.store.clock.now())
    request = KeyedRequest(key=key, request_digest=key.key.removeprefix(CALL_PREFIX), attempt=attempt)
    while True:
        with starter.store.read() as tx:
            known = idempotency.look(tx, request)
            run = runs.get(tx, known.subject) if known is not None and known.subject is not None else None
        if run is not None:
            return run, True
        if known is not None:  # retention has deleted the run
            starter.store.transact(partial(idempotency.release, key=key))
        token = idempotency.current.set(request)
        try:
            return starter.start(order), False
        except AlreadyExecuted:
            continue  # the same call came at the same time
        finally:
            idempotency.current.reset(token)
