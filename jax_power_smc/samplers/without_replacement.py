"""Without-replacement SMC: N particles chosen among all N V children, no two of them equal.

One step, starting from a single root of weight 1 (MATH: swor):

1. bridge, if there is a ramp: every sequence is re-weighted from exponent a_{t-1} to a_t;
2. children: child (i, v) of particle i weighs ``W_i p(v | y_i)^{a_t}``;
3. select: at most N unfinished children stay live (``selection``), and at most F = N finished
   sequences are kept in a pool, old and new ones together, by the same rule;
4. move: a surviving parent keeps its place for its first child; its further children take the
   places of particles that have none.

Every selection satisfies ``E[W'_m] = w_m``, so everything estimated is unbiased at every N; the
total mass is conserved; and a tree with at most N leaves is enumerated exactly.

The N V children are reduced to a few without changing any expectation: K explicit children per
particle (the most probable; any K would do), and the rest of the vocabulary as one *tail* child
that does not end the sequence and one that does. If a tail child is selected, its token is drawn
from p^a on that rest. Tail masses are sums over the rest, never differences: at V = 152k and
alpha = 4 a float32 difference gives 0 where the truth is 1e-16.

The population, M = N + F:

    0 .. N-1      running particles
    N .. N+F-1    the pool of finished sequences

Letters: N particles, F = N pool entries, K explicit children, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core import checks
from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits, block_of
from jax_power_smc.samplers.base import FinalWeights, Kernel, Particles, StepResult, start
from jax_power_smc.samplers.proposal import (
    Normaliser,
    PowerProposal,
    bound,
    draw,
    log_prob,
    normalise,
    power_proposal,
    share_support,
)
from jax_power_smc.smc import inverse_cdf, weights
from jax_power_smc.smc.exponent_ramp import bridge, exponent_at
from jax_power_smc.smc.optimal_resampling import place, select
from jax_power_smc.targets.power import TargetArrays, support


class Children(NamedTuple):
    """The children of N particles: K explicit ones, then the tail, C = K + 1 in all.

    Attributes:
      token: [N, K] int32, tokens of the explicit children.
      log_p: [N, K], their log p at temperature 1; read where their mass is positive.
      live: [N, C] log mass ``log p(v)^a`` of those that do not end the sequence, else -inf.
      ending: [N, C] the same of those that end it.
      live_tail, ending_tail: what the token of a selected tail child is drawn from.
      rest: [N, V], the logits without those of the explicit children.
    """

    token: jax.Array
    log_p: jax.Array
    live: jax.Array
    ending: jax.Array
    live_tail: PowerProposal
    ending_tail: PowerProposal
    rest: Logits


class Candidates(NamedTuple):
    """Log weights of what the two selections choose from.

    Attributes:
      live: [N C], children that do not end, parent by parent.
      pool: [F + N C], the pool's entries, then the children that end.
    """

    live: jax.Array
    pool: jax.Array


@dataclasses.dataclass(frozen=True)
class WithoutReplacement(Kernel):
    """Without-replacement SMC.

    Attributes:
      num_particles: N.
      explicit_children: K, children per particle that are candidates of their own; None for
        min(V, N). It changes cost and variance, never an expectation.
      ramp_tokens: R, steps over which the exponent rises from 1 to alpha; 0 for no ramp.
      early_stop: stop when the running sequences hold less than this share of the mass; 0 never
        stops early. What is left out is reported as ``info.dropped_mass``.

    Raises:
      ValueError: for a value outside its range.
    """

    STATIC = ("num_particles", "explicit_children")

    num_particles: int
    explicit_children: int | None = None
    ramp_tokens: int = 0
    early_stop: float = 1e-4

    def __post_init__(self) -> None:
        children = self.explicit_children
        if children is not None:
            children = checks.integer("explicit_children", children, at_least=1)
        checks.settle(
            self,
            num_particles=checks.integer("num_particles", self.num_particles, at_least=1),
            explicit_children=children,
            ramp_tokens=checks.integer("ramp_tokens", self.ramp_tokens, at_least=0),
            early_stop=checks.number("early_stop", self.early_stop, at_least=0, at_most=1),
        )

    @property
    def population_size(self) -> int:
        """N running particles and as many entries of the finished pool."""
        return 2 * self.num_particles

    def start(self, dtype: jnp.dtype) -> Particles:
        """One root of weight 1; all other entries are unused."""
        entry = jnp.arange(self.population_size, dtype=jnp.int32)
        particles = start(self.population_size, dtype)
        weight = jnp.where(entry == 0, jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype))
        in_pool = entry >= self.num_particles
        return particles._replace(log_weight=weight, ended=in_pool, finished=in_pool)

    def step(
        self,
        target: TargetArrays,
        particles: Particles,
        logits: Logits,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """One step; see ``Kernel.step``."""
        n = self.num_particles
        exponent = exponent_at(step, target.alpha, self.ramp_tokens)
        log_weight = bridge(particles.log_weight, particles.log_prob, particles.exponent, exponent)
        normaliser = normalise(logits)
        children = self.children(logits, normaliser, target, ends, exponent, step)
        candidates = self.candidates(log_weight, children)
        # Each systematic pass has a uniform number of its own.
        live = select(candidates.live, n, uniforms.resample[0])
        pool = select(candidates.pool, n, uniforms.resample[1])

        # Which candidate goes where, by its index; -1 is an unused place. A surviving parent keeps
        # its place for its first child, an entry of the pool keeps its own.
        width = children.live.shape[1]
        selected = (live > -jnp.inf).reshape(n, width)
        first = jnp.argmax(selected, axis=1).astype(jnp.int32)
        place_of = jnp.arange(n, dtype=jnp.int32)
        in_place = jnp.where(jnp.any(selected, axis=1), place_of * width + first, jnp.int32(-1))
        extra = selected & (jnp.arange(width, dtype=jnp.int32)[None, :] != first[:, None])
        live_child = place(in_place, extra.reshape(-1))
        selected = pool > -jnp.inf
        in_place = jnp.where(selected[:n], place_of, jnp.int32(-1))
        pool_entry = place(in_place, selected.at[:n].set(False))
        newly_finished = pool_entry >= n

        live_parent, live_token, live_log_p = self._look_up(
            live_child, children, children.live_tail, normaliser, uniforms.token[:n]
        )
        end_parent, end_token, end_log_p = self._look_up(
            jnp.where(newly_finished, pool_entry - n, jnp.int32(-1)),
            children,
            children.ending_tail,
            normaliser,
            uniforms.token[n:],
        )
        parent = jnp.concatenate(
            [
                jnp.where(live_child >= 0, live_parent, place_of),
                jnp.where(newly_finished, end_parent, place_of + n),
            ]
        )
        token = jnp.concatenate([live_token, end_token])
        active = jnp.concatenate([live_child >= 0, newly_finished])
        new_weight = jnp.concatenate([_at(live, live_child), _at(pool, pool_entry)])

        before = particles.log_prob[parent]
        drawn_log_prob = jnp.concatenate([live_log_p, end_log_p])
        log_weight, log_evidence = weights.renormalize(new_weight, particles.log_evidence)
        particles = particles._replace(
            log_weight=log_weight,
            log_evidence=log_evidence,
            log_prob=jnp.where(active, before + drawn_log_prob, before),
            exponent=exponent,
            length=particles.length[parent] + active.astype(jnp.int32),
            drawn=particles.drawn + jnp.sum(active, dtype=jnp.int32),
        )
        chosen = jnp.sum(live_child >= 0) + jnp.sum(pool_entry >= 0)
        possible = jnp.sum(candidates.live > -jnp.inf) + jnp.sum(candidates.pool > -jnp.inf)
        particles = self._stop_early(target, particles)
        ess = weights.effective_sample_size(particles.log_weight)
        return StepResult(particles, parent, token, active, ess, chosen < possible)

    def finish(
        self, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> FinalWeights:
        """The catch-up to alpha, the whole population reduced to N, and one particle drawn."""
        log_weight = bridge(
            particles.log_weight, particles.log_prob, particles.exponent, target.alpha
        )
        log_weight = select(log_weight, self.num_particles, uniforms[1])
        unused = jnp.full((self.num_particles,), -1, jnp.int32)
        index = place(unused, log_weight > -jnp.inf)
        log_weight, log_evidence = weights.renormalize(
            _at(log_weight, index), particles.log_evidence
        )
        choice = inverse_cdf.invert(jnp.exp(log_weight), uniforms[:1])[0]
        return FinalWeights(log_weight, log_evidence, choice, index)

    def children(
        self,
        logits: Logits,
        normaliser: Normaliser,
        target: TargetArrays,
        ends: jax.Array,
        exponent: jax.Array,
        step: jax.Array,
    ) -> Children:
        """All children of the running particles; logits [N, V], ends [N or 1, V]."""
        values, sharding = logits.values, logits.sharding
        allowed = support(logits, target, ends, step)
        token = self.explicit(logits, allowed)
        parents = jnp.broadcast_to(
            jnp.arange(self.num_particles, dtype=jnp.int32)[:, None], token.shape
        )
        log_p = log_prob(logits, normaliser, parents, token)
        possible = sharding.lookup(allowed, parents, token) & (log_p > -jnp.inf)
        possible = possible & ~normaliser.is_bad[:, None]
        log_p = jnp.where(possible, log_p, 0)
        explicit = jnp.where(possible, exponent * log_p, -jnp.inf)
        explicit_ends = sharding.lookup(ends, parents, token)
        # Tokens without mass need not be taken out. That the others wait for all that is read of
        # the logits lets the compiler take them out in place.
        local, mine = sharding.to_local(token, values.shape[1])
        out = jnp.where(possible & mine, local, jnp.int32(values.shape[1]))
        rest = Logits(values.at[parents, out].set(-jnp.inf, mode="drop"), sharding)
        live_tail, ending_tail = (
            power_proposal(rest, allowed & which, exponent, normaliser=normaliser)
            for which in (~ends, ends)
        )
        none = jnp.full_like(explicit, -jnp.inf)
        live = jnp.where(explicit_ends, none, explicit)
        ending = jnp.where(explicit_ends, explicit, none)
        return Children(
            token,
            log_p,
            jnp.concatenate([live, live_tail.log_sum[:, None]], axis=1),
            jnp.concatenate([ending, ending_tail.log_sum[:, None]], axis=1),
            live_tail,
            ending_tail,
            rest,
        )

    def explicit(self, logits: Logits, allowed: jax.Array) -> jax.Array:
        """[N, K] int32, distinct tokens per particle: the most probable ones of the support.

        logits [N, V], allowed [N or 1, V]. Where the support has fewer than K, others are among
        them.
        """
        asked = self.num_particles if self.explicit_children is None else self.explicit_children
        return _largest_of_all(logits, allowed, min(asked, logits.vocab_size))

    def candidates(self, log_weight: jax.Array, children: Children) -> Candidates:
        """What is selected from; log_weight [M]."""
        parents = log_weight[: self.num_particles, None]
        return Candidates(
            live=(parents + children.live).reshape(-1),
            pool=jnp.concatenate(
                [log_weight[self.num_particles :], (parents + children.ending).reshape(-1)]
            ),
        )

    def _look_up(
        self,
        child: jax.Array,
        children: Children,
        tail: PowerProposal,
        normaliser: Normaliser,
        uniforms: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Parent, token and log p of each child [N], given by index parent * C + column (or -1)."""
        width = children.live.shape[1]
        parent = jnp.maximum(child, 0) // width
        column = jnp.maximum(child, 0) % width
        is_tail, column = column == width - 1, jnp.minimum(column, width - 2)
        drawn = draw(tail, parent, uniforms)
        token = jnp.where(is_tail, drawn, children.token[parent, column])
        drawn_log_p = log_prob(children.rest, normaliser, parent, drawn)
        return parent, token, jnp.where(is_tail, drawn_log_p, children.log_p[parent, column])

    def _stop_early(self, target: TargetArrays, particles: Particles) -> Particles:
        """Drops the running particles if they hold too little: S <= 1, so they only lose mass.

        Not during a ramp, where a bridge may still give mass back relative to the pool.
        """
        n = self.num_particles
        running = jax.nn.logsumexp(particles.log_weight[:n])
        pool = jax.nn.logsumexp(particles.log_weight[n:])
        share = jnp.exp(running - jnp.logaddexp(running, pool))
        stop = (
            (share < self.early_stop)
            & (running > -jnp.inf)
            & (pool > -jnp.inf)
            & (particles.exponent >= target.alpha)
        )
        is_live = jnp.arange(self.population_size, dtype=jnp.int32) < n
        left = jnp.where(
            stop & is_live, jnp.full_like(particles.log_weight, -jnp.inf), particles.log_weight
        )
        log_weight, log_evidence = weights.renormalize(left, particles.log_evidence)
        return particles._replace(
            log_weight=jnp.where(stop, log_weight, particles.log_weight),
            log_evidence=jnp.where(stop, log_evidence, particles.log_evidence),
            dropped=jnp.where(stop, share, particles.dropped),
        )


def _at(log_weight: jax.Array, index: jax.Array) -> jax.Array:
    """Log weights at the indices; -inf where the index is -1."""
    there = log_weight[jnp.maximum(index, 0)]
    return jnp.where(index >= 0, there, jnp.full_like(there, -jnp.inf))


def _largest_of_all(logits: Logits, allowed: jax.Array, count: int) -> jax.Array:
    """``_largest`` of a vocabulary that may be sharded: the largest of those of every shard."""
    x, sharding = logits.values, logits.sharding
    if sharding.axis is None:
        return _largest(x, allowed, count)
    own = _largest(x, allowed, min(count, x.shape[1]))
    row = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
    is_allowed = allowed[row if allowed.shape[0] > 1 else jnp.zeros_like(row), own]
    value = sharding.all_gather(jnp.where(is_allowed, x[row, own], -jnp.inf))
    token = sharding.all_gather(own + sharding.first(x.shape[1]))
    best = jax.lax.top_k(value, count)[1]
    return jnp.take_along_axis(token, best, axis=1)


def _largest(x: jax.Array, allowed: jax.Array, count: int) -> jax.Array:
    """[N, K] int32: where the K largest of x [N, V] are, those allowed [N or 1, V] first.

    The K blocks of the largest maxima hold them (a value outside has K maxima above it). Where
    that leaves out most of a large vocabulary, it is twice as fast as searching all of it. Ties
    may then be broken in any way.
    """
    num, vocab = x.shape
    block = block_of(vocab)
    blocks = vocab // block
    if blocks * block != vocab or blocks < 4 * count:
        return jax.lax.top_k(jnp.where(allowed, x, -jnp.inf), count)[1].astype(jnp.int32)
    x, allowed = share_support(x, allowed)
    x, allowed = x.reshape(num, blocks, block), allowed.reshape(blocks, block)
    rows = jnp.arange(num, dtype=jnp.int32)[:, None]
    highest = jnp.max(jnp.minimum(x, bound(allowed[None], x.dtype)), axis=-1)
    chosen = jax.lax.top_k(highest, count)[1].astype(jnp.int32)
    # The same values once more: what two operations share would be written out.
    inside = jnp.where(allowed[chosen], x[rows, chosen], -jnp.inf)
    found = jax.lax.top_k(inside.reshape(num, count * block), count)[1].astype(jnp.int32)
    return chosen[rows, found // block] * block + found % block
