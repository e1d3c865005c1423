"""Integrates the production step over its own randomness, exactly.

The step is piecewise constant in its uniform numbers. For a tiny model we know where every piece
can end (wherever a cumulative sum is crossed), so replacing each number by the midpoints of the
pieces, weighted by their lengths, gives expectations without any noise. Listing too many end
points costs time and changes nothing; missing one would show as a wrong expectation.
"""

import functools
import itertools
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc import decode, exact
from jax_power_smc.decode import Request
from jax_power_smc.proposal import power_proposal
from jax_power_smc.randomness import StepUniforms
from jax_power_smc.schedule import exponent_at
from jax_power_smc.target import support

PROMPT = (0,)


@functools.lru_cache(maxsize=None)
def _functions(model, rule, horizon):
    """The production step, vmapped over cells of (carry, uniforms)."""

    def begin(params, request, uniforms):
        logits, context = model.prefill(params, jnp.asarray(PROMPT, jnp.int32), jnp.int32(1))
        request = request._replace(context=context)
        return decode.begin(
            model, rule, horizon, params, request, logits, uniforms, decode.any_in_batch
        )[0]

    def step(params, request, carry, uniforms):
        _, context = model.prefill(params, jnp.asarray(PROMPT, jnp.int32), jnp.int32(1))
        request = request._replace(context=context)
        clock = jax.lax.pmax(carry.step - 1, "prompts")
        return decode.decode_step(
            model, rule, params, request, carry, uniforms, clock, decode.any_in_batch
        )[0]

    def finish(request, carry):
        return decode.finish(rule, request, carry, jnp.full((), 0.5, jnp.float64))

    def proposals(params, request, carry, first):
        """Mass [N, V] of each row's proposal at the step to come, without and with temperature."""
        prompt_logits, context = model.prefill(
            params, jnp.asarray(PROMPT, jnp.int32), jnp.int32(1)
        )
        num = carry.token.shape[0]
        clock = jax.lax.pmax(carry.step - 1, "prompts")
        logits, _ = model.decode(params, context, carry.cache, carry.token, carry.step - 1, clock)
        logits = jnp.where(first, jnp.broadcast_to(prompt_logits[None], (num, len(prompt_logits))), logits)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        allowed = support(log_p, request.target, carry.step)
        exponent = exponent_at(carry.step, request.target.alpha, request.numbers.ramp_tokens)
        masses = [power_proposal(log_p, allowed, exponent)]
        if request.numbers.proposal_temperature is not None:
            masses.append(power_proposal(log_p, allowed, 1 / request.numbers.proposal_temperature))
        return jnp.stack([m.mass.reshape(num, -1)[:, : model.vocab_size] for m in masses])

    batch = functools.partial(jax.vmap, axis_name="prompts")
    return (
        jax.jit(batch(begin, in_axes=(None, None, 0))),
        jax.jit(batch(step, in_axes=(None, None, 0, 0))),
        jax.jit(batch(finish, in_axes=(None, 0))),
        jax.jit(batch(proposals, in_axes=(None, None, 0, None))),
    )


def expectation(model, params, rule, numbers, target, horizon):
    """``E[sum_i W_i 1{y_i = y}]`` for every y, as a dict from token tuples.

    Returns:
      The expectations, and E[Z_hat].
    """
    num = rule.num_particles
    request = Request(
        context=None,
        target=target.arrays(model.vocab_size, horizon),
        numbers=numbers,
        key=jax.random.key(0),
    )
    begin, step, finish, proposals = _functions(model, rule, horizon)

    def run(carries, uniforms, request=request):
        """Applies the step to cells; sizes are padded to powers of two to spare compilations."""
        size = len(uniforms[0])
        padded = 1 << (size - 1).bit_length()
        uniforms = StepUniforms(*(_pad(np.asarray(u), padded) for u in uniforms))
        if carries is None:
            out = begin(params, request, uniforms)
        else:
            out = step(params, request, jax.tree.map(lambda x: _pad(x, padded), carries), uniforms)
        return jax.tree.map(lambda x: np.asarray(x)[:size], out)

    carries, chance = None, np.ones(1)
    for t in range(horizon):
        template = carries
        if carries is None:
            middle = StepUniforms(np.full((1, num), 0.5), np.full((1, num, 2), 0.5))
            template = jax.tree.map(np.array, run(None, middle))
            template = template._replace(
                particles=jax.tree.map(
                    lambda x: np.asarray(x)[None],
                    decode.start(num, jnp.float64),
                ),
                step=np.zeros(1, np.int32),
            )
        size = len(chance)
        padded = 1 << (size - 1).bit_length()
        masses = np.asarray(
            proposals(params, request, jax.tree.map(lambda x: _pad(x, padded), template), t == 0)
        )[:size]
        source, resample, token, length = [], [], [], []
        for c in range(size):
            for cell, volume in _token_cells(masses[c], num):
                source.append(c)
                token.append(cell)
                length.append(volume)
        # The weights on which resampling acts: those of the same step when it never resamples.
        idle = request._replace(
            numbers=numbers._replace(ess_threshold=jnp.zeros((), jnp.float64))
        )
        picked = None if carries is None else jax.tree.map(lambda x: x[np.array(source)], carries)
        half = np.full((len(source), num), 0.5)
        before = run(picked, StepUniforms(half, np.array(token)), idle)
        weights = np.exp(before.particles.log_weight - _logsumexp(before.particles.log_weight))
        cells_source, cells_token, cells_chance = [], [], []
        for i, c in enumerate(source):
            for cell, volume in _resample_cells(weights[i], num, rule.scheme):
                cells_source.append(c)
                cells_token.append(token[i])
                resample.append(cell)
                cells_chance.append(chance[c] * length[i] * volume)
        picked = (
            None
            if carries is None
            else jax.tree.map(lambda x: x[np.array(cells_source)], carries)
        )
        carries = run(picked, StepUniforms(np.array(resample), np.array(cells_token)))
        chance = np.array(cells_chance)
        assert abs(chance.sum() - 1) < 1e-12
    padded = 1 << (len(chance) - 1).bit_length()
    outcome = finish(request, jax.tree.map(lambda x: _pad(x, padded), carries))
    weight = np.exp(
        np.asarray(outcome.log_weight) + np.asarray(outcome.log_evidence)[:, None]
    )[: len(chance)]
    weight = np.where(np.isfinite(weight), weight, 0.0)
    expected = defaultdict(float)
    particles = carries.particles
    for c in range(len(chance)):
        for i in range(num):
            if weight[c, i] > 0:
                sequence = tuple(carries.tokens[c, i, : particles.length[c, i]].tolist())
                expected[sequence] += chance[c] * weight[c, i]
    return dict(expected)


def gamma(model, params, target, horizon):
    """The declared unnormalised target by enumeration, as a dict from token tuples."""
    listed = exact.enumerate(model, params, PROMPT, target, horizon)
    return dict(zip(listed.sequences, np.exp(listed.log_gamma).tolist(), strict=True))


def largest_error(expected, truth):
    """max_y |E[...] - gamma(y)| over every y in either."""
    return max(
        (abs(expected.get(y, 0.0) - truth.get(y, 0.0)) for y in expected.keys() | truth.keys()),
        default=0.0,
    )


def _pad(x, size):
    x = np.asarray(x)
    return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])


def _logsumexp(x):
    top = np.max(x, axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total = top + np.log(np.sum(np.exp(x - top), axis=1, keepdims=True))
    return np.where(np.isfinite(total), total, 0.0)


def _pieces(points):
    """Midpoints and lengths of the intervals that ``points`` cut [0, 1) into."""
    inner = sorted({float(p) for p in points if 1e-15 < p < 1 - 1e-15})
    ends = [0.0, *inner, 1.0]
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(ends)]


def _token_cells(masses, num):
    """Cells of the token uniforms: masses [kinds, N, V], any slot may draw from any row."""
    points = set()
    for row in masses.reshape(-1, masses.shape[-1]):
        if row.sum() > 0:
            points |= set((np.cumsum(row) / row.sum()).tolist())
    for combination in itertools.product(_pieces(points), repeat=num):
        # One level matters (a single block, or blocks of one token); both get the same number.
        numbers = [[middle, middle] for middle, _ in combination]
        yield numbers, float(np.prod([length for _, length in combination]))


def _resample_cells(weights, num, scheme):
    """Cells of the resampling uniforms for normalised weights [N]."""
    cdf = np.cumsum(weights)
    scaled = num * cdf
    points = set(cdf.tolist()) | set((scaled - np.floor(scaled)).tolist())
    rest = num * weights - np.floor(num * weights)
    if rest.sum() > 0:
        points |= set((np.cumsum(rest) / rest.sum()).tolist())
    pieces = _pieces(points)
    free = 1 if scheme == "systematic" else num
    for combination in itertools.product(pieces, repeat=free):
        numbers = [middle for middle, _ in combination] + [0.5] * (num - free)
        yield numbers, float(np.prod([length for _, length in combination]))
