"""Rotary positions and their scalings."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models.transformer.rope import Rope, RopeScaling
from tests.models import oracle

K, H = 2, 6  # key/value heads, head dimension


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def positions(*values):
    return jnp.asarray(values, jnp.int32)


def test_rotation_equals_complex_multiplication():
    x = normal(0, 9, K, H)
    rotated = Rope(100.0).rotate(x, jnp.arange(9, dtype=jnp.int32))
    np.testing.assert_allclose(rotated, oracle.rotate(np.asarray(x), 100.0), atol=1e-5)


@pytest.mark.parametrize("shift", [1, 250])
def test_scores_depend_on_relative_position_only(shift):
    q, k = normal(0, 5, K, H), normal(1, 5, K, H)
    at_q, at_k = positions(3, 9, 20, 7, 40), positions(0, 9, 1, 6, 2)

    def scores(offset):
        rotated_q = Rope(10_000.0).rotate(q, at_q + offset)
        rotated_k = Rope(10_000.0).rotate(k, at_k)
        rotated_shifted_k = Rope(10_000.0).rotate(k, at_k + offset)
        return (
            jnp.sum(rotated_q * rotated_shifted_k, axis=-1),
            jnp.sum(rotated_q * rotated_k, axis=-1),
        )

    together, _ = scores(jnp.int32(shift))
    reference, _ = scores(jnp.int32(0))
    _, apart = scores(jnp.int32(shift))
    np.testing.assert_allclose(together, reference, atol=1e-4)
    assert float(jnp.max(jnp.abs(apart - reference))) > 0.1


def test_rotation_of_grouped_queries_is_that_of_each_head():
    x = normal(0, 4, K, 3, H)
    at = positions(0, 5, 2, 9)
    whole = Rope(500.0).rotate(x, at)
    for g in range(3):
        np.testing.assert_array_equal(whole[:, :, g], Rope(500.0).rotate(x[:, :, g], at))


def test_position_zero_rotates_nothing():
    x = normal(0, 3, K, H)
    np.testing.assert_array_equal(Rope(10_000.0).rotate(x, positions(0, 0, 0)), x)


def test_bfloat16_tells_neighbouring_positions_apart():
    # In bfloat16 itself, 257 is 256.
    x = jnp.ones((2, H), jnp.bfloat16)
    rotated = Rope(10_000.0).rotate(x, positions(256, 257))
    assert rotated.dtype == jnp.bfloat16
    exact = Rope(10_000.0).rotate(x.astype(jnp.float32), positions(256, 257))
    np.testing.assert_allclose(rotated.astype(jnp.float32), exact, atol=0.01)
    assert float(jnp.max(jnp.abs(exact[0] - exact[1]))) > 0.1


# --- Scalings ---------------------------------------------------------------------------------


def wavelengths(rope, head_dim=64):
    return 2 * np.pi / rope.frequencies(head_dim)[0].astype(np.float64)


def test_linear_divides_all_frequencies():
    scaling = RopeScaling("linear", factor=4.0)
    np.testing.assert_allclose(
        wavelengths(Rope(1e4, scaling)), 4 * wavelengths(Rope(1e4)), rtol=1e-6
    )


def test_llama3_stretches_long_waves_only_and_has_no_jump():
    scaling = RopeScaling("llama3", 8.0, original_positions=8192, low_factor=1, high_factor=4)
    before, after = wavelengths(Rope(5e5)), wavelengths(Rope(5e5, scaling))
    ratio = after / before
    short, long = before < 8192 / 4, before > 8192
    assert short.sum() > 5 and long.sum() > 5
    np.testing.assert_allclose(ratio[short], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[long], 8, rtol=1e-6)
    middle = ratio[~short & ~long]
    assert len(middle) > 2 and (np.diff(ratio) >= -1e-5).all() and 1 < middle.min() < 8
    # Halfway between 1 and 4 turns within the original context.
    halfway = Rope(1e4, RopeScaling("llama3", 8.0, 64, 1.0, 4.0))
    frequency = halfway.frequencies(2)[0]  # one channel, frequency 1: 64 / (2 pi) = 10.2 turns
    assert frequency == 1.0
    inside = RopeScaling("llama3", 8.0, 16, 1.0, 4.0)  # 2.546 turns, kept by 0.515
    kept = (16 / (2 * np.pi) - 1) / 3
    np.testing.assert_allclose(
        Rope(1e4, inside).frequencies(2)[0], kept + (1 - kept) / 8, rtol=1e-6
    )


def test_longrope_has_one_set_of_factors_within_the_original_context_and_one_beyond():
    scaling = RopeScaling(
        "longrope", 32.0, 4096, short_factors=(1.0, 2.0, 3.0), long_factors=(4.0, 5.0, 6.0)
    )
    plain = Rope(1e4).frequencies(H)[0]
    for longest, factors in ((4096, [1, 2, 3]), (4097, [4, 5, 6])):
        frequency, multiplier = Rope(1e4, scaling, longest).frequencies(H)
        np.testing.assert_allclose(frequency * np.array(factors), plain, rtol=1e-6)
        # sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5 / 12)
        assert multiplier == pytest.approx((17 / 12) ** 0.5)
    x = normal(0, 2, K, H)
    turned = Rope(1e4, scaling, 10).rotate(x, positions(3, 7))
    lengths = np.linalg.norm(turned, axis=-1) / np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(lengths, (17 / 12) ** 0.5, rtol=1e-5)
