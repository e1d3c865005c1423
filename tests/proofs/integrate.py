"""Integrates the step of the plain loop over its own randomness, exactly.

The step is piecewise constant in its uniform numbers. For a tiny model we know where every piece
can end (wherever a cumulative sum is crossed), so replacing each number by the midpoints of the
pieces, weighted by their lengths, gives expectations without noise. Too many end points cost time
and change nothing; a missing one would show as a wrong expectation.

A cell is one box of uniform numbers for one step from one state of one case (sampler, target). All
cells of all cases run through the same compiled step in batches of one size, and states that are
equal to the last bit are merged after each step.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.engine import batching, reference
from jax_power_smc.engine.reference import LoopInputs
from jax_power_smc.samplers.base import RowTargets
from jax_power_smc.samplers.proposal import power_proposal
from jax_power_smc.samplers.without_replacement import WithoutReplacement
from jax_power_smc.smc import optimal_resampling
from jax_power_smc.smc.exponent_ramp import bridge
from jax_power_smc.targets import stop_arrays
from jax_power_smc.targets.power import PowerTarget, support
from jax_power_smc.theory import exact

PROMPT = (0,)
# Cells per call; one size, so that every program is compiled once.
BATCH = 1024
# Pieces below this length are rounding.
SLIVER = 1e-15


class Case(NamedTuple):
    """What is integrated: the sampler, the target, T, and what tokens spell.

    ``pieces`` are the bytes of every token, for a target with a stop rule.
    """

    sampler: Any
    target: PowerTarget
    horizon: int
    pieces: list[bytes | None] | None = None


def expectations(model, params, cases, capacity):
    """``E[sum_i W_i 1{y_i = y}]`` for every y, one dict from token tuples per case.

    Args:
      model, params: the language model.
      cases: list of ``Case``; those of the same structure, shapes and T are integrated together.
      capacity: columns of the token buffer, at least every T; one value saves compilations.
    """
    groups = {}
    for index, case in enumerate(cases):
        stop = stop_arrays.stop_arrays(case.target.stop, case.pieces, model.vocab_size)
        target = case.target.arrays(model.vocab_size, case.horizon)
        inputs = LoopInputs(case.sampler.traced(), target, stop)
        shapes = tuple(x.shape for x in jax.tree.leaves(inputs))
        group = groups.setdefault((case.horizon, jax.tree.structure(inputs), shapes), ([], []))
        group[0].append(index)
        group[1].append(inputs)
    out = [None] * len(cases)
    for (horizon, *_), (indices, inputs) in groups.items():
        inputs = jax.tree.map(lambda *x: np.stack(x), *inputs)
        integrated = _integrate(model, params, inputs, len(indices), horizon, capacity)
        for index, expected in zip(indices, integrated, strict=True):
            out[index] = expected
    return out


def gamma(model, params, target, horizon, pieces=None):
    """The declared unnormalised target by enumeration, as a dict from token tuples."""
    listed = exact.enumerate(model, params, PROMPT, target, horizon, tokenizer=pieces)
    return dict(zip(listed.sequences, np.exp(listed.log_gamma).tolist(), strict=True))


def largest_error(expected, truth):
    """max_y |E[...] - gamma(y)| over every y in either."""
    return max(
        (abs(expected.get(y, 0.0) - truth.get(y, 0.0)) for y in expected.keys() | truth.keys()),
        default=0.0,
    )


def _integrate(model, params, inputs, count, horizon, capacity):
    """The expectations of ``count`` cases, whose inputs are stacked."""
    walk = _Walk(model, params, inputs, count, capacity)
    step_cells, final_cells = (
        (_selection_cells, _reduction_cells)
        if isinstance(walk.sampler, WithoutReplacement)
        else (_smc_cells, _one_cell)
    )
    # Of each state: its case, the state itself, and its probability.
    case, state, chance = np.arange(count), walk.begin(), np.ones(count)
    for t in range(horizon):
        source, uniforms, volume = step_cells(walk, case, state, t)
        case, state, chance = case[source], _take(state, source), chance[source] * volume
        state = walk.step(case, state, uniforms, t)
        case, state, chance = _merge(case, state, chance)
        np.testing.assert_allclose(np.bincount(case, chance, count), 1, rtol=0, atol=1e-12)

    source, uniforms, volume = final_cells(walk, case, state)
    case, state, chance = case[source], _take(state, source), chance[source] * volume
    np.testing.assert_allclose(np.bincount(case, chance, count), 1, rtol=0, atol=1e-12)
    final = walk.finish(case, state, uniforms)
    weight = np.exp(final.log_weight + final.log_evidence[:, None])
    weight = np.where(final.particle_index >= 0, weight, 0.0)
    assert np.isfinite(weight).all()

    def returned(x):
        rows = np.maximum(final.particle_index, 0).reshape(
            *final.particle_index.shape, *(1,) * (x.ndim - 2)
        )
        return np.take_along_axis(x, rows, axis=1)

    # A sequence as a number in base V+1; the digit 0 is "no token".
    vocab = model.vocab_size
    inside = np.arange(capacity) < returned(state.particles.length)[:, :, None]
    digits = np.where(inside, returned(state.tokens) + 1, 0)
    code = digits @ (vocab + 1) ** np.arange(capacity)
    codes, code = np.unique(code, return_inverse=True)
    table = np.zeros((count, len(codes)))
    np.add.at(table, (case[:, None], code.reshape(weight.shape)), chance[:, None] * weight)
    sequences = []
    for number in codes.tolist():
        sequence = []
        while number:
            number, digit = divmod(number, vocab + 1)
            sequence.append(digit - 1)
        sequences.append(tuple(sequence))
    return [{y: e for y, e in zip(sequences, row.tolist(), strict=True) if e != 0} for row in table]


class _Walk:
    """The plain loop's functions on many states at once."""

    def __init__(self, model, params, inputs, count, capacity):
        self.model, self.params, self.inputs, self.count = model, params, inputs, count
        self.sampler = inputs.sampler  # the samplers of all cases, stacked
        self._begin, self._step, self._finish = _loop(model, capacity)

    def begin(self):
        """The first state of every case."""
        return _in_batches(functools.partial(self._begin, self.params), self.inputs)

    def step(self, case, state, uniforms, t, *, resampling=True):
        """Step t of every cell; without resampling, to see the weights it would act on."""
        inputs = _take(self.inputs, case)
        if not resampling:
            off = np.zeros_like(inputs.sampler.ess_threshold)
            object.__setattr__(inputs.sampler, "ess_threshold", off)
        return self._at(self._step, t, inputs, state, uniforms)

    def finish(self, case, state, uniforms):
        """The final weights of every cell."""
        return _in_batches(self._finish, _take(self.inputs, case), state.particles, uniforms)

    def ask(self, function, case, state, t):
        """``function(params, t, inputs, state)`` on every state."""
        return self._at(function, t, _take(self.inputs, case), state)

    def _at(self, function, t, *trees):
        return _in_batches(functools.partial(function, self.params, jnp.int32(t)), *trees)


# --- Compiled programs, vmapped over cells ----------------------------------------------------


@functools.cache
def _loop(model, capacity):
    """``reference.begin``, ``reference.decode_step`` and ``reference.finish``."""

    def begin(params, inputs):
        prompt = jnp.asarray(PROMPT, jnp.int32)
        return reference.begin(model, params, inputs, prompt, jnp.int32(len(PROMPT)), capacity)

    def step(params, t, inputs, state, uniforms):
        return reference.decode_step(
            model, params, inputs, state, uniforms, t, batching.any_in_batch
        )[0]

    return (
        _over_cells(begin, (None, 0)),
        _over_cells(step, (None, None, 0, 0, 0)),
        _over_cells(reference.finish, (0, 0, 0)),
    )


@functools.cache
def _proposals(model, num):
    """Mass [kinds, N, V] of each particle's proposal at the next step, the tempered one last."""

    def proposals(params, t, inputs, state):
        logits, sampler = _next_log_p(model, params, state), inputs.sampler
        rows = _row_targets(inputs, state, logits, t)
        exponents = [rows.exponent]
        if sampler.proposal_temperature is not None:
            exponents.append(1 / sampler.proposal_temperature)
        masses = [power_proposal(logits, rows.allowed, exponent).mass for exponent in exponents]
        return jnp.stack([m.reshape(num, -1)[:, : model.vocab_size] for m in masses])

    return _over_cells(proposals, (None, None, 0, 0))


@functools.cache
def _selections(model):
    """What the next step selects by: the CDF of each systematic pass, the mass of the tails."""

    def selections(params, t, inputs, state):
        logits, sampler, particles = (
            _next_log_p(model, params, state),
            inputs.sampler,
            state.particles,
        )
        n = sampler.num_particles
        exponent = sampler.exponent(inputs.target, t)
        log_weight = bridge(particles.log_weight, particles.log_prob, particles.exponent, exponent)
        tables = sampler.tables(logits, _row_targets(inputs, state, logits, t))
        candidates = sampler.candidates(log_weight, tables.live, tables.ending)
        floor = sampler.log_floor(candidates, exponent >= inputs.target.alpha)
        tails = (tables.live_tail.mass, tables.ending_tail.mass)
        return (
            _pass_cdf(candidates.live, n, floor),
            _pass_cdf(candidates.pool, n),
            jnp.stack([m.reshape(len(m), -1)[:, : model.vocab_size] for m in tails]),
        )

    return _over_cells(selections, (None, None, 0, 0))


@functools.cache
def _reductions():
    """The CDF of the pass that reduces the population to N at the end."""

    def reduction(inputs, particles):
        log_weight = bridge(
            particles.log_weight, particles.log_prob, particles.exponent, inputs.target.alpha
        )
        return _pass_cdf(log_weight, inputs.sampler.num_particles)

    return _over_cells(reduction, (0, 0))


def _pass_cdf(log_mass, num_keep, log_floor=-jnp.inf):
    log_c = optimal_resampling.log_threshold(log_mass, num_keep)
    by_floor = log_floor > log_c
    return optimal_resampling.systematic_cdf(
        log_mass, jnp.maximum(log_c, log_floor), num_keep, by_floor
    )


def _next_log_p(model, params, state):
    """Log p [N, V] of the next token."""
    num = state.last.shape[0]
    position, one = jnp.broadcast_to(state.position, (num,)), jnp.ones((num,), jnp.int32)
    logits, _ = model.extend(params, state.cache, state.last[:, None], position, one)
    return Logits(jax.nn.log_softmax(logits[:, 0], axis=-1))


def _row_targets(inputs, state, logits, t):
    """What the target asks of the next token of every particle."""
    num = len(logits.values)
    ends = stop_arrays.ending_tokens(inputs.target, inputs.stop, state.stop_state[:num])
    exponent = jnp.broadcast_to(inputs.sampler.exponent(inputs.target, t), (num,))
    return RowTargets(exponent, ends, support(logits, inputs.target, ends, t))


def _over_cells(function, in_axes):
    # These programs run for milliseconds, so what matters is their compile time.
    return jax.jit(
        jax.vmap(function, in_axes=in_axes, axis_name="prompts"),
        compiler_options={"xla_backend_optimization_level": 0},
    )


def _in_batches(function, *trees):
    """Applies a vmapped function to cells, ``BATCH`` at a time; the last batch is padded."""
    size = len(jax.tree.leaves(trees)[0])

    def part(x, first):
        x = x[first : first + BATCH]
        return np.concatenate([x, np.repeat(x[:1], BATCH - len(x), axis=0)])

    outs = [
        function(*jax.tree.map(functools.partial(part, first=first), trees))
        for first in range(0, size, BATCH)
    ]
    return jax.tree.map(lambda *x: np.concatenate(jax.device_get(x))[:size], *outs)


# --- States and cells -------------------------------------------------------------------------


def _take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def _merge(case, state, chance):
    """Merges states that agree in every bit, adding their probabilities."""
    leaves = [case, *jax.tree.leaves(state)]
    rows = [np.ascontiguousarray(x).reshape(len(case), -1).view(np.uint8) for x in leaves]
    rows = np.ascontiguousarray(np.concatenate(rows, axis=1))
    rows = rows.view(np.dtype((np.void, rows.shape[1]))).reshape(-1)
    _, kept, group = np.unique(rows, return_index=True, return_inverse=True)
    return case[kept], _take(state, kept), np.bincount(group.reshape(-1), chance)


def _smc_cells(walk, case, state, t):
    """Cells of one step of Power-SMC: its token draws, and the resampling of their results."""
    num = walk.sampler.num_particles
    mass = walk.ask(_proposals(walk.model, num), case, state, t)
    first, token, length = _token_cells(mass, num)
    middle = StepUniforms(np.full((len(first), num), 0.5), token)
    before = walk.step(case[first], _take(state, first), middle, t, resampling=False)
    weights = np.exp(before.particles.log_weight)
    second, resample, volume = _resample_cells(weights, num, walk.sampler.resampling)
    return first[second], StepUniforms(resample, token[second]), length[second] * volume


def _one_cell(walk, case, state):
    """At the end only the choice is random, which does not matter here."""
    return np.arange(len(case)), np.full((len(case), 2), 0.5), np.ones(len(case))


def _selection_cells(walk, case, state, t):
    """Cells of one step of without-replacement SMC: its two passes and the tails' tokens."""
    num, size = walk.sampler.num_particles, walk.sampler.population_size
    running, pool, tails = walk.ask(_selections(walk.model), case, state, t)
    first, one, volume = _boxes(*_pieces(running - np.floor(running)), 1)
    second, two, more = _boxes(*_pieces((pool - np.floor(pool))[first]), 1)
    source, volume = first[second], volume[second] * more
    resample = np.full((len(source), size), 0.5)
    resample[:, 0], resample[:, 1] = one[second, 0], two[:, 0]
    kinds = []
    for kind in range(2):
        mass = tails[source][:, kind : kind + 1]
        third, token, more = _token_cells(mass, num)
        source, volume, resample = source[third], volume[third] * more, resample[third]
        kinds = [x[third] for x in kinds] + [token]
    return source, StepUniforms(resample, np.concatenate(kinds, axis=1)), volume


def _reduction_cells(walk, case, state):
    """Cells of the final reduction to N; the uniform number of the choice does not matter."""
    cdf = _in_batches(_reductions(), _take(walk.inputs, case), state.particles)
    source, numbers, volume = _boxes(*_pieces(cdf - np.floor(cdf)), 1)
    return source, np.concatenate([np.full_like(numbers, 0.5), numbers], axis=1), volume


def _token_cells(mass, num):
    """Cells of the token uniforms: mass [C, kinds, N, V]; any particle may draw from any proposal.

    Returns:
      The state of each cell, its numbers [., N, 2], and its volume.
    """
    mass = mass.reshape(len(mass), -1, mass.shape[-1])
    source, numbers, volume = _boxes(*_pieces(_cumulative(mass).reshape(len(mass), -1)), num)
    # Only one level matters (a single block, or blocks of one token); both get the same number.
    return source, np.repeat(numbers[:, :, None], 2, axis=2), volume


def _resample_cells(weights, num, scheme):
    """Cells of the resampling uniforms for normalised weights [C, N]; see ``_token_cells``."""
    cdf = np.cumsum(weights, axis=1)
    scaled, expected = num * cdf, num * weights
    rest = _cumulative(expected - np.floor(expected))
    points = np.concatenate([cdf, scaled - np.floor(scaled), rest], axis=1)
    free = 1 if scheme == "systematic" else num
    source, numbers, volume = _boxes(*_pieces(points), free)
    unused = np.full((len(numbers), num - free), 0.5)
    return source, np.concatenate([numbers, unused], axis=1), volume


def _cumulative(mass):
    """Normalised running sums over the last axis; 0 where nothing has mass."""
    total = mass.sum(axis=-1, keepdims=True)
    return np.cumsum(mass, axis=-1) / np.where(total > 0, total, 1)


def _pieces(points):
    """Midpoints and lengths of the intervals that points [C, K] cut [0, 1) into."""
    edge = np.zeros((len(points), 1))
    ends = np.sort(np.concatenate([edge, np.clip(points, 0, 1), edge + 1], axis=1), axis=1)
    length = np.diff(ends, axis=1)
    return (ends[:, 1:] + ends[:, :-1]) / 2, np.where(length > SLIVER, length, 0)


def _boxes(middle, length, free):
    """All boxes of ``free`` numbers with positive volume, from pieces [C, K]."""
    picks = np.indices((middle.shape[1],) * free).reshape(free, -1)
    volume = np.prod(length[:, picks], axis=1)
    source, box = np.nonzero(volume)
    return source, middle[source[:, None], picks[:, box].T], volume[source, box]
