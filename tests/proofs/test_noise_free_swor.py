"""Proof 1 for without-replacement SMC: eq. 27 to 1e-10 for every option, without noise."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from jax_power_smc import PowerTarget, StopString, TableLM, WithoutReplacement
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers import without_replacement
from jax_power_smc.smc import optimal_resampling
from tests.proofs import integrate
from tests.proofs.mutations import (
    NoCatchUpOfPool,
    PoolNotBridged,
    keep_own_weight,
    round_points,
)

TOLERANCE = 1e-10
ALPHA = 2.5
PIECES = [b"a", b"b", b""]  # what the tokens spell, for a stop rule
RAMPS = (0, 2)
EOS = ((), (1,))
LENGTHS = ("stopped", "forced_eos")
MINIMA = (0, 1, 2)
SUPPORTS = ((2, 1.0), (1, 1.0), (2, 0.6))
PEAKED = 2.0  # scale of a table in which some children weigh less than a small floor


def table(model, scale=1.0):
    return model.init(jax.random.key(3), scale=scale, dtype=jnp.float64)


def targets(horizon, eos=EOS, supports=SUPPORTS):
    """Every valid target."""
    for eos_ids, length, minimum, (top_k, top_p) in itertools.product(
        eos, LENGTHS, MINIMA, supports
    ):
        if length == "stopped" or (eos_ids and minimum < horizon):
            yield PowerTarget(ALPHA, eos_ids, length, minimum, top_k, top_p)


def errors_of(model, sampler, listed, horizon, *, ramps=RAMPS, scale=1.0):
    """Largest error of each target under each ramp."""
    pairs = list(itertools.product(ramps, listed))
    pieces = PIECES[: model.vocab_size]
    cases = [
        integrate.Case(dataclasses.replace(sampler, ramp_tokens=ramp), target, horizon, pieces)
        for ramp, target in pairs
    ]
    params = table(model, scale)
    found = integrate.expectations(model, params, cases, horizon)
    return [
        integrate.largest_error(expected, integrate.gamma(model, params, target, horizon, pieces))
        for expected, (_, target) in zip(found, pairs, strict=True)
    ]


def exactly(num_particles, explicit_children, kind=WithoutReplacement):
    return kind(num_particles, explicit_children, early_stop=0.0)


@pytest.mark.parametrize("explicit_children", [pytest.param(1, marks=pytest.mark.slow), None])
@pytest.mark.parametrize("num_particles", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_valid_target_is_unbiased(x64, num_particles, explicit_children):
    model = TableLM(2, order=2)
    listed = list(targets(2))
    assert len(listed) == (3 + 3 + 2) * len(SUPPORTS)
    errors = errors_of(model, exactly(num_particles, explicit_children), listed, 2)
    assert max(errors) < TOLERANCE


@pytest.mark.parametrize("num_particles", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_three_steps_are_unbiased(x64, num_particles):
    # Here finished sequences compete in the pool, and there are more leaves than particles.
    model = TableLM(2, order=3)
    listed = list(targets(3, eos=((1,),), supports=((2, 1.0),)))
    assert max(errors_of(model, exactly(num_particles, 1), listed, 3)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", [1, 2])
def test_a_stop_rule_is_unbiased(x64, num_particles):
    model, rule = TableLM(2, order=3), StopString("ab")
    listed = [dataclasses.replace(target, stop=rule) for target in targets(3, supports=((2, 1.0),))]
    # It also takes the place of the end tokens that "forced_eos" requires.
    listed.append(PowerTarget(ALPHA, (), "forced_eos", 0, 2, 1.0, rule))
    assert max(errors_of(model, exactly(num_particles, 1), listed, 3)) < TOLERANCE


@dataclasses.dataclass(frozen=True)
class WrongExplicit(WithoutReplacement):
    """Makes the least probable tokens its explicit children."""

    def explicit(self, logits, allowed):
        return super().explicit(Logits(-logits.values), allowed)


@pytest.mark.parametrize(
    "kind", [pytest.param(WithoutReplacement, marks=pytest.mark.slow), WrongExplicit]
)
@pytest.mark.parametrize("eos_ids", [(0,), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_a_tail_of_several_tokens_is_unbiased(x64, kind, eos_ids):
    # Three tokens, one explicit: the tails hold two, and either may end the sequence.
    model = TableLM(3, order=2)
    listed = [PowerTarget(ALPHA, eos_ids), PowerTarget(ALPHA, eos_ids, "forced_eos")]
    errors = errors_of(model, exactly(2, 1, kind), listed, 2)
    assert max(errors) < TOLERANCE


@pytest.mark.parametrize(
    ("num_particles", "horizon"), [(1, 3), (2, 2), pytest.param(2, 3, marks=pytest.mark.slow)]
)
def test_a_mass_floor_is_unbiased(x64, num_particles, horizon):
    model = TableLM(2, order=3)
    supports = ((2, 1.0),) if horizon == 3 else ((2, 1.0), (2, 0.6))
    listed = list(targets(horizon, eos=((), (1,)), supports=supports))
    for mass_floor in (0.05, 0.3):
        sampler = dataclasses.replace(exactly(num_particles, 1), mass_floor=mass_floor)
        assert max(errors_of(model, sampler, listed, horizon, scale=PEAKED)) < TOLERANCE


# --- Mutations --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SurvivorsKeepTheirWeight(WithoutReplacement):
    """``keep_own_weight``, under another name so that it is compiled separately."""


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(NoCatchUpOfPool, marks=pytest.mark.slow),
        pytest.param(PoolNotBridged, marks=pytest.mark.slow),
        SurvivorsKeepTheirWeight,
    ],
)
def test_mutations_are_caught(x64, mutation, monkeypatch):
    model, target = TableLM(2, order=3), PowerTarget(ALPHA, (1,), "stopped", 0, 2, 1.0)
    (right,) = errors_of(model, exactly(1, 1), [target], 3, ramps=(4,))
    if mutation is SurvivorsKeepTheirWeight:
        monkeypatch.setattr(without_replacement, "select", keep_own_weight)
    (wrong,) = errors_of(model, exactly(1, 1, mutation), [target], 3, ramps=(4,))
    assert right < TOLERANCE
    assert wrong > 1e-4


@dataclasses.dataclass(frozen=True)
class FloorRoundedToAWholeNumber(WithoutReplacement):
    """``round_points``, under another name so that it is compiled separately."""


@pytest.mark.parametrize(("num_particles", "mass_floor"), [(1, 0.3), (2, 0.3), (2, 0.05)])
def test_a_floor_with_a_whole_number_of_survivors_is_caught(
    x64, monkeypatch, num_particles, mass_floor
):
    model, target = TableLM(2, order=3), PowerTarget(ALPHA, (1,), "stopped", 0, 2, 1.0)
    floored = dataclasses.replace(exactly(num_particles, 1), mass_floor=mass_floor)
    (right,) = errors_of(model, floored, [target], 3, ramps=(0,), scale=PEAKED)
    monkeypatch.setattr(optimal_resampling, "systematic_cdf", round_points)
    mutated = FloorRoundedToAWholeNumber(**dataclasses.asdict(floored))
    (wrong,) = errors_of(model, mutated, [target], 3, ramps=(0,), scale=PEAKED)
    assert right < TOLERANCE
    assert wrong > 1e-4
