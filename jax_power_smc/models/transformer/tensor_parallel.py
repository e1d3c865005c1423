"""Tensor parallelism: where the parameters lie on a mesh, and what a device must know of it.

A mesh has the axes "data" (prompts) and "model" (heads, MLP, vocabulary); particles are always
local. Every device of a "model" group holds K/m key/value heads with their query heads, F/m columns
of the MLP and V/m rows of the vocabulary. Inside ``shard_map`` it computes with those alone; two
sums over the group per layer, after the attention's and the MLP's last product, make the stream the
same on all of them again.

Letters: m devices of a group, K key/value heads, F MLP width, V vocabulary, D hidden size.
"""

import dataclasses
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_power_smc.core.mesh import MODEL
from jax_power_smc.core.vocab_sharding import UNSHARDED, VocabSharding, can_shard
from jax_power_smc.models.checkpoints.placement import Path, dotted
from jax_power_smc.models.transformer.config import TransformerConfig

# The first pattern that is found in a parameter's path says how its leading axes are cut; the
# vocabulary only where ``can_shard``.
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
    """How a model is spread over a group of devices.

    Attributes:
      size: m; 1 for one device, on which nothing is exchanged.
      cuts_vocabulary: whether the vocabulary is cut too, or whole on every device.
    """

    size: int = 1
    shards_vocabulary: bool = False

    @property
    def vocabulary(self) -> VocabSharding:
        """For the samplers."""
        return VocabSharding(MODEL, self.size) if self.shards_vocabulary else UNSHARDED

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum of what the devices of the group have."""
        return x if self.size == 1 else jax.lax.psum(x, MODEL)


UNSHARDED_MODEL = TensorParallel()


def spread(config: TransformerConfig, size: int) -> TensorParallel:
    """How a model of this config is spread over ``size`` devices.

    Raises:
      ValueError: if its heads or the width of its MLP cannot be cut into so many equal parts.
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
    return TensorParallel(size, can_shard(config.vocab_size, size))


def spec(path: Path, config: TransformerConfig, how: TensorParallel) -> PartitionSpec:
    """How one parameter is cut over the mesh.

    Args:
      path: such as ("layers", 0, "attention", "query").
      config: of the model.
      how: how the model is spread.
    """
    if how.size == 1:
        return PartitionSpec()
    axes = next(axes for pattern, axes in RULES if re.search(pattern, dotted(path)))
    special = {
        "vocabulary": MODEL if how.shards_vocabulary else None,
        # A norm over each head has one scale for all of them.
        "heads": MODEL if config.of_family.qk_norm == "all" else None,
    }
    return PartitionSpec(*(special.get(axis, axis) if axis else None for axis in axes))


def sharding(path: Path, config: TransformerConfig, mesh: Mesh) -> NamedSharding:
    """Where one parameter lies on a mesh."""
    how = spread(config, mesh.shape[MODEL])
    return NamedSharding(mesh, spec(path, config, how))
