"""A roofline for the decode step: least seconds by a device's bandwidth and arithmetic rate.

See docs/math.md, eq. 39.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jax_power_smc.core import checks
from jax_power_smc.models.checkpoints.weight_map import weight_map
from jax_power_smc.models.transformer.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator's peak rates.

    Attributes:
      name: for tables.
      bandwidth_bytes_per_s: of its main memory.
      flops_per_s: of matrix products in the model's dtype; a multiply-add counts as two.

    Raises:
      ValueError: if a rate is not a positive number.
    """

    name: str
    bandwidth_bytes_per_s: float
    flops_per_s: float

    def __post_init__(self) -> None:
        for name in ("bandwidth_bytes_per_s", "flops_per_s"):
            checks.settle(self, **{name: checks.number(name, getattr(self, name), above=0)})


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """The memory traffic and arithmetic of one decode step.

    Attributes:
      weight_bytes: read once per step, whatever the number of sequences.
      parameters: number of parameters used in the step; each costs two operations per sequence.
      kv_bytes_per_token: bytes of keys and values per token of context.

    Raises:
      ValueError: if any of them is not a positive number.
    """

    weight_bytes: float
    parameters: float
    kv_bytes_per_token: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checks.number(field.name, getattr(self, field.name), above=0)
            checks.settle(self, **{field.name: value})

    @classmethod
    def from_config(cls, config: TransformerConfig, dtype: Any) -> "ModelCost":
        """The cost of a transformer whose parameters and cache have this dtype.

        An embedding that is not tied to the head is left out: a step reads only N of its vectors.
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
    """t(N), the least time of one decode step of N sequences, bound by memory or by arithmetic.

        max((weights + (shared + N context) kv) / bandwidth, 2 parameters N / flops)

    This is a lower bound: it leaves out attention's arithmetic, the draw, activations and launches.

    Args:
      num_particles: N.
      model, device: the work and the rates.
      context: tokens of context that each sequence reads separately; for a whole run use the mean,
        about T/2.
      shared_context: tokens of context that are read once for all sequences: the prompt, if the
        attention shares it. If not, add it to ``context``.

    Raises:
      ValueError: for a value outside its range.
    """
    num_particles = checks.integer("num_particles", num_particles, at_least=1)
    shared = checks.number("shared_context", shared_context, at_least=0)
    tokens = shared + num_particles * checks.number("context", context, at_least=0)
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

    Arguments and errors are those of ``step_seconds``.
    """
    num_particles = checks.integer("num_particles", num_particles, at_least=1)
    batched = step_seconds(num_particles, model, device, context, shared_context)
    return num_particles * step_seconds(1, model, device, context, shared_context) / batched
