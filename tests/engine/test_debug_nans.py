"""JAX_DEBUG_NANS=1: what means "nothing" is no NaN that leaves a program."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import (
    Ancestral,
    MetropolisHastings,
    PowerSMC,
    PowerTarget,
    SampleResult,
    StreamRequest,
    TableLM,
    WithoutReplacement,
)
from jax_power_smc.results.evidence import evidence_interval, kl_figure
from jax_power_smc.results.pimh import pimh
from jax_power_smc.theory import exact

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = TableLM(vocab_size=4, order=1)
CAP = 4
SAMPLERS = {
    "swor": WithoutReplacement(3),
    "smc": PowerSMC(3),
    "mh": MetropolisHastings(2, num_chains=3),
    "ancestral": Ancestral(num_samples=3),
}
TARGETS = {
    "plain": PowerTarget(2.0, (1,)),
    "cut": PowerTarget(2.0, (1,), length="forced_eos", min_new_tokens=2, top_k=3, top_p=0.9),
    "empty": PowerTarget(2.0, (1,), top_k=1, min_new_tokens=2),  # no sequence is in its support
}


@pytest.fixture(autouse=True)
def debug_nans():
    with jax.debug_nans(True):
        yield


@pytest.fixture(scope="module")
def params():
    """With tokens that are impossible; token 1 is by far the most probable one."""
    made = MODEL.init(jax.random.key(0), scale=1.0)
    logits = made.logits.at[..., 3].set(-jnp.inf).at[..., 1].add(3.0)
    return made._replace(logits=logits)


def sample(params, sampler, target, seed=0):
    return psmc.sample(
        MODEL,
        params,
        [[0], [1, 2]],
        key=jax.random.key(seed),
        target=target,
        sampler=sampler,
        max_new_tokens=CAP,
    )


@pytest.mark.parametrize(("sampler", "target"), list(itertools.product(SAMPLERS, TARGETS)))
def test_every_sampler_runs(sampler, target, params, tmp_path):
    result = sample(params, SAMPLERS[sampler], TARGETS[target])
    has_none = sampler in ("mh", "ancestral")
    assert isinstance(result.log_evidence, jax.Array)
    assert np.isnan(np.asarray(result.log_evidence)).tolist() == [has_none, has_none]
    result.best(), result.failures(), result.one(1).on_device()
    result.save(tmp_path / "one.npz")
    loaded = SampleResult.load(tmp_path / "one.npz")
    np.testing.assert_array_equal(loaded.log_evidence, result.log_evidence)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "mh"])
def test_a_stream_runs(sampler, params):
    target = TARGETS["plain"]
    requests = [StreamRequest(prompt, target, CAP) for prompt in ([0], [1, 2])]
    key = jax.random.key(0)
    found = list(psmc.stream(requests, MODEL, params, key=key, sampler=SAMPLERS[sampler], slots=2))
    assert [one.error for one in found] == [None, None]


@pytest.mark.parametrize("sampler", ["swor", "smc"])
@pytest.mark.parametrize("target", ["plain", "empty"])
def test_runs_together(sampler, target, params):
    runs = [sample(params, SAMPLERS[sampler], TARGETS[target], seed) for seed in range(2)]
    pooled = psmc.pool(runs, jax.random.key(1))
    assert not np.isnan(pooled.log_evidence).any()
    assert not np.isnan(evidence_interval(runs).high).any()
    if not np.any([r.info.dropped_mass for r in runs]):
        pimh(runs, jax.random.key(2))
    kl_figure(0.0, runs, exact=False)


def test_enumeration_and_scores(params):
    assert np.isfinite(exact.enumerate(MODEL, params, [0], TARGETS["plain"], CAP).log_evidence)
    assert np.isneginf(exact.enumerate(MODEL, params, [0], TARGETS["empty"], CAP).log_evidence)
    scores = exact.score(MODEL, params, [0], [[3, 1], [1]])
    assert scores[0, 0] == -np.inf and scores[1, 1] == 0 and scores[1, 0] < 0
