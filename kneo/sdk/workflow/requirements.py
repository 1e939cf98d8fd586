"""What a paused run needs from people: one object for each question, resolved here and sent with ``continue_run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.sdk.workflow.plan import Place
from kneo.sdk.workflow.types import HumanReview, UserInputField, spelled
from kneo.tasks.decisions import DecisionRequest, check_decision, decision_from_value

NO_REVIEW = HumanReview()


@dataclass
class Requirement:
    """A question of a run. What is said about it here counts once ``continue_run`` has sent it."""

    task: HumanTask
    place: Place
    said: DecisionRequest | None = None

    @property
    def step_id(self) -> str:
        """The path of the step that asks."""
        return self.task.step_path

    @property
    def step_name(self) -> str:
        return self.place.name

    @property
    def step_type(self) -> str:
        return self.place.kind

    @property
    def step_index(self) -> int:
        return self.place.index

    @property
    def is_open(self) -> bool:
        """Whether somebody still has to answer."""
        return self.task.status in UNRESOLVED

    @property
    def is_resolved(self) -> bool:
        """Whether it is answered, here or for good."""
        return self.said is not None or not self.is_open

    @property
    def timeout_at(self) -> str | None:
        return self.task.deadline_at

    @property
    def on_timeout(self) -> str:
        return self.task.on_timeout

    def _say(self, kind: DecisionKind, **what: object) -> None:
        if kind not in self.task.decisions:
            legal = ", ".join(self.task.decisions)
            msg = f"{self.step_name} does not take {kind} here; it takes {legal}."
            raise ValueError(msg)
        # Bound to what was shown: an answer to something that changed since is refused.
        self.said = DecisionRequest(
            request_id=self.task.request_id,
            decision=kind,
            expect_digest=self.task.subject_digest,
            **what,  # type: ignore[arg-type]  # fields of Answer
        )


@dataclass
class StepRequirement(Requirement):
    """A question before, after or between: may it, with what, is it good, which way."""

    user_input: dict[str, object] = field(default_factory=dict)

    @property
    def _review(self) -> HumanReview:
        return self.place.review or NO_REVIEW

    @property
    def _position(self) -> str:
        return self.task.position

    @property
    def requires_confirmation(self) -> bool:
        return self._position == "before" and self._review.requires_confirmation

    @property
    def confirmation_message(self) -> str | None:
        return self.task.prompt if self.requires_confirmation else None

    @property
    def requires_user_input(self) -> bool:
        return self._position == "before" and self._review.requires_user_input

    @property
    def user_input_message(self) -> str | None:
        return self._review.user_input_message if self.requires_user_input else None

    @property
    def user_input_schema(self) -> Sequence[UserInputField]:
        return self._review.input_fields if self.requires_user_input else ()

    @property
    def requires_output_review(self) -> bool:
        return self._position == "after"

    @property
    def output_review_message(self) -> str | None:
        return self.task.prompt if self.requires_output_review else None

    @property
    def requires_iteration_review(self) -> bool:
        return self._position == "each"

    @property
    def requires_route_selection(self) -> bool:
        return self._position == "route"

    @property
    def is_post_execution(self) -> bool:
        return self._position in {"after", "each"}

    @property
    def available_choices(self) -> Sequence[str]:
        return self.task.options or ()

    @property
    def allow_multiple_selections(self) -> bool:
        return self.requires_route_selection and self._review.allow_multiple_selections

    @property
    def step_input(self) -> str | None:
        return None if self.is_post_execution else self.task.subject

    @property
    def step_output(self) -> str | None:
        return self.task.subject if self.is_post_execution else None

    @property
    def retry_count(self) -> int:
        """How often its output was sent back before this question."""
        key = self.task.key.removesuffix(f".{self._position}")
        number = key.rpartition("@")[2] if self._position == "after" else ""
        return int(number) if number.isdigit() else 0

    @property
    def max_retries(self) -> int:
        return self._review.max_retries

    @property
    def confirmed(self) -> bool | None:
        """What was said so far: None for nothing."""
        said = self.said.decision if self.said is not None else None
        decided = self.task.decision.kind if self.task.decision is not None else None
        kind = said or decided
        return None if kind is None else kind is not DecisionKind.REJECTED

    @property
    def rejection_feedback(self) -> str | None:
        """What was said with a rejection."""
        said = self.said or self.task.decision
        return said.feedback if said is not None else None

    @property
    def edited_output(self) -> str | None:
        """What was put in the place of the output."""
        if self.said is not None and self.said.decision is DecisionKind.EDITED:
            return spelled(self.said.content)
        decision = self.task.decision
        return decision.content if decision is not None and decision.kind is DecisionKind.EDITED else None

    @property
    def selected_choices(self) -> Sequence[str]:
        said = self.said or self.task.decision
        if said is None:
            return ()
        return said.selected_options or ((said.selected_option,) if said.selected_option else ())

    # ---- saying it --------------------------------------------------------------------------------------------

    def confirm(self) -> None:
        """Agree; where values have to be filled in, ``set_user_input`` first.

        Raises:
            ValueError: values are missing, or a way has to be selected.
        """
        if self.requires_user_input:
            self._check(self.user_input)
        self._say(DecisionKind.APPROVED, **({"values": dict(self.user_input)} if self.requires_user_input else {}))

    def reject(self, feedback: str | None = None) -> None:
        """Refuse; ``on_reject`` says what follows. ``feedback`` reaches whoever does it again."""
        self._say(DecisionKind.REJECTED, **({"feedback": feedback} if feedback else {}))

    def edit(self, content: object) -> None:
        """Put something else in the place of an output; content that is no text passes on as JSON."""
        self._say(DecisionKind.EDITED, content=spelled(content))

    def provide(self, value: object) -> None:
        """Answer what runs inside the step asked in its middle, with any JSON that fits its question.

        Raises:
            NotAllowed: such a value is no answer to it; nothing of it is kept.
            Conflict: the question is answered already.
        """
        answer = replace(decision_from_value(self.task, value), expect_digest=self.task.subject_digest)
        check_decision(self.task, answer, actor="", at="")
        self.said = answer

    def set_user_input(self, **values: object) -> None:
        """Fill in values; where nothing has to be confirmed, that is the answer.

        Raises:
            ValueError: they do not fit; nothing of them is kept.
        """
        if not self.requires_user_input:
            msg = f"{self.step_name} asks for no input here."
            raise ValueError(msg)
        merged = {**self.user_input, **values}
        self._check(merged)
        self.user_input = merged
        if not self.requires_confirmation:
            self.confirm()

    def select(self, *names: str) -> None:
        """Choose a way, or several in order where that is allowed.

        Raises:
            ValueError: there is no such way, or one only may be chosen.
        """
        unknown = [name for name in names if name not in self.available_choices]
        if unknown or not names:
            listed = ", ".join(self.available_choices)
            msg = f"{', '.join(unknown) or 'Nothing'} is none of the choices of {self.step_name}: {listed}."
            raise ValueError(msg)
        if len(names) > 1 and not self.allow_multiple_selections:
            msg = f"{self.step_name} takes one choice."
            raise ValueError(msg)
        several = {"selected_options": tuple(names)} if self.allow_multiple_selections else {}
        self._say(DecisionKind.SELECTED, selected_option=names[0], **several)

    def select_single(self, name: str) -> None:
        self.select(name)

    def select_multiple(self, names: Sequence[str]) -> None:
        self.select(*names)

    def _check(self, values: Mapping[str, object]) -> None:
        wrong = list(self._review.problems(values))
        if wrong:
            msg = f"The input of {self.step_name} does not fit: {'; '.join(wrong)}."
            raise ValueError(msg)


@dataclass
class ErrorRequirement(Requirement):
    """A step failed: is it tried again, or does the run go on without it."""

    @property
    def error_message(self) -> str:
        return str(self._error.get("message", ""))

    @property
    def error_type(self) -> str:
        return str(self._error.get("type", ""))

    @property
    def retry_count(self) -> int:
        """How often somebody has had it tried again."""
        number = self.task.key.removesuffix(".error").rpartition("@")[2]
        return int(number) if number.isdigit() else 0

    @property
    def _error(self) -> Mapping[str, object]:
        facts = self.task.metadata.get("facts")
        error = facts.get("error") if isinstance(facts, Mapping) else None
        return error if isinstance(error, Mapping) else {}

    def retry(self) -> None:
        """Try it again.

        Raises:
            ValueError: it was tried as often as it may be.
        """
        self._choose("retry")

    def skip(self) -> None:
        """Go on with what the step before said."""
        self._choose("skip")

    def _choose(self, word: str) -> None:
        if word not in (self.task.options or ()):
            msg = f"{self.step_name} cannot {word} any more; it can {', '.join(self.task.options or ())}."
            raise ValueError(msg)
        self._say(DecisionKind.SELECTED, selected_option=word)
