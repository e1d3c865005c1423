"""Parameters of the transformer read from safetensors files, and written to them."""

import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.flax import save

from jax_power_smc.core.files import write_bytes_whole, write_json
from jax_power_smc.core.progress import ProgressDisplay
from jax_power_smc.models.checkpoints import placement
from jax_power_smc.models.checkpoints.hf_config import config_to_hf
from jax_power_smc.models.checkpoints.safetensors_index import (
    FLOATS,
    INDEX,
    WEIGHTS,
    StoredTensor,
    listing,
    read_headers,
)
from jax_power_smc.models.checkpoints.weight_map import MappedWeight, weight_map
from jax_power_smc.models.transformer.config import CheckpointError, TransformerConfig
from jax_power_smc.models.transformer.tensor_parallel import ParamPath
from jax_power_smc.models.transformer.transformer import TransformerLM

# Bytes above which progress is shown by default; less is loaded in a second or two.
LARGE = 256 * 10**6
# Problems that an error names.
_SHOWN = 20
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load_params(
    directory: str | os.PathLike[str],
    config: TransformerConfig,
    dtype: Any = jnp.float32,
    *,
    shardings: Any = None,
    progress: bool | None = None,
) -> nnx.State:
    """Reads the parameters from a directory in Hugging Face format.

    Args:
      directory: holds model.safetensors, or shards with model.safetensors.index.json.
      config: of the model; the weights must fit it.
      dtype: the dtype to convert to.
      shardings: where the parameters go, see ``placement.resolve_shardings``; each process reads
        only what its devices hold.
      progress: whether to show a progress bar if stderr is a terminal; None shows it for more than
        ``LARGE`` bytes.

    Returns:
      The parameters of ``TransformerLM(config, dtype)``.

    Raises:
      ValueError: for shardings that do not fit.
      CheckpointError: before any weight is read, naming up to 20 missing, misshaped, unexpected
        and repeated tensors at once, or the file that cannot be read; afterwards, naming the
        tensors with values that are not finite in this dtype.
    """
    root = pathlib.Path(directory)
    pairs = _match(root, config)  # first, because what is built is as large as the config says
    state = nnx.state(TransformerLM(config, dtype).abstract_module())
    sharding_of = placement.resolve_shardings(shardings, state)
    arrays: dict[ParamPath, jax.Array] = {}
    not_finite: dict[str, None] = {}  # a set in the order of the files
    total = sum(tensor.size for tensor in {tensor for _, tensor in pairs})
    done, show = 0, total > LARGE if progress is None else progress
    with ProgressDisplay(None, in_bytes=True, stream=sys.stderr, show=show) as display:
        for entry, tensor in pairs:
            rows = slice(entry.first_row, entry.first_row + entry.file_shape[0])
            view = entry.flip(tensor.map()[rows])
            sharding = sharding_of[entry.path]
            arrays[entry.path], finite = placement.place(view, jnp.dtype(dtype), sharding)
            if not finite:
                not_finite[entry.name] = None
            done += view.nbytes
            display.update("loading", done, total)
    if not_finite:
        raise CheckpointError(
            f"{root} has weights that are NaN or infinite in {jnp.dtype(dtype).name}, in "
            f"{listing(list(not_finite))}."
        )
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
    """Writes config.json, generation_config.json and model.safetensors, each in one atomic step."""
    root = pathlib.Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    flat = {path: leaf[...] for path, leaf in nnx.to_flat_state(params)}
    parts: dict[str, list[tuple[int, jax.Array]]] = {}
    for entry in weight_map(config):
        part = entry.first_row, entry.flip(flat[entry.path])
        parts.setdefault(entry.name, []).append(part)
    tensors = {
        name: jnp.concatenate([part for _, part in sorted(rows, key=lambda row: row[0])])
        if len(rows) > 1
        else rows[0][1]
        for name, rows in parts.items()
    }
    some = next(iter(tensors.values()))
    ids = {"eos_token_id": list(eos_ids) if len(eos_ids) != 1 else eos_ids[0]}
    if bos_id is not None:
        ids["bos_token_id"] = bos_id
    write_json(root / "config.json", config_to_hf(config, dtype=str(some.dtype), **ids))
    write_json(root / "generation_config.json", ids)
    # Written by Python: the library's own writer makes files that only their owner can read.
    write_bytes_whole(root / WEIGHTS, save(tensors, metadata={"format": "pt"}))


def _refuse(root: pathlib.Path, problems: Sequence[str]) -> None:
    """Raises one CheckpointError for all problems, if there are any; it names the first ones."""
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(f"the weights in {root} do not fit its config.json: {shown}{more}.")


def _match(
    root: pathlib.Path, config: TransformerConfig
) -> list[tuple[MappedWeight, StoredTensor]]:
    """Every parameter's entry with its tensor, in the order of the files.

    Raises:
      CheckpointError: naming everything that does not fit.
    """
    tensors, indexed = read_headers(root)
    expected: dict[str, list[MappedWeight]] = {}
    for entry in weight_map(config):
        expected.setdefault(entry.name, []).append(entry)
    numbers = [int(match[1]) for each in tensors if (match := _LAYER.match(each.name))]
    layers = 1 + max(numbers, default=-1)
    problems: list[str] = []
    if layers != config.num_layers:
        problems.append(f"num_hidden_layers is {config.num_layers} and they have {layers} layers")
    seen: set[str] = set()
    for tensor in tensors:
        problem = _problem(tensor, expected, seen, config)
        if problem is not None:
            problems.append(problem)
        seen.add(tensor.name)
    found = {(tensor.name, tensor.file.name) for tensor in tensors}
    misplaced = {name: file for name, file in indexed.items() if (name, file) not in found}
    problems += [
        f"{name} is not in {file}, where {INDEX} places it" for name, file in misplaced.items()
    ]
    problems += [
        f"missing {name}" for name in expected if name not in seen and name not in misplaced
    ]
    _refuse(root, problems)
    if config.tied_embeddings and _HEAD in seen:
        _refuse(root, _untied(tensors))
    return [(entry, tensor) for tensor in tensors for entry in expected.get(tensor.name, [])]


def _problem(
    tensor: StoredTensor,
    expected: dict[str, list[MappedWeight]],
    seen: set[str],
    config: TransformerConfig,
) -> str | None:
    """What is wrong with the name, shape or dtype of a tensor; None if nothing is."""
    name = tensor.name
    if name not in expected:
        return None if _ignorable(name, config) else f"unexpected {name}"
    shape = expected[name][0].tensor_shape
    if name in seen:
        return f"{name} occurs twice"
    if tensor.shape != shape:
        return f"{name} has shape {tensor.shape}, expected {shape}"
    if tensor.dtype not in FLOATS:
        return f"{name} has dtype {tensor.dtype}, expected one of {', '.join(FLOATS)}"
    return None


def _untied(tensors: Sequence[StoredTensor]) -> list[str]:
    """The problem with a head that is not a copy of its tied embeddings, if there is one."""
    head, embedding = (
        next(tensor for tensor in tensors if tensor.name == name) for name in (_HEAD, _EMBEDDING)
    )
    if (head.shape, head.dtype) == (embedding.shape, embedding.dtype):
        rows = [slice(i, i + 4096) for i in range(0, head.shape[0], 4096)]
        ours, theirs = head.map().view(np.uint8), embedding.map().view(np.uint8)
        if all(np.array_equal(ours[part], theirs[part]) for part in rows):
            return []
    return [
        f"{_HEAD} differs from {_EMBEDDING}, but tie_word_embeddings is true (if it is false, the "
        "head is used)"
    ]


def _ignorable(name: str, config: TransformerConfig) -> bool:
    """Whether old exports carry a tensor of this name that adds nothing to the model."""
    tied_copy = config.tied_embeddings and name == _HEAD  # if it is a copy, see _untied
    return tied_copy or name.endswith("rotary_emb.inv_freq")
