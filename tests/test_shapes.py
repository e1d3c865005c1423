"""Shapes and dtypes of the central functions, traced without compiling, against jaxtyping."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Bool, Float, Int, jaxtyped

from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers import proposal
from jax_power_smc.smc import resampling, weights

Struct = jax.ShapeDtypeStruct
N, V, DRAWS = 5, 96, 7


def struct(shape, dtype=jnp.float32):
    return Struct(shape, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_weights(x64, dtype):
    log_weight, log_evidence = struct((N,), dtype), struct((), dtype)
    new_weight, new_evidence = jax.eval_shape(weights.renormalize, log_weight, log_evidence)
    size = jax.eval_shape(weights.effective_sample_size, log_weight)
    with jaxtyped("context"):
        assert isinstance(log_weight, Float[Struct, "N"])
        assert isinstance(new_weight, Float[Struct, "N"])
        assert isinstance(new_evidence, Float[Struct, ""])
        assert isinstance(size, Float[Struct, ""])
    assert {x.dtype for x in (new_weight, new_evidence, size)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("scheme", list(resampling.SCHEMES))
def test_resampling(scheme):
    particle_weights, uniforms = struct((N,)), struct((DRAWS,))
    ancestors = jax.eval_shape(resampling.SCHEMES[scheme], particle_weights, uniforms)
    in_place = jax.eval_shape(resampling.in_place, ancestors)
    with jaxtyped("context"):
        assert isinstance(uniforms, Float[Struct, "n"])
        assert isinstance(ancestors, Int[Struct, "n"])
        assert isinstance(in_place, Int[Struct, "n"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("shared", [False, True], ids=["own support", "shared support"])
def test_proposal(x64, dtype, shared):
    values, allowed = struct((N, V), dtype), struct((1 if shared else N, V), bool)
    index, uniforms = struct((DRAWS,), jnp.int32), struct((DRAWS, 2), dtype)

    def function(values, allowed, exponent, index, uniforms):
        logits = Logits(values)
        normaliser = proposal.normalise(logits)
        made = proposal.power_proposal(logits, allowed, exponent, normaliser=normaliser)
        token = proposal.draw(made, index, uniforms)
        return made.log_sum, token, proposal.log_prob(logits, normaliser, index, token)

    log_sum, token, log_p = jax.eval_shape(
        function, values, allowed, struct((), dtype), index, uniforms
    )
    with jaxtyped("context"):
        assert isinstance(values, Float[Struct, "N V"])
        assert isinstance(allowed, Bool[Struct, "#N V"])
        assert isinstance(index, Int[Struct, "n"])
        assert isinstance(uniforms, Float[Struct, "n 2"])
        assert isinstance(log_sum, Float[Struct, "N"])
        assert isinstance(token, Int[Struct, "n"])
        assert isinstance(log_p, Float[Struct, "n"])
    assert log_sum.dtype == log_p.dtype == jnp.dtype(dtype) and token.dtype == jnp.int32
