"""Ancestral decoding: temperature, greedy, several samples, restrictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jax_power_smc as psmc
from jax_power_smc import Ancestral, PowerTarget, TableLM
from jax_power_smc.models.table_lm import TableParams
from jax_power_smc.samplers.base import start

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = TableLM(vocab_size=4, order=1)
# Row v: what follows token v. No row is nearly certain, and their entropies differ.
ROWS = [
    [0.35, 0.25, 0.30, 0.10],
    [0.40, 0.20, 0.15, 0.25],
    [0.10, 0.28, 0.30, 0.32],
    [0.60, 0.05, 0.10, 0.25],
    [0.25, 0.25, 0.25, 0.25],
]
PARAMS = TableParams(jnp.log(jnp.array(ROWS))[None])
CAP, EOS = 3, 1
COUNT = 4096
END = PowerTarget(1.0, (EOS,))


def sample(sampler, target=END, *, seed=0, prompts=((0,),), params=PARAMS, cap=CAP):
    return psmc.plain.sample(
        MODEL,
        params,
        prompts,
        key=jax.random.key(seed),
        target=target,
        sampler=sampler,
        max_new_tokens=cap,
    )


def table():
    logits = np.asarray(PARAMS.logits[0], np.float64)
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def distribution(exponent, first=0, keep=lambda p, t: np.ones(4, bool)):
    """Chances of all sequences when every step draws from p^exponent on ``keep``."""
    chance = {}

    def go(generated, prob):
        t = len(generated)
        if t == CAP or (generated and generated[-1] == EOS):
            chance[tuple(generated)] = prob
            return
        p = table()[generated[-1] if generated else first]
        q = p**exponent * keep(p, t)
        for v in np.flatnonzero(q):
            go([*generated, int(v)], prob * q[v] / q.sum())

    go([], 1.0)
    return chance


def p_value(result, chance):
    counts = {}
    for row in result.sequences()[0]:
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert set(counts) <= set(chance)
    total = sum(counts.values())
    common = [y for y in chance if total * chance[y] >= 10]
    observed = [counts.get(y, 0) for y in common]
    expected = [total * chance[y] for y in common]
    if total - sum(expected) > 1:
        observed.append(total - sum(observed))
        expected.append(total - sum(expected))
    expected = np.array(expected) * (sum(observed) / sum(expected))
    return scipy.stats.chisquare(observed, expected).pvalue


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_counts_follow_the_temperature(temperature):
    result = sample(Ancestral(temperature, COUNT))
    assert p_value(result, distribution(1 / temperature)) > 1e-6
    assert p_value(result, distribution(0.5 / temperature)) < 1e-6


def test_temperature_one_is_the_model_itself():
    listed = psmc.exact.enumerate(MODEL, PARAMS, (0,), END, CAP)
    result = sample(Ancestral(1.0, COUNT), seed=9)
    assert p_value(result, listed.probabilities()) > 1e-6


def test_truncation_is_renormalised_step_by_step():
    def two_best(p, _):
        return p >= np.sort(p)[-2]

    result = sample(Ancestral(1.0, COUNT), PowerTarget(1.0, (EOS,), top_k=2))
    assert p_value(result, distribution(1.0, keep=two_best)) > 1e-6


def test_late_and_forced_ends_hold():
    def keep(_, t):
        ends = np.arange(4) == EOS
        return ends if t == CAP - 1 else (~ends if t < 1 else np.ones(4, bool))

    target = PowerTarget(1.0, (EOS,), length="forced_eos", min_new_tokens=1)
    result = sample(Ancestral(1.0, COUNT), target)
    assert p_value(result, distribution(1.0, keep=keep)) > 1e-6
    assert np.asarray(result.finished).all()


@pytest.mark.parametrize("first", range(4))
def test_temperature_zero_takes_the_most_probable_token(first):
    result = sample(Ancestral(0.0, 2), prompts=((first,),), cap=6)
    expected, previous = [], first
    while len(expected) < 6 and (not expected or expected[-1] != EOS):
        previous = int(np.argmax(table()[previous]))
        expected.append(previous)
    assert result.sequences()[0] == [expected, expected]


def test_greedy_takes_the_lowest_id_of_a_tie_and_respects_the_support():
    flat = PARAMS._replace(logits=PARAMS.logits * 0)
    assert sample(Ancestral(0.0, 2), params=flat).sequences()[0][0] == [0, 0, 0]
    # Ending tokens alone are left at the last step.
    target = PowerTarget(1.0, (3,), length="forced_eos")
    assert sample(Ancestral(0.0, 2), target, params=flat).sequences()[0][0] == [0, 0, 3]


def test_a_small_temperature_comes_close_to_greedy():
    greedy = sample(Ancestral(0.0, 2)).sequences()
    assert sample(Ancestral(1e-3, 2)).sequences() == greedy


@pytest.mark.parametrize("temperature", [1e-30, 1e-39, 1e-42, 1e-50])
def test_the_smallest_temperatures_are_greedy_too(temperature):
    assert sample(Ancestral(temperature, 2)).sequences() == sample(Ancestral(0.0, 2)).sequences()


def test_weights_are_equal_and_there_is_no_evidence():
    result = sample(Ancestral(1.0, COUNT))
    np.testing.assert_allclose(result.log_weights, -np.log(COUNT), rtol=1e-5)
    assert np.isnan(result.log_evidence).all()
    assert not result.info.resampled.any() and not result.info.forks.any()
    assert int(result.info.drawn_tokens[0]) == int(np.asarray(result.lengths).sum())
    # Samples that begin alike share a row: the prompt's, three that go on, and nine after them.
    assert int(result.info.model_tokens[0]) == 1 + 3 + 9


def test_the_choice_is_uniform_over_the_samples_of_positive_weight():
    sampler = Ancestral(1.0, 4)
    particles = start(4, jnp.float32)
    particles = particles._replace(log_weight=particles.log_weight.at[2].set(-jnp.inf))
    grid = (jnp.arange(3000, dtype=jnp.float32) + 0.5) / 3000
    finish = functools.partial(sampler.finish, END.arrays(4, CAP), particles)
    outcome = jax.jit(jax.vmap(finish))(jnp.stack([grid, grid], axis=1))
    share = np.bincount(np.asarray(outcome.choice), minlength=4) / 3000
    np.testing.assert_allclose(share, [1 / 3, 1 / 3, 0, 1 / 3], atol=1e-3)


def test_alpha_of_the_target_does_not_matter():
    one, four = (sample(Ancestral(1.0, COUNT), PowerTarget(a, (EOS,))) for a in (1.0, 4.0))
    np.testing.assert_array_equal(one.tokens, four.tokens)


def test_an_empty_support_is_a_failure():
    top = int(np.argmax(table()[0]))
    target = PowerTarget(1.0, (top,), top_k=1, min_new_tokens=1)
    result = sample(Ancestral(1.0, 2), target)
    assert result.failures()[0] is not None
    assert np.isneginf(result.log_weights).all() and not np.asarray(result.finished).any()
