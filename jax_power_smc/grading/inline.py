"""A grader for answers that take next to no time: it grades them as they are submitted."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from jax_power_smc.grading import multiple_choice, string_rule
from jax_power_smc.grading.base import LONGEST, Grader, Verdict, too_long
from jax_power_smc.grading.references import parse_reference
from jax_power_smc.grading.thinking import strip_thinking
from jax_power_smc.tiny_reasoner.problems import parse_answer


class InlineGrader(Grader):
    """A ``Grader`` that works in the caller's thread, of kind "choice", "string" or "reasoner".

    Responses of more than ``longest`` characters are not graded.
    """

    def __init__(self, kind: str, longest: int = LONGEST) -> None:
        self.pending, self._closed = 0, False
        self._kind, self._judge, self._longest = kind, _JUDGES[kind], longest
        self._finished: list[tuple[Hashable, list[Verdict]]] = []

    def submit(self, tag: Hashable, gold: Any, responses: Sequence[str]) -> None:
        """As in ``Grader``."""
        if self._closed:
            raise ValueError("the grader is closed; nothing can be submitted.")
        arguments = parse_reference(self._kind, gold)
        verdicts = {
            each: too_long(each, self._longest) or self._judge(response=each, **arguments)
            for each in set(responses)
        }
        self._finished.append((tag, [verdicts[response] for response in responses]))
        self.pending += 1

    def finished(self, wait: bool = False) -> list[tuple[Hashable, list[Verdict]]]:
        """As in ``Grader``; there is never anything to wait for."""
        finished, self._finished = self._finished, []
        self.pending = 0
        return finished

    def close(self) -> None:
        """As in ``Grader``."""
        self._closed = True
        self.finished()


def judge_string(gold: str, response: str) -> Verdict:
    """Applies the string rule alone."""
    same = string_rule.equal(gold, response)
    return Verdict(string_rule.parsed(response), same, same)


def judge_reasoner(gold: int, response: str) -> Verdict:
    """Reads the answer the way the tiny reasoner's training writes it."""
    answer = parse_answer(strip_thinking(response))
    same = answer == gold
    return Verdict(None if answer is None else str(answer), same, same)


_JUDGES: dict[str, Callable[..., Verdict]] = {
    "choice": multiple_choice.judge,
    "string": judge_string,
    "reasoner": judge_reasoner,
}
