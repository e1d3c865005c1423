"""Programs with a part left out or set: they differ from the engine's by that part only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.benchmarks import timing
from jax_power_smc.benchmarks.ablations import AblatedModel, ForcedResampling, step_bytes
from jax_power_smc.engine.request import ActiveRequest

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_size": 8,
}
MODEL = psmc.TransformerLM(psmc.TransformerConfig(**SIZES))
PARAMS = MODEL.init(jax.random.key(0))
PROMPT = jnp.array([3, 9, 4], jnp.int32)


def tokens(model, params, sampler=None, scale=None):
    sampler = psmc.PowerSMC(4, ess_threshold=0.99) if sampler is None else sampler
    params = params if scale is None else params._replace(scale=jnp.float32(scale))
    requests = [ActiveRequest(PROMPT.tolist(), 0, psmc.PowerTarget(4.0), 24)]
    done = timing.decode(model, params, sampler, requests)
    assert done.fork_share > 0
    return done.requests[0].outcome.tokens


def test_with_all_parts_it_is_the_model():
    whole = AblatedModel(MODEL)
    made = whole.params(PARAMS, PROMPT)
    expected = tokens(MODEL, PARAMS)
    np.testing.assert_array_equal(tokens(whole, made), expected)
    assert not np.array_equal(tokens(whole, made, scale=3.0), expected)


@pytest.mark.parametrize("without", ["runs", "moves"])
@pytest.mark.slow
def test_without_a_part_it_is_not(without):
    altered = AblatedModel(MODEL, **{without: False})
    made = altered.params(PARAMS, PROMPT)
    assert not np.array_equal(tokens(altered, made), tokens(MODEL, PARAMS))


@pytest.mark.parametrize("period", [None, 1, 5])
@pytest.mark.slow
def test_forced_rules_resample_when_they_are_told_to(period):
    requests = [ActiveRequest([3], 0, psmc.PowerTarget(1.0), 41)]
    done = timing.decode(MODEL, PARAMS, ForcedResampling.every(64, period), requests)
    (request,) = done.requests
    steps = np.arange(41) + 1
    expected = np.zeros(41, bool) if period is None else steps % period == 0
    np.testing.assert_array_equal(request.steps.resampled[0, :41], expected)
    if period is None:
        assert np.isnan(done.ess_share) and done.fork_share == 0
    else:
        assert done.ess_share == pytest.approx(0.66, abs=0.06)
        assert done.fork_share > 0.1 / period


@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_of_a_step(tied):
    config = psmc.TransformerConfig(**SIZES, tied_embeddings=tied)
    model = psmc.TransformerLM(config, jnp.bfloat16)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    attention = 16 * (16 + 8 + 8) + 16 * 16
    weights = 40 * 16 + 16 + 2 * (attention + 3 * 16 * 8 + 2 * 16)
    entry = 2 * 2 * 2 * 4  # layers, keys and values, heads, size
    expected = 2 * (weights + entry * (10 + 3 * (7 + 1)))
    assert step_bytes(model, params, 10, 7, 3) == expected
