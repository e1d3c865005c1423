"""A roofline of the decode step: seconds by the bandwidth and the arithmetic of a device."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jax_power_smc.models.checkpoints.weight_map import weight_map
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.theory.cost_model import _particles, _positive, _tokens


@dataclasses.dataclass(frozen=True)
class Device:
    """What an accelerator can do at best.

    Attributes:
      name: for tables.
      bandwidth_bytes_per_s: of its main memory.
      flops_per_s: of matrix products in the dtype that is used; a multiplication and an addition
        are two.

    Raises:
      ValueError: if a rate is not a positive number.
    """

    name: str
    bandwidth_bytes_per_s: float
    flops_per_s: float

    def __post_init__(self) -> None:
        for name in ("bandwidth_bytes_per_s", "flops_per_s"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """What one decode step asks of the device.

    Attributes:
      weight_bytes: read once per step, however many sequences there are.
      parameters: that take part in the step; each costs two operations per sequence.
      kv_bytes_per_token: of keys and values, for each token of context.

    Raises:
      ValueError: if one of them is not a positive number.
    """

    weight_bytes: float
    parameters: float
    kv_bytes_per_token: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _positive(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    @classmethod
    def from_config(cls, config: TransformerConfig, dtype: Any) -> "ModelCost":
        """The cost of a transformer whose parameters and cache have this dtype.

        An embedding that is not also the head is left out: a step reads N of its rows.
        """
        sizes = {entry.path: math.prod(entry.shape) for entry in weight_map(config)}
        parameters = sum(sizes.values())
        if not config.tied_embeddings:
            parameters -= sizes["embedding",]
        key_value = config.num_kv_heads * config.head_dim
        size = jnp.dtype(dtype).itemsize
        return cls(
            weight_bytes=float(parameters * size),
            parameters=float(parameters),
            kv_bytes_per_token=float(2 * config.num_layers * key_value * size),
        )


def step_seconds(
    num_particles: int,
    model: ModelCost,
    device: Device,
    context: float,
    shared_context: float = 0.0,
) -> float:
    """t(N), the least time of one decode step of N sequences: bound by memory or by arithmetic.

        max((weights + (shared + N context) kv) / bandwidth, 2 parameters N / flops)

    A lower bound. Operations of attention, the draw, activations and launches are left out.

    Args:
      num_particles: N.
      model, device: what is asked and what can be done.
      context: tokens of context that each sequence reads for itself; over a whole run take the
        mean, about T/2.
      shared_context: tokens of context read once for all sequences: the prompt, where the
        attention shares it. An attention that does not has it in ``context``.

    Raises:
      ValueError: for a value outside its range.
    """
    num_particles = _particles(num_particles)
    tokens = _tokens("shared_context", shared_context) + num_particles * _tokens("context", context)
    moved = model.weight_bytes + tokens * model.kv_bytes_per_token
    operations = 2 * model.parameters * num_particles
    return max(moved / device.bandwidth_bytes_per_s, operations / device.flops_per_s)


def batched_gain(
    num_particles: int,
    model: ModelCost,
    device: Device,
    context: float,
    shared_context: float = 0.0,
) -> float:
    """``s(N) = N t(1) / t(N)``, between 1 and N: the throughput gain of decoding N at once.

    Args:
      num_particles, model, device, context, shared_context: as in ``step_seconds``.

    Raises:
      ValueError: for a value outside its range.
    """
    num_particles = _particles(num_particles)
    batched = step_seconds(num_particles, model, device, context, shared_context)
    return num_particles * step_seconds(1, model, device, context, shared_context) / batched
