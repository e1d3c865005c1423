"""What samplers share: their settings, the particles of one prompt, and the interface of a step.

``Sampler`` is what every sampler tells the rest of the package about itself. ``Kernel`` is a
sampler that advances N particles one token at a time, which is all the decode step knows of it.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.smc import weights
from jax_power_smc.targets.power import TargetArrays


class Particles(NamedTuple):
    """The population of one prompt: M particles, of which the model runs the first N.

    M is N for most samplers. One that keeps finished sequences apart has further entries for them.

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


class StepResult(NamedTuple):
    """What one step decided.

    Attributes:
      particles: the population after the step.
      parent: [M] int32, the particle whose past each one continues; below N for the first N.
      token: [M] int32, the token each particle drew; meaningful where ``active``.
      active: [M] bool, particles that drew a token.
      ess: [], effective sample size when it was checked.
      resampled: [] bool.
    """

    particles: Particles
    parent: jax.Array
    token: jax.Array
    active: jax.Array
    ess: jax.Array
    resampled: jax.Array


class FinalWeights(NamedTuple):
    """What a finished run of one prompt returns besides its tokens.

    Attributes:
      log_weight: [N], normalised; -inf for weight zero.
      log_evidence: [], log Z_hat; without meaning if the sampler has none (``has_evidence``).
      choice: [] int32, the returned particle, an index into [N].
      particle_index: [N] int32, the particle of the population [M] that each returned one is, -1
        for none.
    """

    log_weight: jax.Array
    log_evidence: jax.Array
    choice: jax.Array
    particle_index: jax.Array


class Sampler(abc.ABC):
    """A method with its settings, checked when it is made: the base of all samplers.

    Attributes:
      runs_as_chains: True if it revises whole sequences on a schedule. The model must then be able
        to return to earlier steps, and prompts cannot be streamed. False for a ``Kernel``.
      has_evidence: whether it estimates the target's normaliser, and so returns weighted particles.
        Without evidence, particles have equal weights and ``log_evidence`` is NaN in results.
    """

    runs_as_chains: ClassVar[bool] = False
    has_evidence: ClassVar[bool] = True
    num_particles: (
        int  # N: how many sequences the model decodes per prompt, and how many it returns
    )

    def check(self, max_new_tokens: int) -> None:  # noqa: B027
        """Raises ValueError if the settings do not suit a cap of T = ``max_new_tokens``."""

    def token_temperature(self, alpha: float) -> float:
        """The temperature at which tokens are drawn, after any ramp; 1/alpha unless set."""
        return 1 / alpha


class Kernel(Sampler):
    """A sampler that advances N particles one token at a time.

    A subclass is a frozen dataclass that names its static fields in ``STATIC``; all others are
    numbers. It is a pytree of those numbers: as declared they are Python numbers, and inside a
    compiled program (after ``traced``) they are arrays, so changing one recompiles nothing.
    """

    STATIC: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        jax.tree_util.register_pytree_node(cls, _flatten, lambda aux, x: _unflatten(cls, aux, x))

    @property
    def population_size(self) -> int:
        """M, at least N."""
        return self.num_particles

    @property
    def draws_first(self) -> bool:
        """Whether a step draws its tokens before it resamples, so that they are copied too."""
        return False

    def traced(self) -> Self:
        """The same sampler with its numbers as arrays []: int32, or the default real dtype."""
        real = jnp.result_type(float)

        def array(field: dataclasses.Field[Any]) -> jax.Array | None:
            value = getattr(self, field.name)
            return (
                None
                if value is None
                else jnp.asarray(value, jnp.int32 if field.type is int else real)
            )

        _, static = _flatten(self)
        return _unflatten(type(self), static, [array(field) for field in _numbers(self)])

    def start(self, dtype: jnp.dtype) -> Particles:
        """The population before the first step: N empty sequences of weight 1/N each."""
        return start(self.population_size, dtype)

    @abc.abstractmethod
    def step(
        self,
        target: TargetArrays,
        particles: Particles,
        logits: Logits,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """One step: which particle continues which, and with what token.

        Args:
          target: the prompt's target.
          particles: the population.
          logits: [N, V] of the next token of the running particles, in the dtype of the weights.
          ends: [N, V] bool, whether a token would end the sequence; or [1, V], the same for all.
          uniforms: all the randomness of the step.
          step: [] int32, t.
        """

    @abc.abstractmethod
    def finish(
        self, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> FinalWeights:
        """Final weights and the returned particle, drawn with ``uniforms`` [2]."""


def _numbers(sampler: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(sampler) if field.name not in sampler.STATIC]


def _flatten(sampler: Any) -> tuple[list[Any], tuple[Any, ...]]:
    children = [getattr(sampler, field.name) for field in _numbers(sampler)]
    return children, tuple(getattr(sampler, name) for name in sampler.STATIC)


def _unflatten(cls: Any, static: tuple[Any, ...], children: Any) -> Any:
    # Not through __init__: it checks values, and a tracer has none.
    sampler = object.__new__(cls)
    names = [field.name for field in _numbers(cls)]
    for name, value in (*zip(cls.STATIC, static, strict=True), *zip(names, children, strict=True)):
        object.__setattr__(sampler, name, value)
    return sampler


def start(population_size: int, dtype: jnp.dtype) -> Particles:
    """Empty sequences of equal weight."""
    zeros = jnp.zeros((population_size,), dtype)
    off = jnp.zeros((population_size,), bool)
    return Particles(
        log_weight=weights.uniform(population_size, dtype),
        log_evidence=jnp.zeros((), dtype),
        log_prob=zeros,
        exponent=jnp.ones((), dtype),
        ended=off,
        finished=off,
        length=jnp.zeros((population_size,), jnp.int32),
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
    """Every particle continues its parent's sequence, the active ones by one token.

    Args:
      particles: the population before; its weights are kept as they are.
      parent, token: [N] int32.
      token_log_prob: [N], log p(token | prefix) at temperature 1; read where active.
      active: [N] bool, in the order after the move.
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
