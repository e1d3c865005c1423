"""Intervals for accuracies and for paired differences over problems."""

import math

import numpy as np

# 97.5% quantile of the normal distribution.
_Z = 1.959963984540054


def wilson(accuracy: float, num_problems: int) -> tuple[float, float]:
    """The 95% Wilson interval of an accuracy over so many problems.

    Where several seeds were averaged within each problem it is on the wide side.

    Args:
      accuracy: in [0, 1].
      num_problems: at least 1.

    Returns:
      Its ends, in [0, 1].
    """
    n, z2 = num_problems, _Z**2
    centre = (accuracy + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(accuracy * (1 - accuracy) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean difference of two methods on the same problems, with its 95% interval.

    Args:
      ours, theirs: [problems], each method's score on each problem, seeds averaged.
      num_resamples: how often the problems are drawn anew, with replacement.
      seed: of the drawing.

    Returns:
      (difference, lower end, upper end): the percentile bootstrap.

    Raises:
      ValueError: if the two are not vectors of one length, at least 1.
    """
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(
            f"the scores have shapes {ours.shape} and {theirs.shape}; "
            "they must be two vectors over the same problems."
        )
    difference = ours - theirs
    rng = np.random.default_rng(seed)
    # One resample is one multinomial count vector over problems.
    n = len(difference)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=num_resamples)
    means = counts @ difference / n
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
