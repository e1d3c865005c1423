"""A loaded model saved for fast restarts: an Orbax checkpoint beside the model's other files.

The parameters are kept as they are laid out here, so that nothing is transposed on the way back.
"""

import os
import pathlib
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_power_smc.models.checkpoint import refuse_misfits, refuse_not_finite
from jax_power_smc.models.config import CheckpointError, TransformerConfig
from jax_power_smc.models.placement import dotted, resolve_shardings
from jax_power_smc.models.transformer import TransformerLM

if TYPE_CHECKING:
    from jax_power_smc.models.load import LoadedModel

# The Orbax checkpoint in the directory.
PARAMS = "params.orbax"
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
    """Saves a model so that ``load(directory)`` gives it back, quicker than from safetensors.

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
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / PARAMS, _by_name(loaded.params))
            checkpointer.wait_until_finished()
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
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata.tree
            refuse_misfits(directory, _misfits(stored, wanted))
            arrays = checkpointer.restore(path, wanted)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises many kinds for a broken checkpoint
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a readable checkpoint ({reason}).") from error
    finite = {name: _all_finite(array) for name, array in arrays.items()}
    refuse_not_finite(directory, [name for name, good in finite.items() if not good], dtype)
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


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def _by_name(params: nnx.State) -> dict[str, jax.Array]:
    """The arrays by their path; the plain form does not tie checkpoints to library classes."""
    return {dotted(path): leaf[...] for path, leaf in nnx.to_flat_state(params)}
