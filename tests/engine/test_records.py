"""Tokens traced back from who continued whom, and the prefix that can no longer change."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.engine.records import PendingRecords, concatenate, settled, trace
from jax_power_smc.engine.state import PAD_ID
from jax_power_smc.engine.step import Record

M, STEPS, CAP = 5, 7, 9


def history(steps=STEPS, seed=0, moves=1.0, **changes):
    """Random records of one prompt; particles that have ended draw nothing more.

    ``moves`` is the share of steps at which a particle may continue another one.
    """
    rng = np.random.default_rng(seed)
    parent = rng.integers(0, M, (steps, M)).astype(np.int32)
    parent[np.random.default_rng(seed).random(steps) >= moves] = np.arange(M)
    ended, active = np.zeros(M, bool), np.zeros((steps, M), bool)
    for t in range(steps):
        active[t] = ~ended[parent[t]]
        ended = ended[parent[t]] | (rng.random(M) < 0.15)
    fields = {
        "step": np.arange(steps, dtype=np.int32),
        "parent": parent,
        "token": rng.integers(0, 9, (steps, M)).astype(np.int32),
        "log_prob": rng.normal(size=(steps, M)),
        "active": active,
        "ess": rng.random(steps),
        "resampled": rng.random(steps) < 0.5,
        "bad_logits": np.zeros(steps, bool),
        "num_rows": rng.integers(0, M, steps).astype(np.int32),
        "copies": rng.integers(0, M, steps).astype(np.int32),
    }
    return Record(**{**fields, **changes})


def replayed(past):
    """Every particle's tokens and log p, carried forward through the steps."""
    texts = [[] for _ in range(M)]
    for t in range(len(past.step)):
        drawn = [(int(past.token[t][m]), float(past.log_prob[t][m])) for m in range(M)]
        texts = [
            [*texts[past.parent[t][m]], *([drawn[m]] if past.active[t][m] else [])]
            for m in range(M)
        ]
    return texts


@pytest.mark.parametrize("moves", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("seed", range(8))
def test_a_trace_is_what_was_carried_along(seed, moves):
    past = history(seed=seed, moves=moves)
    index = np.array([3, 0, 0, 4], np.int32)
    tokens, log_probs = trace(past, index, CAP)
    assert tokens.shape == log_probs.shape == (4, CAP) and tokens.dtype == np.int32
    texts = replayed(past)
    for row, probs, m in zip(tokens, log_probs, index, strict=True):
        expected = texts[m] + [(PAD_ID, 0.0)] * (CAP - len(texts[m]))
        assert list(zip(row.tolist(), probs.tolist(), strict=True)) == expected


def test_some_sequences_of_these_end_early():
    lengths = {len(text) for seed in range(8) for text in replayed(history(seed=seed))}
    assert len(lengths) > 3 and max(lengths) == STEPS


@pytest.mark.parametrize("seed", range(8))
def test_the_settled_prefix_is_the_longest_common_one(seed):
    # Few tokens, and after a while a single ancestor.
    past = history(12, seed)
    past.token[:] %= 2
    for index in (np.array([0, 1, 2, 3, 4]), np.array([1, 3]), np.array([2])):
        texts = [[token for token, _ in replayed(past)[m]] for m in index]
        common = 0
        while all(len(x) > common and x[common] == texts[0][common] for x in texts):
            common += 1
        assert settled(past, index).tolist() == texts[0][:common]


def test_padding_never_settles():
    # One particle ended with its second token; the other one goes on with tokens equal to the pad.
    nobody = np.tile(np.arange(M, dtype=np.int32), (4, 1))
    active = np.ones((4, M), bool)
    active[2:, 1] = False
    token = np.full((4, M), PAD_ID, np.int32)
    token[:2] = 7
    past = history(4, parent=nobody, active=active, token=token)
    assert settled(past, np.array([0, 1])).tolist() == [7, 7]
    assert settled(past, np.array([0, 2])).tolist() == [7, 7, PAD_ID, PAD_ID]
    assert settled(past, np.array([1])).tolist() == [7, 7]


def test_what_is_settled_stays():
    past = history(12, seed=5)
    past.token[:] %= 2
    before = np.zeros(0, np.int32)
    for steps in range(1, 13):
        so_far = Record(*[x[:steps] for x in past])
        # Whoever is there now descends from those who were there before.
        found = settled(so_far, np.arange(M))
        assert found[: len(before)].tolist() == before.tolist()
        before = found
    assert len(before) > 3


def test_pieces_hold_the_steps_that_were_taken():
    # Two prompts in five ticks: the first one stalled twice, the second one was done after two.
    whole = history(5)
    step = np.array([[4, -1, -1, 5, 6], [0, 1, -1, -1, -1]], np.int32)
    both = Record(*[jnp.asarray(np.stack([x, x])) for x in whole])._replace(step=jnp.asarray(step))
    pending = PendingRecords(both)
    first, second = pending.of(0), pending.of(1)
    assert first.step.tolist() == [4, 5, 6] and second.step.tolist() == [0, 1]
    np.testing.assert_array_equal(first.token, whole.token[[0, 3, 4]])
    joined = concatenate([second, first])
    assert joined.step.tolist() == [0, 1, 4, 5, 6]
    np.testing.assert_array_equal(joined.parent, whole.parent[[0, 1, 0, 3, 4]])
