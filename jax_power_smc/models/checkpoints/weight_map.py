"""Which tensor of a Hugging Face checkpoint is which parameter of ours.

Hugging Face keeps a linear layer as [out, in]; ours are [in, out] with the head axes apart, so a
linear kernel is the file's tensor transposed and reshaped. Some families keep several of our
kernels in one tensor, one after the other along "out".
"""

import dataclasses
import math
from typing import Any

from jax_power_smc.models.transformer.config import TransformerConfig

# Of a parameter of ours.
Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint.

    Attributes:
      name: its name in the file.
      path: the path of our parameter.
      shape: the shape of our parameter.
      file_shape: the shape that ours has in the file: that of the tensor, or of a part of its rows.
      transpose: whether ours is the file's transposed (before the reshape).
      first_row: of ours in the file's tensor.
      file_rows: rows of the file's tensor; None if ours is all of it.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    file_shape: tuple[int, ...]
    transpose: bool
    first_row: int = 0
    file_rows: int | None = None

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor in the file."""
        return (self.file_rows or self.file_shape[0], *self.file_shape[1:])

    def from_file(self, array: Any) -> Any:
        """The file's rows of it [file_shape] in our orientation."""
        return (array.T if self.transpose else array).reshape(self.shape)

    def to_file(self, array: Any) -> Any:
        """Our parameter in the file's orientation."""
        if not self.transpose:
            return array.reshape(self.file_shape)
        return array.reshape(self.file_shape[::-1]).T


def tensor_table(config: TransformerConfig) -> list[Entry]:
    """Every parameter, and the tensor of a checkpoint that it is, or whose part it is."""
    d, f, v = config.hidden_size, config.mlp_size, config.vocab_size
    k, g, h = config.num_kv_heads, config.group_size, config.head_dim
    family = config.of_family
    table = [
        _plain("model.embed_tokens.weight", ("embedding",), v, d),
        _plain("model.norm.weight", ("norm", "scale"), d),
    ]
    if not config.tied_embeddings:
        table.append(_plain("lm_head.weight", ("head",), v, d))
    heads: dict[str, tuple[int, ...]] = {"query": (k, g, h), "key": (k, h), "value": (k, h)}
    for i in range(config.num_layers):
        file, ours = f"model.layers.{i}", ("layers", i)
        norms = {
            "attention_norm": family.norms.attention,
            "after_attention_norm": family.norms.after_attention,
            "mlp_norm": family.norms.mlp,
            "after_mlp_norm": family.norms.after_mlp,
        }
        table += [
            _plain(f"{file}.{name}.weight", (*ours, norm, "scale"), d)
            for norm, name in norms.items()
            if name is not None
        ]
        inner = (*ours, "attention")
        table += [
            _linear(f"{file}.self_attn.o_proj", (*inner, "out"), (k, g, h), (d,)),
            _linear(f"{file}.mlp.down_proj", (*ours, "down"), (f,), (d,)),
        ]
        kernels = [
            _linear(f"{file}.self_attn.{name[0]}_proj", (*inner, name), (d,), shape)
            for name, shape in heads.items()
        ]
        gates = [
            _linear(f"{file}.mlp.{name}_proj", (*ours, name), (d,), (f,)) for name in ("gate", "up")
        ]
        if family.fused:
            kernels = _parts_of(f"{file}.self_attn.qkv_proj.weight", kernels)
            gates = _parts_of(f"{file}.mlp.gate_up_proj.weight", gates)
        table += kernels + gates
        for name, shape in heads.items():
            letter = f"{file}.self_attn.{name[0]}"
            if family.qkv_bias:
                table.append(_vector(f"{letter}_proj.bias", (*inner, f"{name}_bias"), shape))
            if family.qk_norm != "none" and name != "value":
                size = (h,) if family.qk_norm == "head" else shape
                table.append(
                    _vector(f"{letter}_norm.weight", (*inner, f"{name}_norm", "scale"), size)
                )
    return table


def _plain(name: str, path: Path, *shape: int) -> Entry:
    """Of the same shape in the file."""
    return Entry(name, path, shape, shape, transpose=False)


def _vector(name: str, path: Path, shape: tuple[int, ...]) -> Entry:
    """Of one axis in the file."""
    return Entry(name, path, shape, (math.prod(shape),), transpose=False)


def _linear(name: str, path: Path, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Entry:
    file_shape = (math.prod(outputs), math.prod(inputs))
    return Entry(f"{name}.weight", path, inputs + outputs, file_shape, transpose=True)


def _parts_of(name: str, entries: list[Entry]) -> list[Entry]:
    """The entries as parts of one tensor, one after the other."""
    rows = [entry.file_shape[0] for entry in entries]
    return [
        dataclasses.replace(entry, name=name, first_row=sum(rows[:i]), file_rows=sum(rows))
        for i, entry in enumerate(entries)
    ]
