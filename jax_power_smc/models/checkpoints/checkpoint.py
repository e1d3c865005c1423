"""Checkpoints in Hugging Face format: safetensors in and out, by the table of ``tensors``."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.flax import save

from jax_power_smc.core.files import write_json
from jax_power_smc.models.checkpoints import placement
from jax_power_smc.models.checkpoints.hf_config import config_to_hf
from jax_power_smc.models.checkpoints.progress_bar import loading_bar
from jax_power_smc.models.checkpoints.safetensors_index import (
    FLOATS,
    INDEX,
    WEIGHTS,
    StoredTensor,
    read_headers,
)
from jax_power_smc.models.checkpoints.weight_map import Entry, tensor_table
from jax_power_smc.models.transformer.config import CheckpointError, TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load_params(
    directory: str | os.PathLike[str],
    config: TransformerConfig,
    dtype: Any = jnp.float32,
    *,
    shardings: Any = None,
    progress: bool | None = None,
) -> nnx.State:
    """Reads the weights of a directory in Hugging Face format.

    Args:
      directory: holds model.safetensors, or shards with model.safetensors.index.json.
      config: what the weights must fit.
      dtype: the dtype to convert to.
      shardings: where the parameters go, see ``placement.resolve_shardings``; each process reads
        only what its devices hold.
      progress: whether to draw a bar, see ``progress_bar.loading_bar``.

    Returns:
      The parameters of ``TransformerLM(config, dtype)``.

    Raises:
      ValueError: for shardings that do not fit.
      CheckpointError: naming all missing, misshaped, unexpected and repeated tensors at once, or
        the file that cannot be read, before any weight is read; or all tensors whose values are
        not finite in this dtype.
    """
    root = pathlib.Path(directory)
    state = nnx.state(TransformerLM(config, dtype).abstract_module())
    places = placement.resolve_shardings(shardings, state)
    pairs = _match(root, config)
    arrays: dict[placement.Path, jax.Array] = {}
    broken: dict[str, None] = {}  # a set in the order of the file
    total = sum(tensor.size for tensor in {tensor for _, tensor in pairs})
    with loading_bar(total, progress) as advance:
        for entry, tensor in pairs:
            rows = slice(entry.first_row, entry.first_row + entry.file_shape[0])
            view = entry.from_file(tensor.map()[rows])
            place = places[entry.path]
            arrays[entry.path], finite = placement.place(view, jnp.dtype(dtype), place)
            if not finite:
                broken[entry.name] = None
            advance(view.nbytes)
    refuse_not_finite(root, broken, dtype)
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
    parts: dict[str, list[tuple[int, jax.Array]]] = {}
    for entry in tensor_table(config):
        part = entry.first_row, entry.to_file(flat[entry.path])
        parts.setdefault(entry.name, []).append(part)
    tensors = {name: _joined(rows) for name, rows in parts.items()}
    some = next(iter(tensors.values()))
    ids = {"eos_token_id": list(eos_ids) if len(eos_ids) != 1 else eos_ids[0]}
    if bos_id is not None:
        ids["bos_token_id"] = bos_id
    write_json(root / "config.json", config_to_hf(config, dtype=str(some.dtype), **ids))
    write_json(root / "generation_config.json", ids)
    partial = root / f"{WEIGHTS}.tmp"
    # Written by Python: the library's own writer makes a file that only its owner may read.
    partial.write_bytes(save(tensors, metadata={"format": "pt"}))
    partial.replace(root / WEIGHTS)


def refuse_misfits(root: pathlib.Path, problems: Sequence[str]) -> None:
    """Raises one error for all problems, if there are any."""
    if problems:
        raise CheckpointError(
            f"the weights in {root} do not fit its config.json: {'; '.join(problems)}."
        )


def refuse_not_finite(root: pathlib.Path, names: Iterable[str], dtype: Any) -> None:
    """Raises one error for all tensors that hold NaN or infinity, if there are any."""
    if names := list(names):
        raise CheckpointError(
            f"{root} has weights that are NaN or infinite in {jnp.dtype(dtype).name}, in "
            f"{', '.join(names)}."
        )


def _match(root: pathlib.Path, config: TransformerConfig) -> list[tuple[Entry, StoredTensor]]:
    """Every entry of the table with its tensor, in the order of the files.

    Raises:
      CheckpointError: naming everything that does not fit.
    """
    tensors, indexed = read_headers(root)
    table: dict[str, list[Entry]] = {}
    for entry in tensor_table(config):
        table.setdefault(entry.name, []).append(entry)
    problems: list[str] = []
    seen: set[str] = set()
    for tensor in tensors:
        problem = _misfit(tensor, table, seen, config)
        if problem is not None:
            problems.append(problem)
        seen.add(tensor.name)
    held = {(tensor.name, tensor.file.name) for tensor in tensors}
    astray = {name: file for name, file in indexed.items() if (name, file) not in held}
    problems += [
        f"{name} is not in {file}, where {INDEX} places it" for name, file in astray.items()
    ]
    problems += [f"missing {name}" for name in table if name not in seen and name not in astray]
    refuse_misfits(root, problems)
    if config.tied_embeddings and _HEAD in seen:
        refuse_misfits(root, _untied(tensors))
    return [(entry, tensor) for tensor in tensors for entry in table.get(tensor.name, [])]


def _misfit(
    tensor: StoredTensor, table: dict[str, list[Entry]], seen: set[str], config: TransformerConfig
) -> str | None:
    """What is wrong with a tensor of the file, by its name, shape and dtype."""
    name = tensor.name
    if name not in table:
        return None if _ignorable(name, config) else f"unexpected {name}"
    shape = table[name][0].tensor_shape
    if name in seen:
        return f"{name} is there twice"
    if tensor.shape != shape:
        return f"{name} has shape {tensor.shape}, expected {shape}"
    if tensor.dtype not in FLOATS:
        return f"{name} has dtype {tensor.dtype}, expected one of {', '.join(FLOATS)}"
    return None


def _untied(tensors: Sequence[StoredTensor]) -> list[str]:
    """What is wrong if a head beside tied embeddings is not a copy of them."""
    head, embedding = (
        next(tensor for tensor in tensors if tensor.name == name) for name in (_HEAD, _EMBEDDING)
    )
    if (head.shape, head.dtype) == (embedding.shape, embedding.dtype):
        rows = [slice(i, i + 4096) for i in range(0, head.shape[0], 4096)]
        ours, theirs = head.map().view(np.uint8), embedding.map().view(np.uint8)
        if all(np.array_equal(ours[part], theirs[part]) for part in rows):
            return []
    return [
        f"{_HEAD} differs from {_EMBEDDING} and tie_word_embeddings is true (with false the head "
        "is used)"
    ]


def _joined(parts: list[tuple[int, jax.Array]]) -> jax.Array:
    """A tensor from its parts (first row, rows)."""
    if len(parts) == 1:
        return parts[0][1]
    return jnp.concatenate([part for _, part in sorted(parts, key=lambda part: part[0])])


def _ignorable(name: str, config: TransformerConfig) -> bool:
    """Tensors that old exports carry and that hold nothing of the model's own."""
    tied_copy = config.tied_embeddings and name == _HEAD  # see _untied
    return tied_copy or name.endswith("rotary_emb.inv_freq")
