"""What is said about one response, and who says it."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol


class Verdict(NamedTuple):
    """About one response to a problem.

    Attributes:
      parsed: the answer in it, as text. Equal answers among the responses of one submission have
        equal texts, so that they can be counted; None if there is no answer.
      correct: by the rule of the task.
      correct_string: by the plain comparison of normalised strings that the papers used.
      note: why it could not be judged, such as "took longer than 10 s", or None. It then counts as
        wrong.
    """

    parsed: str | None
    correct: bool
    correct_string: bool
    note: str | None = None


class Grader(Protocol):
    """Judges submissions, perhaps in other processes and later. A context manager."""

    pending: int  # submissions whose verdicts have not been handed out

    def submit(self, tag: Hashable, gold: Any, responses: Sequence[str]) -> None:
        """Asks for verdicts on the responses to one problem.

        Args:
          tag: comes back with the verdicts.
          gold: the right answer, as ``tasks.base.Problem`` has it.
          responses: texts; equal ones are judged once.
        """

    def finished(self, wait: bool = False) -> list[tuple[Hashable, list[Verdict]]]:
        """The submissions that are done, each with a verdict per response, handed out once.

        Args:
          wait: whether to wait until at least one is done, if any is pending.
        """

    def close(self) -> None:
        """Ends what was started; what is pending is dropped."""

    def __enter__(self) -> "Grader": ...

    def __exit__(self, *details: object) -> None: ...
