"""Recorded trajectories, and how long prompts that share rows wait."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.benchmarks import row_fit
from jax_power_smc.engine import rows
from jax_power_smc.models.transformer.config import TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=16,
)


def test_a_trajectory_is_packed_without_loss():
    trajectory = np.random.default_rng(0).integers(1, 1000, 2048)
    np.testing.assert_array_equal(row_fit.unpack(row_fit.pack(trajectory)), trajectory)
    assert len(row_fit.pack(np.ones(2048, int))) < 60


def test_the_rule_is_that_of_the_engine():
    random = np.random.default_rng(0)
    order = jnp.arange(6, dtype=jnp.int32)
    engine = jax.jit(rows.may_proceed)
    waits = 0
    for _ in range(200):
        holds, wants = random.integers(0, 5, (2, 6)).astype(np.int32)
        free = int(random.integers(-2, 6))
        expected = engine(order, holds, wants, jnp.int32(free))
        found = row_fit.may_proceed(holds, wants, free)
        np.testing.assert_array_equal(found, expected)
        waits += not found.all()
    assert 50 < waits < 200


def test_a_prompt_waits_while_others_have_its_rows():
    constant = [np.full(100, 4)]
    assert row_fit.stalled_share(constant, 4, 16) == 0
    # One of five waits, except at the five steps at which one ends and another begins.
    assert row_fit.stalled_share(constant, 5, 16) == (100 - 5) / 500
    assert row_fit.stalled_share(constant, 5, 20) == 0


def test_where_nobody_can_move_the_youngest_gives_its_rows_back():
    # Both have two rows of four and ask for all: one has to go, or neither would ever end.
    burst = [np.array([1, 2, 4, 4, 1, 1])]
    share = row_fit.stalled_share(burst, 2, 4)
    assert 0 < share < 0.5
    assert row_fit.stalled_share(burst, 2, 8) == 0


def test_more_rows_and_fewer_prompts_wait_less():
    random = np.random.default_rng(1)
    walks = [np.clip(3 + np.cumsum(random.integers(-1, 2, 300)), 1, 16) for _ in range(4)]
    by_rows = [row_fit.stalled_share(walks, 20, n) for n in (40, 80, 160, 320)]
    assert by_rows == sorted(by_rows, reverse=True) and by_rows[0] > 0.2 and by_rows[-1] == 0
    by_prompts = [row_fit.stalled_share(walks, p, 100) for p in (4, 10, 20, 40)]
    assert by_prompts == sorted(by_prompts)


def test_the_largest_number_of_prompts_is_at_the_limit():
    trajectories = [np.array([1, *[3] * 59]), np.array([1, *[5] * 59])]
    sizes = (SHAPE, 8, 16, 60, 2**20)
    most = row_fit.largest(trajectories, *sizes)
    shape, *rest = sizes

    def share(count):
        plan = row_fit.plan_for(shape, count, *rest)
        return row_fit.stalled_share(trajectories, count, plan.rows) if plan.slots == count else 1

    assert most > 1 and share(most) <= row_fit.MOST_STALLED < share(most + 1)


def test_the_plan_is_that_of_an_accelerator():
    plan = row_fit.plan_for(SHAPE, 4, 8, 16, 60, 2**20)
    assert plan.device == "a device of 0.00104858 GB" and plan.limit == int(0.9 * 2**20)
    # Two layers of keys and values, one head of 8 numbers, 2 bytes each.
    assert plan.row == (16 + 60) * 2 * 2 * 8 * 2 and plan.fits
    with pytest.raises(ValueError, match="need"):
        row_fit.plan_for(SHAPE, 4, 8, 16, 60, 2**14)
