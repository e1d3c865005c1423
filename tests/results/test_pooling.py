"""Pooled particles: weights and fields by hand, and the law against enumeration."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jax_power_smc import SampleInfo, SampleResult, WithoutReplacement
from jax_power_smc.results import pooling
from jax_power_smc.results.diagnostics import Diagnostics
from jax_power_smc.results.evidence import evidence_interval
from jax_power_smc.results.pooling import pool
from tests.results.runs import (
    CAP,
    COPIES,
    INF,
    KEY,
    TARGET,
    assert_same,
    changed,
    failed,
    first,
    largest_z,
    sample,
    saying_nothing,
    target_probabilities,
    terminals,
    with_dropped,
    with_evidence,
)

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]


def test_a_pool_of_one_run_is_that_run(copies, few):
    for run in (copies[0], few[2]):
        assert_same(pool([run], KEY), run, but=["choice"])


def test_a_pool_of_one_run_keeps_its_dropped_mass():
    (run,) = sample(WithoutReplacement(2, early_stop=0.3), 1)
    assert np.mean(run.info.dropped_mass > 0) > 0.1
    assert_same(pool([run], KEY), run, but=["choice"])


def test_weights_and_evidence_by_hand(few):
    one = with_evidence(few[0], np.log([2.0, 2.0, 2.0]), [0.25, 0.75])
    two = with_evidence(few[2], np.log([6.0, 2.0, 2e-30]), [0.5, 0.5, 0.0])
    pooled = pool([one, two], KEY)
    weights = np.exp(np.asarray(pooled.log_weights))
    np.testing.assert_allclose(weights[0], [1 / 16, 3 / 16, 3 / 8, 3 / 8, 0], rtol=1e-6)
    np.testing.assert_allclose(weights[1], [1 / 8, 3 / 8, 1 / 4, 1 / 4, 0], rtol=1e-6)
    np.testing.assert_allclose(weights[2], [1 / 4, 3 / 4, 0, 0, 0], rtol=1e-5, atol=1e-20)
    np.testing.assert_allclose(pooled.log_evidence, np.log([4.0, 2.0, 1.0]), atol=1e-6)


def test_far_evidence_neither_overflows_nor_drowns(few):
    low = [with_evidence(few[0], np.full(3, -5000.0)), with_evidence(few[1], np.full(3, -5001.0))]
    pooled = pool(low, KEY)
    expected = -5000 + math.log((1 + math.exp(-1)) / 2)
    np.testing.assert_allclose(pooled.log_evidence, expected, rtol=1e-7)
    weights = np.exp(np.asarray(pooled.log_weights, np.float64))
    np.testing.assert_allclose(weights[:, 2:].sum(axis=1), 1 / (1 + math.e), rtol=1e-5)


def test_particles_and_what_was_observed_lie_side_by_side(few):
    rng = np.random.default_rng(0)

    def seldom(name, x):
        return rng.random(x.shape) < 0.3 if name == "resampled" else x

    few = [changed(run, lambda _, x: x, seldom) for run in few]
    pooled = pool(few, KEY)
    assert pooled.tokens.shape == (3, 7, CAP) and pooled.target == TARGET
    for name in ("tokens", "lengths", "finished", "log_probs", "token_log_probs"):
        joined = np.concatenate([np.asarray(getattr(r, name)) for r in few], axis=1)
        np.testing.assert_array_equal(getattr(pooled, name), joined, err_msg=name)
    summed = "ess", "forks", "model_tokens", "drawn_tokens", "num_rows", "copies", "preempted"
    for name in summed:
        parts = [getattr(r.info, name) for r in few]
        np.testing.assert_allclose(getattr(pooled.info, name), sum(parts), rtol=1e-6)
        assert getattr(pooled.info, name).dtype == parts[0].dtype
    resampled = [r.info.resampled for r in few]
    np.testing.assert_array_equal(pooled.info.resampled, resampled[0] | resampled[1] | resampled[2])
    assert pooled.info.resampled.any() and not pooled.info.resampled.all()
    decode = [r.info.seconds["decode"] for r in few]
    assert pooled.info.seconds["decode"] == pytest.approx(sum(decode))


def test_the_ess_of_the_pooled_weights_is_at_most_the_sum(few):
    weights = np.exp(np.asarray(pool(few, KEY).log_weights, np.float64))
    parts = [np.exp(np.asarray(r.log_weights, np.float64)) for r in few]
    together = 1 / np.sum(weights**2, axis=1)
    assert np.all(together <= sum(1 / np.sum(w**2, axis=1) for w in parts) + 1e-5)


def test_the_genealogy_leads_to_the_same_tokens(copies):
    forks = np.sum([run.info.forks.sum(axis=1) for run in copies[:3]], axis=0)
    busy = np.argsort(-forks)[:2]
    assert forks[busy].all()
    runs = [changed(run, lambda _, x: x[busy], lambda _, x: x[busy]) for run in copies[:3]]
    # A row that none uses must stay so.
    unused = dataclasses.replace(
        runs[1].info, particle_index=np.array([[1, -1], [-1, 0]], np.int32)
    )
    runs[1] = dataclasses.replace(runs[1], info=unused)
    pooled = pool(runs, KEY).info
    rows = runs[0].info.parent.shape[2]
    assert pooled.parent.shape == (2, CAP, 3 * rows)
    assert pooled.particle_index.tolist() == [
        [*runs[0].info.particle_index[p], *expected, *(runs[2].info.particle_index[p] + 2 * rows)]
        for p, expected in enumerate([[rows + 1, -1], [-1, rows]])
    ]
    for index, run in enumerate(runs):
        block = pooled.parent[:, :, index * rows : (index + 1) * rows]
        np.testing.assert_array_equal(block - index * rows, run.info.parent)
        assert block.min() >= index * rows and block.max() < (index + 1) * rows


def test_runs_share_no_ancestor_unless_one_has_all_the_weight(copies):
    runs = [with_evidence(first(run, 200), np.zeros(200)) for run in copies[:3]]
    assert not pool(runs, KEY).info.coalescence.any() and runs[0].info.coalescence.any()
    runs[1:] = [with_evidence(run, np.full(200, -INF)) for run in runs[1:]]
    np.testing.assert_array_equal(pool(runs, KEY).info.coalescence, runs[0].info.coalescence)


def test_every_field_has_a_rule():
    # A new field needs a rule in pool and a test here.
    info = "ess resampled forks parent particle_index bad_logits dropped_mass acceptance_rate "
    info += "model_tokens drawn_tokens num_rows copies preempted seconds"
    names = {*info.split(), *Diagnostics._fields}
    assert {f.name for f in dataclasses.fields(SampleInfo)} == names
    result = "tokens lengths finished log_probs token_log_probs log_weights log_evidence choice"
    names = {*result.split(), "target", "info"}
    assert {f.name for f in dataclasses.fields(SampleResult)} == names


def test_dropped_mass_is_a_share_of_all_mass(few):
    # Kept 3 and 1, lost 1 and 1; and for the last prompt a run that failed.
    few = [saying_nothing(run) for run in few]
    one = with_dropped(with_evidence(few[0], np.log([3.0] * 3) - 20), [0.25, 0.0, 0.25])
    two = with_dropped(with_evidence(few[1], [-20.0, -20.0, -INF]), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(
        pool([one, two], KEY).info.dropped_mass, [2 / 6, 1 / 5, 1 / 4], rtol=1e-6
    )
    gain = evidence_interval([one, two]).high
    gain -= evidence_interval([with_dropped(run, np.zeros(3)) for run in (one, two)]).high
    np.testing.assert_allclose(gain, np.log([6 / 4, 5 / 4, 4 / 3]), rtol=1e-5)


def test_failed_runs_have_no_weight_and_a_failed_prompt_fails(few):
    dead = failed(with_evidence(few[1], np.zeros(3)), [0, 1])
    alive = failed(with_evidence(few[0], [0.5, 0.5, 0.0]), [1])
    pooled = pool([dead, alive], KEY)
    assert [f is None for f in pooled.failures()] == [True, False, True]
    np.testing.assert_allclose(pooled.log_evidence, [0.5 - math.log(2), -INF, 0.0], atol=1e-6)
    np.testing.assert_array_equal(pooled.log_weights[0, 2:], alive.log_weights[0])
    assert np.isneginf(pooled.log_weights[0, :2]).all() and int(pooled.choice[0]) >= 2


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 1, 0]])
def test_the_order_of_runs_only_permutes_particles(few, order):
    one, two = pool(few, KEY), pool([few[i] for i in order], KEY)
    np.testing.assert_allclose(one.log_evidence, two.log_evidence, rtol=1e-6)
    blocks = np.split(np.arange(7), [2, 4])
    moved = np.concatenate([blocks[i] for i in order])
    np.testing.assert_array_equal(np.asarray(one.tokens)[:, moved], two.tokens)
    np.testing.assert_allclose(
        np.asarray(one.log_weights)[:, moved], two.log_weights, rtol=1e-6, atol=1e-6
    )
    assert one.best() == two.best()
    np.testing.assert_array_equal(one.info.coalescence, two.info.coalescence)
    np.testing.assert_allclose(one.info.unfinished_mass, two.info.unfinished_mass, rtol=1e-5)


def test_a_pooled_result_can_be_saved(few, tmp_path):
    pooled = pool(few, KEY)
    pooled.save(tmp_path / "pooled.npz")
    assert_same(pooled, SampleResult.load(tmp_path / "pooled.npz"))


def test_float64_runs_stay_in_float64(few, x64):
    def double(name, x):
        return x.astype(np.float64) if x.dtype == np.float32 else x

    pooled = pool([changed(run, double, double) for run in few], KEY)
    assert pooled.log_weights.dtype == pooled.log_evidence.dtype == jnp.float64
    np.testing.assert_allclose(pooled.log_weights, pool(few, KEY).log_weights, rtol=1e-6)


# --- The choice ---


def test_the_choice_is_drawn_by_weight(copies):
    # Equal weights in every copy: 1/16, 3/16, 0, 3/4.
    one = with_evidence(copies[0], np.zeros(COPIES), [0.25, 0.75])
    two = with_evidence(copies[1], np.full(COPIES, math.log(3)), [0.0, 1.0])
    choice = np.asarray(pool([one, two], KEY).choice)
    counts = np.bincount(choice, minlength=4)
    assert counts[2] == 0
    expected = COPIES * np.array([1, 3, 12]) / 16
    assert scipy.stats.chisquare(counts[[0, 1, 3]], expected).pvalue > 0.01
    again = np.asarray(pool([one, two], jax.random.key(1)).choice)
    assert np.mean(choice != again) > 0.3


def test_weight_zero_is_never_chosen_at_the_ends():
    weights = np.array([[0.0, 0.5, 0.5, 0.0]] * 3)
    chosen = pooling._categorical(weights, np.array([0.0, 0.5, 1 - 2.0**-53]))
    assert chosen.tolist() == [1, 2, 2]


def test_the_choice_depends_on_key_and_prompt_id_only(copies):
    one, two = (with_evidence(r, np.zeros(COPIES), [0.5, 0.5]) for r in copies[:2])
    choice = np.asarray(pool([one, two], KEY).choice)
    assert len(set(choice.tolist())) == 4
    ids = np.arange(COPIES)[::-1]
    np.testing.assert_array_equal(pool([one, two], KEY, prompt_ids=ids).choice, choice[::-1])
    equal = pool([one, two], KEY, prompt_ids=[2**40] * COPIES).choice
    assert len(set(np.asarray(equal).tolist())) == 1


# --- Pooling, against enumeration ---


def test_pooled_particles_are_properly_weighted(copies):
    pooled = pool(copies[:3], KEY)
    at = terminals(pooled)
    share = np.exp(np.asarray(pooled.log_weights, np.float64))
    weights = share * np.exp(np.asarray(pooled.log_evidence, np.float64))[:, None]
    assert largest_z(at, weights) < 4
    # The same test sees runs that count equally, whatever their evidence.
    equal = np.concatenate([np.exp(np.asarray(r.log_weights)) / 3 for r in copies[:3]], axis=1)
    wrong = equal * np.exp(np.asarray(pooled.log_evidence, np.float64))[:, None]
    assert largest_z(at, wrong) > 6


def test_pooling_lowers_the_bias_of_the_draw(copies):
    pi = target_probabilities()

    def distance(result):
        weights = np.exp(np.asarray(result.log_weights, np.float64))
        q = np.bincount(terminals(result).ravel(), weights.ravel(), len(pi)) / COPIES
        return np.abs(q - pi).sum() / 2

    single = np.mean([distance(r) for r in copies[:8]])
    assert distance(pool(copies[:8], KEY)) < single / 2
