"""Training of the tiny reasoner: loss, optimiser, step.

Letters: B batch size, S padded length, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jax_power_smc.core import prng
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import Transformer
from jax_power_smc.tiny_reasoner.batches import Batch

# Counted tokens of an example, roughly; only the scale of the clipped gradient depends on it.
TYPICAL_TOKENS = 128

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a clipped gradient, a linear warm-up and a cosine to almost nothing.

    Attributes:
      steps: length of the schedule.
      learning_rate: its peak.
      warmup_steps: steps until the peak.
      final_share: the last learning rate as a share of the peak.
      weight_decay: per step and unit of learning rate, of matrices only.
      b2: decay of the second moment.
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
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1.")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; it must be at least 0 and less than "
                f"steps, which is {self.steps}."
            )
        if not 0.0 < self.b2 < 1.0:
            raise ValueError(f"b2 is {self.b2}; it must be between 0 and 1.")
        for name, at_least_zero in (
            ("learning_rate", False),
            ("clip_norm", False),
            ("final_share", True),
            ("weight_decay", True),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and (value > 0 or (at_least_zero and value == 0))):
                bound = "of at least 0" if at_least_zero else "greater than 0"
                raise ValueError(f"{name} is {value}; it must be a finite number {bound}.")


class TrainState(NamedTuple):
    """What training evolves.

    Attributes:
      params: float32 parameters of the ``Transformer``.
      opt_state: state of the optimiser.
    """

    params: nnx.State
    opt_state: optax.OptState


@jax.custom_vjp
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log-likelihood: logits [..., V] float32, targets [...] int32 -> [...].

    The derivative is written out because it is one pass over the logits, ``softmax - one_hot``,
    where automatic differentiation stores the exponentials and scatters.
    """
    return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_sum - picked, (logits, targets, log_sum)


def _cross_entropy_backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
    logits, targets, log_sum = residuals
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    one_hot = (ids == targets[..., None]).astype(logits.dtype)
    return (jnp.exp(logits - log_sum[..., None]) - one_hot) * cotangent[..., None], None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimiser that ``config`` describes."""
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


def _decayed(params: Any) -> Any:
    """True for matrices, also those with head axes apart; False for norm scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and "_bias" not in jax.tree_util.keystr(path), params
    )


def init_state(
    model: TransformerConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Random float32 parameters and a fresh optimiser state."""
    params = nnx.state(Transformer(model, rngs=nnx.Rngs(prng.seed_key(seed))))
    return TrainState(params, optimizer.init(params))


def make_train_step(
    model: TransformerConfig, optimizer: optax.GradientTransformation, compute_dtype: str
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """The jitted step: (state, batch) -> (state, mean loss []). The old state is given up.

    Args:
      model: sizes.
      optimizer: as from ``make_optimizer``.
      compute_dtype: "float32" or "bfloat16", what the parameters are cast to for the forward
        pass; parameters, gradients and moments stay float32.

    Raises:
      ValueError: if ``compute_dtype`` is neither.
    """
    loss_sum = _make_loss_sum(model, compute_dtype)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        count = jnp.sum(batch.loss_mask, dtype=jnp.float32)
        # Batches hold examples of similar length. Dividing by each batch's own count would make
        # a token of a short solution count for more than one of a long solution.
        scale = jnp.float32(batch.inputs.shape[0] * TYPICAL_TOKENS)
        loss, gradient = jax.value_and_grad(lambda p: loss_sum(p, batch) / scale)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = TrainState(optax.apply_updates(state.params, updates), opt_state)
        return state, loss * scale / count

    return jax.jit(step, donate_argnums=0)


def make_evaluate(
    model: TransformerConfig, compute_dtype: str
) -> Callable[[nnx.State, Sequence[Batch]], float]:
    """The held-out loss: (params, batches) -> mean over all loss_mask tokens, in nats."""
    loss_sum = jax.jit(_make_loss_sum(model, compute_dtype))

    def evaluate(params: nnx.State, batches: Sequence[Batch]) -> float:
        total = sum(float(loss_sum(params, batch)) for batch in batches)
        return total / sum(int(batch.loss_mask.sum()) for batch in batches)

    return evaluate


def _make_loss_sum(
    model: TransformerConfig, compute_dtype: str
) -> Callable[[nnx.State, Batch], jax.Array]:
    if compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(
            f"compute_dtype is {compute_dtype!r}; allowed are {', '.join(COMPUTE_DTYPES)}."
        )
    dtype = COMPUTE_DTYPES[compute_dtype]
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0))))

    def loss_sum(params: nnx.State, batch: Batch) -> jax.Array:
        module = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(dtype), params))
        losses = cross_entropy(module(batch.inputs), batch.targets)
        return jnp.sum(jnp.where(batch.loss_mask, losses, jnp.float32(0.0)))

    return loss_sum
