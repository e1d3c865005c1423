"""Power-SMC, Algorithm 1 of arXiv 2602.10273, in two orders.

One step of the default order, "adapted", for N particles:

1. bridge: every particle's prefix is re-weighted from exponent a_{t-1} to a_t;
2. weigh: ``W *= S_t = sum_v p(v)^{a_t}``, which does not depend on the token to come;
3. resample if the effective sample size fell below kappa N;
4. draw each token from ``q ∝ p^{a_t}``.

The "published" order draws before it weighs and resamples; it never resamples after the last
token, and it alone admits a proposal temperature other than 1/a_t.

Resampling leaves the sum of the weights as it was, so ``Z_hat = sum_i W_i`` stays an unbiased
estimate of Z throughout.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jax_power_smc.core import checks
from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.base import FinalWeights, Kernel, Particles, StepResult, extend
from jax_power_smc.samplers.proposal import draw, log_prob, normalise, power_proposal
from jax_power_smc.smc import inverse_cdf, resampling, weights
from jax_power_smc.smc.exponent_ramp import bridge, exponent_at
from jax_power_smc.targets.power import TargetArrays, support

ORDERS = ("adapted", "published")


@dataclasses.dataclass(frozen=True)
class PowerSMC(Kernel):
    """Power-SMC as published.

    Attributes:
      num_particles: N.
      ess_threshold: kappa in [0, 1]; resample when ESS < kappa N. 0 never resamples.
      resampling: "systematic", "stratified", "residual" or "multinomial".
      ramp_tokens: R, steps over which the exponent rises from 1 to alpha; 0 for no ramp.
      check_every: the ESS is checked every so many tokens.
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
    def draws_first(self) -> bool:
        """True for the published order."""
        return self.order == "published"

    def token_temperature(self, alpha: float) -> float:
        """The proposal's own temperature if it has one, else 1/alpha."""
        own = self.proposal_temperature
        return super().token_temperature(alpha) if own is None else own

    def step(
        self,
        target: TargetArrays,
        particles: Particles,
        logits: Logits,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """One step of Algorithm 1; see ``Kernel.step``."""
        exponent = exponent_at(step, target.alpha, self.ramp_tokens)
        particles = particles._replace(
            log_weight=bridge(
                particles.log_weight, particles.log_prob, particles.exponent, exponent
            ),
            exponent=exponent,
        )
        allowed = support(logits, target, ends, step)
        normaliser = normalise(logits)
        proposal = power_proposal(logits, allowed, exponent, normaliser=normaliser)
        # A sequence without a possible continuation has weight zero and stops here.
        particles = particles._replace(
            ended=particles.ended | (proposal.log_sum == -jnp.inf),
            log_weight=jnp.where(
                particles.ended, particles.log_weight, particles.log_weight + proposal.log_sum
            ),
        )
        due = (step + 1) % self.check_every == 0
        if self.order == "adapted":
            particles, ess, resampled, parent = self._resample(particles, uniforms, due)
            token = draw(proposal, parent, uniforms.token)
            active = ~particles.ended[parent]
            token_log_p = log_prob(logits, normaliser, parent, token)
            token_ends = logits.sharding.lookup(ends, parent, token)
            particles = extend(particles, parent, token, token_log_p, active, token_ends)
            return StepResult(particles, parent, token, active, ess, resampled)

        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        active = ~particles.ended
        if self.proposal_temperature is None:
            token = draw(proposal, own, uniforms.token)
            token_log_p = log_prob(logits, normaliser, own, token)
        else:
            inverse = jnp.asarray(1 / self.proposal_temperature)
            tempered = power_proposal(logits, allowed, inverse, normaliser=normaliser)
            token = draw(tempered, own, uniforms.token)
            token_log_p = log_prob(logits, normaliser, own, token)
            # log p^a/q instead of log S: add what the token's own weight differs by.
            log_q = token_log_p * inverse - tempered.log_sum
            correction = exponent * token_log_p - log_q - proposal.log_sum
            particles = particles._replace(
                log_weight=jnp.where(
                    active, particles.log_weight + correction, particles.log_weight
                )
            )
        token_ends = logits.sharding.lookup(ends, own, token)
        particles = extend(particles, own, token, token_log_p, active, token_ends)
        due = due & (step < target.cap - 1)
        particles, ess, resampled, parent = self._resample(particles, uniforms, due)
        stay = jnp.zeros_like(active)
        particles = extend(particles, parent, token, particles.log_prob, stay, stay)
        return StepResult(particles, parent, token[parent], active[parent], ess, resampled)

    def finish(
        self, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> FinalWeights:
        """The catch-up to alpha, then one particle drawn by weight."""
        log_weight = bridge(
            particles.log_weight, particles.log_prob, particles.exponent, target.alpha
        )
        log_weight, log_evidence = weights.renormalize(log_weight, particles.log_evidence)
        choice = inverse_cdf.invert(jnp.exp(log_weight), uniforms[:1])[0]
        index = jnp.arange(self.num_particles, dtype=jnp.int32)
        return FinalWeights(log_weight, log_evidence, choice, index)

    def _resample(
        self,
        particles: Particles,
        uniforms: StepUniforms,
        due: jax.Array,
    ) -> tuple[Particles, jax.Array, jax.Array, jax.Array]:
        """Renormalises, and resamples if it is due and the ESS is below kappa N.

        Returns:
          The particles with their new weights, still in their old places; the ESS []; whether
          they are resampled []; and the parent [N] of each particle.
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
        parent = jnp.where(
            need,
            resampling.in_place(ancestors),
            jnp.arange(self.num_particles, dtype=jnp.int32),
        )
        equal = weights.uniform(self.num_particles, log_weight.dtype)
        particles = particles._replace(
            log_weight=jnp.where(need, equal, log_weight), log_evidence=log_evidence
        )
        return particles, ess, need, parent
