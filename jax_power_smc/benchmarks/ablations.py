"""Programs that differ from the engine's by one part, so that the part can be timed or set.

What they compute is of no use; what they cost tells what the part costs.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.base import Particles, StepResult
from jax_power_smc.samplers.power_smc import PowerSMC
from jax_power_smc.targets.power import TargetArrays

# Different logits that a model which does not run gives in turn.
REPLAYED = 64
# ESS / N = exp(-sigma^2) for weights exp(sigma z): 0.66 N.
SPREAD = 0.645


class AlteredParams(NamedTuple):
    """Parameters of ``AlteredModel``.

    Attributes:
      params: of the model.
      scale: [], what its logits are multiplied by.
      table: [REPLAYED, V], logits of a model that does not run.
    """

    params: Any
    scale: jax.Array
    table: jax.Array


@dataclasses.dataclass(frozen=True)
class AlteredModel:
    """A language model without some of its parts.

    Attributes:
      model: the whole one. It must have ``move`` and ``grow``.
      runs: else its logits are looked up in a table by the token.
      moves: else its cache stays where it is when particles fork.
    """

    model: Any
    runs: bool = True
    moves: bool = True

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.model.vocab_size)

    @property
    def max_positions(self) -> int | None:
        """Of the model."""
        return getattr(self.model, "max_positions", None)

    def params(self, params: Any, prompt: jax.Array, scale: float = 1.0) -> AlteredParams:
        """Parameters; the replayed logits follow the first tokens of a prompt [S]."""
        single = jax.jit(self.model.prefill)
        one = jnp.ones((), jnp.int32)
        tokens = jnp.resize(prompt, (REPLAYED,))
        table = jnp.stack([single(params, tokens[i : i + 1], one)[0] for i in range(REPLAYED)])
        return AlteredParams(params, jnp.asarray(scale, table.dtype), table)

    def prefill(
        self, params: AlteredParams, prompt: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, Any]:
        """As of the model."""
        logits, context = self.model.prefill(params.params, prompt, length)
        return logits * params.scale, context

    def init_cache(self, params: AlteredParams, num_particles: int, capacity: int) -> Any:
        """As of the model."""
        return self.model.init_cache(params.params, num_particles, capacity)

    def decode(
        self,
        params: AlteredParams,
        context: Any,
        cache: Any,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """As of the model, or looked up."""
        if self.runs:
            logits, cache = self.model.decode(params.params, context, cache, token, step, clock)
        else:
            logits = params.table[jnp.mod(token + step, REPLAYED)]
        return logits * params.scale, cache

    def move(
        self,
        cache: Any,
        source: jax.Array,
        destination: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> Any:
        """As of the model, or not at all."""
        return self.model.move(cache, source, destination, step, clock) if self.moves else cache

    def grow(self, cache: Any, capacity: int, clock: jax.Array) -> Any:
        """As of the model."""
        return self.model.grow(cache, capacity, clock)


@dataclasses.dataclass(frozen=True)
class ForcedResampling(PowerSMC):
    """Power-SMC with random weights, so that it resamples when it is told to.

    Attributes:
      spread: standard deviation of a step's noise in the log weights.
    """

    spread: float = 0.0

    @classmethod
    def every(cls, num_particles: int, period: int | None) -> "ForcedResampling":
        """Resamples at every ``period``-th step at an ESS of about 0.66 N, or never (None)."""
        return cls(
            num_particles,
            ess_threshold=1.0 if period else 0.0,
            check_every=period or 1,
            spread=SPREAD * (period or 1) ** -0.5,
        )

    def step(
        self,
        target: TargetArrays,
        particles: Particles,
        logits: Logits,
        ends: jax.Array,
        uniforms: StepUniforms,
        step: jax.Array,
    ) -> StepResult:
        """A step after the weights have been multiplied by noise."""
        noise = jax.scipy.special.ndtri(jnp.clip(uniforms.token[:, 1], 1e-6, 1 - 1e-6))
        noisy = particles._replace(log_weight=particles.log_weight + self.spread * noise)
        return super().step(target, noisy, logits, ends, uniforms, step)


def step_bytes(model: Any, params: Any, prompt_tokens: int, own_tokens: float, num: int) -> float:
    """Bytes that a step of one prompt must read and write, whatever the program.

    All weights once (of the embedding, if it is not the head too, only a few rows), the prompt's
    keys and values once, those of every particle's own tokens, and what is appended.
    """

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    weights = size(params)
    if not model.config.tied_embeddings:
        weights -= size(params["embedding"])
    cache = size(jax.eval_shape(lambda p: model.init_cache(p, 1, 1), params))
    return weights + cache * (prompt_tokens + num * (own_tokens + 1))
