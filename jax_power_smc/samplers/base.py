"""What samplers share: their settings, the particles of one prompt, and the interface of a step.

``Sampler`` is what every sampler tells the rest of the package about itself. ``Kernel`` is a
sampler that advances N particles one token at a time, which is all the decode step knows of it.
"""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.smc import inverse_cdf, weights
from jax_power_smc.targets.power import TargetArrays, support


class Particles(NamedTuple):
    """The population of one prompt: M particles, of which the model runs the first N.

    M is N for most samplers. A sampler that stores finished sequences separately has further
    particles for them.

    Attributes:
      log_weight: [M], normalised.
      log_evidence: [], log of the sum that was divided out of the weights.
      log_prob: [M], log p(y_<t | x) at temperature 1.
      exponent: [], a_t of the last step.
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


class RowTargets(NamedTuple):
    """What the target asks of the next token of each of R prefixes.

    Attributes:
      exponent: [R], a_t of the prefix's prompt.
      ends: [R, V] bool, whether a token would end the sequence; or [1, V], the same for all.
      allowed: [R, V] bool, the step's support; or [1, V], the same for all.
    """

    exponent: jax.Array
    ends: jax.Array
    allowed: jax.Array


class StepResult(NamedTuple):
    """What one step decided.

    Attributes:
      particles: the population after the step.
      parent: [M] int32, the particle whose past each one continues; below N for the first N.
      token: [M] int32, the token each particle drew; meaningful where ``active``.
      log_prob: [M], its log p at temperature 1; meaningful where ``active``.
      active: [M] bool, particles that drew a token.
      ess: [], effective sample size when it was checked.
      resampled: [] bool.
    """

    particles: Particles
    parent: jax.Array
    token: jax.Array
    log_prob: jax.Array
    active: jax.Array
    ess: jax.Array
    resampled: jax.Array


class FinalWeights(NamedTuple):
    """What a finished run of one prompt returns besides its tokens.

    Attributes:
      log_weight: [N], normalised; -inf for weight zero.
      log_evidence: [], log Z_hat; meaningless if the sampler has none (``Sampler.has_evidence``).
      choice: [] int32, the drawn particle, an index into [N].
      particle_index: [N] int32, where in the population [M] each returned particle is; -1 for an
        unused one.
    """

    log_weight: jax.Array
    log_evidence: jax.Array
    choice: jax.Array
    particle_index: jax.Array


class Sampler(abc.ABC):
    """A method with its settings, checked when it is made: the base of all samplers.

    Attributes:
      runs_as_chains: True if it revises whole sequences on a schedule. The model must then be able
        to rewind sequences, and prompts cannot be streamed. False for a ``Kernel``.
      has_evidence: whether it estimates the target's normaliser, and so returns weighted particles.
        Without evidence, particles have equal weights and ``log_evidence`` is NaN in results.
      num_particles: N, the sequences that each prompt decodes at a time and returns.
    """

    runs_as_chains: ClassVar[bool] = False
    has_evidence: ClassVar[bool] = True
    num_particles: int

    def check(self, max_new_tokens: int) -> None:  # noqa: B027
        """Raises ValueError if the settings do not suit a cap of T = ``max_new_tokens``."""

    @property
    def typical_rows(self) -> float:
        """Distinct prefixes per step among the N particles, about; for planning memory."""
        return self.num_particles

    def token_temperature(self, alpha: float) -> float:
        """The temperature at which tokens are drawn, after any ramp; 1/alpha unless set."""
        return 1 / alpha


class Kernel(Sampler):
    """A sampler that advances N particles one token at a time.

    A subclass is a frozen dataclass that names its static fields in ``STATIC``: what fixes shapes
    or the algorithm itself. The other fields are numbers, the leaves of a pytree: Python numbers as
    declared, and arrays in a compiled program (``traced``), so changing one recompiles nothing.
    """

    STATIC: ClassVar[tuple[str, ...]] = ()
    # Whether no two running particles ever have the same prefix.
    all_distinct: ClassVar[bool] = False

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
        numbers, (names, static) = _flatten(self)
        types = {field.name: field.type for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        real = jnp.result_type(float)
        arrays = [
            None if x is None else jnp.asarray(x, jnp.int32 if types[name] is int else real)
            for name, x in zip(names, numbers, strict=True)
        ]
        return _unflatten(type(self), (names, static), arrays)

    def start(self, dtype: jnp.dtype) -> Particles:
        """The population before the first step: M empty sequences of equal weight."""
        return start(self.population_size, dtype)

    def exponent(self, target: TargetArrays, step: jax.Array) -> jax.Array:
        """The exponent a_t of the distributions that tokens are drawn from."""
        del step
        return target.alpha

    @abc.abstractmethod
    def tables(self, logits: Logits, rows: RowTargets) -> Any:
        """What a step needs of each prefix, whatever particles share it.

        Args:
          logits: [R, V] of the next token of R prefixes, in the dtype of the weights.
          rows: what is asked of that token.

        Returns:
          A pytree with leaves [R, ...], whose ``is_bad`` [R] bool says that the logits are invalid.
        """

    @abc.abstractmethod
    def advance(
        self,
        target: TargetArrays,
        particles: Particles,
        row: jax.Array,
        tables: Any,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """One step of one prompt: which particle continues which, and with what token.

        Args:
          target: the prompt's target.
          particles: the population.
          row: [N] int32, where in the tables the prefix of each running particle is; any valid
            index for the others.
          tables: of ``tables``.
          uniforms: all the randomness of the step, by particle.
          step: [] int32, t.
        """

    def step(
        self,
        target: TargetArrays,
        particles: Particles,
        logits: Logits,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """``advance`` where every particle has a prefix of its own.

        logits [N, V], ends [N or 1, V]; ``uniforms`` is all the randomness of the step, ``step``
        [] int32 is t.
        """
        exponent = jnp.broadcast_to(self.exponent(target, step), (self.num_particles,))
        rows = RowTargets(exponent, ends, support(logits, target, ends, step))
        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        return self.advance(target, particles, own, self.tables(logits, rows), uniforms, step)

    @abc.abstractmethod
    def finish(
        self, target: TargetArrays, particles: Particles, uniforms: jax.Array
    ) -> FinalWeights:
        """Final weights and the particle drawn; uniforms [2], one for the draw, one to spare."""


# The names of the numbers; the static fields by name.
_Aux = tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]


def _flatten(sampler: Kernel) -> tuple[list[Any], _Aux]:
    fields = vars(sampler)
    names = tuple(name for name in fields if name not in sampler.STATIC)
    static = tuple((name, fields[name]) for name in sampler.STATIC)
    return [fields[name] for name in names], (names, static)


def _unflatten(cls: Any, aux: _Aux, numbers: Iterable[Any]) -> Any:
    # Not through __init__, which checks values: a tracer has none.
    names, static = aux
    sampler = object.__new__(cls)
    vars(sampler).update(static, **dict(zip(names, numbers, strict=True)))
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


def reorder(particles: Particles, parent: jax.Array) -> Particles:
    """Every particle takes over the sequence of its parent [M] int32; weights stay in place."""
    return particles._replace(
        log_prob=particles.log_prob[parent],
        ended=particles.ended[parent],
        finished=particles.finished[parent],
        length=particles.length[parent],
    )


def extend(
    particles: Particles, token_log_prob: jax.Array, active: jax.Array, ends: jax.Array
) -> Particles:
    """The active particles grow by one token; weights stay as they are.

    Args:
      particles: the population, in the order of the tokens.
      token_log_prob: [M], log p(token | prefix) at temperature 1; read where active.
      active: [M] bool.
      ends: [M] bool, whether the token ends the sequence; read where active.
    """
    ends = active & ends
    log_prob = particles.log_prob
    return particles._replace(
        log_prob=jnp.where(active, log_prob + token_log_prob, log_prob),
        ended=particles.ended | ends,
        finished=particles.finished | ends,
        length=particles.length + active.astype(jnp.int32),
        drawn=particles.drawn + jnp.sum(active, dtype=jnp.int32),
    )


def final_weights(
    log_weight: jax.Array,
    log_evidence: jax.Array,
    uniform: jax.Array,
    particle_index: jax.Array | None = None,
) -> FinalWeights:
    """Normalises the weights (docs/math.md, eq. 42) and draws one particle by its weight.

    Args:
      log_weight: [N].
      log_evidence: [], log of what was divided out of the weights so far.
      uniform: [] in [0, 1), for the draw.
      particle_index: [N] int32, see ``FinalWeights``; None for the population in its order.
    """
    log_weight, log_evidence = weights.renormalize(log_weight, log_evidence)
    choice = inverse_cdf.invert(jnp.exp(log_weight), uniform[None])[0]
    if particle_index is None:
        particle_index = jnp.arange(log_weight.shape[0], dtype=jnp.int32)
    return FinalWeights(log_weight, log_evidence, choice, particle_index)
