"""Without-replacement SMC: N particles chosen among all N V children, no two of them equal.

One step, starting from a single root row of weight 1 (MATH: swor):

1. bridge, if there is a ramp: every sequence is re-weighted from exponent a_{t-1} to a_t;
2. children: child (i, v) of row i weighs ``W_i p(v | y_i)^{a_t}``;
3. select: at most N unfinished children go on (``selection``), and at most F = N finished
   sequences are kept in a pool, old and new ones together, by the same rule;
4. move: each surviving row keeps its slot for its first child, further children go to dead slots.

Every selection satisfies ``E[W'_m] = w_m``, so everything estimated is unbiased at every N; the
total mass is conserved; and a tree with at most N leaves is enumerated exactly.

The N V children are reduced to few without changing an expectation: K explicit children per row
(the most probable; any K would do) and the rest of its vocabulary as one *tail* child that does
not end the sequence and one that does. If a tail child is selected, its token is drawn from p^a
on that rest. Tail masses are sums over the rest, never differences: at V = 152k and alpha = 4 a
float32 difference gives 0 where the truth is 1e-16.

Rows of the population, M = N + F:

    0 .. N-1      running, with a cache row each
    N .. N+F-1    the pool of finished sequences

Letters: N particles, F = N pool rows, K explicit children, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc import checks, inverse_cdf, weights
from jax_power_smc.proposal import (
    Normaliser,
    PowerProposal,
    block_of,
    bound,
    draw,
    log_prob,
    normalise,
    power_proposal,
    share_support,
)
from jax_power_smc.randomness import StepUniforms
from jax_power_smc.samplers.base import Outcome, Particles, Selection, start
from jax_power_smc.schedule import bridge, exponent_at
from jax_power_smc.selection import place, select
from jax_power_smc.target import TargetArrays, support
from jax_power_smc.vocabulary import WHOLE, Vocabulary


@dataclasses.dataclass(frozen=True)
class WithoutReplacement:
    """Without-replacement SMC.

    Attributes:
      num_particles: N.
      explicit_children: K, children per row that are candidates of their own; None for min(V, N).
        It changes cost and variance, never an expectation.
      ramp_tokens: R, steps over which the exponent rises from 1 to alpha; 0 for no ramp.
      early_stop: stop when the running sequences hold less than this share of the mass; 0 never
        stops early. What is left out is reported as ``info.dropped_mass``.

    Raises:
      ValueError: for a value outside its range.
    """

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

    def rule(self) -> "WithoutReplacementRule":
        """The algorithm."""
        return WithoutReplacementRule(self.num_particles, self.explicit_children)

    def numbers(self) -> "WithoutReplacementNumbers":
        """The traced scalars."""
        return WithoutReplacementNumbers(
            ramp_tokens=jnp.asarray(self.ramp_tokens, jnp.int32),
            early_stop=jnp.asarray(self.early_stop, jnp.result_type(float)),
        )


class WithoutReplacementNumbers(NamedTuple):
    """Traced scalars of ``WithoutReplacement``; all []."""

    ramp_tokens: jax.Array
    early_stop: jax.Array


class Children(NamedTuple):
    """The children of N rows: K explicit ones, then the tail, C = K + 1 in all.

    Attributes:
      token: [N, K] int32, tokens of the explicit children.
      log_p: [N, K], their log p at temperature 1; read where their mass is positive.
      going: [N, C] log mass ``log p(v)^a`` of those that do not end the sequence, else -inf.
      ending: [N, C] the same of those that end it.
      going_tail, ending_tail: what the token of a selected tail child is drawn from.
      rest: [N, V], the logits without those of the explicit children.
    """

    token: jax.Array
    log_p: jax.Array
    going: jax.Array
    ending: jax.Array
    going_tail: PowerProposal
    ending_tail: PowerProposal
    rest: jax.Array


class Candidates(NamedTuple):
    """Log weights of what the two selections choose from.

    Attributes:
      running: [N C], children that go on, row by row.
      pool: [F + N C], the pool's own rows, then the children that end.
    """

    running: jax.Array
    pool: jax.Array


@dataclasses.dataclass(frozen=True)
class WithoutReplacementRule:
    """The algorithm of ``WithoutReplacement``; see there and in the module's docstring."""

    num_particles: int
    explicit_children: int | None
    vocabulary: Vocabulary = WHOLE

    @property
    def num_rows(self) -> int:
        """N running rows and as many of the pool."""
        return 2 * self.num_particles

    @property
    def draws_first(self) -> bool:
        """False: a step selects children, then they are written."""
        return False

    def start(self, dtype: jnp.dtype) -> Particles:
        """One root of weight 1; all other rows are unused."""
        rows = jnp.arange(self.num_rows, dtype=jnp.int32)
        particles = start(self.num_rows, dtype)
        weight = jnp.where(rows == 0, jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype))
        in_pool = rows >= self.num_particles
        return particles._replace(log_weight=weight, ended=in_pool, finished=in_pool)

    def advance(
        self,
        numbers: WithoutReplacementNumbers,
        target: TargetArrays,
        particles: Particles,
        logits: jax.Array,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> Selection:
        """One step; logits [N, V] of the running rows at temperature 1."""
        n = self.num_particles
        exponent = exponent_at(step, target.alpha, numbers.ramp_tokens)
        log_weight = bridge(particles.log_weight, particles.log_prob, particles.exponent, exponent)
        normaliser = normalise(logits, self.vocabulary)
        children = self.children(logits, normaliser, target, ends, exponent, step)
        candidates = self.candidates(log_weight, children)
        # Both systematic passes have a uniform number of their own.
        running = select(candidates.running, n, uniforms.resample[0])
        pool = select(candidates.pool, self.num_rows - n, uniforms.resample[1])

        # Who sits where, as candidates' indices; -1 is nobody.
        width = children.going.shape[1]
        kept = (running > -jnp.inf).reshape(n, width)
        first = jnp.argmax(kept, axis=1).astype(jnp.int32)
        rows = jnp.arange(n, dtype=jnp.int32)
        own = jnp.where(jnp.any(kept, axis=1), rows * width + first, jnp.int32(-1))
        others = kept & (jnp.arange(width, dtype=jnp.int32)[None, :] != first[:, None])
        goes = place(own, others.reshape(-1))
        kept = pool > -jnp.inf
        own = jnp.where(kept[:n], rows, jnp.int32(-1))
        rests = place(own, kept.at[:n].set(False))
        arrives = rests >= n  # a child that has just ended

        goes_row, goes_token, goes_log_p = self._who(
            goes, children, children.going_tail, normaliser, uniforms.token[:n]
        )
        rests_row, rests_token, rests_log_p = self._who(
            jnp.where(arrives, rests - n, jnp.int32(-1)),
            children,
            children.ending_tail,
            normaliser,
            uniforms.token[n:],
        )
        parent = jnp.concatenate(
            [jnp.where(goes >= 0, goes_row, rows), jnp.where(arrives, rests_row, rows + n)]
        )
        token = jnp.concatenate([goes_token, rests_token])
        active = jnp.concatenate([goes >= 0, arrives])
        new_weight = jnp.concatenate([_at(running, goes), _at(pool, rests)])

        before = particles.log_prob[parent]
        drawn_log_prob = jnp.concatenate([goes_log_p, rests_log_p])
        log_weight, log_evidence = weights.renormalize(new_weight, particles.log_evidence)
        particles = particles._replace(
            log_weight=log_weight,
            log_evidence=log_evidence,
            log_prob=jnp.where(active, before + drawn_log_prob, before),
            exponent=exponent,
            length=particles.length[parent] + active.astype(jnp.int32),
            drawn=particles.drawn + jnp.sum(active, dtype=jnp.int32),
        )
        chosen = jnp.sum(goes >= 0) + jnp.sum(rests >= 0)
        possible = jnp.sum(candidates.running > -jnp.inf) + jnp.sum(candidates.pool > -jnp.inf)
        particles = self._stop_early(numbers, target, particles)
        ess = weights.effective_sample_size(particles.log_weight)
        return Selection(particles, parent, token, active, ess, chosen < possible)

    def finish(
        self,
        numbers: WithoutReplacementNumbers,
        target: TargetArrays,
        particles: Particles,
        uniforms: jax.Array,
    ) -> Outcome:
        """The catch-up to alpha, the union of both kinds of rows reduced to N, and one drawn."""
        del numbers
        log_weight = bridge(
            particles.log_weight, particles.log_prob, particles.exponent, target.alpha
        )
        log_weight = select(log_weight, self.num_particles, uniforms[1])
        nobody = jnp.full((self.num_particles,), -1, jnp.int32)
        rows = place(nobody, log_weight > -jnp.inf)
        log_weight, log_evidence = weights.renormalize(
            _at(log_weight, rows), particles.log_evidence
        )
        choice = inverse_cdf.invert(jnp.exp(log_weight), uniforms[:1])[0]
        return Outcome(log_weight, log_evidence, choice, rows)

    def children(
        self,
        logits: jax.Array,
        normaliser: Normaliser,
        target: TargetArrays,
        ends: jax.Array,
        exponent: jax.Array,
        step: jax.Array,
    ) -> Children:
        """All children of the running rows; logits [N, V], ends [N or 1, V]."""
        vocabulary = self.vocabulary
        allowed = support(logits, target, ends, step, vocabulary)
        token = self.explicit(logits, allowed)
        rows = jnp.broadcast_to(
            jnp.arange(self.num_particles, dtype=jnp.int32)[:, None], token.shape
        )
        log_p = log_prob(logits, normaliser, rows, token, vocabulary)
        possible = vocabulary.lookup(allowed, rows, token) & (log_p > -jnp.inf)
        possible = possible & ~normaliser.is_bad[:, None]
        log_p = jnp.where(possible, log_p, 0)
        explicit = jnp.where(possible, exponent * log_p, -jnp.inf)
        explicit_ends = vocabulary.lookup(ends, rows, token)
        # Tokens without mass need not be taken out. That the others wait for all that is read of
        # the logits lets the compiler take them out in place.
        own, mine = vocabulary.here(token, logits.shape[1])
        out = jnp.where(possible & mine, own, jnp.int32(logits.shape[1]))
        rest = logits.at[rows, out].set(-jnp.inf, mode="drop")
        going_tail, ending_tail = (
            power_proposal(
                rest, allowed & which, exponent, normaliser=normaliser, vocabulary=vocabulary
            )
            for which in (~ends, ends)
        )
        none = jnp.full_like(explicit, -jnp.inf)
        going = jnp.where(explicit_ends, none, explicit)
        ending = jnp.where(explicit_ends, explicit, none)
        return Children(
            token,
            log_p,
            jnp.concatenate([going, going_tail.log_sum[:, None]], axis=1),
            jnp.concatenate([ending, ending_tail.log_sum[:, None]], axis=1),
            going_tail,
            ending_tail,
            rest,
        )

    def explicit(self, logits: jax.Array, allowed: jax.Array) -> jax.Array:
        """[N, K] int32, different tokens of each row: the most probable ones of the support.

        logits [N, V], allowed [N or 1, V]. Where the support has less than K, others are among
        them.
        """
        asked = self.num_particles if self.explicit_children is None else self.explicit_children
        count = min(asked, logits.shape[1] * self.vocabulary.parts)
        return _largest_of_all(logits, allowed, count, self.vocabulary)

    def candidates(self, log_weight: jax.Array, children: Children) -> Candidates:
        """What is selected from; log_weight [M]."""
        parents = log_weight[: self.num_particles, None]
        return Candidates(
            running=(parents + children.going).reshape(-1),
            pool=jnp.concatenate(
                [log_weight[self.num_particles :], (parents + children.ending).reshape(-1)]
            ),
        )

    def _who(
        self,
        child: jax.Array,
        children: Children,
        tail: PowerProposal,
        normaliser: Normaliser,
        uniforms: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Row, token and log p of each child [N], given by its index row * C + column (or -1)."""
        width = children.going.shape[1]
        row = jnp.maximum(child, 0) // width
        column = jnp.maximum(child, 0) % width
        is_tail, column = column == width - 1, jnp.minimum(column, width - 2)
        drawn = draw(tail, row, uniforms, self.vocabulary)
        token = jnp.where(is_tail, drawn, children.token[row, column])
        drawn_log_p = log_prob(children.rest, normaliser, row, drawn, self.vocabulary)
        return row, token, jnp.where(is_tail, drawn_log_p, children.log_p[row, column])

    def _stop_early(
        self, numbers: WithoutReplacementNumbers, target: TargetArrays, particles: Particles
    ) -> Particles:
        """Drops the running rows if they hold too little: S <= 1, so they can only lose mass.

        Not during a ramp, where a bridge may still give mass back relative to the pool.
        """
        n = self.num_particles
        running = jax.nn.logsumexp(particles.log_weight[:n])
        pool = jax.nn.logsumexp(particles.log_weight[n:])
        share = jnp.exp(running - jnp.logaddexp(running, pool))
        stop = (
            (share < numbers.early_stop)
            & (running > -jnp.inf)
            & (pool > -jnp.inf)
            & (particles.exponent >= target.alpha)
        )
        rows = jnp.arange(self.num_rows, dtype=jnp.int32)
        left = jnp.where(
            stop & (rows < n), jnp.full_like(particles.log_weight, -jnp.inf), particles.log_weight
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


def _largest_of_all(
    x: jax.Array, allowed: jax.Array, count: int, vocabulary: Vocabulary
) -> jax.Array:
    """``_largest`` of a vocabulary that may be cut: the largest of those of every part."""
    if vocabulary.axis is None:
        return _largest(x, allowed, count)
    own = _largest(x, allowed, min(count, x.shape[1]))
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
    there = allowed[rows if allowed.shape[0] > 1 else jnp.zeros_like(rows), own]
    value = vocabulary.join(jnp.where(there, x[rows, own], -jnp.inf))
    token = vocabulary.join(own + vocabulary.first(x.shape[1]))
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
