"""The numbers that a model may have."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models.transformer.config import CheckpointError, TransformerConfig
from jax_power_smc.models.transformer.limits import LIMITS, ROPE_LIMITS, Limit
from jax_power_smc.models.transformer.rope import RopeScaling
from tests.models import small

CONFIG = small.CONFIGS["llama-grouped-tied"]


def test_every_number_of_a_config_has_a_limit():
    other = {"tied_embeddings", "family", "rope_scaling"}
    assert LIMITS.keys() == {field.name for field in dataclasses.fields(TransformerConfig)} - other
    assert ROPE_LIMITS.keys() == {x.name for x in dataclasses.fields(RopeScaling)} - {"kind"}


@pytest.mark.parametrize(
    ("limit", "inside", "outside", "words"),
    [
        (
            Limit(1, 8),
            [1, 8, np.int32(3), jnp.int32(3)],
            [0, 9, 3.0, True, "3", None, 10**400, [3]],
            "a positive integer of at most 8",
        ),
        (Limit(0, 8), [0, 8], [-1, 9], "an integer of at least 0 and at most 8"),
        (
            Limit(0.5, 2.0),
            [0.5, 1, 2.0, np.float32(1)],
            [0.25, 2.5, True, "1", float("nan"), float("inf"), 10**400, {}],
            "a positive number in [0.5, 2]",
        ),
    ],
)
def test_what_a_limit_holds(limit, inside, outside, words):
    assert all(map(limit.holds, inside))
    assert not any(map(limit.holds, outside))
    assert str(limit) == words


@pytest.mark.parametrize("name", LIMITS)
def test_configs_keep_the_limits(name):
    beyond = LIMITS[name].high * 2
    value = (beyond, beyond) if name == "windows" else beyond
    with pytest.raises(CheckpointError) as error:
        dataclasses.replace(CONFIG, **{name: value})
    small.assert_one_sentence(error, name, beyond)


@pytest.mark.parametrize("kind", ["linear", "llama3", "longrope"])
@pytest.mark.parametrize("name", ROPE_LIMITS)
def test_rotary_scalings_keep_the_limits(name, kind):
    half = CONFIG.head_dim // 2
    factors = {"short_factors": (1.0,) * half, "long_factors": (1.0,) * half}
    good = RopeScaling(kind, original_positions=64, **factors)
    dataclasses.replace(CONFIG, rope_scaling=good)
    for beyond in (ROPE_LIMITS[name].high * 2, -1):
        value = (beyond,) * half if name.endswith("factors") else beyond
        with pytest.raises(CheckpointError) as error:
            dataclasses.replace(CONFIG, rope_scaling=dataclasses.replace(good, **{name: value}))
        small.assert_one_sentence(error, f"{name} of rope_scaling is {beyond}")


def test_longrope_needs_the_original_context():
    half = (1.0,) * (CONFIG.head_dim // 2)
    for original in (0, 1):
        scaling = RopeScaling(
            "longrope", original_positions=original, short_factors=half, long_factors=half
        )
        with pytest.raises(CheckpointError, match="original_positions of rope_scaling"):
            dataclasses.replace(CONFIG, rope_scaling=scaling)
