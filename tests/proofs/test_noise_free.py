"""Proof 1: ``E[sum_i W_i 1{y_i = y}] = gamma(y)`` to 1e-10, without noise, for every option."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from jax_power_smc import PowerSMC, PowerTarget, TableLM, weights
from jax_power_smc import proposal as proposal_module
from jax_power_smc.samplers.power_smc import PowerSMCRule
from jax_power_smc.schedule import exponent_at
from tests.proofs import integrate

HORIZON = 2
MODEL = TableLM(vocab_size=2, order=HORIZON)
TOLERANCE = 1e-10

RESAMPLINGS = ("systematic", "stratified", "residual", "multinomial")
ORDERS = (("adapted", None), ("published", None), ("published", 0.6))
RAMPS = (0, 2)
EOS = ((), (1,))
LENGTHS = ("stopped", "forced_eos")
MINIMA = (0, 1, 2)
SUPPORTS = ((None, None), (1, None), (None, 0.6))
OPTIONS = list(itertools.product(RESAMPLINGS, ORDERS, RAMPS, EOS, LENGTHS, MINIMA, SUPPORTS))


def declare(option):
    """The sampler and target of one option; raises ValueError if it is not a valid one."""
    resampling, (order, temperature), ramp, eos_ids, length, minimum, (top_k, top_p) = option
    sampler = PowerSMC(
        2,
        ess_threshold=1.0,
        resampling=resampling,
        order=order,
        proposal_temperature=temperature,
        ramp_tokens=ramp,
    )
    target = PowerTarget(
        2.5, eos_ids, length=length, min_new_tokens=minimum, top_k=top_k, top_p=top_p
    )
    target.check(MODEL.vocab_size, HORIZON)
    return sampler, target


def is_valid(option):
    _, _, _, eos_ids, length, minimum, _ = option
    return not (length == "forced_eos" and (not eos_ids or minimum == HORIZON))


def table():
    return MODEL.init(jax.random.key(3), scale=1.0, dtype=jnp.float64)


def error_of(sampler, target, rule=None):
    params = table()
    expected = integrate.expectation(
        MODEL, params, rule or sampler.rule(), sampler.numbers(), target, HORIZON
    )
    return integrate.largest_error(expected, integrate.gamma(MODEL, params, target, HORIZON))


@pytest.mark.parametrize(
    ("resampling", "order"), list(itertools.product(RESAMPLINGS, ORDERS)), ids=lambda x: str(x)
)
def test_every_valid_option_is_unbiased(x64, resampling, order):
    options = [o for o in OPTIONS if o[0] == resampling and o[1] == order and is_valid(o)]
    errors = {option: error_of(*declare(option)) for option in options}
    assert len(errors) == 2 * 3 * (3 + 3 + 2)
    assert max(errors.values()) < TOLERANCE, max(errors, key=lambda o: errors[o])


@pytest.mark.parametrize("option", [o for o in OPTIONS[:72] if not is_valid(o)], ids=str)
def test_every_invalid_option_raises(option):
    with pytest.raises(ValueError, match="eos_ids is empty|min_new_tokens equals"):
        declare(option)


@pytest.mark.parametrize("order", ["adapted", "published"])
@pytest.mark.parametrize(
    "change",
    [{"num_particles": 1}, {"check_every": 2}, {"ess_threshold": 0.0}, {"ess_threshold": 0.8}],
    ids=str,
)
def test_other_numbers_are_unbiased(x64, order, change):
    sampler = dataclasses.replace(
        PowerSMC(2, ess_threshold=1.0, order=order, ramp_tokens=1), **change
    )
    assert error_of(sampler, PowerTarget(3.0, (1,))) < TOLERANCE


def test_two_level_draw_is_unbiased(x64, monkeypatch):
    # Blocks of one token: now the first level makes the whole choice.
    monkeypatch.setattr(proposal_module.power_proposal, "__defaults__", (1,))
    rule = _OneTokenBlocks(2, "systematic", "adapted")
    sampler = PowerSMC(2, ess_threshold=1.0, ramp_tokens=2)
    assert error_of(sampler, PowerTarget(2.5, (1,)), rule) < TOLERANCE


# --- Mutations: each of these known mistakes must be caught by the check above -----------------


@dataclasses.dataclass(frozen=True)
class _OneTokenBlocks(PowerSMCRule):
    """The production rule under another name, so that it is compiled apart."""


@dataclasses.dataclass(frozen=True)
class WeightsResetToOne(PowerSMCRule):
    """Forgets the sum of the weights at a resample."""

    def _resample(self, numbers, particles, uniforms, due):
        particles, ess, need, parent = super()._resample(numbers, particles, uniforms, due)
        forgotten = jnp.where(need, 0.0, particles.log_evidence)
        return particles._replace(log_evidence=forgotten), ess, need, parent


@dataclasses.dataclass(frozen=True)
class NoCatchUp(PowerSMCRule):
    """Ends with the exponent where the ramp happens to be."""

    def finish(self, numbers, target, particles, uniform):
        return super().finish(
            numbers, target._replace(alpha=particles.exponent), particles, uniform
        )


@dataclasses.dataclass(frozen=True)
class FinishedNotBridged(PowerSMCRule):
    """Bridges only the particles that are still running."""

    def advance(self, numbers, target, particles, log_p, uniforms, step):
        exponent = exponent_at(step, target.alpha, numbers.ramp_tokens)
        undo = (exponent - particles.exponent) * particles.log_prob
        log_weight = jnp.where(
            particles.ended, particles.log_weight - undo, particles.log_weight
        )
        particles = particles._replace(log_weight=log_weight)
        return super().advance(numbers, target, particles, log_p, uniforms, step)


@pytest.mark.parametrize("order", ["adapted", "published"])
@pytest.mark.parametrize("mutation", [WeightsResetToOne, NoCatchUp, FinishedNotBridged])
def test_mutations_are_caught(x64, order, mutation):
    sampler = PowerSMC(2, ess_threshold=1.0, order=order, ramp_tokens=3)
    target = PowerTarget(2.5, (1,))
    assert error_of(sampler, target) < TOLERANCE
    if mutation is WeightsResetToOne and order == "published":
        # It resamples after step 0 only, where weights are equal without a ramp; make them differ.
        sampler = dataclasses.replace(sampler, proposal_temperature=0.6)
        assert error_of(sampler, target) < TOLERANCE
    mutant = mutation(2, "systematic", order)
    assert error_of(sampler, target, mutant) > 1e-4


def test_uniform_weights_of_one(x64):
    assert float(weights.uniform(1, jnp.float64)[0]) == 0.0
