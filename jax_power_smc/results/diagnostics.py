"""What a set of particles shows about itself: diversity, unfinished mass, degenerate outputs.

None of it says that a run was good. Few distinct roots or a long shared beginning mean that the
particles know little of the alternatives; loops and very short outputs are what ``p^alpha`` itself
rewards, and are flagged so that nobody takes them for answers. On the host, in numpy.
"""

from typing import NamedTuple

import numpy as np

# A tail that repeats one block this often, and over at least this many tokens, is a loop.
LOOP_REPEATS = 4
LOOP_TOKENS = 16
# An output of at most this many tokens is flagged as very short.
SHORT_TOKENS = 2


class Diagnostics(NamedTuple):
    """Of P prompts with N particles each; the fields of the same names of ``SampleInfo``."""

    unfinished_mass: np.ndarray
    distinct_roots: np.ndarray
    coalescence: np.ndarray
    loops: np.ndarray
    very_short: np.ndarray


def diagnose(
    tokens: np.ndarray,
    lengths: np.ndarray,
    finished: np.ndarray,
    log_weights: np.ndarray,
    parent: np.ndarray,
    particle_index: np.ndarray,
) -> Diagnostics:
    """All diagnostics of a result.

    Args:
      tokens: [P, N, T].
      lengths: [P, N].
      finished: [P, N] bool.
      log_weights: [P, N], normalised.
      parent: [P, T, M], the genealogy.
      particle_index: [P, N], where in the population [M] each particle is at the end.
    """
    weights = np.exp(np.asarray(log_weights, np.float64))
    alive = weights > 0
    prompts = range(len(weights))
    return Diagnostics(
        unfinished_mass=np.sum(np.where(finished, 0.0, weights), axis=1),
        distinct_roots=np.array(
            [len(np.unique(tokens[p, alive[p], 0])) for p in prompts], np.int32
        ),
        coalescence=np.array(
            [shared_steps(parent[p], particle_index[p, alive[p]]) for p in prompts], np.int32
        ),
        loops=np.array(
            [
                [is_loop(row[:length]) for row, length in zip(tokens[p], lengths[p], strict=True)]
                for p in prompts
            ],
            bool,
        ).reshape(lengths.shape),
        very_short=finished & (lengths <= SHORT_TOKENS),
    )


def shared_steps(parent: np.ndarray, index: np.ndarray) -> int:
    """First steps that all given particles share: parent [T, M], index [K] at the end.

    0 means that their first tokens were drawn apart; with one particle, or none, it is T.
    """
    for step in range(parent.shape[0] - 1, -1, -1):
        if len(np.unique(index)) <= 1:
            return step + 1
        index = parent[step][index]
    return 0


def is_loop(ids: np.ndarray) -> bool:
    """Whether the sequence ids [L] ends in a block that repeats over and over."""
    length = len(ids)
    if length < LOOP_TOKENS:
        return False
    # Only periods after which the last token stood before can be that of a loop.
    for period in length - 1 - np.flatnonzero(ids[:-1] == ids[-1])[::-1]:
        span = max(period * LOOP_REPEATS, LOOP_TOKENS)
        if span > length:
            return False
        tail = ids[length - span :]
        if np.array_equal(tail[period:], tail[:-period]):
            return True
    return False
