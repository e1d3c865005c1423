"""A loaded model saved as it is: an Orbax checkpoint beside the model's other files.

The parameters keep their layout and their dtype, so that nothing is transposed on the way back.
"""

import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.models.checkpoints.checkpoint import refuse_misfits, refuse_not_finite
from jax_power_smc.models.checkpoints.placement import dotted, resolve_shardings
from jax_power_smc.models.transformer.config import CheckpointError, TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM

if TYPE_CHECKING:
    from jax_power_smc.models.checkpoints.load import LoadedModel

# The Orbax checkpoint in the directory.
PARAMS = "params.orbax"
# Bytes that are read at a time: a device that holds a slice reads little more than it.
CHUNK = 2**24
# What else a model is loaded from, if it is there.
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def is_saved(directory: pathlib.Path) -> bool:
    """Whether ``save`` wrote the directory."""
    return (directory / PARAMS).is_dir()


def save(directory: str | os.PathLike[str], loaded: "LoadedModel") -> None:
    """Saves a model so that ``load(directory)`` gives it back.

    The directory appears complete or not at all. One process must hold all parameters.

    Args:
      directory: a new or an empty one.
      loaded: its parameters are saved, and copies of the files that it was loaded with.

    Raises:
      CheckpointError: if the directory is there and not empty, or if the model's own files are no
        longer where it was loaded from.
    """
    import orbax.checkpoint as ocp  # here: it takes a second

    target = pathlib.Path(directory).expanduser().absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target} is there already; a model is saved to a new directory.")
    if not (loaded.directory / "config.json").is_file():
        raise CheckpointError(
            f"{loaded.directory}, where the model was loaded from, has no config.json any more."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        partial = pathlib.Path(scratch) / target.name
        partial.mkdir()
        for name in FILES:
            if (loaded.directory / name).is_file():
                shutil.copyfile(loaded.directory / name, partial / name)
        arrays = {dotted(path): leaf[...] for path, leaf in nnx.to_flat_state(loaded.params)}
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), arrays)
        with _checkpointer() as checkpointer:
            checkpointer.save(partial / PARAMS, args=ocp.args.PyTreeSave(arrays, chunks))
        partial.replace(target)


def load_params(
    directory: pathlib.Path,
    config: TransformerConfig,
    dtype: Any = jnp.float32,
    shardings: Any = None,
) -> nnx.State:
    """Reads the parameters that ``save`` wrote, each shard by itself.

    Args:
      directory: that of ``save``.
      config: what the parameters must fit.
      dtype: the dtype to convert to.
      shardings: where the parameters go, see ``placement.resolve_shardings``.

    Raises:
      ValueError: for shardings that do not fit.
      CheckpointError: naming all missing, misshaped and unexpected parameters, or all that are not
        finite in this dtype; or if the checkpoint cannot be read.
    """
    import orbax.checkpoint as ocp  # as above

    state = nnx.state(TransformerLM(config, dtype).abstract_module())
    places = resolve_shardings(shardings, state)
    default = jnp.zeros(()).sharding
    wanted = {
        dotted(path): jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=places[path] or default)
        for path, leaf in nnx.to_flat_state(state)
    }
    path = directory.absolute() / PARAMS
    try:
        with _checkpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata.tree
            refuse_misfits(directory, _misfits(stored, wanted))
            arrays: dict[str, jax.Array] = {}
            for part in _parts(wanted):
                how = ocp.checkpoint_utils.construct_restore_args(part)
                args = ocp.args.PyTreeRestore(part, how, partial_restore=True)
                arrays |= checkpointer.restore(path, args=args)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises many kinds for a broken checkpoint
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a readable checkpoint ({reason}).") from error
    broken = [name for name, array in arrays.items() if not _is_finite(array)]
    refuse_not_finite(directory, broken, dtype)
    filled = [(path, leaf.replace(arrays[dotted(path)])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.from_flat_state(filled)


def _misfits(stored: dict[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]) -> list[str]:
    """What is wrong with the stored arrays, by their names and shapes."""
    problems = [f"unexpected {name}" for name in stored if name not in wanted]
    for name, leaf in wanted.items():
        if name not in stored:
            problems.append(f"missing {name}")
        elif tuple(stored[name].shape) != leaf.shape:
            problems.append(f"{name} has shape {tuple(stored[name].shape)}, expected {leaf.shape}")
    return problems


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    # Not compressed: weights shrink by a fifth, and it takes longer than to read them.
    return ocp.PyTreeCheckpointer(use_compression=False)


def _parts(wanted: dict[str, jax.ShapeDtypeStruct]) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
    """What is restored together: no more than the largest takes, for it passes through the host."""
    sizes = {name: math.prod(leaf.shape) for name, leaf in wanted.items()}
    part: dict[str, jax.ShapeDtypeStruct] = {}
    total = 0
    for name, leaf in wanted.items():
        if part and total + sizes[name] > max(sizes.values()):
            yield part
            part, total = {}, 0
        part[name] = leaf
        total += sizes[name]
    yield part


def _is_finite(array: jax.Array) -> bool:
    """Shard by shard: many reductions across devices at a time can lock each other out on CPUs."""
    shards = {str(shard.index): shard.data for shard in array.addressable_shards}
    return all(bool(_all_finite(data)) for data in shards.values())


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    # Zero times infinity or NaN is NaN. Four times as quick on CPUs as jnp.isfinite(array).all(); a
    # maximum would lose NaN there.
    return jnp.sum(array * 0, dtype=jnp.float32) == 0
