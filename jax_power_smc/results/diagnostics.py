"""Diagnostics of a particle population: diversity, unfinished mass, degenerate outputs.

None of them shows that a run was good. Few distinct roots or a long shared beginning mean that the
particles cover few alternatives. Loops and very short outputs are rewarded by ``p^alpha`` itself;
they are flagged so that they are not mistaken for answers. On the host, in NumPy.
"""

from typing import NamedTuple

import numpy as np

# A tail is a loop if it repeats a block this many times, over at least this many tokens.
LOOP_REPEATS = 4
LOOP_TOKENS = 16
# An output of at most this many tokens is flagged as very short.
SHORT_TOKENS = 2


class Diagnostics(NamedTuple):
    """Diagnostics of P prompts with N particles each, as in ``SampleInfo``."""

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
      particle_index: [P, N], each particle's final index in the population [M].
    """
    weights = np.exp(np.asarray(log_weights, np.float64))
    alive = weights > 0
    prompts = range(len(weights))
    roots = [len(np.unique(tokens[p, alive[p], 0])) for p in prompts]
    shared = [shared_steps(parent[p], particle_index[p, alive[p]]) for p in prompts]
    loops = [is_loop(tokens[each][: lengths[each]]) for each in np.ndindex(lengths.shape)]
    return Diagnostics(
        unfinished_mass=np.sum(np.where(finished, 0.0, weights), axis=1),
        distinct_roots=np.array(roots, np.int32),
        coalescence=np.array(shared, np.int32),
        loops=np.array(loops, bool).reshape(lengths.shape),
        very_short=finished & (lengths <= SHORT_TOKENS),
    )


def shared_steps(parent: np.ndarray, index: np.ndarray) -> int:
    """How many first steps the given particles share: parent [T, M], final index [K].

    0 if they descend from different particles of the first step; T for one particle or none.
    """
    for step in range(parent.shape[0] - 1, -1, -1):
        if len(np.unique(index)) <= 1:
            return step + 1
        index = parent[step][index]
    return 0


def is_loop(ids: np.ndarray) -> bool:
    """Whether the sequence ids [L] ends in a block repeated over and over."""
    length = len(ids)
    if length < LOOP_TOKENS:
        return False
    # The last token must also occur one period earlier.
    for period in length - 1 - np.flatnonzero(ids[:-1] == ids[-1])[::-1]:
        span = max(period * LOOP_REPEATS, LOOP_TOKENS)
        if span > length:
            return False
        tail = ids[length - span :]
        if np.array_equal(tail[period:], tail[:-period]):
            return True
    return False
