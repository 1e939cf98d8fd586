"""Whether a regular expression can be trusted with other people's text, decided without running it.

A pattern of a spec is matched against whatever users and models write. Backtracking makes some patterns take time
exponential in the length of the text; one such guardrail stalls a worker. The pattern is parsed, turned into an
automaton over the few kinds of characters it tells apart, and searched for a loop that can read the same text in two
ways. That is the exact condition for exponential backtracking (Weideman et al., CIAA 2016), as far as the pattern is
regular; what is not regular (look-arounds, back references) is approximated by what it can read at most.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from kneo.spec.rules.ambiguity import ambiguous_loop
from kneo.spec.rules.automaton import Automaton, Budget, TooLarge, compile_automaton

MAX_PATTERN = 2_000  # characters; longer patterns are lists of words in disguise, which keywords express better

MAX_STEPS = 1_000_000  # of the search, for all patterns of a spec together


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a pattern.

    Attributes:
        reason: A sentence.
        slow: True where the pattern is a valid one that some texts make unboundedly slow.
    """

    reason: str
    slow: bool = False


class Patterns:
    """Judges patterns within one budget, each pattern once."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self._budget = Budget(steps)
        self._known: dict[str, Flaw | None] = {}

    def flaw(self, pattern: str) -> Flaw | None:
        """Return what keeps a pattern from being used, or None."""
        if pattern not in self._known:
            self._known[pattern] = self._judge(pattern)
        return self._known[pattern]

    def _judge(self, pattern: str) -> Flaw | None:
        if len(pattern) > MAX_PATTERN:
            return Flaw(f"It has {len(pattern)} characters; at most {MAX_PATTERN} are looked at.", slow=True)
        try:
            automaton = _automaton(pattern, self._budget)
            ambiguous = ambiguous_loop(automaton, self._budget)
        except (re.error, OverflowError) as failure:
            return Flaw(f"It is no regular expression: {failure}.")
        except RecursionError:
            return Flaw("It is nested too deeply.")
        except TooLarge:
            return Flaw("It is too large to be shown safe.", slow=True)
        return Flaw("A repetition in it can read the same text in two ways.", slow=True) if ambiguous else None


def _automaton(pattern: str, budget: Budget) -> Automaton:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # obsolete spellings are the author's business
        re.compile(pattern)
        return compile_automaton(pattern, 0, budget)
