"""The verdict on a response, and the interface of whatever produces verdicts."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol, Self

# Characters of the longest response or reference answer that is graded, which takes about a second
# at most. An answer of 32,768 tokens has about 130,000.
LONGEST = 10**6


class Verdict(NamedTuple):
    """The verdict on one response to a problem.

    Attributes:
      parsed: the answer found in the response, as text; None if there is none. Answers of one
        submission that are equal have equal texts, so that votes can be counted.
      correct: by the task's own rule.
      correct_string: by the plain comparison of normalised strings that the papers used.
      note: why the response could not be graded, such as "took longer than 10 s", or None. A
        response with a note counts as wrong.
    """

    parsed: str | None
    correct: bool
    correct_string: bool
    note: str | None = None


def too_long(response: str, longest: int) -> Verdict | None:
    """The verdict on a response that is too long to be graded; None for others."""
    if len(response) <= longest:
        return None
    return Verdict(None, False, False, f"is longer than {longest} characters")


class Grader(Protocol):
    """Grades submissions, possibly in other processes. A context manager."""

    pending: int  # submissions whose verdicts have not been returned yet

    def submit(self, tag: Hashable, gold: Any, responses: Sequence[str]) -> None:
        """Queues the responses to one problem.

        Args:
          tag: returned with the verdicts.
          gold: the reference answer, in the form of ``tasks.base.Problem.gold``.
          responses: texts; duplicates are graded once.

        Raises:
          ValueError: if ``gold`` is invalid, or the grader is closed.
        """

    def finished(self, wait: bool = False) -> list[tuple[Hashable, list[Verdict]]]:
        """Each finished submission once, with a verdict per response.

        With ``wait``, waits until at least one is finished, if any is pending.
        """

    def close(self) -> None:
        """Stops all workers and drops pending submissions."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
