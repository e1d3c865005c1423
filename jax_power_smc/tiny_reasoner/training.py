"""Training the tiny reasoner: loss, optimizer, step.

Shapes: B batch size, S padded length, V vocabulary size.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jax_power_smc.core import checks, prng
from jax_power_smc.core.types import Params
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import Transformer
from jax_power_smc.tiny_reasoner.batches import Batch

# Roughly the loss tokens of an example; only the scale of the clipped gradient depends on it.
TYPICAL_TOKENS = 128

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with gradient clipping, linear warm-up and cosine decay.

    Attributes:
      steps: length of the schedule.
      learning_rate: peak learning rate.
      warmup_steps: steps until the peak.
      final_share: the final learning rate as a fraction of the peak.
      weight_decay: AdamW's coefficient, applied to matrices only.
      b2: decay rate of the second moment.
      clip_norm: largest global norm of the gradient.
    """

    steps: int
    learning_rate: float = 3e-3
    warmup_steps: int = 300
    final_share: float = 0.02
    weight_decay: float = 0.1
    b2: float = 0.98
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        checks.integer("steps", self.steps, at_least=1)
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; it must be at least 0 and less than "
                f"steps, which is {self.steps}."
            )
        checks.number("b2", self.b2, above=0, below=1)
        for name in ("learning_rate", "clip_norm"):
            checks.number(name, getattr(self, name), above=0)
        for name in ("final_share", "weight_decay"):
            checks.number(name, getattr(self, name), at_least=0)


class TrainState(NamedTuple):
    """The state that a training step updates: float32 parameters, and the optimizer's state."""

    params: nnx.State
    opt_state: optax.OptState


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer that ``config`` describes."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
        end_value=config.final_share * config.learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay, mask=_decayed),
    )


def _decayed(params: Params) -> Any:
    """True for matrices, including those with separate head axes; False for norms and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and "_bias" not in jax.tree_util.keystr(path), params
    )


def init_state(
    model: TransformerConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Random float32 parameters and a fresh optimizer state."""
    params = nnx.state(Transformer(model, rngs=nnx.Rngs(prng.seed_key(seed))))
    return TrainState(params, optimizer.init(params))


def make_train_step(
    model: TransformerConfig, optimizer: optax.GradientTransformation, compute_dtype: str
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Returns the jitted step, (state, batch) -> (state, mean loss []), which donates the state.

    Parameters are cast to ``compute_dtype``, "float32" or "bfloat16", for the forward pass only;
    they, gradients and moments remain float32. Any other is a ValueError.
    """
    loss_sum = _make_loss_sum(model, compute_dtype)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        count = jnp.sum(batch.loss_mask, dtype=jnp.float32)
        # A batch has examples of similar length. Dividing by its own count would weigh a token of
        # a short solution more than one of a long solution.
        scale = jnp.float32(batch.inputs.shape[0] * TYPICAL_TOKENS)
        loss, gradient = jax.value_and_grad(lambda p: loss_sum(p, batch) / scale)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = TrainState(optax.apply_updates(state.params, updates), opt_state)
        return state, loss * scale / count

    return jax.jit(step, donate_argnums=0)


def make_evaluate(
    model: TransformerConfig, compute_dtype: str
) -> Callable[[nnx.State, Sequence[Batch]], float]:
    """Returns the held-out loss, (params, batches) -> mean in nats over all loss tokens."""
    loss_sum = jax.jit(_make_loss_sum(model, compute_dtype))

    def evaluate(params: nnx.State, batches: Sequence[Batch]) -> float:
        total = sum(float(loss_sum(params, batch)) for batch in batches)
        return total / sum(int(batch.loss_mask.sum()) for batch in batches)

    return evaluate


def _make_loss_sum(
    model: TransformerConfig, compute_dtype: str
) -> Callable[[nnx.State, Batch], jax.Array]:
    checks.one_of("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    dtype = COMPUTE_DTYPES[compute_dtype]
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0))))

    def loss_sum(params: nnx.State, batch: Batch) -> jax.Array:
        module = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(dtype), params))
        logits = module(batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return jnp.sum(jnp.where(batch.loss_mask, losses, jnp.float32(0.0)))

    return loss_sum
