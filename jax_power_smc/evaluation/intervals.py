"""Bootstrap intervals over problems and seeds.

Scores vary between problems, and between the seeds of one problem. Both are resampled with
replacement: first problems, then seeds within each drawn problem. All statistics of a table use the
same resamples, so differences are paired.
"""

import functools
import math

import numpy as np

NUM_RESAMPLES = 4000
# 97.5% quantile of the normal distribution.
_Z = 1.959963984540054
# Digits of the ends of an interval; further ones are rounding errors.
_DIGITS = 6
# Scores may differ by so much through rounding: weights do not sum to 1 exactly.
_ROUNDING = 1e-6
# Entries of the resamples that are in memory at a time.
_BLOCK = 2**22


def mean_and_interval(scores: np.ndarray) -> tuple[float, float, float]:
    """(mean, lower end, upper end): scores [problems, seeds] with their 95% percentile interval.

    Raises:
      ValueError: if there is no score, or the shape is wrong.
    """
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores has shape {scores.shape}; it must be [problems, seeds].")
    means = _resamples(*scores.shape) @ scores.astype(np.float32).ravel()
    low, high = np.percentile(means, [2.5, 97.5]).round(_DIGITS)
    return float(scores.mean()), float(low), float(high)


def accuracy_interval(scores: np.ndarray) -> tuple[float, float, float]:
    """Like ``mean_and_interval``, for scores in [0, 1].

    If all scores are equal, the bootstrap interval has width 0; then this is the Wilson interval
    over problems.
    """
    mean, low, high = mean_and_interval(scores)
    if np.ptp(scores) < _ROUNDING:
        low, high = wilson(min(1.0, max(0.0, mean)), len(scores))
    return mean, max(0.0, min(low, mean)), min(1.0, max(high, mean))


def difference_interval(scores: np.ndarray) -> tuple[float, float, float]:
    """Like ``mean_and_interval``, for differences of scores in [-1, 1].

    If all differences are equal, the bootstrap interval has width 0; then this is the mean plus or
    minus the width of the Wilson interval of 0 successes.
    """
    mean, low, high = mean_and_interval(scores)
    if np.ptp(scores) < _ROUNDING:
        _, width = wilson(0.0, len(scores))
        low, high = max(-1.0, mean - width), min(1.0, mean + width)
    return mean, low, high


def wilson(accuracy: float, num_problems: int) -> tuple[float, float]:
    """The ends of the 95% Wilson interval of an accuracy in [0, 1]."""
    n, z2 = num_problems, _Z**2
    centre = (accuracy + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(accuracy * (1 - accuracy) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@functools.lru_cache(maxsize=2)
def _resamples(num_problems: int, num_seeds: int) -> np.ndarray:
    """[resamples, problems * seeds] float32, the weight of every score in every resample's mean."""
    rng = np.random.default_rng(0)
    size = num_problems * num_seeds
    weights = np.empty((NUM_RESAMPLES, size), np.float32)
    rows = max(1, _BLOCK // size)
    for first in range(0, NUM_RESAMPLES, rows):
        count = min(rows, NUM_RESAMPLES - first)
        problem = rng.integers(num_problems, size=(count, num_problems, 1))
        seed = rng.integers(num_seeds, size=(count, num_problems, num_seeds))
        cell = (problem * num_seeds + seed).reshape(count, size)
        cell += np.arange(count)[:, None] * size
        drawn = np.bincount(cell.ravel(), minlength=count * size).reshape(count, size)
        weights[first : first + count] = drawn / size
    return weights
