"""A result by hand: two prompts, two particles and a finished pool of one, three steps."""

import numpy as np
import pytest

from jax_power_smc import MetropolisHastings, PowerSMC, PowerTarget
from jax_power_smc.results.assemble import Steps, assemble
from jax_power_smc.samplers.base import FinalWeights, Particles

TARGET = PowerTarget(2.0, (1,))
# The second prompt returns one particle alone, from the pool.
FINAL = FinalWeights(
    log_weight=np.array([[np.log(0.25), np.log(0.75)], [0.0, -np.inf]]),
    log_evidence=np.array([-1.0, -2.0]),
    choice=np.array([1, 0], np.int32),
    particle_index=np.array([[1, 0], [2, -1]], np.int32),
)
PARTICLES = Particles(
    log_weight=None,
    log_evidence=None,
    log_prob=np.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]]),
    exponent=None,
    ended=None,
    finished=np.array([[True, False, False], [False, False, True]]),
    length=np.array([[2, 3, 0], [3, 3, 1]], np.int32),
    drawn=np.array([5, 7], np.int32),
    dropped=np.array([0.0, 0.5]),
)
PARENT = np.array([[[0, 1, 2], [1, 1, 2], [0, 0, 2]], [[1, 0, 2], [0, 1, 0], [0, 1, 2]]], np.int32)
STEPS = Steps(
    parent=PARENT,
    ess=np.full((2, 3), 2.0),
    resampled=np.array([[False, True, True], [False] * 3]),
    bad_logits=np.array([[False, False, True], [False] * 3]),
    num_rows=np.array([[2, 1, 0], [2, 2, 0]], np.int32),
    copies=np.array([[1, 0, 0], [1, 1, 0]], np.int32),
)
TOKENS = np.array([[[3, 2, 4], [3, 1, 0]], [[1, 0, 0], [9, 9, 9]]], np.int32)


SMC = PowerSMC(2)


def made(sampler=SMC, **options):
    given = {"tokens": TOKENS, "token_log_probs": -1.0 * TOKENS, "seconds": {"decode": 1.0}}
    return assemble(sampler, TARGET, FINAL, PARTICLES, STEPS, **{**given, **options})


def test_what_is_returned_is_taken_by_index_and_what_is_unused_is_empty():
    result = made()
    assert result.tokens.tolist() == [[[3, 2, 4], [3, 1, 0]], [[1, 0, 0], [0, 0, 0]]]
    assert result.token_log_probs[1].tolist() == [[-1, 0, 0], [0, 0, 0]]
    assert result.lengths.tolist() == [[3, 2], [1, 0]]
    assert result.finished.tolist() == [[False, True], [True, False]]
    assert result.log_probs.tolist() == [[-2, -1], [-6, 0]]
    assert result.log_evidence.tolist() == [-1, -2] and result.choice.tolist() == [1, 0]
    assert result.target is TARGET


def test_costs_are_sums_over_the_steps():
    info = made(preempted=np.array([0, 3], np.int32)).info
    assert info.model_tokens.tolist() == [1 + 3, 1 + 4] and info.drawn_tokens.tolist() == [5, 7]
    assert info.copies.tolist() == [1, 2] and info.num_rows is STEPS.num_rows
    assert info.preempted.tolist() == [0, 3] and made().info.preempted.tolist() == [0, 0]
    assert info.bad_logits.tolist() == [True, False] and info.dropped_mass.tolist() == [0, 0.5]
    # Particles that run, not the pool.
    assert info.forks.tolist() == [[0, 1, 1], [2, 0, 0]]


def test_in_the_published_order_parents_are_reported_a_step_later():
    info = made(PowerSMC(2, order="published")).info
    assert info.parent.tolist() == [
        [[0, 1, 2], [0, 1, 2], [1, 1, 2]],
        [[0, 1, 2], [1, 0, 2], [0, 1, 0]],
    ]
    assert info.forks.tolist() == [[0, 1, 1], [2, 0, 0]]
    np.testing.assert_array_equal(made().info.parent, PARENT)


def test_chains_have_no_evidence_and_the_cost_that_they_drew():
    sampler = MetropolisHastings(num_blocks=1, num_chains=2)
    result = made(sampler, acceptance_rate=np.array([0.5, 0.25]))
    assert np.isnan(result.log_evidence).all()
    assert result.info.model_tokens.tolist() == [5, 7]
    assert result.info.acceptance_rate.tolist() == [0.5, 0.25]
    assert np.isnan(made().info.acceptance_rate).all()


@pytest.mark.parametrize("one", [0, 1])
def test_diagnostics_see_what_is_returned(one):
    info = made().info
    assert info.very_short[one].tolist() == [[False, True], [True, False]][one]
    assert info.distinct_roots[one] == 1
    assert info.unfinished_mass[one] == pytest.approx([0.25, 0.0][one])
