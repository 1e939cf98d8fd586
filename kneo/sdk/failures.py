"""How a run ends that nobody can go on with."""

from __future__ import annotations


class WorkflowFailed(RuntimeError):
    """A run ended otherwise than by succeeding.

    Attributes:
        run_id: Which run.
        status: ``failed``, ``cancelled``, ``expired`` or ``timed_out``.
        error_type: What went wrong, as a word.
    """

    def __init__(self, run_id: str, status: str, error_type: str, message: str) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.status = status
        self.error_type = error_type
