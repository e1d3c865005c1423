"""Tensor parallelism: how the parameters are sharded over a mesh, and what a device needs to know.

A mesh has the axes "data" (prompts) and "model" (heads, MLP, vocabulary); particles are always
local. Each of the m devices along "model" holds K/m key/value heads with their query heads, F/m
columns of the MLP and V/m rows of the vocabulary. Inside ``shard_map`` it computes with those
alone; two sums over the group per layer, after the last product of attention and of the MLP, make
the residual stream equal on all of them again.

Letters: m devices of a group, K key/value heads, F MLP width, V vocabulary, D hidden size.
"""

import dataclasses
import re
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_power_smc.core.mesh import MODEL
from jax_power_smc.core.vocab_sharding import UNSHARDED, VocabSharding, can_shard
from jax_power_smc.models.transformer.config import TransformerConfig

# The path of a parameter, such as ("layers", 0, "attention", "query").
ParamPath: TypeAlias = tuple[Any, ...]

# The first pattern found in a parameter's path gives the mesh axes of its leading axes.
# "vocabulary" and "heads" become "model" or None, see ``spec``.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"^(embedding|head)$", ("vocabulary",)),
    (r"attention\.(query|key|value)$", (None, MODEL)),
    (r"attention\.(query|key|value)_bias$", (MODEL,)),
    (r"attention\.(query|key)_norm\.scale$", ("heads",)),
    (r"attention\.out$", (MODEL,)),
    (r"\.(gate|up)$", (None, MODEL)),
    (r"\.down$", (MODEL,)),
    (r"", ()),
)


@dataclasses.dataclass(frozen=True)
class TensorParallel:
    """How a model is sharded over a group of devices.

    Attributes:
      size: m; 1 for one device, without communication.
      shards_vocabulary: whether the vocabulary is sharded too, or replicated.
    """

    size: int = 1
    shards_vocabulary: bool = False

    @classmethod
    def for_config(cls, config: TransformerConfig, size: int) -> "TensorParallel":
        """How a model of this config is sharded over ``size`` devices.

        Raises:
          ValueError: if its key/value heads or its MLP cannot be split into that many equal parts.
        """
        if size == 1:
            return UNSHARDED_MODEL
        for what, number in (
            ("key/value heads", config.num_kv_heads),
            ("columns of the MLP", config.mlp_size),
        ):
            if number % size:
                raise ValueError(
                    f"the mesh has {size} devices on its axis {MODEL!r}, which do not divide the "
                    f"model's {number} {what}."
                )
        return cls(size, can_shard(config.vocab_size, size))

    @property
    def vocabulary(self) -> VocabSharding:
        """How the vocabulary axis of the logits is sharded."""
        return VocabSharding(MODEL, self.size) if self.shards_vocabulary else UNSHARDED

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum of ``x`` over the devices of the group."""
        return x if self.size == 1 else jax.lax.psum(x, MODEL)


UNSHARDED_MODEL = TensorParallel()


def spec(path: ParamPath, config: TransformerConfig, parallel: TensorParallel) -> PartitionSpec:
    """How one parameter is sharded over the mesh."""
    if parallel.size == 1:
        return PartitionSpec()
    axes = next(axes for pattern, axes in RULES if re.search(pattern, dotted(path)))
    special = {
        "vocabulary": MODEL if parallel.shards_vocabulary else None,
        # A norm over each head has one scale, shared by all heads.
        "heads": MODEL if config.of_family.qk_norm == "all" else None,
    }
    return PartitionSpec(*(special.get(axis, axis) if axis else None for axis in axes))


def dotted(path: ParamPath) -> str:
    """The path as a dotted name."""
    return ".".join(map(str, path))


def sharding(path: ParamPath, config: TransformerConfig, mesh: Mesh) -> NamedSharding:
    """The sharding of one parameter on a mesh."""
    parallel = TensorParallel.for_config(config, mesh.shape[MODEL])
    return NamedSharding(mesh, spec(path, config, parallel))
