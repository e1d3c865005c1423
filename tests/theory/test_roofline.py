"""The roofline by hand, and the cost of a transformer against its real parameters and cache."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.families import FAMILIES
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.theory import cost_model, roofline
from jax_power_smc.theory.roofline import Device, ModelCost, batched_gain, step_seconds

DEVICE = Device("test", bandwidth_bytes_per_s=1e12, flops_per_s=1e14)
MODEL = ModelCost(weight_bytes=2e9, parameters=1e9, kv_bytes_per_token=1e5)


# --- step times ---


def test_step_time_bound_by_memory():
    # (2e9 + 8 * 1000 * 1e5) bytes at 1e12 per second, against 1.6e10 operations in 0.16 ms.
    assert step_seconds(8, MODEL, DEVICE, 1000) == pytest.approx(2.8e-3)


def test_step_time_bound_by_arithmetic():
    # 2 * 1e9 * 500 operations at 1e14 per second, against 2 ms for the weights.
    assert step_seconds(500, MODEL, DEVICE, 0) == pytest.approx(1e-2)


def test_a_shared_prompt_is_read_once():
    own = step_seconds(8, MODEL, DEVICE, 1000)
    shared = step_seconds(8, MODEL, DEVICE, 400, shared_context=600)
    assert own - shared == pytest.approx(7 * 600 * 1e5 / 1e12)
    assert step_seconds(1, MODEL, DEVICE, 400, 600) == step_seconds(1, MODEL, DEVICE, 1000)


@pytest.mark.parametrize("context", [0, 50, 5000])
@pytest.mark.parametrize("shared", [0, 300])
def test_batched_gain_lies_between_one_and_n_and_grows(context, shared):
    gains = [batched_gain(n, MODEL, DEVICE, context, shared) for n in (1, 2, 16, 64, 1024, 10**6)]
    assert gains[0] == 1.0
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(gains))
    assert gains[1] > 1.3
    for n, gain in zip((1, 2, 16, 64, 1024, 10**6), gains, strict=True):
        assert 1 <= gain <= n * (1 + 1e-12)


def test_batched_gain_is_n_while_the_weights_dominate_and_then_stops():
    # Memory-bound until N = flops * weight_bytes / (2 parameters bandwidth) = 100.
    assert batched_gain(100, MODEL, DEVICE, 0) == pytest.approx(100)
    assert batched_gain(200, MODEL, DEVICE, 0) == pytest.approx(100)


def test_batched_gain_with_long_contexts_is_limited_by_reading_them():
    # Each sequence reads as much as the weights hold: at most (1 + 1)/1 = 2.
    assert batched_gain(10**5, MODEL, dataclasses.replace(DEVICE, flops_per_s=1e20), 2e4) == (
        pytest.approx(2, rel=1e-4)
    )


# --- the cost of a transformer ---

GROUPED = TransformerConfig(
    vocab_size=96,
    hidden_size=24,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    mlp_size=40,
)


@pytest.mark.parametrize(
    "config", [dataclasses.replace(GROUPED, family=family, head_dim=8) for family in FAMILIES]
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cost_of_a_config_is_that_of_the_module(config, tied, dtype):
    config = dataclasses.replace(config, tied_embeddings=tied)
    lm = TransformerLM(config, dtype)
    leaves = jax.tree.leaves(jax.eval_shape(lm.init, jax.random.key(0)))
    lookup = 0 if tied else config.vocab_size * config.hidden_size
    cost = ModelCost.from_config(config, dtype)
    size = jnp.dtype(dtype).itemsize
    assert cost.parameters == sum(leaf.size for leaf in leaves) - lookup
    read = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) - lookup * size
    assert cost.weight_bytes == read
    cache = jax.eval_shape(lambda: lm.init_cache({}, 5, 7))
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert cost.kv_bytes_per_token * 5 * 7 == stored
    assert all(type(value) is float for value in dataclasses.astuple(cost))


# --- what is refused ---


@pytest.mark.parametrize("value", [0, -3, 1.5, True, math.nan])
@pytest.mark.parametrize("call", [step_seconds, batched_gain])
def test_particles_are_an_integer_of_at_least_one(call, value):
    with pytest.raises(ValueError, match=r"^num_particles is .*; it must be an integer of at le"):
        call(value, MODEL, DEVICE, 1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("bandwidth_bytes_per_s", lambda v: Device("d", v, 1.0)),
        ("flops_per_s", lambda v: Device("d", 1.0, v)),
        ("weight_bytes", lambda v: ModelCost(v, 1.0, 1.0)),
        ("parameters", lambda v: ModelCost(1.0, v, 1.0)),
        ("kv_bytes_per_token", lambda v: ModelCost(1.0, 1.0, v)),
    ],
)
def test_rates_must_be_positive_numbers(name, call, value):
    with pytest.raises(
        ValueError, match=rf"^{name} is .*; it must be a finite number greater than 0\.$"
    ):
        call(value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_contexts_must_not_be_negative(value):
    with pytest.raises(
        ValueError, match=r"^context is .*; it must be a finite number of at least 0\.$"
    ):
        step_seconds(1, MODEL, DEVICE, value)
    with pytest.raises(ValueError, match=r"^shared_context is .* of at least 0\.$"):
        batched_gain(1, MODEL, DEVICE, 0, value)


def test_numbers_of_numpy_and_jax_become_python_numbers():
    seconds = step_seconds(np.int32(4), MODEL, DEVICE, jnp.float32(16), np.int64(2))
    assert type(seconds) is float and seconds == step_seconds(4, MODEL, DEVICE, 16, 2)
    assert Device("d", jnp.float32(2), np.int32(1)) == Device("d", 2.0, 1.0)


def test_the_cost_model_has_the_roofline_too():
    for name in ("Device", "ModelCost", "batched_gain", "step_seconds"):
        assert getattr(cost_model, name) is getattr(roofline, name)
