"""The runs of a standard evaluation and the rows that are read off them."""

import dataclasses

import pytest

from jax_power_smc.evaluation.methods import Row, standard_runs
from jax_power_smc.samplers import Ancestral, MetropolisHastings, PowerSMC, WithoutReplacement


def by_name(runs):
    """row name -> (run, reading)"""
    rows = [(row.name, (run, row.reading)) for run in runs for row in run.rows]
    assert len(dict(rows)) == len(rows), "two rows of one name"
    return dict(rows)


@pytest.mark.parametrize(
    ("name", "sampler", "reading", "temperature"),
    [
        ("temperature 1", Ancestral(1.0), "draw", 1.0),
        ("temperature 1/4", Ancestral(0.25), "draw", 0.25),
        ("greedy", Ancestral(0.0), "draw", 0.0),
        ("best of N by log p", Ancestral(1.0, num_samples=8), "best", 1.0),
        ("majority vote", Ancestral(1.0, num_samples=8), "vote", 1.0),
        ("Metropolis-Hastings", MetropolisHastings(16, 2), "draw", 0.25),
        ("Power-SMC", PowerSMC(8), "draw", 0.25),
        ("Power-SMC, ramp 64", PowerSMC(8, ramp_tokens=64), "draw", 0.25),
        ("without replacement", WithoutReplacement(8), "draw", 0.25),
    ],
)
def test_rows(name, sampler, reading, temperature):
    run, got = by_name(
        standard_runs(alpha=4.0, num_particles=8, ramp_tokens=64, max_new_tokens=64)
    )[name]
    assert run.sampler == sampler
    assert got == reading
    assert run.temperature == temperature


def test_best_of_n_and_the_vote_share_their_samples():
    rows = by_name(standard_runs(4.0, 8, 0, 64))
    assert rows["best of N by log p"][0] is rows["majority vote"][0]


def test_the_first_row_is_what_costs_are_multiples_of():
    assert standard_runs(4.0, 8, 0, 64)[0].rows == (Row("temperature 1", "draw"),)


def test_blocks_of_the_chain_fit_the_cap():
    run, _ = by_name(standard_runs(4.0, 9, 0, 5))["Metropolis-Hastings"]
    assert run.sampler == MetropolisHastings(5, round(8 * 4 / 6))


def test_no_ramp_leaves_out_its_row():
    without, with_one = by_name(standard_runs(4.0, 8, 0, 64)), by_name(standard_runs(4.0, 8, 3, 64))
    assert with_one.keys() - without.keys() == {"Power-SMC, ramp 3"}
    assert without.keys() < with_one.keys()


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_rows_are_told_apart_at_every_alpha(alpha):
    run, _ = by_name(standard_runs(alpha, 8, 2, 64))[f"temperature 1/{alpha:g}"]
    assert run.sampler == Ancestral(1 / alpha)


@pytest.mark.parametrize(
    ("num_particles", "ramp_tokens", "message"),
    [(0, 0, "is 0; it must be an integer of at least 1"), (4, -1, "ramp_tokens is -1")],
)
def test_values_that_cannot_be_are_refused(num_particles, ramp_tokens, message):
    with pytest.raises(ValueError, match=message):
        standard_runs(4.0, num_particles, ramp_tokens, 64)


def test_runs_and_rows_do_not_change():
    run = standard_runs(4.0, 8, 0, 64)[0]
    for thing, field in ((run, "temperature"), (run.rows[0], "name")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, 0)
