"""Several runs together, against enumeration: pooled, as a chain, and as certificates.

The statistical tests repeat one prompt: its copies have ids of their own, so one call of the
engine gives as many independent runs as there are copies.
"""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jax_power_smc as psmc
from jax_power_smc import (
    PowerSMC,
    PowerTarget,
    SampleInfo,
    SampleResult,
    TableLM,
    WithoutReplacement,
)
from jax_power_smc.engine.independent_runs import independent_runs
from jax_power_smc.models.table_lm import TableParams
from jax_power_smc.results import evidence
from jax_power_smc.results.diagnostics import Diagnostics
from jax_power_smc.results.evidence import evidence_interval, kl_figure, pool
from jax_power_smc.results.pimh import pimh

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]

INF = np.inf
MODEL = TableLM(vocab_size=4, order=2)
CAP = 4
TARGET = PowerTarget(2.5, (1,))
PROMPT = [0]
COPIES = 4000
RUNS = 32
KEY = jax.random.key(7)
SAMPLERS = {
    "smc": PowerSMC(2, ess_threshold=0.95),
    "swor": WithoutReplacement(2, early_stop=0.0),
}


def table():
    """Some first tokens lead to sure continuations and others do not: two particles miss some."""
    sure = 1.5 * np.array([[0, -0.5, 0, 0], [0] * 4, [0, -1, 1.5, 0.5], [0, -0.7, 0.3, 0.8]])
    noise = np.random.default_rng(1).normal(size=(1, MODEL.num_histories, 4))
    logits = 0.3 * noise
    last = np.arange(MODEL.num_histories) % (MODEL.vocab_size + 1)
    logits[0, last < 4] += sure[last[last < 4]]
    logits[0, MODEL.vocab_size * (MODEL.vocab_size + 1) + PROMPT[0]] = [0.3, -0.7, 0.0, 0.2]
    return TableParams(jnp.asarray(logits, jnp.float32))


PARAMS = table()


@functools.cache
def listed():
    """The enumeration."""
    return psmc.exact.enumerate(MODEL, PARAMS, PROMPT, TARGET, CAP)


def log_z():
    return listed().log_evidence


def target_probabilities():
    """[terminals], pi_alpha."""
    return np.array(list(listed().probabilities().values()))


def run_copies(function, sampler, **options):
    """``sample`` or ``independent_runs`` on COPIES copies of the prompt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax_power_smc.engine.slot_plan.CHUNK", CAP - 1)  # no idle steps
        return function(
            MODEL,
            PARAMS,
            [PROMPT] * COPIES,
            target=TARGET,
            sampler=sampler,
            max_new_tokens=CAP,
            prompts_per_batch=COPIES,
            **options,
        )


def sample(sampler, num_runs, **options):
    key = jax.random.key(1)
    return run_copies(independent_runs, sampler, key=key, num_runs=num_runs, **options)


@functools.cache
def runs_of(name):
    """RUNS runs of COPIES copies of the prompt. Compiling takes most of the time: do it once."""
    return sample(SAMPLERS[name], RUNS)


@pytest.fixture(params=list(SAMPLERS))
def copies(request):
    return runs_of(request.param)


@pytest.fixture(params=list(SAMPLERS))
def few(request):
    """Three runs of three prompts; the last has one more particle, of weight zero."""
    runs = [first(run, 3) for run in runs_of(request.param)[:3]]
    return [*runs[:2], widened(runs[2])]


def changed(result, change, info_change):
    """The result with functions applied to all its arrays, and others to those of its info."""
    info = {f.name: getattr(result.info, f.name) for f in dataclasses.fields(SampleInfo)}
    info.update({k: info_change(k, v) for k, v in info.items() if k != "seconds"})
    arrays = {f.name: getattr(result, f.name) for f in dataclasses.fields(SampleResult)}
    arrays = {k: v for k, v in arrays.items() if k not in ("target", "info")}
    arrays = {k: jnp.asarray(change(k, np.asarray(v))) for k, v in arrays.items()}
    return dataclasses.replace(result, **arrays, info=SampleInfo(**info))


def first(result, count):
    """The first prompts only."""
    return changed(result, lambda _, x: x[:count], lambda _, x: x[:count])


PER_PARTICLE = (
    *("tokens", "lengths", "finished", "log_probs", "log_weights"),
    *("rows", "loops", "very_short"),
)


def widened(result):
    """One more particle, unused."""
    fill = {"log_weights": -INF, "rows": -1}

    def more(name, x):
        if name not in PER_PARTICLE:
            return x
        width = [(0, 0), (0, 1), *[(0, 0)] * (x.ndim - 2)]
        return np.pad(x, width, constant_values=fill.get(name, 0))

    return changed(result, more, more)


# --- Terminals ---


def codes(tokens, lengths):
    """A sequence as a number in base V+1; 0 stands for "nothing"."""
    inside = np.arange(CAP) < np.asarray(lengths)[..., None]
    return np.where(inside, np.asarray(tokens) + 1, 0) @ (MODEL.vocab_size + 1) ** np.arange(CAP)


def code_of(sequence):
    padded = [*sequence, *[0] * (CAP - len(sequence))]
    return int(codes(padded, len(sequence)))


@functools.cache
def known():
    """[terminals], the code of each."""
    return np.array([code_of(y) for y in listed().sequences])


def terminals(result):
    """[P, N], the index of every particle in the enumeration."""
    code = codes(result.tokens, result.lengths)
    order = np.argsort(known())
    at = order[np.minimum(np.searchsorted(known()[order], code), len(order) - 1)]
    assert (known()[at] == code)[np.isfinite(result.log_weights)].all()
    return at


def drawn(result):
    """[P], the index of every draw in the enumeration."""
    choice = np.asarray(result.choice)[:, None]
    return np.take_along_axis(terminals(result), choice, axis=1)[:, 0]


def p_value(at):
    """Chi-square of indices [P] against pi_alpha, terminals of few expected hits together."""
    pi = target_probabilities()
    expected, observed = len(at) * pi, np.bincount(at, minlength=len(pi))
    rare = expected < 5
    assert np.sum(~rare) > 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return scipy.stats.chisquare(observed, expected).pvalue


def largest_z(at, weights):
    """Largest |z| over groups of terminals of ``E[sum_i w_i 1{y_i = y}] = gamma(y)``.

    Terminals with little of the mass make one group: their few hits are heavy-tailed.
    """
    gamma = np.exp(listed().log_gamma)
    group = np.where(gamma > 0.01 * gamma.sum(), np.arange(len(gamma)), len(gamma))
    names, group = np.unique(group, return_inverse=True)
    assert len(names) > 5
    truth = np.bincount(group, gamma)
    inside = group[at][:, :, None] == np.arange(len(names))
    values = np.sum(weights[:, :, None] * inside, axis=1)
    values = np.append(values, weights.sum(axis=1)[:, None], axis=1)
    error = values.std(axis=0, ddof=1) / math.sqrt(len(at))
    return np.max(np.abs(values.mean(axis=0) - np.append(truth, gamma.sum())) / error)


# --- Pooling, by hand ---


def with_evidence(result, log_evidence, weights=None):
    """The result with other evidence [P], and other weights [N] for every prompt."""
    changes = {"log_evidence": jnp.asarray(log_evidence, jnp.float32)}
    if weights is not None:
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.broadcast_to(weights, result.log_weights.shape))
        changes["log_weights"] = jnp.asarray(log_weights, jnp.float32)
    return dataclasses.replace(result, **changes)


def saying_nothing(result):
    """The result with particles so improbable that they bound no evidence from below."""
    return dataclasses.replace(result, log_probs=jnp.full_like(result.log_probs, -1e4))


def assert_same(one, two, but=()):
    for left, right in ((one, two), (one.info, two.info)):
        for name in {f.name for f in dataclasses.fields(left)} - {"info", *but}:
            a, b = getattr(left, name), getattr(right, name)
            assert type(a) is type(b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
            np.testing.assert_array_equal(a, b, err_msg=name)


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
    for name in ("tokens", "lengths", "finished", "log_probs"):
        joined = np.concatenate([np.asarray(getattr(r, name)) for r in few], axis=1)
        np.testing.assert_array_equal(getattr(pooled, name), joined, err_msg=name)
    for name in ("ess", "forks", "model_tokens"):
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


def test_what_every_field_becomes_was_decided():
    # A new field needs a rule in pool and a test here.
    info = "ess resampled forks parent particle_index bad_logits dropped_mass acceptance_rate model_tokens "
    info += "seconds"
    names = {*info.split(), *Diagnostics._fields}
    assert {f.name for f in dataclasses.fields(SampleInfo)} == names
    result = "tokens lengths finished log_probs log_weights log_evidence choice target info"
    assert {f.name for f in dataclasses.fields(SampleResult)} == set(result.split())


def with_dropped(result, dropped):
    info = dataclasses.replace(result.info, dropped_mass=np.asarray(dropped, np.float32))
    return dataclasses.replace(result, info=info)


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


def failed(result, prompts):
    """The result with all weights and the evidence of some prompts zero."""
    log_weights, evidence = np.array(result.log_weights), np.array(result.log_evidence)
    log_weights[prompts], evidence[prompts] = -INF, -INF
    result = dataclasses.replace(result, log_weights=jnp.asarray(log_weights))
    return with_evidence(result, evidence)


def test_failed_runs_have_no_weight_and_a_failed_prompt_fails(few):
    dead = failed(with_evidence(few[1], np.zeros(3)), [0, 1])
    alive = failed(with_evidence(few[0], [0.5, 0.5, 0.0]), [1])
    pooled = pool([dead, alive], KEY)
    assert [f is None for f in pooled.failures()] == [True, False, True]
    np.testing.assert_allclose(pooled.log_evidence, [0.5 - math.log(2), -INF, 0.0], atol=1e-6)
    np.testing.assert_array_equal(pooled.log_weights[0, 2:], alive.log_weights[0])
    assert np.isneginf(pooled.log_weights[0, :2]).all() and int(pooled.choice[0]) >= 2


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 1, 0]])
def test_the_order_of_runs_only_moves_rows(few, order):
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
    chosen = evidence._categorical(weights, np.array([0.0, 0.5, 1 - 2.0**-53]))
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


# --- Runs ---


def test_runs_are_those_of_folded_keys_and_can_be_continued():
    runs = runs_of("smc")
    key = jax.random.fold_in(jax.random.key(1), 1)
    own = run_copies(psmc.sample, SAMPLERS["smc"], key=key)
    assert_same(own, runs[1], but=["seconds"])
    (later,) = sample(SAMPLERS["smc"], 1, first_run=2)
    assert_same(later, runs[2], but=["seconds"])
    logs = np.stack([r.log_evidence for r in runs[:3]])
    assert np.mean(logs[0] == logs[1]) < 0.2 > np.mean(logs[1] == logs[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_runs": 0}, "num_runs is 0; it must be an integer of at least 1"),
        ({"num_runs": 1.5}, "num_runs is 1.5"),
        ({"first_run": -1}, "first_run is -1; it must be an integer of at least 0"),
        ({"key": 3}, "key is 3; it must be a single key"),
        ({"key": np.zeros(2, np.uint32)}, "must be a single key"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
    ids=str,
)
def test_runs_refuse(change, message):
    options = {"target": TARGET, "sampler": SAMPLERS["smc"], "max_new_tokens": CAP}
    with pytest.raises(ValueError, match=message):
        independent_runs(MODEL, PARAMS, [[0]], **{"key": KEY, "num_runs": 1, **options, **change})


# --- The interval ---


def test_interval_by_hand(few):
    z_hat = 1e-9 * np.array([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0], [1e-30, 2e-30, 6e-30]])
    few = [saying_nothing(r) for r in few]
    runs = [with_evidence(r, np.log(z)) for r, z in zip(few, z_hat.T, strict=True)]
    found = evidence_interval(runs, level=0.9)
    np.testing.assert_allclose(found.mean, np.log(z_hat).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.sd, np.log(z_hat).std(axis=1, ddof=1), atol=1e-5)
    np.testing.assert_allclose(found.log_evidence, np.log(z_hat.mean(axis=1)), rtol=1e-6)
    # sd 2.6458, mean 3, t 2.9200.
    half = 2.645751 / 3 / math.sqrt(3) * 2.919986
    np.testing.assert_allclose(found.log_evidence - found.low, [half, 0, half], atol=1e-5)
    # The logs 0, 0.6931 and 1.7918 have mean 0.8283 and sd 0.9035; log 3 = 1.0986.
    lognormal = 0.828302 + 0.903493**2 / 2 - 1.098612
    lognormal += 2.919986 * math.sqrt(0.903493**2 / 3 + 0.903493**4 / 4)
    assert lognormal > half
    upper = found.high - found.log_evidence
    np.testing.assert_allclose(upper, [lognormal, 0, lognormal], atol=2e-5)
    assert (found.level, found.num_runs) == (0.9, 3)


def test_the_upper_end_is_at_least_that_of_the_delta_method():
    # Even values are skewed to the left in their logs: there the delta method is the wider.
    logs = np.log(np.random.default_rng(0).uniform(0.09, 0.11, size=(3, 300)))
    some = [saying_nothing(first(r, 300)) for r in runs_of("smc")[:3]]
    runs = [with_evidence(r, z) for r, z in zip(some, logs, strict=True)]
    found = evidence_interval(runs)
    upper, lower = found.high - found.log_evidence, found.log_evidence - found.low
    assert np.all(upper >= lower - 1e-12) and np.mean(upper < lower + 1e-12) > 0.01


def test_interval_of_failed_runs(few):
    few = [saying_nothing(failed(r, [1])) for r in few]
    runs = [with_evidence(r, np.array([-5.0, -INF, -5.0])) for r in few]
    runs[1] = with_evidence(few[1], [-INF, -INF, -5.0])
    found = evidence_interval(runs)
    np.testing.assert_array_equal(found.mean, [-INF, -INF, -5.0])
    np.testing.assert_array_equal(found.sd, [INF, INF, 0.0])
    np.testing.assert_allclose(found.log_evidence, [math.log(2 / 3) - 5, -INF, -5.0], atol=1e-12)
    np.testing.assert_allclose(found.low[1:], [-INF, -5.0], atol=1e-12)
    np.testing.assert_allclose(found.high[1:], [-INF, -5.0], atol=1e-12)
    assert found.low[0] < found.log_evidence[0] < found.high[0] < INF


def coverage(found, truth):
    return np.mean((found.low <= truth) & (found.high >= truth))


@pytest.mark.parametrize("num_runs", [8, RUNS])
def test_interval_covers_log_z(num_runs):
    found = evidence_interval(runs_of("swor")[:num_runs])
    assert 0.93 < coverage(found, log_z()) < 0.965
    assert np.mean(found.sd) > 0.2


def test_interval_covers_less_with_a_large_sd():
    # As its docstring says: an sd near 1, and an evidence more skewed than a lognormal one.
    found = evidence_interval(runs_of("smc")[:10])
    assert 0.8 < np.mean(found.sd) < 1.1
    assert 0.78 < coverage(found, log_z()) < 0.9
    missed = (found.low > log_z()) | (found.high < log_z())
    assert np.mean(found.high[missed] < log_z()) > 0.9


def test_interval_covers_a_lognormal_evidence_of_any_sd():
    sd = np.repeat([0.3, 1.0, 2.0, 4.0], COPIES // 4)
    truth = -60.0
    logs = truth + np.random.default_rng(0).normal(-(sd**2) / 2, sd, size=(10, COPIES))
    some = [saying_nothing(r) for r in runs_of("smc")[:10]]
    runs = [with_evidence(r, z) for r, z in zip(some, logs, strict=True)]
    found = evidence_interval(runs)
    covered = (found.low <= truth) & (found.high >= truth)
    each = [np.mean(covered[sd == s]) for s in (0.3, 1.0, 2.0, 4.0)]
    assert min(each) > 0.86 and max(each) < 0.97
    # The delta method alone claims to know log Z and does not.
    upper = 2 * found.log_evidence - found.low
    assert np.mean(upper[sd == 4] >= truth) < 0.4


def test_the_mean_is_low_and_the_log_of_the_mean_less_so(copies):
    found = evidence_interval(copies)
    one, many = log_z() - found.mean.mean(), log_z() - found.log_evidence.mean()
    assert one > 0.02 and -0.003 < many < 3 * one / RUNS


def test_the_ends_stay_where_log_z_is_known_to_lie(few):
    # Five runs that differ by many nats: what a lognormal Z_hat would make of them is +24.
    five = [*few, *few[:2]]
    logs = [-2.0, -14.0, -1.0, -9.0, -5.0]
    runs = [with_evidence(r, [z] * 3) for r, z in zip(five, logs, strict=True)]
    found = evidence_interval(runs)
    np.testing.assert_array_equal(found.high, 0.0)
    # Runs that have found more than all there is, and a mass less than that of their sequences.
    above = evidence_interval([with_evidence(r, [3.0] * 3) for r in few])
    np.testing.assert_array_equal(above.low, 0.0)
    np.testing.assert_array_equal(above.high, 0.0)
    below = evidence_interval([with_evidence(r, [-90.0] * 3) for r in few])
    for prompt in range(3):
        seen = {tuple(y) for run in few for y in run.sequences()[prompt]}
        weigh = [
            g for y, g in zip(listed().sequences, listed().log_gamma, strict=True) if y in seen
        ]
        assert 0 < len(seen) == len(weigh)
        bound = np.logaddexp.reduce(weigh)
        assert below.low[prompt] == below.high[prompt] == pytest.approx(bound, abs=1e-5)


def test_a_sequence_of_weight_zero_bounds_nothing(few):
    runs = [with_evidence(failed(r, [1]), [-90.0, -90.0, -90.0]) for r in few]
    low = evidence_interval(runs).low
    assert low[1] == pytest.approx(-90.0) and low[0] > -20 and low[2] > -20


def test_few_runs_of_a_real_sampler_keep_the_bounds():
    found = evidence_interval(runs_of("smc")[:2], level=0.999)
    assert np.all(found.high <= 0) and np.all(found.low <= 0)
    assert np.mean(found.high == 0) > 0


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan, "high", True, None])
def test_interval_refuses_a_level(few, level):
    with pytest.raises(ValueError, match="level is"):
        evidence_interval(few, level=level)


# --- PIMH ---


def test_pimh_moves_up_and_hardly_ever_far_down(few):
    prompts = few[0].log_evidence.shape[0]
    ladder = [0.0, 1.0, -50.0, 2.0, 2.0, -50.0]
    runs = [with_evidence(few[0], np.full(prompts, z)) for z in ladder]
    chain = pimh(runs, KEY)
    assert chain.runs.tolist() == [[0, 1, 1, 3, 4, 4]] * prompts
    assert chain.acceptance_rate == pytest.approx(3 / 5)
    assert chain.runs.dtype == np.int32


def test_pimh_accepts_a_lower_run_by_the_ratio(copies):
    one, two = (
        with_evidence(r, np.full(COPIES, z)) for r, z in zip(copies, [0, -1.5], strict=False)
    )
    moved = pimh([one, two], KEY).runs[:, 1]
    assert scipy.stats.binomtest(int(moved.sum()), COPIES, math.exp(-1.5)).pvalue > 0.01
    assert not np.array_equal(moved, pimh([one, two], jax.random.key(0)).runs[:, 1])


def test_pimh_takes_the_draws_along(copies):
    chain = pimh(copies[:6], KEY)
    draws = [result.draw() for result in copies[:6]]
    assert chain.draws == [[draws[r][p] for r in row] for p, row in enumerate(chain.runs.tolist())]
    moves = np.diff(chain.runs, axis=1) > 0
    np.testing.assert_allclose(chain.acceptance_rate, moves.mean(axis=1))
    assert 0.2 < chain.acceptance_rate.mean() < 1 and moves.any() and not moves.all()


def test_more_runs_continue_the_chain(copies):
    np.testing.assert_array_equal(pimh(copies[:9], KEY).runs[:, :5], pimh(copies[:5], KEY).runs)


def test_pimh_leaves_a_failed_run_at_once_and_enters_none(few):
    evidences = [[-INF, -INF, 0.0], [-INF, -INF, -INF], [-40.0, -INF, -40.0]]
    runs = [with_evidence(r, z) for r, z in zip(few, evidences, strict=True)]
    chain = pimh(runs, KEY)
    assert chain.runs.tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0]]
    assert chain.draws[0][:2] == [None, None] and chain.draws[0][2] == few[2].draw()[0]
    assert chain.draws[1] == [None] * 3 and None not in chain.draws[2]


def test_pimh_converges_to_the_target_and_a_plain_draw_does_not(copies):
    chain = pimh(copies, KEY)
    at = np.stack([drawn(r) for r in copies], axis=1)
    last = np.take_along_axis(at, chain.runs[:, -1:], axis=1)[:, 0]
    assert p_value(last) > 0.01
    # The plain draws of one run, of the same size and by the same test; without the acceptance
    # the chain would end with those of the last run.
    assert p_value(at[:, 0]) < 1e-8
    assert p_value(at[:, -1]) < 1e-8


def test_pimh_refuses_dropped_mass(few):
    runs = [few[0], with_dropped(few[1], [0.0, 1e-6, 0.0])]
    with pytest.raises(ValueError, match=r"run 1 dropped mass .* early_stop=0"):
        pimh(runs, KEY)


# --- The certificate ---


def test_the_kl_of_the_draw_is_below_the_figure(copies):
    weights = [np.exp(np.asarray(r.log_weights, np.float64)) for r in copies]
    pi = target_probabilities()
    q = sum(
        np.bincount(terminals(r).ravel(), w.ravel(), len(pi))
        for r, w in zip(copies, weights, strict=True)
    )
    q = q / q.sum()
    kl = float(np.sum(q * np.log(np.where(q > 0, q, 1) / pi)))
    figure = kl_figure(log_z(), copies, exact=True)
    mean = figure.value.mean()
    error = figure.value.std(ddof=1) / math.sqrt(COPIES)
    assert 0.005 < kl < mean - 4 * error
    # The standard error is that of one prompt's figure.
    z = (figure.value - mean) / figure.standard_error
    assert 0.9 < z.std() < 1.2
    assert figure.kind == "bound"


def test_the_figure_of_a_reference_run_is_an_estimate(copies):
    reference = np.asarray(pool(copies[2:], KEY).log_evidence)
    figure = kl_figure(reference, copies[:2], exact=False)
    assert figure.kind == "estimate"
    np.testing.assert_allclose(
        figure.value, reference - evidence_interval(copies[:2]).mean, rtol=1e-5, atol=1e-6
    )
    exact = kl_figure(log_z(), copies[:2], exact=True)
    np.testing.assert_array_equal(figure.standard_error, exact.standard_error)
    # The reference is low on average, and with it the figure.
    assert figure.value.mean() < exact.value.mean()


def test_figure_by_hand(few):
    runs = [with_evidence(r, [z, -1.0, z]) for r, z in zip(few, [-1.0, -2.0, -6.0], strict=True)]
    runs[0] = with_evidence(few[0], [-1.0, -1.0, -INF])
    figure = kl_figure([-2.0, -1.0, 0.0], runs, exact=True)
    np.testing.assert_allclose(figure.value, [1.0, 0.0, INF])
    np.testing.assert_allclose(figure.standard_error, [math.sqrt(7 / 3), 0.0, INF], rtol=1e-6)
    one = kl_figure(-2.0, runs[1:2], exact=False)
    np.testing.assert_allclose(one.value, [0.0, -1.0, 0.0])
    assert np.isnan(one.standard_error).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "finite"), (-INF, "finite"), ([0.0, 1.0], r"shape \(2,\)"), ([[0.0] * 3], "shape")],
    ids=str,
)
def test_figure_refuses(few, value, message):
    with pytest.raises(ValueError, match=message):
        kl_figure(value, few, exact=True)


# --- The door ---

READERS = {
    "pool": lambda runs: pool(runs, KEY),
    "pimh": lambda runs: pimh(runs, KEY),
    "interval": evidence_interval,
    "figure": lambda runs: kl_figure(0.0, runs, exact=True),
}


@pytest.mark.parametrize("reader", list(READERS))
def test_refusals(few, reader):
    read = READERS[reader]
    run = few[1]
    other = {
        "run 1 has the target .*alpha=2.0": dataclasses.replace(
            run, target=dataclasses.replace(TARGET, alpha=2.0)
        ),
        "run 1 has 2 prompts and run 0 3": first(run, 2),
        "run 1 has max_new_tokens 3 and run 0 4": dataclasses.replace(
            run, tokens=run.tokens[:, :, :3]
        ),
        r"run 1 has no evidence \(NaN\)": with_evidence(run, [0.0, math.nan, 0.0]),
    }
    for message, wrong in other.items():
        with pytest.raises(ValueError, match=message) as caught:
            read([few[0], wrong])
        assert str(caught.value).endswith(".")
    with pytest.raises(ValueError, match="results has 0 runs"):
        read([])
    with pytest.raises(ValueError, match="single result"):
        read(few[0])
    if reader in ("pimh", "interval"):
        with pytest.raises(ValueError, match="results has 1 runs; at least 2 runs are needed"):
            read(few[:1])
    for message, wrong in {
        "results is 5; it must be a list of runs": 5,
        r"results\[1\] is a NoneType; it must be a SampleResult": [few[0], None],
        r"results\[0\] is a str; it must be a SampleResult": "ab",
        "results has 0 runs": iter(()),
    }.items():
        with pytest.raises(ValueError, match=message):
            read(wrong)


@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize("listing", [tuple, iter, lambda runs: dict(enumerate(runs)).values()])
def test_runs_may_come_from_any_iterable(few, reader, listing):
    one, two = READERS[reader](few), READERS[reader](listing(few))
    if reader == "pool":
        assert_same(one, two)
    else:
        jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("read", [pool, pimh])
def test_keys_and_ids_are_checked(few, read):
    with pytest.raises(ValueError, match="key is 0; it must be a single key"):
        read(few, 0)
    with pytest.raises(ValueError, match="must be a single key"):
        read(few, jax.random.split(KEY, 2))
    with pytest.raises(ValueError, match="prompt_ids has 2 entries for 3 prompts"):
        read(few, KEY, prompt_ids=[0, 1])


def test_pool_is_public():
    assert psmc.pool is evidence.pool and isinstance(evidence, types.ModuleType)


@pytest.mark.parametrize(
    "prompt_ids", [[-1, 0, 1], [0.5, 1, 2], [2**63, 0, 1], ["a", "b", "c"], [0, 1], 5]
)
def test_prompt_ids_that_cannot_be_are_refused(few, prompt_ids):
    with pytest.raises(ValueError, match="prompt_ids"):
        pool(few, KEY, prompt_ids=prompt_ids)
    with pytest.raises(ValueError, match="prompt_ids"):
        pimh(few, KEY, prompt_ids=prompt_ids)
