"""Answers from a particle set: the draw, the vote, the best, and pass@k; all off one record.

* The **draw** is the particle drawn with probability proportional to its weight: the paper's rule.
* The **vote** is the parsed answer of largest total weight.
* The **best** is the particle of highest log p among those of positive weight.
* **pass@k** is the probability that one of k answers is right. From weighted particles, k draws
  with replacement give ``1 - (1 - s)^k``, where s is the weight of the right ones. From n samples
  that are independent and of equal weight, c of them right, k without replacement give the
  unbiased ``1 - C(n - c, k) / C(n, k)`` (Chen et al., 2021).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from jax_power_smc.evaluation.records import Item, Record, item_of

Answer = Literal["draw", "vote", "best"]
ANSWERS: tuple[Answer, ...] = ("draw", "vote", "best")


@dataclasses.dataclass(frozen=True)
class AnswerScore:
    """How one answer of one item was judged.

    Attributes:
      correct, correct_string: by the task's rule, and by that of plain strings.
      log_prob: log p of it; of a vote, the mean over all particles of positive weight; None if
        there is no answer.
    """

    correct: bool
    correct_string: bool
    log_prob: float | None


@dataclasses.dataclass(frozen=True)
class ItemScores:
    """What the tables need of one record.

    Attributes:
      item: (run, seed, problem id).
      answers: by kind.
      right: weight of the particles whose answer is right, in [0, 1].
      num_right, num: right ones, and all, of positive weight.
      log_evidence: log Z_hat, or None.
      failed: whether the result means nothing. All its answers are wrong.
      ungraded: particles that could not be judged.
      degenerate: weight of the particles that loop or are very short.
      tokens: through the model.
      seconds: by phase, as the record has them.
    """

    item: Item
    answers: dict[Answer, AnswerScore]
    right: float
    num_right: int
    num: int
    log_evidence: float | None
    failed: bool
    ungraded: int
    degenerate: float
    tokens: int
    seconds: dict[str, float]

    def pass_at(self, k: int, independent: bool) -> float:
        """The probability that one of k answers is right.

        Args:
          k: at least 1; for independent samples at most their number.
          independent: whether the particles are independent samples of equal weight.
        """
        if not independent:
            # The weights are float32, and right ones may add up to a little over 1.
            return 1.0 - (1.0 - min(self.right, 1.0)) ** k
        if self.num < k:
            return 0.0
        return 1.0 - math.comb(self.num - self.num_right, k) / math.comb(self.num, k)


def read(record: Record) -> ItemScores:
    """Reads a judged record."""
    particles = record["particles"]
    weights = [_weight(particle) for particle in particles]
    alive = [(p, w) for p, w in zip(particles, weights, strict=True) if w > 0]
    failed = record["failure"] is not None or not alive
    if failed:
        nothing = AnswerScore(False, False, None)
        answers: dict[Answer, AnswerScore] = dict.fromkeys(ANSWERS, nothing)
    else:
        total = math.fsum(w for _, w in alive)
        alive = [(p, w / total) for p, w in alive]
        answers = {
            "draw": _judged(particles[record["choice"]]),
            "vote": _vote(alive),
            "best": _judged(max((p for p, _ in alive), key=_log_prob)),
        }
    right = [(p, w) for p, w in alive if p["correct"] and not failed]
    return ItemScores(
        item=item_of(record),
        answers=answers,
        right=math.fsum(w for _, w in right),
        num_right=len(right),
        num=len(alive),
        log_evidence=record["log_evidence"],
        failed=failed,
        ungraded=sum(particle["note"] is not None for particle in particles),
        degenerate=math.fsum(w for p, w in alive if p["loop"] or p["very_short"]),
        tokens=record["info"]["model_tokens"],
        seconds=record["seconds"],
    )


def _weight(particle: Record) -> float:
    log_weight = particle["log_weight"]
    return 0.0 if log_weight is None else math.exp(log_weight)


def _log_prob(particle: Record) -> float:
    """log p; one that is not finite was recorded as null."""
    return -math.inf if particle["log_prob"] is None else particle["log_prob"]


def _judged(particle: Record) -> AnswerScore:
    return AnswerScore(particle["correct"], particle["correct_string"], particle["log_prob"])


def _vote(alive: Sequence[tuple[Record, float]]) -> AnswerScore:
    """Ties go to the answer seen first.

    Particles of one answer may be judged differently, by strings above all, where the answer was
    spelt in several ways: then the larger weight among them counts.
    """
    votes: dict[str, float] = {}
    for particle, weight in alive:
        if particle["parsed"] is not None:
            votes[particle["parsed"]] = votes.get(particle["parsed"], 0.0) + weight
    log_probs = [_log_prob(particle) for particle, _ in alive]
    mean = math.fsum(log_probs) / len(alive) if math.isfinite(min(log_probs)) else None
    if not votes:
        return AnswerScore(False, False, mean)
    winner = max(votes, key=lambda answer: votes[answer])

    def most(verdict: str) -> bool:
        right = math.fsum(w for p, w in alive if p["parsed"] == winner and p[verdict])
        return right > votes[winner] / 2

    return AnswerScore(most("correct"), most("correct_string"), mean)
