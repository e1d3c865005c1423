"""Power-SMC: its exact identities, when it resamples, and what it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jax_power_smc as psmc
from jax_power_smc import PowerSMC, PowerTarget, TableLM
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
CAP = 7
PROMPTS = [[0], [2, 3], [3], [1]]
EOS = 1
END = PowerTarget(3.0, (EOS,))
ON = PowerTarget(3.0)


def sample(sampler, target=END, *, seed=0, prompts=PROMPTS, cap=CAP, **options):
    function = options.pop("function", psmc.plain.sample)
    return function(
        MODEL,
        PARAMS,
        prompts,
        key=jax.random.key(seed),
        target=target,
        sampler=sampler,
        max_new_tokens=cap,
        **options,
    )


def log_table():
    logits = np.asarray(PARAMS.logits[0], np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def log_s(previous, exponent):
    return np.logaddexp.reduce(exponent * log_table()[previous])


def exponents(target, ramp_tokens):
    ramp = max(ramp_tokens, 1)
    return [
        1 + (target.alpha - 1) * min(1.0, t / ramp) if ramp_tokens else target.alpha
        for t in range(CAP)
    ]


def replayed_log_weight(prompt, tokens, target, ramp_tokens):
    """Log importance weight of one sequence drawn from the proposals, catch-up included."""
    total, log_p, old, previous = 0.0, 0.0, 1.0, prompt[-1]
    for token, new in zip(tokens, exponents(target, ramp_tokens), strict=False):
        total += (new - old) * log_p + log_s(previous, new)
        log_p += log_table()[previous, token]
        old, previous = new, token
    return total + (target.alpha - old) * log_p


def chi_square(counts, chance):
    """p-value of observed counts against probabilities; rare outcomes are pooled."""
    total = sum(counts.values())
    assert set(counts) <= set(chance)
    common = [y for y in chance if total * chance[y] >= 10]
    observed = [counts.get(y, 0) for y in common]
    expected = [total * chance[y] for y in common]
    if total - sum(expected) > 1:
        observed.append(total - sum(observed))
        expected.append(total - sum(expected))
    expected = np.array(expected) * (sum(observed) / sum(expected))
    return scipy.stats.chisquare(observed, expected).pvalue


def test_chi_square_sees_a_wrong_distribution():
    assert chi_square({"a": 5000, "b": 5000}, {"a": 0.5, "b": 0.5}) > 0.9
    assert chi_square({"a": 5300, "b": 4700}, {"a": 0.5, "b": 0.5}) < 1e-6


@pytest.mark.parametrize("order", ["adapted", "published"])
@pytest.mark.parametrize("ramp_tokens", [0, 3])
def test_alpha_one_has_evidence_one_equal_weights_and_no_resampling(order, ramp_tokens):
    result = sample(PowerSMC(4, order=order, ramp_tokens=ramp_tokens), PowerTarget(1.0, (EOS,)))
    np.testing.assert_allclose(result.log_evidence, 0.0, atol=1e-5)
    np.testing.assert_allclose(result.log_weights, -np.log(4), atol=1e-5)
    assert not result.info.resampled.any() and not result.info.forks.any()
    np.testing.assert_allclose(result.info.ess, 4.0, rtol=1e-4)


@pytest.mark.parametrize("ramp_tokens", [0, 4, 30])
def test_one_particle_has_the_product_of_its_normalisers_as_evidence(ramp_tokens):
    prompts = [[i % 4] for i in range(16)]
    result = sample(PowerSMC(1, ramp_tokens=ramp_tokens), prompts=prompts)
    for i, row in enumerate(result.draw()):
        expected = replayed_log_weight(prompts[i], row, END, ramp_tokens)
        assert float(result.log_evidence[i]) == pytest.approx(expected, abs=1e-4)
    assert np.all(np.asarray(result.log_weights) == 0)
    assert len({tuple(row) for row in result.draw()}) > 4


def test_one_particle_is_plain_temperature_sampling():
    cap, count, target = 3, 4096, PowerTarget(2.0, (EOS,))
    result = sample(PowerSMC(1), target, prompts=[[0]] * count, cap=cap, seed=5)
    chance = {}
    listed = psmc.exact.enumerate(MODEL, PARAMS, [0], target, cap)
    for y, log_p in zip(listed.sequences, listed.log_prob, strict=True):
        normalisers = sum(log_s(previous, 2.0) for previous in (0, *y[:-1]))
        chance[y] = float(np.exp(2.0 * log_p - normalisers))
    assert sum(chance.values()) == pytest.approx(1.0, abs=1e-5)
    counts = {}
    for row in result.draw():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert chi_square(counts, chance) > 1e-6
    # The test can distinguish the target itself, another distribution.
    assert chi_square(counts, listed.probabilities()) < 1e-6


@pytest.mark.parametrize("order", ["adapted", "published"])
@pytest.mark.parametrize("ramp_tokens", [0, 3])
def test_threshold_zero_is_sequential_importance_sampling(order, ramp_tokens):
    result = sample(PowerSMC(4, ess_threshold=0.0, order=order, ramp_tokens=ramp_tokens))
    assert not result.info.resampled.any() and not result.info.forks.any()
    for i, rows in enumerate(result.sequences()):
        expected = np.array(
            [replayed_log_weight(PROMPTS[i], row, END, ramp_tokens) for row in rows]
        )
        evidence = np.logaddexp.reduce(expected) - np.log(4)
        assert float(result.log_evidence[i]) == pytest.approx(evidence, abs=1e-4)
        np.testing.assert_allclose(
            result.log_weights[i], expected - np.logaddexp.reduce(expected), atol=2e-4
        )


def test_orders_agree_when_nothing_is_resampled():
    one = sample(PowerSMC(4, ess_threshold=0.0))
    two = sample(PowerSMC(4, ess_threshold=0.0, order="published"))
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_allclose(one.log_weights, two.log_weights, atol=1e-5)


@pytest.mark.parametrize("order", ["adapted", "published"])
def test_threshold_one_resamples_wherever_weights_differ(order):
    result = sample(PowerSMC(4, ess_threshold=1.0, order=order), ON)
    info = result.info
    assert info.resampled[:, 1 : CAP - 1].mean() > 0.7
    differ = info.ess[:, : CAP - 1] < 3.99
    assert np.all(info.resampled[:, : CAP - 1][differ])
    moved = info.parent != np.arange(4)
    if order == "published":  # a step that draws first has its parents recorded one step later
        assert not moved[:, 0].any()
        moved = np.roll(moved, -1, axis=1)
    np.testing.assert_array_equal(info.forks, moved.sum(axis=2))
    assert np.all(info.resampled | ~moved.any(axis=2)) and moved.any()


def test_only_the_adapted_order_resamples_before_the_last_token():
    adapted = sample(PowerSMC(4, ess_threshold=1.0), ON)
    published = sample(PowerSMC(4, ess_threshold=1.0, order="published"), ON)
    assert adapted.info.resampled[:, CAP - 1].any()
    assert not published.info.resampled[:, CAP - 1].any()
    # After a resample at the last step, without a ramp, all weights are equal.
    last = adapted.info.resampled[:, CAP - 1]
    np.testing.assert_allclose(adapted.log_weights[last], -np.log(4), atol=1e-6)


@pytest.mark.parametrize("order", ["adapted", "published"])
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_the_ess_is_checked_only_when_due(order, every):
    result = sample(PowerSMC(4, ess_threshold=1.0, check_every=every, order=order), ON)
    due = (np.arange(CAP) + 1) % every == 0
    assert not result.info.resampled[:, ~due].any()
    assert result.info.resampled[:, due].any()


def test_threshold_decides_by_the_ess():
    result = sample(PowerSMC(4, ess_threshold=0.75), ON, prompts=[[i % 4] for i in range(16)])
    info = result.info
    np.testing.assert_array_equal(info.resampled, info.ess < 3.0)
    assert info.resampled.any() and not info.resampled.all()


def test_weights_are_normalised_and_the_choice_is_a_particle_of_positive_weight():
    result = sample(PowerSMC(4, ess_threshold=0.9))
    weights = np.exp(np.asarray(result.log_weights, np.float64))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)
    assert np.all(np.isfinite(result.log_evidence))
    choice = np.asarray(result.choice)
    assert np.all((choice >= 0) & (choice < 4))
    assert np.all(weights[np.arange(len(PROMPTS)), choice] > 0)


def test_final_draw_follows_the_weights():
    particles = start(4, jnp.float32)._replace(
        log_weight=jnp.log(jnp.array([0.1, 0.0, 0.5, 0.4])), exponent=jnp.float32(3.0)
    )
    grid = (jnp.arange(2000, dtype=jnp.float32) + 0.5) / 2000
    finish = functools.partial(PowerSMC(4).finish, END.arrays(4, CAP), particles)
    outcome = jax.jit(jax.vmap(finish))(jnp.stack([grid, grid], axis=1))
    share = np.bincount(np.asarray(outcome.choice), minlength=4) / 2000
    np.testing.assert_allclose(share, [0.1, 0.0, 0.5, 0.4], atol=1e-3)


def test_finish_catches_up_with_the_ramp():
    particles = start(2, jnp.float32)._replace(
        log_prob=jnp.array([-1.0, -2.0]),
        exponent=jnp.float32(2.0),
        log_evidence=jnp.float32(-5.0),
    )
    outcome = PowerSMC(2).finish(END.arrays(4, CAP), particles, jnp.zeros(2))
    total = np.log(0.5 * np.exp(-1.0) + 0.5 * np.exp(-2.0))
    assert float(outcome.log_evidence) == pytest.approx(-5.0 + total, rel=1e-6)
    np.testing.assert_allclose(
        outcome.log_weight, np.log([0.5, 0.5]) - [1.0, 2.0] - total, rtol=1e-6
    )


def test_the_optimal_temperature_given_by_hand_changes_nothing():
    auto = sample(PowerSMC(4, order="published"))
    given = sample(PowerSMC(4, order="published", proposal_temperature=1 / 3))
    np.testing.assert_array_equal(auto.tokens, given.tokens)
    np.testing.assert_allclose(auto.log_evidence, given.log_evidence, atol=1e-4)
    other = sample(PowerSMC(4, order="published", proposal_temperature=1.0))
    assert not np.array_equal(auto.tokens, other.tokens)


def test_sequences_end_at_their_end_token_and_are_padded():
    result = sample(PowerSMC(4), prompts=[[i % 4] for i in range(16)])
    tokens, lengths = np.asarray(result.tokens), np.asarray(result.lengths)
    finished = np.asarray(result.finished)
    assert finished.any() and not finished.all()
    for row, length, done in zip(
        tokens.reshape(-1, CAP), lengths.ravel(), finished.ravel(), strict=True
    ):
        assert EOS not in row[: length - 1].tolist() and np.all(row[length:] == 0)
        assert done == (row[length - 1] == EOS)
        assert done or length == CAP


@pytest.mark.parametrize("order", ["adapted", "published"])
def test_a_target_that_excludes_everything_is_a_failure(order):
    # Top-1 after token 0 leaves one token; if that is the end token, it comes too early.
    top = int(np.argmax(log_table()[0]))
    target = PowerTarget(3.0, (top,), top_k=1, min_new_tokens=1)
    other = next(v for v in range(4) if np.argmax(log_table()[v]) != top)
    prompts = [[0], [other], [0], [other]]
    result = sample(PowerSMC(4, order=order), target, prompts=prompts)
    assert np.isneginf(result.log_evidence).tolist() == [True, False, True, False]
    assert np.isneginf(result.log_weights[0]).all()
    failures = result.failures()
    assert "all particles have weight zero" in failures[0] and failures[1] is None
    assert np.asarray(result.lengths)[0].tolist() == [0] * 4


def test_evidence_is_unbiased_through_the_engine():
    sampler = PowerSMC(4, ess_threshold=0.8, ramp_tokens=2)
    cap, count = 4, 2048
    options = {"function": psmc.sample, "prompts_per_batch": count}
    result = sample(sampler, prompts=[[0]] * count, cap=cap, seed=3, **options)
    log_z = psmc.exact.enumerate(MODEL, PARAMS, [0], END, cap).log_evidence
    ratio = np.exp(np.asarray(result.log_evidence, np.float64) - log_z)
    z = (ratio.mean() - 1) / (ratio.std() / np.sqrt(count))
    assert ratio.std() > 0.05 and abs(z) < 5
