"""What a set of particles shows about itself."""

import numpy as np
import pytest

from jax_power_smc.results import diagnostics

OWN = [0, 1, 2]


def diagnose(weights=((0.5, 0.3, 0.2), (0.0, 0.6, 0.4)), parent=None, finished=None):
    """Two prompts of three particles, cap 4, end token 1."""
    tokens = [
        [[2, 1, 0, 0], [0, 0, 0, 0], [2, 3, 1, 0]],
        [[3, 3, 3, 1], [2, 2, 2, 2], [2, 0, 1, 0]],
    ]
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.asarray(weights, np.float32))
    ended = [[True, False, True], [True, False, True]] if finished is None else finished
    return diagnostics.diagnose(
        np.asarray(tokens, np.int32),
        np.asarray([[2, 4, 3], [4, 4, 3]], np.int32),
        np.asarray(ended),
        log_weights,
        np.asarray([[OWN] * 4] * 2 if parent is None else parent, np.int32),
        np.asarray([OWN, OWN], np.int32),
    )


def test_unfinished_mass_is_a_weight():
    np.testing.assert_allclose(diagnose().unfinished_mass, [0.3, 0.6], rtol=1e-6)


def test_distinct_roots_count_particles_of_positive_weight():
    assert diagnose().distinct_roots.tolist() == [2, 1]


def test_coalescence_counts_the_shared_first_steps():
    even = ((0.5, 0.3, 0.2),) * 2
    never = [OWN, OWN, OWN, OWN]
    at_step_two = [OWN, OWN, [1, 1, 1], OWN]
    assert diagnose(even, [never, at_step_two]).coalescence.tolist() == [0, 2]
    in_two_moves = [OWN, [0, 0, 2], OWN, [2, 1, 1]]
    at_the_last = [OWN, OWN, OWN, [0, 0, 0]]
    assert diagnose(even, [in_two_moves, at_the_last]).coalescence.tolist() == [0, 3]


def test_coalescence_leaves_out_weight_zero():
    steps = [OWN, [0, 1, 1], OWN, OWN]
    assert diagnose(parent=[steps, steps]).coalescence.tolist() == [0, 1]


def test_nothing_is_known_of_a_prompt_without_any_weight():
    got = diagnose(((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)))
    assert got.distinct_roots.tolist() == [0, 1] and got.coalescence.tolist() == [4, 4]
    assert got.unfinished_mass.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([9, 8] + [5] * 16, True),
        ([7] + [1, 2, 3] * 6, True),
        ([7] + [1, 2, 3, 4, 5] * 4, True),
        ([7] + [1, 1, 2] * 6, True),
        ([5] * 15, False),
        ([5] * 30 + [6], False),
        (list(range(40)), False),
        ([1, 2, 3, 4, 5] * 3, False),
        ([1, 2, 3, 4, 5] * 3 + [1, 2, 3, 4, 6], False),
        ([], False),
    ],
)
def test_loops_are_found_at_the_end_only(ids, expected):
    assert diagnostics.is_loop(np.asarray(ids, np.int32)) is expected


def test_flags_have_a_place_for_every_particle():
    got = diagnose()
    assert got.loops.shape == got.very_short.shape == (2, 3) and got.loops.dtype == bool


def test_very_short_means_finished_after_two_tokens():
    assert diagnose().very_short.tolist() == [[True, False, False], [False] * 3]
    assert not diagnose(finished=np.zeros((2, 3), bool)).very_short.any()
