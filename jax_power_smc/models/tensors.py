"""Which tensor of a Hugging Face checkpoint is which parameter of ours.

Hugging Face keeps a linear layer as [out, in]; ours are [in, out] with the head axes apart, so a
linear kernel is the file's tensor transposed and reshaped. Some families keep several of our
kernels in one tensor, one after the other along "out".
"""

import dataclasses
from typing import Any

import numpy as np

from jax_power_smc.models.config import TransformerConfig


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
    path: tuple[str | int, ...]
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
    """Every tensor of a Llama or Qwen2 checkpoint, and the parameter that it fills."""
    d, f, v = config.hidden_size, config.mlp_size, config.vocab_size
    k, g, h = config.num_kv_heads, config.group_size, config.head_dim

    def plain(name: str, path: tuple[str | int, ...], *shape: int) -> Entry:
        return Entry(name, path, shape, shape, transpose=False)

    def linear(
        name: str, path: tuple[str | int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> Entry:
        file_shape = (int(np.prod(outputs)), int(np.prod(inputs)))
        return Entry(f"{name}.weight", path, inputs + outputs, file_shape, transpose=True)

    table = [
        plain("model.embed_tokens.weight", ("embedding",), v, d),
        plain("model.norm.weight", ("norm", "scale"), d),
    ]
    if not config.tied_embeddings:
        table.append(plain("lm_head.weight", ("head",), v, d))
    for i in range(config.num_layers):
        file, ours = f"model.layers.{i}", ("layers", i)
        heads = {"q": ("query", (k, g, h)), "k": ("key", (k, h)), "v": ("value", (k, h))}
        table += [
            plain(f"{file}.input_layernorm.weight", (*ours, "attention_norm", "scale"), d),
            plain(f"{file}.post_attention_layernorm.weight", (*ours, "mlp_norm", "scale"), d),
            linear(f"{file}.self_attn.o_proj", (*ours, "attention", "out"), (k, g, h), (d,)),
            linear(f"{file}.mlp.gate_proj", (*ours, "gate"), (d,), (f,)),
            linear(f"{file}.mlp.up_proj", (*ours, "up"), (d,), (f,)),
            linear(f"{file}.mlp.down_proj", (*ours, "down"), (f,), (d,)),
        ]
        for letter, (name, shape) in heads.items():
            projection = f"{file}.self_attn.{letter}_proj"
            table.append(linear(projection, (*ours, "attention", name), (d,), shape))
            if config.qkv_bias:
                path = (*ours, "attention", f"{name}_bias")
                size = (int(np.prod(shape)),)
                table.append(Entry(f"{projection}.bias", path, shape, size, transpose=False))
    return table
