"""What a workflow means, written a second time and as simply as possible: one recursive walk, one step after the other.

It knows nothing of frames, tickets or resuming. What steps say and people answer comes from a ``World``, by the place of the
step and the key of the question, so that the engine, asked the same, must come to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

Tree = Mapping[str, object]
Event = tuple[str, ...]


@dataclass(frozen=True)
class Value:
    text: str
    status: str = "completed"
    variables: Mapping[str, str] = field(default_factory=dict)
    feedback: str | None = None
    """The words of a person who sent a result back, for the step that is repeated."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """The outputs of parallel steps."""

    @property
    def subject(self) -> str:
        """The text that people decide about: every output that the next agent is given."""
        if self.text not in self.outputs.values() or len(self.outputs) == 1:
            return self.text
        return "\n\n".join(f"[{name}]\n{text}" for name, text in self.outputs.items())

    def passed_on(self, status: str = "skipped") -> Value:
        return replace(self, status=status, feedback=None, outputs={})


@dataclass(frozen=True)
class Said:
    kind: str
    text: str = ""


class World(Protocol):
    def work(self, ticket: str, value: Value) -> str | None:
        """Return what a step says; None where it fails."""

    def answer(self, key: str, kinds: Sequence[str], options: Sequence[str]) -> Said: ...

    def draws(self, seed: str, share: float) -> bool: ...


class Fail(Exception):
    """A step failed, which what is around it may catch."""


class Stop(Exception):
    """The run is over."""

    def __init__(self, status: str, error: str) -> None:
        super().__init__(status, error)
        self.status, self.error = status, error


class Back(Exception):
    """A person wants the step before repeated."""

    def __init__(self, feedback: str, limit: int) -> None:
        super().__init__(feedback)
        self.feedback, self.limit = feedback, limit


REJECTED = Stop("cancelled", "human_rejected")


@dataclass
class Reference:
    """One run of a spec.

    Attributes:
        events: What was asked (``ask``, key, subject) and done (``do``, ticket, input, feedback), in order.
        beside: Whether steps ran beside each other.
        unclear: Whether how it ended depends on who was quicker: something failed or ended beside something else.
    """

    spec: Tree
    world: World
    events: list[Event] = field(default_factory=list)
    beside: bool = False
    unclear: bool = False

    def run(self, text: str) -> tuple[str, str | None, str | None]:
        """Return the status, the output and the type of the error."""
        try:
            value = self.family(self.spec["workflow"], Value(text), "")
        except Stop as stop:
            return stop.status, None, stop.error
        except Back:
            return "cancelled", None, "human_rejected"
        except Fail as failed:
            return "failed", None, str(failed)
        return "succeeded", value.text, None

    # ---- families ---------------------------------------------------------------------------------------------

    def family(self, workflow: Tree, value: Value, place: str) -> Value:
        match workflow["type"]:
            case "sequential":
                return self.row(workflow["steps"], value, place)
            case "concurrent":
                return self.together(workflow["participants"], value, place)
            case "graph":
                return self.graph(workflow, value, place)
            case "group-chat":
                present = enabled(workflow["participants"])
                turns, limit = workflow["rounds"] * len(present), workflow.get("max_iterations")
                order = [present[number % len(present)] for number in range(turns)] if present else []
                cut = limit is not None and limit < len(present)
                return self.turns(order[:limit], workflow["participants"], value, place, cut=cut)
            case _:
                return self.handoff(workflow, value, place)

    def handoff(self, workflow: Tree, value: Value, place: str) -> Value:
        present = {step["id"]: step for step in enabled(workflow["participants"])}
        named = [present[name] for name in workflow["selector"].get("sequence", ()) if name in present]
        order = named or list(present.values())
        limit = workflow.get("max_iterations")
        if not order:
            return value
        if workflow["selector"]["type"] == "round_robin":
            rounds = [order[number % len(order)] for number in range(limit if limit is not None else len(order))]
            return self.turns(rounds, workflow["participants"], value, place)
        cut = limit is not None and limit < len(order)
        return self.turns(order[:limit], workflow["participants"], value, place, cut=cut)

    def turns(
        self, order: Sequence[Tree], siblings: Sequence[Tree], value: Value, place: str, *, cut: bool = False
    ) -> Value:
        def visit(index: int, repeated: Mapping[int, int]) -> int:
            who = order[index]["id"]
            extra = sum(count for turn, count in repeated.items() if order[turn]["id"] == who)
            return sum(order[turn]["id"] == who for turn in range(index + 1)) + extra

        value = self.in_turn(order, siblings, value, place, visit)
        if cut:
            raise Fail("max_iterations")
        return value

    def row(self, steps: Sequence[Tree], value: Value, place: str) -> Value:
        return self.in_turn(enabled(steps), steps, value, place, lambda index, repeated: 1 + repeated.get(index, 0))

    def in_turn(
        self,
        order: Sequence[Tree],
        siblings: Sequence[Tree],
        value: Value,
        place: str,
        visit: Callable[[int, Mapping[int, int]], int],
    ) -> Value:
        """One after the other; a person may send the run one step back."""
        index, before, repeated = 0, None, {}
        while index < len(order):
            step = order[index]
            try:
                after = self.step(step, siblings, value, below(place, step["id"], visit(index, repeated)))
            except Back as back:
                if index == 0:
                    raise
                if repeated.get(index, 0) >= back.limit or before is None:
                    raise REJECTED from None
                for one in (index, index - 1):
                    repeated[one] = repeated.get(one, 0) + 1
                index, value, before = index - 1, replace(before, feedback=back.feedback), None
                continue
            index, before, value = index + 1, value, after
        return value

    def graph(self, workflow: Tree, value: Value, place: str) -> Value:
        nodes = {name: node for name, node in workflow["nodes"].items() if node.get("enabled", True)}
        at, count, visits, before = workflow["start"], 0, {}, None
        while at is not None:
            count += 1
            if count > workflow["max_steps"]:
                raise Fail("max_iterations")
            visits[at] = visits.get(at, 0) + 1
            try:
                after = self.step(nodes[at], list(nodes.values()), value, below(place, at, visits[at]))
            except Back as back:
                if before is None:
                    raise
                if visits[at] > back.limit:
                    raise REJECTED from None
                at, value = before[0], replace(before[1], feedback=back.feedback)
                before = None
                continue
            before = (at, value)
            edges = [edge for edge in workflow["edges"] if edge["from"] == at and edge["to"] in nodes]
            at = next((edge["to"] for edge in edges if holds(edge.get("condition"), after)), None)
            value = after
        return value

    def together(self, steps: Sequence[Tree], value: Value, place: str) -> Value:
        """All on the same input; what they saved and the last that said anything flow on."""
        self.beside = True
        results: list[tuple[Tree, Value | Exception]] = []
        for step in enabled(steps):
            try:
                results.append((step, self.step(step, steps, value, below(place, step["id"]))))
            except (Fail, Stop) as ended:
                results.append((step, ended))
            except Back:
                results.append((step, REJECTED))
        bad = [result for _, result in results if isinstance(result, Exception)]
        if bad:
            # Which of several it is, and whether a question beside it is answered first, is a matter of speed.
            self.unclear = True
            raise next((one for one in bad if isinstance(one, Stop)), bad[0])
        text, variables, outputs = value.text, dict(value.variables), {}
        for step, result in results:
            assert isinstance(result, Value)
            variables |= {name: said for name, said in result.variables.items() if value.variables.get(name) != said}
            if result.status != "skipped":
                text = outputs[step["id"]] = result.text
        return replace(value, text=text, status="completed", variables=variables, outputs=outputs)

    # ---- steps ------------------------------------------------------------------------------------------------

    def step(self, step: Tree, siblings: Sequence[Tree], value: Value, place: str) -> Value:
        review = step.get("review", {})
        if step["kind"] == "human":
            return self.saved(step, self.question(step, value, place))
        chosen = None
        gate = review.get("before")
        if gate is not None and self.asks(gate, value, place, "before"):
            said = self.ask(f"{place}.before", value, ["approved", "rejected"])
            at_condition = step["kind"] == "condition"
            chosen = "steps" if said.kind == "approved" else None
            if said.kind == "rejected":
                effect = gate.get("on_reject", "else" if at_condition else "stop")
                if effect != "else":
                    return self.refused(effect, value)
                chosen = "else"
        return self.attempts(step, siblings, value, place, chosen)

    def attempts(self, step: Tree, siblings: Sequence[Tree], value: Value, place: str, chosen: str | None) -> Value:
        """The body, repeated as long as machines and people want it."""
        review = step.get("review", {})
        retries = max(1, step.get("max_retries", 0)) if step.get("on_error") == "retry" else step.get("max_retries", 0)
        attempt = failures = reviews = asked = 0
        while True:
            inner = f"{place}@{attempt}" if attempt else place
            try:
                output = self.body(step, value, inner, f"{place}:{attempt}", chosen)
            except Fail as failed:
                if failures < retries:
                    failures, attempt = failures + 1, attempt + 1
                    continue
                gate = review.get("error")
                if gate is not None and self.asks(gate, value, place, "error"):
                    word = self.on_error(gate, value, place, asked)
                    if word == "retry":
                        asked, failures, attempt = asked + 1, 0, attempt + 1
                        continue
                    if word == "skip":
                        return self.saved(step, value.passed_on())
                    raise Stop("failed", str(failed)) from None
                if step.get("on_error") == "continue":
                    return self.saved(step, value.passed_on("failed"))
                other = next((one for one in enabled(siblings) if one["id"] == step.get("fallback_ref")), None)
                if step.get("on_error") != "fallback" or other is None:
                    raise
                output = self.step(other, siblings, value, f"{inner}:fallback")
            gate = review.get("after")
            if gate is None or not (reviews or self.asks(gate, output, inner, "after")):
                return self.saved(step, output)
            again = f"@{reviews}" if reviews else ""
            said = self.ask(f"{place}{again}.after", output, ["approved", "rejected", "edited"])
            if said.kind != "rejected":
                return self.saved(
                    step, replace(output, text=said.text, outputs={}) if said.kind == "edited" else output
                )
            effect = gate.get("on_reject", "stop")
            if effect == "continue":
                return self.saved(step, output)
            if effect != "retry":
                return self.refused(effect, value)
            if reviews >= gate.get("max_retries", 3):
                raise REJECTED
            reviews, failures, attempt = reviews + 1, 0, attempt + 1
            value = replace(value, feedback=said.text)

    def on_error(self, gate: Tree, value: Value, place: str, asked: int) -> str:
        used_up = asked >= gate.get("max_retries", 3)
        offered = [word for word in gate.get("options", ["retry", "skip", "stop"]) if not (used_up and word == "retry")]
        again = f"@{asked}" if asked else ""
        return self.ask(f"{place}{again}.error", value, ["selected"], offered or ["stop"]).text

    def body(self, step: Tree, value: Value, place: str, ticket: str, chosen: str | None) -> Value:
        match step["kind"]:
            case "function":
                return self.do(ticket, value)
            case "workflow":
                return self.family(self.spec["components"]["workflows"]["inner"], value, place)
            case "steps":
                return self.row(step["steps"], value, place)
            case "parallel":
                return self.together(step["steps"], value, place)
            case "condition":
                branch = chosen or ("steps" if holds(step["when"], value) else "else")
                return self.row(step[branch], value, place)
            case "loop":
                return self.loop(step, value, place)
            case _:
                return self.router(step, value, place)

    def do(self, ticket: str, value: Value) -> Value:
        self.events.append(("do", ticket, value.text, value.feedback or ""))
        said = self.world.work(ticket, value)
        if said is None:
            raise Fail("boom")
        return Value(said, variables=value.variables)

    def loop(self, step: Tree, value: Value, place: str) -> Value:
        gate, given, reviews = step.get("review", {}).get("each"), value, 0
        for turn in range(1, step["max_iterations"] + 1):
            try:
                output = self.row(step["steps"], value, f"{place}#{turn}")
            except Back:
                raise REJECTED from None
            value = output
            if gate is not None and (reviews or self.asks(gate, output, f"{place}#{turn}", "each")):
                said = self.ask(f"{place}#{turn}.each", output, ["approved", "rejected", "edited"])
                if said.kind != "rejected":
                    return replace(output, text=said.text, outputs={}) if said.kind == "edited" else output
                effect = gate.get("on_reject", "stop")
                if effect not in {"retry", "continue"}:
                    return self.refused(effect, given)
                if effect == "retry":
                    if turn >= step["max_iterations"] or reviews >= gate.get("max_retries", step["max_iterations"]):
                        raise REJECTED
                    reviews, value = reviews + 1, replace(output, feedback=said.text)
                    continue
            if "until" in step and holds(step["until"], output):
                return output
        return value

    def router(self, step: Tree, value: Value, place: str) -> Value:
        gate, selector = step.get("review", {}).get("route"), step.get("selector")
        asks = gate is not None and self.asks(gate, value, place, "route")
        if asks or selector is None or value.feedback is not None:
            chosen = self.ask(f"{place}.route", value, ["selected"], list(step["choices"])).text
        elif "function" in selector:
            chosen = self.do(f"{place}:select", value).text
        else:
            held = (one["choice"] for one in selector["conditions"] if holds(one["when"], value))
            chosen = next(held, selector.get("default"))
        if chosen not in step["choices"]:
            raise Fail("unknown_choice")
        return self.row(step["choices"][chosen]["steps"], value, place)

    # ---- questions --------------------------------------------------------------------------------------------

    def question(self, step: Tree, value: Value, place: str) -> Value:
        human = self.spec["components"]["humans"][step["ref"]]
        known = ["approved", "rejected", "edited", *(["selected"] if "options" in human else []), "provided"]
        kinds = human.get("decisions", known)
        said = self.ask(f"{place}.step", value, kinds, human.get("options", ()))
        effect = human.get("on_reject", "stop")
        if said.kind == "approved":
            return replace(value, status="completed")
        if said.kind != "rejected":
            return replace(value, text=said.text, status="completed", outputs={})
        if effect == "retry":
            raise Back(said.text, human.get("max_retries", 3))
        if effect == "continue":
            value = replace(value, text=f"Rejected by human reviewer: {said.text}", outputs={})
        return self.refused(effect, value)

    def refused(self, effect: str, value: Value) -> Value:
        match effect:
            case "skip":
                return value.passed_on()
            case "continue":
                return replace(value, status="completed", feedback=None)
            case "fail":
                raise Stop("failed", "human_rejected")
            case "cancel":
                raise Stop("cancelled", "cancelled")
            case _:
                raise REJECTED

    def asks(self, gate: Tree, value: Value, place: str, position: str) -> bool:
        if "when" not in gate and "sample" not in gate:
            return True
        return ("when" in gate and holds(gate["when"], value)) or (
            "sample" in gate and self.world.draws(f"{place}.{position}", gate["sample"])
        )

    def ask(self, key: str, value: Value, kinds: Sequence[str], options: Sequence[str] = ()) -> Said:
        self.events.append(("ask", key, value.subject))
        return self.world.answer(key, kinds, options)

    @staticmethod
    def saved(step: Tree, value: Value) -> Value:
        variables = {**value.variables, step["save_as"]: value.text} if "save_as" in step else value.variables
        return replace(value, variables=variables, feedback=None)


def enabled(steps: Sequence[Tree]) -> list[Tree]:
    return [step for step in steps if step.get("enabled", True)]


def below(place: str, name: str, visit: int = 1) -> str:
    inner = f"{place}/{name}" if place else name
    return f"{inner}#{visit}" if visit > 1 else inner


def holds(condition: Tree | None, value: Value) -> bool:
    if condition is None:
        return True
    match condition["type"]:
        case "always":
            return True
        case "never":
            return False
        case "not":
            return not holds(condition["condition"], value)
        case "output_contains":
            return condition["value"].casefold() in value.text.casefold()
        case "output_equals":
            return condition["value"].casefold() == value.text.casefold()
        case "status_is":
            return condition["value"] == value.status
        case _:
            return value.variables.get(condition["key"]) == condition["value"]
