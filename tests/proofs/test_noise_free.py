"""Proof 1: eq. 27, ``E[sum_i W_i 1{y_i = y}] = gamma(y)``, to 1e-10 without noise, every option."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import PowerSMC, PowerTarget, StopString, TableLM
from jax_power_smc.samplers import proposal as proposal_module
from tests.proofs import integrate
from tests.proofs.mutations import FinishedNotBridged, NoCatchUp, WeightsResetToOne

# V = T = 2; the cases with T = 3 use the same table and token buffer.
HORIZON, LONGER = 2, 3
MODEL = TableLM(vocab_size=2, order=LONGER)
TOLERANCE = 1e-10
PIECES = [b"a", b"b"]  # what the tokens spell, for a stop rule

RESAMPLINGS = ("systematic", "stratified", "residual", "multinomial")
ORDERS = (("adapted", None), ("published", None), ("published", 0.6))
# All orders where there is little else to vary; the published ones in the slow tests.
QUICK_ORDERS = [
    pytest.param(order, marks=[pytest.mark.slow] * (order[0] == "published"), id=str(order))
    for order in ORDERS
]
RAMPS = (0, 2)
EOS = ((), (1,))
LENGTHS = ("stopped", "forced_eos")
MINIMA = (0, 1, 2)
# "No restriction" is both the loosest one, which shares its program with the others, and None.
SUPPORTS = ((2, 1.0), (1, 1.0), (2, 0.6))
SUPPORTS_WITH_NONE = ((None, None), (1, None), (None, 0.6))
THRESHOLDS = ((1.0, 1), (0.8, 1), (0.0, 1), (1.0, 2))  # ess_threshold, check_every
FULL = THRESHOLDS[:1]

Option = collections.namedtuple(
    "Option", "resampling order ramp eos_ids length minimum support threshold"
)


def options(resampling, order, supports=SUPPORTS, thresholds=FULL):
    """Every combination of the other options, valid or not."""
    rest = itertools.product(RAMPS, EOS, LENGTHS, MINIMA, supports, thresholds)
    return [Option(resampling, order, *values) for values in rest]


def is_valid(option, horizon=HORIZON):
    return option.length == "stopped" or (option.eos_ids != () and option.minimum < horizon)


def declare(option, num_particles=2, horizon=HORIZON):
    """The sampler and target of one option; raises ValueError if it is not a valid one."""
    order, temperature = option.order
    ess_threshold, check_every = option.threshold
    sampler = PowerSMC(
        num_particles,
        ess_threshold=ess_threshold,
        resampling=option.resampling,
        order=order,
        proposal_temperature=temperature,
        ramp_tokens=option.ramp,
        check_every=check_every,
    )
    top_k, top_p = option.support
    target = PowerTarget(
        2.5,
        option.eos_ids,
        length=option.length,
        min_new_tokens=option.minimum,
        top_k=top_k,
        top_p=top_p,
    )
    target.check(MODEL.vocab_size, horizon)
    return sampler, target


def table():
    return MODEL.init(jax.random.key(3), scale=1.0, dtype=jnp.float64)


@functools.cache
def gamma_of(target, horizon):
    return integrate.gamma(MODEL, table(), target, horizon, PIECES)


def gamma(target, horizon):
    """gamma by enumeration, with the loosest restriction written as None."""
    top_k = None if target.top_k == MODEL.vocab_size else target.top_k
    top_p = None if target.top_p == 1.0 else target.top_p
    return gamma_of(dataclasses.replace(target, top_k=top_k, top_p=top_p), horizon)


def errors_of(pairs, horizon=HORIZON):
    """Largest error of each (sampler, target)."""
    cases = [integrate.Case(sampler, target, horizon, PIECES) for sampler, target in pairs]
    found = integrate.expectations(MODEL, table(), cases, LONGER)
    return [
        integrate.largest_error(expected, gamma(target, horizon))
        for expected, (_, target) in zip(found, pairs, strict=True)
    ]


def assert_unbiased(listed, num_particles=2, horizon=HORIZON):
    pairs = [declare(option, num_particles, horizon) for option in listed]
    errors = errors_of(pairs, horizon)
    assert max(errors) < TOLERANCE, listed[int(np.argmax(errors))]


@pytest.mark.parametrize(
    ("resampling", "order"), list(itertools.product(RESAMPLINGS, ORDERS)), ids=str
)
def test_every_valid_option_is_unbiased(x64, resampling, order):
    valid = [o for o in options(resampling, order, thresholds=THRESHOLDS) if is_valid(o)]
    assert len(valid) == len(RAMPS) * len(SUPPORTS) * len(THRESHOLDS) * (3 + 3 + 2)
    assert_unbiased(valid)
    # The published order with the optimal proposal needs three steps to have anything to resample.
    longer = options(resampling, order, SUPPORTS[:1], THRESHOLDS)
    assert_unbiased([o for o in longer if is_valid(o, LONGER)], horizon=LONGER)


@pytest.mark.parametrize("order", QUICK_ORDERS)
def test_support_none_is_unbiased(x64, order):
    assert_unbiased([o for o in options("systematic", order, SUPPORTS_WITH_NONE) if is_valid(o)])


@pytest.mark.parametrize(
    "order", [ORDERS[0], *(pytest.param(o, marks=pytest.mark.slow) for o in ORDERS[1:])], ids=str
)
def test_a_stop_rule_is_unbiased(x64, order):
    valid = [o for o in options("systematic", order, SUPPORTS[:1]) if is_valid(o, LONGER)]
    rule = StopString("ab")
    pairs = [
        (sampler, dataclasses.replace(target, stop=rule))
        for sampler, target in (declare(o, horizon=LONGER) for o in valid)
    ]
    # It also takes the place of the end tokens that "forced_eos" requires.
    pairs.append((pairs[0][0], PowerTarget(2.5, (), "forced_eos", 0, 2, 1.0, rule)))
    assert max(errors_of(pairs, LONGER)) < TOLERANCE
    assert gamma(pairs[0][1], LONGER) != gamma(dataclasses.replace(pairs[0][1], stop=None), LONGER)


def test_every_invalid_option_raises():
    invalid = [o for o in options("systematic", ORDERS[0]) if not is_valid(o)]
    assert len(invalid) == len(RAMPS) * len(SUPPORTS) * (3 + 1)
    for option in invalid:
        with pytest.raises(ValueError, match=r"eos_ids is empty|min_new_tokens equals"):
            declare(option)


def test_temperature_with_adapted_order_raises():
    for option in options("systematic", ("adapted", 0.6)):
        with pytest.raises(ValueError, match="proposal_temperature"):
            declare(option)


@pytest.mark.parametrize("order", QUICK_ORDERS)
def test_one_particle_is_unbiased(x64, order):
    assert_unbiased([o for o in options("systematic", order) if is_valid(o)], num_particles=1)


def test_two_level_draw_is_unbiased(x64, monkeypatch):
    # With blocks of one token the first level makes the whole choice.
    monkeypatch.setattr(proposal_module.power_proposal, "__defaults__", (1,))
    valid = [o for o in options("systematic", ORDERS[0]) if is_valid(o)]
    pairs = [(renamed(_OneTokenBlocks, sampler), target) for sampler, target in map(declare, valid)]
    assert max(errors_of(pairs)) < TOLERANCE


# --- Mutations: each of these known mistakes must be caught by the check above -----------------


@dataclasses.dataclass(frozen=True)
class _OneTokenBlocks(PowerSMC):
    """The production sampler under another name, so that it is compiled separately."""


def renamed(kind, sampler):
    return kind(**dataclasses.asdict(sampler))


@pytest.mark.parametrize("order", ["adapted", "published"])
@pytest.mark.parametrize("mutation", [WeightsResetToOne, NoCatchUp, FinishedNotBridged])
def test_mutations_are_caught(x64, order, mutation):
    sampler = PowerSMC(2, ess_threshold=1.0, order=order, ramp_tokens=3)
    target = PowerTarget(2.5, (1,), top_k=2, top_p=1.0)
    # Three steps, because the published order first resamples at the second one.
    (right,) = errors_of([(sampler, target)], LONGER)
    (wrong,) = errors_of([(renamed(mutation, sampler), target)], LONGER)
    assert right < TOLERANCE
    assert wrong > 1e-4
