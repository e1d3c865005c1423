"""A step of ``CachedLM`` writes its entries into the cache that it was given."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.models.adapters.test_adapters import adapters, appending, empty, matrices

R, T, V, D = 6, 1000, 5, 8


@pytest.mark.parametrize("one_token", [False, True])
def test_a_step_copies_no_cache(full_optimization, one_token):
    model = adapters.CachedLM(
        appending, empty, vocab_size=V, max_positions=2 * T, position="index", one_token=one_token
    )
    params = {**matrices(1), "p": jnp.zeros((2 * T, D))}

    def steps(params, cache, position, count):
        def body(t, carry):
            logits, cache = carry
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return model.extend(params, cache, token, position + t, count)

        return jax.lax.fori_loop(0, 3, body, (jnp.zeros((R, 1, V)), cache))

    cache = jax.eval_shape(lambda params: model.init_cache(params, R, T), params)
    vector = jax.ShapeDtypeStruct((R,), jnp.int32)
    compiled = jax.jit(steps, donate_argnums=1).lower(params, cache, vector, vector).compile()
    leaf = rf"f32\[{R},(?:1,)?{T + 1},{D}\]"
    text = compiled.as_text()
    assert re.search(leaf, text) and not re.findall(rf"= {leaf}\S* copy\(", text)
    assert "conditional(" not in text
    # What attention itself needs (its product of values and shares) is the size of one leaf.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * 4 * R * T * D
