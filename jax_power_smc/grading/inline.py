"""A grader for answers that are judged in no time: it does so as they are submitted."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from jax_power_smc.grading import multiple_choice, string_rule
from jax_power_smc.grading.base import Verdict
from jax_power_smc.grading.references import read_gold
from jax_power_smc.grading.thinking import without_thinking
from jax_power_smc.tiny_reasoner.problems import parse_answer


class ImmediateGrader:
    """A ``Grader`` in the caller's thread.

    Args:
      kind: "choice", "string" or "reasoner".
    """

    def __init__(self, kind: str) -> None:
        self.pending = 0
        self._kind = kind
        self._judge = _JUDGES[kind]
        self._closed = False
        self._done: list[tuple[Hashable, list[Verdict]]] = []

    def submit(self, tag: Hashable, gold: Any, responses: Sequence[str]) -> None:
        """As in ``Grader``.

        Raises:
          ValueError: for a gold answer that cannot be, or after ``close``.
        """
        if self._closed:
            raise ValueError("the grader is closed; nothing can be submitted.")
        arguments = read_gold(self._kind, gold)
        verdicts = {
            response: self._judge(response=response, **arguments) for response in set(responses)
        }
        self._done.append((tag, [verdicts[response] for response in responses]))
        self.pending += 1

    def finished(self, wait: bool = False) -> list[tuple[Hashable, list[Verdict]]]:
        """As in ``Grader``; there is never anything to wait for."""
        done, self._done = self._done, []
        self.pending = 0
        return done

    def close(self) -> None:
        """As in ``Grader``."""
        self._closed = True
        self._done = []
        self.pending = 0

    def __enter__(self) -> "ImmediateGrader":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def judge_string(gold: str, response: str) -> Verdict:
    """By the rule for strings alone."""
    answer = string_rule.extract(response)
    same = string_rule.equal(gold, response)
    return Verdict(None if answer is None else string_rule.normalise(answer) or None, same, same)


def judge_reasoner(gold: int, response: str) -> Verdict:
    """As the training of the tiny reasoner does."""
    answer = parse_answer(without_thinking(response))
    return Verdict(None if answer is None else str(answer), *(2 * (answer == gold,)))


_JUDGES: dict[str, Callable[..., Verdict]] = {
    "choice": multiple_choice.judge,
    "string": judge_string,
    "reasoner": judge_reasoner,
}
