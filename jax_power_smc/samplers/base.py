"""What every sampler shares: the particles of one prompt, and the shape of one step.

A sampler is declared by a frozen dataclass that users see (``PowerSMC``, ``Ancestral``). For the
decode step it splits in two: ``numbers()``, a pytree of traced scalars, and ``rule()``, a
hashable object with the algorithm. Changing a number compiles nothing.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jax_power_smc import weights
from jax_power_smc.randomness import StepUniforms
from jax_power_smc.target import TargetArrays
from jax_power_smc.vocabulary import Vocabulary


class Particles(NamedTuple):
    """The population of one prompt: M rows, of which the model runs the first N.

    M is N for most samplers. One that keeps finished sequences apart has further rows for them.

    Attributes:
      log_weight: [M], normalised.
      log_evidence: [], log of the sum that was divided out of the weights.
      log_prob: [M], log p(y_<t | x) at temperature 1.
      exponent: [], a_t of the last step taken.
      ended: [M] bool, absorbed: no further token is drawn.
      finished: [M] bool, ended by an end token (and not because its support was empty).
      length: [M] int32, tokens drawn so far.
      drawn: [] int32, tokens drawn by all particles: the model's work in tokens.
      dropped: [], share of the mass that an early stop left out; 0 without one.
    """

    log_weight: jax.Array
    log_evidence: jax.Array
    log_prob: jax.Array
    exponent: jax.Array
    ended: jax.Array
    finished: jax.Array
    length: jax.Array
    drawn: jax.Array
    dropped: jax.Array


class Selection(NamedTuple):
    """What one step decided.

    Attributes:
      particles: the population after the step, in row order.
      parent: [M] int32, the row whose past each row continues; below N for the first N.
      token: [M] int32, the token each row drew; meaningful where ``active``.
      active: [M] bool, rows that drew a token.
      ess: [], effective sample size when it was checked.
      resampled: [] bool.
    """

    particles: Particles
    parent: jax.Array
    token: jax.Array
    active: jax.Array
    ess: jax.Array
    resampled: jax.Array


class Outcome(NamedTuple):
    """What a finished run of one prompt returns besides its tokens.

    Attributes:
      log_weight: [N], normalised; -inf for weight zero.
      log_evidence: [], log Z_hat, or NaN where the sampler has none.
      choice: [] int32, the returned particle.
      rows: [N] int32, the row of each returned particle, -1 for none.
    """

    log_weight: jax.Array
    log_evidence: jax.Array
    choice: jax.Array
    rows: jax.Array


class Rule(Protocol):
    """The algorithm of a sampler; hashable, holds nothing that is traced."""

    @property
    def num_particles(self) -> int:
        """N, the rows that the model runs and the particles that are returned."""

    @property
    def num_rows(self) -> int:
        """M, at least N."""

    @property
    def vocabulary(self) -> Vocabulary:
        """How the last axis of logits and ends lies on the devices."""

    @property
    def draws_first(self) -> bool:
        """Whether a step draws its tokens before it resamples, so that they are copied too."""

    def start(self, dtype: jnp.dtype) -> Particles:
        """The population before the first step."""

    def advance(
        self,
        numbers: Any,
        target: TargetArrays,
        particles: Particles,
        logits: jax.Array,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> Selection:
        """One step: who continues with what.

        logits [N, V] of the next token of every running row at temperature 1, in the dtype of the
        weights, and whether it would end the row's sequence, ends [N, V] bool, or [1, V] if that
        is the same for all rows.
        """

    def finish(
        self, numbers: Any, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> Outcome:
        """Final weights and the returned particle, drawn with ``uniforms`` [2]."""


def start(num_particles: int, dtype: jnp.dtype) -> Particles:
    """N empty sequences of weight 1/N each."""
    zeros = jnp.zeros((num_particles,), dtype)
    off = jnp.zeros((num_particles,), bool)
    return Particles(
        log_weight=weights.uniform(num_particles, dtype),
        log_evidence=jnp.zeros((), dtype),
        log_prob=zeros,
        exponent=jnp.ones((), dtype),
        ended=off,
        finished=off,
        length=jnp.zeros((num_particles,), jnp.int32),
        drawn=jnp.zeros((), jnp.int32),
        dropped=jnp.zeros((), dtype),
    )


def extend(
    particles: Particles,
    parent: jax.Array,
    token: jax.Array,
    token_log_prob: jax.Array,
    active: jax.Array,
    ends: jax.Array,
) -> Particles:
    """Every slot continues its parent's sequence, and the active ones by one token.

    Args:
      particles: the population before; its weights are kept as they are.
      parent, token: [N] int32.
      token_log_prob: [N], log p(token | prefix) at temperature 1; read where active.
      active: [N] bool, in slot order after the move.
      ends: [N] bool, whether the token ends the sequence; read where active.
    """
    log_prob = particles.log_prob[parent]
    ends = active & ends
    return particles._replace(
        log_prob=jnp.where(active, log_prob + token_log_prob, log_prob),
        ended=particles.ended[parent] | ends,
        finished=particles.finished[parent] | ends,
        length=particles.length[parent] + active.astype(jnp.int32),
        drawn=particles.drawn + jnp.sum(active, dtype=jnp.int32),
    )
