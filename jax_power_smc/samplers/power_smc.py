"""Power-SMC, Algorithm 1 of arXiv 2602.10273 (docs/math.md, eqs. 4 to 17), in two orders.

One step of the default order, "adapted", for N particles:

1. bridge: re-weight every particle's prefix from exponent a_{t-1} to a_t (eq. 11);
2. weigh: ``W *= S_t = sum_v p(v)^{a_t}``, which does not depend on the token to come (eq. 12);
3. resample if the effective sample size is below kappa N (eqs. 14 to 16);
4. draw each token from ``q ∝ p^{a_t}`` (eq. 6).

The "published" order draws before it weighs and resamples. It never resamples after the last
token, and it alone admits a proposal temperature other than 1/a_t (eq. 17).

Resampling preserves the sum of the weights, so ``Z_hat = sum_i W_i`` is an unbiased estimate of Z
throughout.
"""

import dataclasses
from typing import Literal

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
)
from jax_power_smc.samplers.proposal import ProposalTables, normalise, power_proposal
from jax_power_smc.smc import resampling, weights
from jax_power_smc.smc.exponent_ramp import bridge, exponent_at
from jax_power_smc.targets.power import TargetArrays

ORDERS = ("adapted", "published")


@dataclasses.dataclass(frozen=True)
class PowerSMC(Kernel):
    """Power-SMC as published.

    Attributes:
      num_particles: N.
      ess_threshold: kappa in [0, 1]; resample when ESS < kappa N. 0 never resamples.
      resampling: "systematic", "stratified", "residual" or "multinomial".
      ramp_tokens: steps over which the exponent rises from 1 to alpha; 0 for no ramp.
      check_every: the ESS is checked once in this many steps.
      order: "adapted" (weigh, resample, draw) or "published" (draw, weigh, resample).
      proposal_temperature: None for the optimal 1/a_t; any other, at least 1e-6, needs
        order="published".

    Raises:
      ValueError: for a value outside its range.
    """

    STATIC = ("num_particles", "resampling", "order")

    num_particles: int
    ess_threshold: float = 0.5
    resampling: Literal["systematic", "stratified", "residual", "multinomial"] = "systematic"
    ramp_tokens: int = 0
    check_every: int = 1
    order: Literal["adapted", "published"] = "adapted"
    proposal_temperature: float | None = None

    def __post_init__(self) -> None:
        checks.settle(
            self,
            num_particles=checks.integer("num_particles", self.num_particles, at_least=1),
            ess_threshold=checks.number("ess_threshold", self.ess_threshold, at_least=0, at_most=1),
            ramp_tokens=checks.integer("ramp_tokens", self.ramp_tokens, at_least=0),
            check_every=checks.integer("check_every", self.check_every, at_least=1),
        )
        checks.one_of("resampling", self.resampling, resampling.SCHEMES)
        checks.one_of("order", self.order, ORDERS)
        if self.proposal_temperature is not None:
            own = checks.number("proposal_temperature", self.proposal_temperature, at_least=1e-6)
            checks.settle(self, proposal_temperature=own)
            if self.order != "published":
                raise ValueError(
                    f"proposal_temperature is {self.proposal_temperature!r} with order "
                    f'{self.order!r}; a temperature of its own needs order="published", because '
                    "the weight then depends on the token drawn."
                )

    @property
    def typical_rows(self) -> float:
        """As measured with a small model of stories: 3.4 of 16, 5.8 of 64, 9.8 of 256."""
        return min(self.num_particles, 1.35 * self.num_particles**0.35)

    @property
    def draws_first(self) -> bool:
        """True for the published order."""
        return self.order == "published"

    def token_temperature(self, alpha: float) -> float:
        """The proposal's own temperature if it has one, else 1/alpha."""
        own = self.proposal_temperature
        return super().token_temperature(alpha) if own is None else own

    def exponent(self, target: TargetArrays, step: jax.Array) -> jax.Array:
        """a_t, eq. 10."""
        return exponent_at(step, target.alpha, self.ramp_tokens)

    def tables(self, logits: Logits, rows: RowTargets) -> ProposalTables:
        """The proposal of every prefix, with its normaliser S_t; see ``Kernel.tables``."""
        normaliser = normalise(logits)
        proposal = power_proposal(logits, rows.allowed, rows.exponent, normaliser=normaliser)
        tempered = None
        if self.proposal_temperature is not None:
            inverse = jnp.asarray(1 / self.proposal_temperature)
            tempered = power_proposal(logits, rows.allowed, inverse, normaliser=normaliser)
        return ProposalTables(logits, rows.ends, normaliser, proposal, tempered)

    def advance(
        self,
        target: TargetArrays,
        particles: Particles,
        row: jax.Array,
        tables: ProposalTables,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """One step of Algorithm 1; see ``Kernel.advance``."""
        # Bridge, eq. 11.
        exponent = self.exponent(target, step)
        log_weight = bridge(particles.log_weight, particles.log_prob, particles.exponent, exponent)
        # Weigh, eq. 12. A sequence without a possible continuation stops here with weight zero.
        log_sum = tables.proposal.log_sum[row]
        particles = particles._replace(
            log_weight=jnp.where(particles.ended, log_weight, log_weight + log_sum),
            exponent=exponent,
            ended=particles.ended | (log_sum == -jnp.inf),
        )
        due = (step + 1) % self.check_every == 0

        if self.order == "adapted":
            particles, ess, resampled, parent = self._resample(particles, uniforms, due)
            token, token_log_p, token_ends = tables.draw(row[parent], uniforms.token)
            particles = reorder(particles, parent)
            active = ~particles.ended
            particles = extend(particles, token_log_p, active, token_ends)
            return StepResult(particles, parent, token, token_log_p, active, ess, resampled)

        active = ~particles.ended
        token, token_log_p, token_ends = tables.draw(row, uniforms.token)
        if tables.tempered is not None:
            # Eq. 17 replaces eq. 12: the weight gains log(p^a / q) of the token, not log S.
            log_q = token_log_p * tables.tempered.exponent[row] - tables.tempered.log_sum[row]
            correction = exponent * token_log_p - log_q - log_sum
            log_weight = particles.log_weight
            log_weight = jnp.where(active, log_weight + correction, log_weight)
            particles = particles._replace(log_weight=log_weight)
        particles = extend(particles, token_log_p, active, token_ends)
        due = due & (step < target.cap - 1)
        particles, ess, resampled, parent = self._resample(particles, uniforms, due)
        particles = reorder(particles, parent)
        return StepResult(
            particles,
            parent,
            token[parent],
            token_log_p[parent],
            active[parent],
            ess,
            resampled,
        )

    def finish(
        self, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> FinalWeights:
        """The catch-up to alpha (docs/math.md, eq. 13), then one particle drawn by weight."""
        log_weight = bridge(
            particles.log_weight, particles.log_prob, particles.exponent, target.alpha
        )
        return final_weights(log_weight, particles.log_evidence, uniforms[0])

    def _resample(
        self,
        particles: Particles,
        uniforms: StepUniforms,
        due: jax.Array,
    ) -> tuple[Particles, jax.Array, jax.Array, jax.Array]:
        """Renormalises the weights, and resamples if it is due and the ESS is below kappa N.

        Returns:
          The particles with their new weights, not yet reordered; the ESS []; whether they are
          resampled []; and the parent [N] of each particle.
        """
        log_weight, log_evidence = weights.renormalize(particles.log_weight, particles.log_evidence)
        ess = weights.effective_sample_size(log_weight)
        alive = jnp.max(log_weight) > -jnp.inf
        # The ESS of equal weights is N up to rounding, which must not count as degenerate.
        threshold = self.ess_threshold * (self.num_particles * (1 - 1e-5))
        need = due & alive & (ess < threshold)
        ancestors = resampling.SCHEMES[self.resampling](
            jnp.where(alive, jnp.exp(log_weight), jnp.ones_like(log_weight)), uniforms.resample
        )
        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        parent = jnp.where(need, resampling.in_place(ancestors), own)
        # Eq. 16: the sum of the weights is in the evidence already.
        equal = weights.uniform(self.num_particles, log_weight.dtype)
        particles = particles._replace(
            log_weight=jnp.where(need, equal, log_weight), log_evidence=log_evidence
        )
        return particles, ess, need, parent
