"""Programs that lack one part of the engine's, to measure what the part costs.

Their output is useless; only their time matters.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.types import Cache, Context, Params
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.base import Particles, StepResult
from jax_power_smc.samplers.power_smc import PowerSMC
from jax_power_smc.targets.power import TargetArrays

# Number of stored logits that are replayed instead of running the model.
REPLAYED = 64
# ESS / N = exp(-sigma^2) for weights exp(sigma z): 0.66 N.
SPREAD = 0.645


class AblatedParams(NamedTuple):
    """Parameters of ``AblatedModel``.

    Attributes:
      params: of the model.
      scale: [], a factor of the logits.
      replayed: [REPLAYED, V], logits to use instead of running the model.
    """

    params: Params
    scale: jax.Array
    replayed: jax.Array


@dataclasses.dataclass(frozen=True)
class AblatedModel:
    """A language model without some of its parts.

    Attributes:
      model: the complete one. It must have ``move`` and ``grow``.
      runs: if false, its logits are replayed instead.
      moves: if false, its cache rows stay in place when particles fork.
    """

    model: Any
    runs: bool = True
    moves: bool = True

    @property
    def vocab_size(self) -> int:
        return int(self.model.vocab_size)

    @property
    def max_positions(self) -> int | None:
        return getattr(self.model, "max_positions", None)

    def params(self, params: Params, prompt: jax.Array, scale: float = 1.0) -> AblatedParams:
        """Parameters; the replayed logits follow the first tokens of a prompt [S]."""
        single = jax.jit(self.model.prefill)
        one = jnp.ones((), jnp.int32)
        tokens = jnp.resize(prompt, (REPLAYED,))
        logits = jnp.stack([single(params, tokens[i : i + 1], one)[0] for i in range(REPLAYED)])
        return AblatedParams(params, jnp.asarray(scale, logits.dtype), logits)

    def prefill(
        self, params: AblatedParams, prompt: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, Context]:
        logits, context = self.model.prefill(params.params, prompt, length)
        return logits * params.scale, context

    def init_cache(self, params: AblatedParams, num_particles: int, capacity: int) -> Cache:
        return self.model.init_cache(params.params, num_particles, capacity)

    def decode(
        self,
        params: AblatedParams,
        context: Context,
        cache: Cache,
        token: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        if self.runs:
            logits, cache = self.model.decode(params.params, context, cache, token, step, clock)
        else:
            logits = params.replayed[jnp.mod(token + step, REPLAYED)]
        return logits * params.scale, cache

    def move(
        self,
        cache: Cache,
        source: jax.Array,
        destination: jax.Array,
        step: jax.Array,
        clock: jax.Array,
    ) -> Cache:
        return self.model.move(cache, source, destination, step, clock) if self.moves else cache

    def grow(self, cache: Cache, capacity: int, clock: jax.Array) -> Cache:
        return self.model.grow(cache, capacity, clock)


@dataclasses.dataclass(frozen=True)
class ForcedResampling(PowerSMC):
    """Power-SMC with noise in the weights, which resamples at steps of our choice.

    Attributes:
      spread: standard deviation of the noise that a step adds to the log weights.
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
        """A step of Power-SMC after noise has been added to the log weights."""
        noise = jax.scipy.special.ndtri(jnp.clip(uniforms.token[:, 1], 1e-6, 1 - 1e-6))
        noisy = particles._replace(log_weight=particles.log_weight + self.spread * noise)
        return super().step(target, noisy, logits, ends, uniforms, step)


def step_bytes(
    model: Any, params: Params, prompt_tokens: int, own_tokens: float, num: int
) -> float:
    """Bytes that any program must read and write in a step of one prompt.

    All weights once (except an embedding that is not also the head, of which only a few rows are
    read), keys and values of the prompt once, those of each particle's tokens, and the new ones.
    """

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    weights = size(params)
    if not model.config.tied_embeddings:
        weights -= size(params["embedding"])
    cache = size(jax.eval_shape(lambda p: model.init_cache(p, 1, 1), params))
    return weights + cache * (prompt_tokens + num * (own_tokens + 1))
