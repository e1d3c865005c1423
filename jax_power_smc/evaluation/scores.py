"""Scores of an item: the draw, the vote, the best and pass@k, all from one record.

* The **draw** is the particle drawn with probability proportional to its weight, as in the paper.
* The **vote** is the parsed answer of largest total weight.
* The **best** is the particle of highest log p among those of positive weight.
* **pass@k** is the probability that one of k answers is correct. From weighted particles, k draws
  with replacement give ``1 - (1 - s)^k``, where s is the weight of the correct ones. From n
  independent samples of equal weight, c of them correct, k draws without replacement give the
  unbiased ``1 - C(n - c, k) / C(n, k)`` (Chen et al., 2021).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from jax_power_smc.evaluation.records import Item, Record, item_of, weights

Answer = Literal["draw", "vote", "best"]
ANSWERS: tuple[Answer, ...] = ("draw", "vote", "best")


@dataclasses.dataclass(frozen=True)
class AnswerScore:
    """The score of one answer of one item, by the task's rule and by comparison of strings.

    For a vote, log p is the mean over all particles of positive weight; None without an answer.
    """

    correct: bool
    correct_string: bool
    log_prob: float | None


@dataclasses.dataclass(frozen=True)
class ItemScores:
    """What tables and plots need of one record.

    Attributes:
      right: total weight of the particles with a correct answer, in [0, 1].
      num_right, num: number of particles of positive weight that are correct, and of all.
      failed: whether the result is meaningless; then all answers count as wrong.
      ungraded: number of particles that could not be graded.
      degenerate: total weight of the particles that loop or are very short.
      tokens: number of tokens that the particles drew.
      model_tokens: number of tokens that the model processed, each distinct prefix once; None for a
        record that does not say.
      draw_length: tokens of the draw.
      seconds: by phase, as in the record.
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
    model_tokens: int | None
    draw_length: int
    seconds: dict[str, float]

    def pass_at(self, k: int, independent: bool) -> float:
        """The probability that one of k answers is correct.

        ``independent`` particles are samples of equal weight, of which there are at least k.
        """
        if not independent:
            # Sums of rounded weights may exceed 1 a little.
            return 1.0 - (1.0 - min(self.right, 1.0)) ** k
        if self.num < k:
            return 0.0
        return 1.0 - math.comb(self.num - self.num_right, k) / math.comb(self.num, k)


def read(record: Record) -> ItemScores:
    """The scores of a graded record."""
    particles, info = record["particles"], record["info"]
    alive = [(p, w) for p, w in zip(particles, weights(record), strict=True) if w > 0]
    failed = record["failure"] is not None or not alive
    answers = dict.fromkeys(ANSWERS, AnswerScore(False, False, None))
    if not failed:
        answers = {
            "draw": _score(particles[record["choice"]]),
            "vote": _vote(alive),
            "best": _score(max((p for p, _ in alive), key=_log_prob)),
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
        tokens=info.get("drawn_tokens", info["model_tokens"]),
        model_tokens=info["model_tokens"] if "drawn_tokens" in info else None,
        draw_length=len(particles[record["choice"]]["tokens"]) if alive else 0,
        seconds=record["seconds"],
    )


def _log_prob(particle: Record) -> float:
    """log p, which was recorded as null if it is -inf."""
    return -math.inf if particle["log_prob"] is None else particle["log_prob"]


def _score(particle: Record) -> AnswerScore:
    return AnswerScore(particle["correct"], particle["correct_string"], particle["log_prob"])


def _vote(alive: Sequence[tuple[Record, float]]) -> AnswerScore:
    """The score of the answer of largest total weight; of equal ones, the first.

    Its particles may have different verdicts, above all by strings, where the answer is spelled in
    several ways: then the verdict of more than half of the weight counts.
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

    def is_majority(verdict: str) -> bool:
        right = math.fsum(w for p, w in alive if p["parsed"] == winner and p[verdict])
        return right > votes[winner] / 2

    return AnswerScore(is_majority("correct"), is_majority("correct_string"), mean)
