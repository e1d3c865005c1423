"""Checkpoints in Hugging Face format: safetensors in and out, by the table of ``tensors``."""

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.flax import save

from jax_power_smc.models.config import CheckpointError, TransformerConfig
from jax_power_smc.models.hf_config import config_to_hf
from jax_power_smc.models.tensors import Entry, tensor_table
from jax_power_smc.models.transformer import TransformerLM

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The safetensors names of what may be converted to the model's dtype; integers of a quantised
# checkpoint would convert too, into nonsense.
FLOATS = ("F64", "F32", "F16", "BF16")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def load_params(
    directory: str | os.PathLike[str], config: TransformerConfig, dtype: Any = jnp.float32
) -> nnx.State:
    """Reads the weights of a directory in Hugging Face format.

    Args:
      directory: holds model.safetensors, or shards with model.safetensors.index.json.
      config: what the weights must fit.
      dtype: the dtype to convert to.

    Returns:
      The parameters of ``TransformerLM(config, dtype)``.

    Raises:
      CheckpointError: naming all missing, misshaped, unexpected and repeated tensors at once, or
        the file that cannot be read.
    """
    root = pathlib.Path(directory)
    table = {entry.name: entry for entry in tensor_table(config)}
    arrays: dict[tuple[Any, ...], jax.Array] = {}
    seen: set[str] = set()
    problems: list[str] = []
    for file in _weight_files(root):
        try:
            with safe_open(file, framework="flax") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    problem = _misfit(name, tensors.get_slice(name), table, seen, config)
                    if problem is not None:
                        problems.append(problem)
                    elif name in table:
                        entry = table[name]
                        array = entry.from_file(tensors.get_tensor(name))
                        arrays[entry.path] = array.astype(dtype)
                    seen.add(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is not a readable safetensors file ({error})."
            ) from error
    problems += [f"missing {name}" for name in table if name not in seen]
    if problems:
        raise CheckpointError(
            f"the weights in {root} do not fit its config.json: {'; '.join(problems)}."
        )
    state = nnx.state(TransformerLM(config, dtype).abstract_module())
    filled = [(path, leaf.replace(arrays[path])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.from_flat_state(filled)


def save_pretrained(
    directory: str | os.PathLike[str],
    config: TransformerConfig,
    params: nnx.State,
    *,
    eos_ids: tuple[int, ...],
    bos_id: int | None = None,
) -> None:
    """Writes config.json, generation_config.json and model.safetensors.

    The weights are written beside the old ones and renamed, so that a reader never sees half.
    """
    root = pathlib.Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    flat = {path: leaf[...] for path, leaf in nnx.to_flat_state(params)}
    tensors = {entry.name: entry.to_file(flat[entry.path]) for entry in tensor_table(config)}
    some = next(iter(tensors.values()))
    ids = {"eos_token_id": list(eos_ids) if len(eos_ids) != 1 else eos_ids[0]}
    if bos_id is not None:
        ids["bos_token_id"] = bos_id
    _write_json(root / "config.json", config_to_hf(config, dtype=str(some.dtype), **ids))
    _write_json(root / "generation_config.json", ids)
    partial = root / f"{WEIGHTS}.tmp"
    # Written by Python: the library's own writer makes a file that only its owner may read.
    partial.write_bytes(save(tensors, metadata={"format": "pt"}))
    partial.replace(root / WEIGHTS)


def _misfit(
    name: str, header: Any, table: dict[str, Entry], seen: set[str], config: TransformerConfig
) -> str | None:
    """What is wrong with a tensor of the file, by its name, shape and dtype."""
    entry = table.get(name)
    if entry is None:
        return None if _ignorable(name, config) else f"unexpected {name}"
    shape = tuple(header.get_shape())
    if name in seen:
        return f"{name} is there twice"
    if shape != entry.file_shape:
        return f"{name} has shape {shape}, expected {entry.file_shape}"
    if header.get_dtype() not in FLOATS:
        return f"{name} has dtype {header.get_dtype()}, expected one of {', '.join(FLOATS)}"
    return None


def _weight_files(root: pathlib.Path) -> list[pathlib.Path]:
    if (root / WEIGHTS).is_file():
        return [root / WEIGHTS]
    if not (root / INDEX).is_file():
        pickles = sorted(path.name for path in root.iterdir() if path.suffix in PICKLES)
        hint = f"; {', '.join(pickles)} is a pickle, which is never loaded" if pickles else ""
        raise CheckpointError(f"{root} has neither {WEIGHTS} nor {INDEX}{hint}.")
    try:
        names = sorted(set(json.loads((root / INDEX).read_text("utf-8"))["weight_map"].values()))
        files = [root / name for name in names]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{root / INDEX} is not a safetensors index ({error!r}).") from error
    missing = [name for name, file in zip(names, files, strict=True) if not file.is_file()]
    if missing:
        raise CheckpointError(f"{root / INDEX} names {', '.join(missing)}, which is not there.")
    return files


def _ignorable(name: str, config: TransformerConfig) -> bool:
    """Tensors that old exports carry and that hold nothing of the model's own."""
    tied_copy = config.tied_embeddings and name == "lm_head.weight"
    return tied_copy or name.endswith("rotary_emb.inv_freq")


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
