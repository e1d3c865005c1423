"""What a step must read and write."""

import jax
import jax.numpy as jnp
import pytest

import jax_power_smc as psmc
from jax_power_smc.benchmarks.speed import step_bytes

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_size": 8,
}


@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_of_a_step(tied):
    config = psmc.TransformerConfig(**SIZES, tied_embeddings=tied)
    model = psmc.TransformerLM(config, jnp.bfloat16)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    attention = 16 * (16 + 8 + 8) + 16 * 16
    weights = 40 * 16 + 16 + 2 * (attention + 3 * 16 * 8 + 2 * 16)
    entry = 2 * 2 * 2 * 4  # layers, keys and values, heads, size
    expected = 2 * (weights + entry * 3 * (7 + 1))
    assert step_bytes(model, params, 7, 3) == expected
