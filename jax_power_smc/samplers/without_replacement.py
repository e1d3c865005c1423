"""Without-replacement SMC: N particles selected among all N V children, no two of them equal.

One step, starting from a single root of weight 1 (docs/math.md, eqs. 18 to 25):

1. bridge, if there is a ramp: re-weight every sequence from exponent a_{t-1} to a_t (eq. 11);
2. expand: child (i, v) of particle i weighs ``W_i p(v | y_i)^{a_t}`` (eq. 18), where most of a
   particle's vocabulary is one *tail* child (``children``);
3. select at most N unfinished children to stay live, and at most F = N finished sequences, old
   and new ones together, for a pool (eqs. 19 and 20, ``optimal_resampling``);
4. place: a surviving parent keeps its place for its first child; its further children take the
   places of particles that have none;
5. draw the tokens of selected tail children (eq. 24).

Every selection satisfies ``E[W'_m] = w_m``, so all estimates are unbiased at every N; the total
mass is conserved; and a tree with at most N leaves is enumerated exactly.

The population, M = N + F:

    0 .. N-1      running particles
    N .. N+F-1    the pool of finished sequences

Letters: N particles, F = N pool entries, K explicit children, C = K + 1, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core import checks
from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.base import (
    FinalWeights,
    Kernel,
    Particles,
    RowTargets,
    StepResult,
    extend,
    final_weights,
    reorder,
    start,
)
from jax_power_smc.samplers.children import Children, expand, most_probable
from jax_power_smc.samplers.proposal import normalise
from jax_power_smc.smc import weights
from jax_power_smc.smc.exponent_ramp import bridge, exponent_at
from jax_power_smc.smc.optimal_resampling import place, select
from jax_power_smc.targets.power import TargetArrays


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
      explicit_children: K, children per particle that are candidates of their own: its most
        probable tokens. None for min(V, N). It changes cost and variance, never an expectation.
      ramp_tokens: steps over which the exponent rises from 1 to alpha; 0 for no ramp.
      mass_floor: in [0, 1), a share of all mass: live children that weigh less are kept with
        probability weight / floor and then weigh the floor, so that N is only a cap and their
        number follows the uncertainty; 0 for none. It leaves all expectations as they are.
      early_stop: stop when the running sequences hold less than this share of the mass
        (docs/math.md, eq. 25); 0 never stops early. ``info.dropped_mass`` reports the share lost.

    Raises:
      ValueError: for a value outside its range.
    """

    STATIC = ("num_particles", "explicit_children")
    all_distinct = True

    num_particles: int
    explicit_children: int | None = None
    ramp_tokens: int = 0
    mass_floor: float = 0.0
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
            mass_floor=checks.number("mass_floor", self.mass_floor, at_least=0, below=1),
            early_stop=checks.number("early_stop", self.early_stop, at_least=0, at_most=1),
        )

    @property
    def population_size(self) -> int:
        """N running particles and as many entries of the finished pool."""
        return 2 * self.num_particles

    @property
    def typical_rows(self) -> float:
        """N without a floor; with one, a few."""
        return self.num_particles if self.mass_floor == 0 else 1 + self.num_particles / 8

    def start(self, dtype: jnp.dtype) -> Particles:
        """One root of weight 1; all other particles are unused."""
        index = jnp.arange(self.population_size, dtype=jnp.int32)
        particles = start(self.population_size, dtype)
        weight = jnp.where(index == 0, jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype))
        in_pool = index >= self.num_particles
        return particles._replace(log_weight=weight, ended=in_pool, finished=in_pool)

    def exponent(self, target: TargetArrays, step: jax.Array) -> jax.Array:
        """a_t, eq. 10."""
        return exponent_at(step, target.alpha, self.ramp_tokens)

    def tables(self, logits: Logits, rows: RowTargets) -> Children:
        """Expand, eqs. 18 and 23: the children of every prefix; see ``Kernel.tables``."""
        token = self.explicit(logits, rows.allowed)
        return expand(logits, normalise(logits), token, rows.allowed, rows.ends, rows.exponent)

    def advance(
        self,
        target: TargetArrays,
        particles: Particles,
        row: jax.Array,
        tables: Children,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """One step; see ``Kernel.advance``."""
        n, width = self.num_particles, tables.live.shape[1]
        # Bridge, eq. 11.
        exponent = self.exponent(target, step)
        log_weight = bridge(particles.log_weight, particles.log_prob, particles.exponent, exponent)
        # Select, eqs. 19 and 20; each systematic pass has its own uniform number.
        candidates = self.candidates(log_weight, tables.live[row], tables.ending[row])
        floor = self.log_floor(candidates, at_full_exponent=exponent >= target.alpha)
        live = select(candidates.live, n, uniforms.resample[0], floor)
        pool = select(candidates.pool, n, uniforms.resample[1])
        # Place.
        live_child = self._place_live(live)
        pool_entry = self._place_in_pool(pool)
        newly_finished = pool_entry >= n
        active = jnp.concatenate([live_child >= 0, newly_finished])
        child = jnp.concatenate([live_child, jnp.where(newly_finished, pool_entry - n, -1)])
        child_of, column = jnp.maximum(child, 0) // width, jnp.maximum(child, 0) % width
        # Draw, eq. 24.
        halves = zip(
            (tables.live_tail, tables.ending_tail),
            *(jnp.split(x, 2) for x in (row[child_of], column, uniforms.token)),
            strict=True,
        )
        drawn = [tables.draw(r, c, tail, u) for tail, r, c, u in halves]
        token, token_log_p = (jnp.concatenate(pair) for pair in zip(*drawn, strict=True))
        index = jnp.arange(self.population_size, dtype=jnp.int32)
        parent = jnp.where(active, child_of, index)

        particles = extend(reorder(particles, parent), token_log_p, active, index >= n)
        log_weight, log_evidence = weights.renormalize(
            jnp.concatenate([_at(live, live_child), _at(pool, pool_entry)]), particles.log_evidence
        )
        particles = particles._replace(
            log_weight=log_weight, log_evidence=log_evidence, exponent=exponent
        )
        chosen = jnp.sum(live_child >= 0) + jnp.sum(pool_entry >= 0)
        possible = jnp.sum(candidates.live > -jnp.inf) + jnp.sum(candidates.pool > -jnp.inf)
        particles = self._stop_early(target, particles)
        ess = weights.effective_sample_size(particles.log_weight)
        resampled = chosen < possible
        return StepResult(particles, parent, token, token_log_p, active, ess, resampled)

    def finish(
        self, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> FinalWeights:
        """The catch-up to alpha (eq. 13), the population reduced to N, and one particle drawn."""
        log_weight = bridge(
            particles.log_weight, particles.log_prob, particles.exponent, target.alpha
        )
        log_weight = select(log_weight, self.num_particles, uniforms[1])
        unused = jnp.full((self.num_particles,), -1, jnp.int32)
        index = place(unused, log_weight > -jnp.inf)
        return final_weights(_at(log_weight, index), particles.log_evidence, uniforms[0], index)

    def explicit(self, logits: Logits, allowed: jax.Array) -> jax.Array:
        """[R, K] int32, distinct tokens per prefix: the most probable ones of the support.

        logits [R, V], allowed [R or 1, V]. Where the support has fewer than K, tokens outside it
        fill the rest.
        """
        count = self.num_particles if self.explicit_children is None else self.explicit_children
        return most_probable(logits, allowed, min(count, logits.vocab_size))

    def candidates(self, log_weight: jax.Array, live: jax.Array, ending: jax.Array) -> Candidates:
        """What is selected from: log_weight [M], log masses of the children [N, C]."""
        parents = log_weight[: self.num_particles, None]
        # A place without a particle has no prefix: what the tables say there is of another one.
        absent = parents == -jnp.inf
        live, ending = (jnp.where(absent, -jnp.inf, parents + x) for x in (live, ending))
        return Candidates(
            live=live.reshape(-1),
            pool=jnp.concatenate([log_weight[self.num_particles :], ending.reshape(-1)]),
        )

    def log_floor(self, candidates: Candidates, at_full_exponent: jax.Array) -> jax.Array:
        """[], the log of the least threshold of the live selection; -inf without a floor.

        During a ramp there is none: a bridge may still raise what is small now.
        """
        total = jnp.logaddexp(*(jax.nn.logsumexp(x) for x in candidates))
        floor = total + jnp.log(jnp.asarray(self.mass_floor, total.dtype))
        return jnp.where(at_full_exponent, floor, jnp.full_like(floor, -jnp.inf))

    def _place_live(self, live: jax.Array) -> jax.Array:
        """[N] int32, the selected child in each running place, -1 for none; live [N C]."""
        n = self.num_particles
        selected = (live > -jnp.inf).reshape(n, -1)
        width = selected.shape[1]
        first = jnp.argmax(selected, axis=1).astype(jnp.int32)
        own = jnp.arange(n, dtype=jnp.int32)
        in_place = jnp.where(jnp.any(selected, axis=1), own * width + first, jnp.int32(-1))
        further = selected & (jnp.arange(width, dtype=jnp.int32)[None, :] != first[:, None])
        return place(in_place, further.reshape(-1))

    def _place_in_pool(self, pool: jax.Array) -> jax.Array:
        """[F] int32, the selected candidate in each place of the pool, -1 for none; pool [F + N C].

        Entries that remain keep their places.
        """
        n = self.num_particles
        selected = pool > -jnp.inf
        in_place = jnp.where(selected[:n], jnp.arange(n, dtype=jnp.int32), jnp.int32(-1))
        return place(in_place, selected.at[:n].set(False))

    def _stop_early(self, target: TargetArrays, particles: Particles) -> Particles:
        """Drops the running particles if they hold too little mass (docs/math.md, eq. 25).

        They can only lose more, because S_t <= 1. Nothing is dropped during a ramp, when a bridge
        may still raise their share again.
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
    value = log_weight[jnp.maximum(index, 0)]
    return jnp.where(index >= 0, value, jnp.full_like(value, -jnp.inf))
