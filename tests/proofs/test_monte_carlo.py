"""Proof 3 of docs/math.md: eq. 27 on models too large to integrate, by Monte Carlo.

Many independent runs of the plain loop estimate ``E[sum_i W_i 1{y_i = y}]``, E[Z_hat] and a
few sums, each compared with enumeration. Seeds are fixed. Estimates of rare terminal sequences are
heavy-tailed (their few hits have very different weights), which makes a z-score meaningless; so
terminals are pooled, by their enumerated mass, until each group has its share.
"""

import collections
import dataclasses
import functools
import itertools
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import PowerSMC, PowerTarget, TableLM, WithoutReplacement
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.engine import batching, reference
from jax_power_smc.engine.reference import LoopInputs
from jax_power_smc.samplers import without_replacement
from jax_power_smc.targets.power import TargetArrays
from jax_power_smc.theory import exact
from tests.proofs.mutations import NoCatchUp, WeightsResetToOne, keep_own_weight

PROMPT = (1,)
LEVEL = 1e-4  # of the Holm test over all statistics of one setting
SMALLEST_SHARE = 0.005  # of the target's mass, for each group of terminals
FEWEST_HITS = 50  # of each group
CHUNK = 10_000  # runs per call
ROUNDING = 3e-6  # relative, of float32: all the error of what is kept for certain


class Statistics(NamedTuple):
    """Means over runs with their standard errors, and the true values.

    ``resampled`` is the share of steps that resampled or had to leave candidates out.
    """

    names: list[str]
    mean: np.ndarray
    error: np.ndarray
    truth: np.ndarray
    resampled: float

    def z(self):
        return (self.mean - self.truth) / self.error

    def rejected(self):
        """Name and z of what Holm's step-down procedure rejects at ``LEVEL``, two-sided."""
        z = self.z()
        normal = NormalDist()
        out = []
        for rank, index in enumerate(np.argsort(-np.abs(z))):
            p_value = 2 * normal.cdf(-abs(z[index]))
            if p_value > LEVEL / (len(z) - rank):
                break
            out.append((self.names[index], float(z[index])))
        return out


@functools.partial(jax.jit, static_argnames=("model", "horizon"))
def simulate(params, target, sampler, keys, *, model, horizon):
    """Runs, one per key: tokens [R, N, T], lengths [R, N], weights [R, N], resampled [R, T]."""

    def one(key):
        state, infos, final = reference.run(
            batching.any_in_batch,
            params,
            LoopInputs(sampler, target),
            jnp.asarray(PROMPT, jnp.int32),
            jnp.int32(len(PROMPT)),
            key,
            model=model,
            capacity=horizon,
        )
        weight = jnp.exp(final.log_weight + final.log_evidence)
        index = jnp.maximum(final.particle_index, 0)  # an unused one has weight zero
        return state.tokens[index], state.particles.length[index], weight, infos.resampled

    return jax.vmap(one, axis_name="prompts")(keys)


def table(model, horizon):
    return model.init(jax.random.key(17), steps=horizon, scale=1.0)


@functools.cache
def enumeration(model, target, horizon):
    return exact.enumerate(model, table(model, horizon), PROMPT, target, horizon)


def run(model, sampler, target, horizon, runs, seed):
    """Estimates against enumeration."""
    arrays: TargetArrays = target.arrays(model.vocab_size, horizon)
    keys = jax.random.split(jax.random.key(seed), runs)
    parts = [
        jax.device_get(
            simulate(
                table(model, horizon),
                arrays,
                sampler.traced(),
                keys[first : first + CHUNK],
                model=model,
                horizon=horizon,
            )
        )
        for first in range(0, runs, CHUNK)
    ]
    tokens, length, weight, resampled = (np.concatenate(x) for x in zip(*parts, strict=True))
    listed = enumeration(model, target, horizon)

    # Every particle as the index of its terminal in the list.
    known = _codes(*_padded(listed.sequences, horizon), model.vocab_size)
    code = _codes(tokens, length, model.vocab_size)
    order = np.argsort(known)
    at = order[np.minimum(np.searchsorted(known[order], code), len(known) - 1)]
    # A particle of positive weight must be a sequence of the target.
    assert (known[at] == code)[weight > 0].all()
    return statistics(at, weight.astype(np.float64), listed, float(resampled.mean()))


def statistics(at, weight, listed, resampled):
    """Z_hat, mean length, masses of groups of first tokens and of terminals.

    Args:
      at: [R, N], the index of each particle's terminal.
      weight: [R, N], W.
      listed: the enumeration.
      resampled: passed on.
    """
    count = len(listed.sequences)
    gamma = np.exp(listed.log_gamma.astype(np.float64))
    names, functions = ["Z"], [np.ones(count)]
    names.append("length")
    functions.append(np.array([len(y) for y in listed.sequences], float))
    for depth in (1, None):
        prefixes = [y[:depth] for y in listed.sequences]
        for group in _groups(prefixes, gamma):
            inside = np.array([prefix in group for prefix in prefixes])
            assert np.sum(inside[at] & (weight > 0)) >= FEWEST_HITS
            kind = "terminal" if depth is None else "first token"
            names.append(f"{kind} {group[0]}" + (f" and {len(group) - 1} more" * (len(group) > 1)))
            functions.append(inside.astype(float))

    values = np.stack([(weight * function[at]).sum(axis=1) for function in functions])
    truth = np.array(functions) @ gamma
    error = np.hypot(values.std(axis=1, ddof=1) / np.sqrt(len(at)), ROUNDING * truth)
    return Statistics(names, values.mean(axis=1), error, truth, resampled)


def _groups(prefixes, gamma):
    """Distinct prefixes in descending order of mass, pooled to groups of ``SMALLEST_SHARE``."""
    mass = collections.defaultdict(float)
    for prefix, value in zip(prefixes, gamma.tolist(), strict=True):
        mass[prefix] += value
    groups, current, total = [], [], 0.0
    for prefix in sorted(mass, key=lambda x: -mass[x]):
        current.append(prefix)
        total += mass[prefix]
        if total >= SMALLEST_SHARE * gamma.sum():
            groups.append(current)
            current, total = [], 0.0
    groups[-1] += current
    return groups


def _codes(tokens, length, vocab):
    """[..., T], [...] -> [...]: a sequence as a number in base V+1, 0 for nothing."""
    columns = np.arange(tokens.shape[-1])
    digits = np.where(columns < length[..., None], tokens + 1, 0)
    return digits.astype(np.int64) @ (vocab + 1) ** columns


def _padded(sequences, horizon):
    tokens = np.array([[*y, *[0] * (horizon - len(y))] for y in sequences])
    return tokens, np.array([len(y) for y in sequences])


@dataclasses.dataclass(frozen=True)
class LeastProbable(WithoutReplacement):
    """Not a mistake: any explicit children will do, even the worst."""

    def explicit(self, logits, allowed):
        return super().explicit(Logits(-logits.values), allowed)


@dataclasses.dataclass(frozen=True)
class Renamed(WithoutReplacement):
    """The sampler under another name, so that it is compiled separately."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One model, target and setting of Power-SMC."""

    vocab_size: int
    horizon: int
    num_particles: int
    order: str
    ramp: int
    resampling: str = "systematic"
    temperature: float | None = None
    ess_threshold: float = 0.5
    alpha: float = 2.0

    def run(self, runs, seed, kind=PowerSMC):
        model = TableLM(self.vocab_size, order=2)
        sampler = kind(
            self.num_particles,
            ess_threshold=self.ess_threshold,
            resampling=self.resampling,
            order=self.order,
            ramp_tokens=self.ramp,
            proposal_temperature=self.temperature,
        )
        target = PowerTarget(self.alpha, (0, self.vocab_size - 1), min_new_tokens=1)
        return run(model, sampler, target, self.horizon, runs, seed)


@dataclasses.dataclass(frozen=True)
class WithoutReplacementSetting:
    """One model, target and setting of without-replacement SMC."""

    vocab_size: int
    horizon: int
    num_particles: int
    explicit_children: int | None
    ramp: int
    alpha: float = 2.0

    def run(self, runs, seed, kind=WithoutReplacement):
        model = TableLM(self.vocab_size, order=2)
        sampler = kind(self.num_particles, self.explicit_children, self.ramp, early_stop=0.0)
        target = PowerTarget(self.alpha, (0, self.vocab_size - 1), min_new_tokens=1)
        return run(model, sampler, target, self.horizon, runs, seed)


@pytest.mark.parametrize("order", ["adapted", "published"])
@pytest.mark.parametrize("ramp", [0, 3])
def test_quick(order, ramp):
    setting = Setting(5, 5, 4, order, ramp)
    found = setting.run(40_000, seed=1)
    assert found.resampled > 0.01
    assert len(found.names) > 10
    assert found.rejected() == []


@pytest.mark.parametrize("order", ["adapted", "published"])
@pytest.mark.parametrize("mutation", [WeightsResetToOne, NoCatchUp])
def test_mutations_are_rejected(order, mutation):
    wrong = Setting(5, 5, 4, order, ramp=3).run(40_000, seed=1, kind=mutation)
    assert "Z" in dict(wrong.rejected())


@pytest.mark.parametrize(
    ("num_particles", "explicit_children", "ramp"),
    [
        (2, 1, 3),
        pytest.param(4, None, 0, marks=pytest.mark.slow),
        pytest.param(4, None, 3, marks=pytest.mark.slow),
    ],
)
def test_quick_without_replacement(num_particles, explicit_children, ramp):
    setting = WithoutReplacementSetting(5, 5, num_particles, explicit_children, ramp)
    found = setting.run(40_000, seed=1)
    assert found.resampled > 0.5
    assert len(found.names) > 10
    assert found.rejected() == []


@pytest.mark.slow
def test_the_least_probable_tokens_as_explicit_children():
    found = WithoutReplacementSetting(5, 5, 2, 1, ramp=0).run(40_000, seed=1, kind=LeastProbable)
    assert found.resampled > 0.5
    assert found.rejected() == []


def test_survivors_that_keep_their_weight_are_rejected(monkeypatch):
    monkeypatch.setattr(without_replacement, "select", keep_own_weight)
    wrong = WithoutReplacementSetting(5, 5, 2, 1, ramp=3).run(40_000, seed=1, kind=Renamed)
    assert "Z" in dict(wrong.rejected())


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", [2, 4])
@pytest.mark.parametrize("explicit_children", [1, 2, None])
def test_long_without_replacement(num_particles, explicit_children):
    for ramp, (vocab, alpha) in itertools.product([0, 3, 7], [(4, 3.0), (5, 2.0)]):
        setting = WithoutReplacementSetting(vocab, 5, num_particles, explicit_children, ramp, alpha)
        found = setting.run(100_000, seed=2)
        assert found.resampled > 0.3, setting
        assert found.rejected() == [], setting


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", [2, 4])
@pytest.mark.parametrize("resampling", ["systematic", "stratified", "residual", "multinomial"])
@pytest.mark.parametrize(
    ("order", "temperature"), [("adapted", None), ("published", None), ("published", 0.6)]
)
def test_long(num_particles, resampling, order, temperature):
    # The ESS of two particles never falls below 1/2 of them.
    thresholds = [0.9] if num_particles == 2 else [0.5, 0.9]
    for ramp, ess_threshold, (vocab, alpha) in itertools.product(
        [0, 3, 7], thresholds, [(4, 3.0), (5, 2.0)]
    ):
        setting = Setting(
            vocab, 5, num_particles, order, ramp, resampling, temperature, ess_threshold, alpha
        )
        found = setting.run(100_000, seed=2)
        assert found.resampled > 0 or (ramp == 7 and ess_threshold == 0.5), setting
        assert found.rejected() == [], setting
