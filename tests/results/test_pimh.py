"""The chain over runs, by hand and against enumeration."""

import math

import jax
import numpy as np
import pytest
import scipy.stats

from jax_power_smc.results.pimh import pimh
from tests.results.runs import COPIES, INF, KEY, drawn, p_value, with_dropped, with_evidence

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]


def test_pimh_moves_up_and_hardly_ever_far_down(few):
    prompts = few[0].log_evidence.shape[0]
    ladder = [0.0, 1.0, -50.0, 2.0, 2.0, -50.0]
    runs = [with_evidence(few[0], np.full(prompts, z)) for z in ladder]
    chain = pimh(runs, KEY)
    assert chain.runs.tolist() == [[0, 1, 1, 3, 4, 4]] * prompts
    assert chain.acceptance_rate == pytest.approx(3 / 5)
    assert chain.runs.dtype == np.int32


def test_pimh_accepts_a_lower_run_by_the_ratio(copies):
    one, two = (
        with_evidence(r, np.full(COPIES, z)) for r, z in zip(copies, [0, -1.5], strict=False)
    )
    moved = pimh([one, two], KEY).runs[:, 1]
    assert scipy.stats.binomtest(int(moved.sum()), COPIES, math.exp(-1.5)).pvalue > 0.01
    assert not np.array_equal(moved, pimh([one, two], jax.random.key(0)).runs[:, 1])


def test_pimh_takes_the_draws_along(copies):
    chain = pimh(copies[:6], KEY)
    draws = [result.draw() for result in copies[:6]]
    assert chain.draws == [[draws[r][p] for r in row] for p, row in enumerate(chain.runs.tolist())]
    moves = np.diff(chain.runs, axis=1) > 0
    np.testing.assert_allclose(chain.acceptance_rate, moves.mean(axis=1))
    assert 0.2 < chain.acceptance_rate.mean() < 1 and moves.any() and not moves.all()


def test_more_runs_continue_the_chain(copies):
    np.testing.assert_array_equal(pimh(copies[:9], KEY).runs[:, :5], pimh(copies[:5], KEY).runs)


def test_pimh_leaves_a_failed_run_at_once_and_enters_none(few):
    evidences = [[-INF, -INF, 0.0], [-INF, -INF, -INF], [-40.0, -INF, -40.0]]
    runs = [with_evidence(r, z) for r, z in zip(few, evidences, strict=True)]
    chain = pimh(runs, KEY)
    assert chain.runs.tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0]]
    assert chain.draws[0][:2] == [None, None] and chain.draws[0][2] == few[2].draw()[0]
    assert chain.draws[1] == [None] * 3 and None not in chain.draws[2]


def test_pimh_converges_to_the_target_and_a_plain_draw_does_not(copies):
    chain = pimh(copies, KEY)
    at = np.stack([drawn(r) for r in copies], axis=1)
    last = np.take_along_axis(at, chain.runs[:, -1:], axis=1)[:, 0]
    assert p_value(last) > 0.01
    # The plain draws of one run, of the same size and by the same test; without the acceptance
    # the chain would end with those of the last run.
    assert p_value(at[:, 0]) < 1e-8
    assert p_value(at[:, -1]) < 1e-8


def test_pimh_refuses_dropped_mass(few):
    runs = [few[0], with_dropped(few[1], [0.0, 1e-6, 0.0])]
    with pytest.raises(ValueError, match=r"run 1 dropped mass .* early_stop=0"):
        pimh(runs, KEY)
