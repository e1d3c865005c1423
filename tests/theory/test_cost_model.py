"""The cost model against exact enumeration of the cuts and the sampler's counter."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.theory.cost_model import (
    EDITS,
    equal_cost_moves,
    mh_tokens,
    smc_seconds,
    smc_tokens,
    wall_clock_ratio,
    work_ratio,
)
from jax_power_smc.theory.roofline import Device, ModelCost, batched_gain, step_seconds


def cut_ranges(num_tokens, num_blocks, moves_per_block, edit):
    """For every move in order, the cuts (1-based) that it may make and the horizon it draws to."""
    size = num_tokens // num_blocks
    ranges = []
    for block in range(1, num_blocks + 1):
        horizon = block * size
        first = 1 if edit == "global" else horizon - size + 1
        ranges += [(range(first, horizon + 1), horizon)] * moves_per_block
    return ranges


def drawn_tokens(num_tokens, num_blocks, moves_per_block, cuts):
    """Runs a chain on an actual list of tokens, with these cuts, and counts its draws."""
    sequence, draws, cuts = [], 0, iter(cuts)
    for block in range(1, num_blocks + 1):
        horizon = block * (num_tokens // num_blocks)
        while len(sequence) < horizon:
            sequence.append("grown")
            draws += 1
        for _ in range(moves_per_block):
            sequence = sequence[: next(cuts) - 1]
            while len(sequence) < horizon:
                sequence.append("moved")
                draws += 1
    assert len(sequence) == num_tokens
    return draws


def mean_over_all_cuts(num_tokens, num_blocks, moves_per_block, edit):
    """The expected draws, by every combination of cuts of all moves."""
    ranges = [cuts for cuts, _ in cut_ranges(num_tokens, num_blocks, moves_per_block, edit)]
    counts = [
        drawn_tokens(num_tokens, num_blocks, moves_per_block, cuts)
        for cuts in itertools.product(*ranges)
    ]
    return Fraction(sum(counts), len(counts))


def mean_move_by_move(num_tokens, num_blocks, moves_per_block, edit):
    """The same by linearity: every cut of every move once."""
    total = Fraction(num_tokens)
    for cuts, horizon in cut_ranges(num_tokens, num_blocks, moves_per_block, edit):
        total += Fraction(sum(len(range(cut, horizon + 1)) for cut in cuts), len(cuts))
    return total


# --- the lemmas ---


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(
    ("num_tokens", "num_blocks", "moves"),
    [(1, 1, 1), (5, 1, 2), (4, 2, 2), (6, 3, 1), (6, 2, 2), (4, 4, 1), (8, 2, 0), (3, 3, 2)],
)
def test_lemmas_2_and_3_equal_the_mean_over_every_combination_of_cuts(
    num_tokens, num_blocks, moves, edit
):
    truth = mean_over_all_cuts(num_tokens, num_blocks, moves, edit)
    assert mean_move_by_move(num_tokens, num_blocks, moves, edit) == truth
    assert mh_tokens(num_tokens, num_blocks, moves, edit) == pytest.approx(float(truth), rel=1e-14)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(
    ("num_tokens", "num_blocks", "moves"), [(1024, 16, 10), (3072, 16, 10), (60, 60, 3), (96, 8, 7)]
)
def test_lemmas_2_and_3_are_exact_at_real_sizes(num_tokens, num_blocks, moves, edit):
    truth = mean_move_by_move(num_tokens, num_blocks, moves, edit)
    assert mh_tokens(num_tokens, num_blocks, moves, edit) == pytest.approx(float(truth), rel=1e-14)


def test_lemmas_2_and_3_by_hand():
    # Global, T=4, B=2, M=1: 4 grown, (2 + 1)/2 after the first block, (4 + 1)/2 after the second.
    assert mh_tokens(4, 2, 1, "global") == 4 + 1.5 + 2.5
    assert mh_tokens(4, 2, 1, "last_block") == 4 + 1.5 + 1.5
    # The figure for the paper's setting, T (1 + 10 * 17/4) + 80.
    assert mh_tokens(3072, 16, 10, "global") == 3072 * 43.5 + 80
    assert mh_tokens(3072, 16, 10, "last_block") == 3072 * 6 + 80


def test_with_one_block_both_edits_are_the_same():
    assert mh_tokens(7, 1, 5, "global") == mh_tokens(7, 1, 5, "last_block") == 7 + 5 * 4


@pytest.mark.parametrize("edit", EDITS)
def test_without_moves_the_chain_is_plain_decoding(edit):
    assert mh_tokens(32, 8, 0, edit) == 32


@pytest.mark.parametrize(("num_tokens", "num_particles"), [(1, 1), (9, 4), (5, 7)])
def test_lemma_1_is_what_the_sampler_counts(num_tokens, num_particles):
    model = psmc.TableLM(vocab_size=3)
    result = psmc.sample(
        model,
        model.init(jax.random.key(0)),
        [[0]],
        key=jax.random.key(1),
        target=psmc.PowerTarget(2.0),  # no end token: sequences never end
        sampler=psmc.PowerSMC(num_particles),
        max_new_tokens=num_tokens,
    )
    assert smc_tokens(num_tokens, num_particles) == int(result.info.drawn_tokens[0])


# --- the corollary ---


@pytest.mark.parametrize(("edit", "quoted"), [("global", 1.47), ("last_block", 10.7)])
def test_quoted_work_ratios(edit, quoted):
    ratio = work_ratio(64, 16, 10, edit)
    assert round(ratio, 2 if edit == "global" else 1) == quoted
    assert ratio == pytest.approx(64 / (43.5 if edit == "global" else 6), rel=1e-14)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("num_tokens", [16, 64, 4096])
def test_work_ratio_is_the_quotient_of_the_lemmas(edit, num_tokens):
    exact = Fraction(12 * num_tokens) / mean_move_by_move(num_tokens, 16, 3, edit)
    assert work_ratio(12, 16, 3, edit, num_tokens) == pytest.approx(float(exact), rel=1e-14)
    # The chain's M B/2 is what the limit leaves out.
    limit = work_ratio(12, 16, 3, edit)
    assert limit - float(exact) > 0 and limit / float(exact) - 1 < 24 / num_tokens


@pytest.mark.parametrize("edit", EDITS)
def test_wall_clock_ratio_is_the_quotient_of_the_times(edit):
    token_seconds, gain = 0.02, 40.0
    chain = token_seconds * float(mean_move_by_move(512, 16, 10, edit))
    ours = smc_seconds(token_seconds, 512, 64, gain)
    assert ours == pytest.approx(0.02 * 512 * 64 / 40)
    assert wall_clock_ratio(64, 16, 10, edit, gain, 512) == pytest.approx(chain / ours)
    per_token = 1 + 10 * 17 / 4 if edit == "global" else 1 + 10 / 2
    assert wall_clock_ratio(64, 16, 10, edit, gain) == pytest.approx(per_token * gain / 64)


def test_without_a_batched_gain_the_wall_clock_ratio_inverts_the_work_ratio():
    for edit in EDITS:
        assert wall_clock_ratio(64, 16, 10, edit, 1.0) * work_ratio(64, 16, 10, edit) == (
            pytest.approx(1)
        )


def test_roofline_and_lemma_1_agree_on_the_time_of_a_run():
    device = Device("test", bandwidth_bytes_per_s=1e12, flops_per_s=1e14)
    model = ModelCost(weight_bytes=2e9, parameters=1e9, kv_bytes_per_token=1e5)
    one, many = (step_seconds(n, model, device, 700) for n in (1, 64))
    gain = batched_gain(64, model, device, 700)
    assert smc_seconds(one, 1400, 64, gain) == pytest.approx(1400 * many)


# --- what is refused ---


@pytest.mark.parametrize("value", [0, -3, 1.5, True, math.nan])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("num_tokens", lambda v: smc_tokens(v, 4)),
        ("num_particles", lambda v: smc_tokens(4, v)),
        ("num_tokens", lambda v: mh_tokens(v, 1, 1, "global")),
        ("num_blocks", lambda v: mh_tokens(8, v, 1, "global")),
        ("num_particles", lambda v: work_ratio(v, 2, 1, "global")),
        ("num_blocks", lambda v: work_ratio(4, v, 1, "global")),
        ("num_tokens", lambda v: work_ratio(4, 1, 1, "global", v)),
    ],
)
def test_invalid_sizes_are_refused_by_name(name, call, value):
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must be an integer of at least 1\.$"):
        call(value)


@pytest.mark.parametrize("moves", [-1, 0.5])
def test_moves_are_an_integer_of_at_least_zero(moves):
    for call in (
        lambda: mh_tokens(8, 2, moves, "global"),
        lambda: work_ratio(8, 2, moves, "global"),
    ):
        with pytest.raises(ValueError, match=r"^moves_per_block is .* of at least 0\.$"):
            call()


def test_blocks_must_divide_the_tokens():
    for call in (lambda: mh_tokens(10, 4, 1, "global"), lambda: work_ratio(8, 4, 1, "global", 10)):
        with pytest.raises(ValueError, match=r"^num_tokens is 10 and num_blocks 4; .*multiple"):
            call()


def test_unknown_edit_is_refused():
    for call in (lambda: mh_tokens(8, 2, 1, "local"), lambda: work_ratio(8, 2, 1, "local")):
        with pytest.raises(
            ValueError, match=r"^edit is 'local'; allowed are global, last_block\.$"
        ):
            call()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("gain", lambda v: wall_clock_ratio(4, 2, 1, "global", v)),
        ("gain", lambda v: smc_seconds(1.0, 2, 2, v)),
        ("token_seconds", lambda v: smc_seconds(v, 2, 2, 1.0)),
    ],
)
def test_rates_must_be_positive_numbers(name, call, value):
    with pytest.raises(
        ValueError, match=rf"^{name} is .*; it must be a finite number greater than 0\.$"
    ):
        call(value)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("num_blocks", [1, 4, 16])
def test_equal_cost_moves_are_the_nearest_to_n_times_t(edit, num_blocks):
    horizon, num = 16_000_000, 40
    moves = equal_cost_moves(num, num_blocks, edit)

    def off(m):
        return abs(mh_tokens(horizon, num_blocks, m, edit) / horizon - num)

    assert off(moves) <= min(off(moves - 1), off(moves + 1))
    assert equal_cost_moves(1, num_blocks, edit) == 0


def test_equal_cost_moves_refuse_invalid_values():
    with pytest.raises(ValueError, match="num_particles is 0"):
        equal_cost_moves(0, 4, "global")
    with pytest.raises(ValueError, match="edit is 'local'"):
        equal_cost_moves(4, 4, "local")


def test_numbers_of_numpy_and_jax_become_python_numbers():
    # A product in their own dtype would be 0.
    many = 2**20
    for kind in (np.int32, jnp.int32):
        tokens = smc_tokens(kind(many), kind(many))
        assert type(tokens) is float and tokens == 2.0**40
        chain = mh_tokens(kind(many), kind(1), kind(2**15), "global")
        assert type(chain) is float and chain == mh_tokens(many, 1, 2**15, "global")
    for bad in ("1", True, jnp.asarray([1.0]), None, 1j):
        with pytest.raises(
            ValueError, match=r"gain is .*; it must be a finite number greater than 0"
        ):
            wall_clock_ratio(4, 2, 1, "global", bad)
