"""A grader for tests: the reasoner's rule, at once or later."""

from jax_power_smc.grading.base import Verdict
from jax_power_smc.tiny_reasoner.problems import parse_answer


def verdict(text, gold):
    """The verdict on one response to a word problem."""
    answer = parse_answer(text)
    right = answer == gold
    return Verdict(None if answer is None else str(answer), right, right)


class Later:
    """Hands out verdicts only once so many submissions have come in, or the caller waits."""

    def __init__(self, after=1):
        self._after, self._waiting, self.most = after, [], 0

    @property
    def pending(self):
        return len(self._waiting)

    def submit(self, tag, gold, responses):
        self._waiting.append((tag, [verdict(text, gold) for text in responses]))
        self.most = max(self.most, self.pending)

    def finished(self, wait=False):
        if self.pending < self._after and not wait:
            return []
        # The last one first: nobody promises an order.
        handed, self._waiting = self._waiting[::-1], []
        return handed

    def close(self):
        self._waiting = []

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.close()
