"""Which tensor of a Hugging Face checkpoint is which parameter of ours.

Hugging Face stores a linear layer as [out, in]; ours are [in, out]. Some families store several of
our matrices in one tensor, concatenated along "out".
"""

import dataclasses
from typing import Any

from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.tensor_parallel import ParamPath


@dataclasses.dataclass(frozen=True)
class MappedWeight:
    """A parameter of ours and the tensor of the checkpoint, or the rows of it, that it comes from.

    Attributes:
      name: of the tensor in the file.
      path: of our parameter.
      file_shape: of our parameter in the file: the tensor's own, or that of some of its rows.
      transpose: whether ours is the transpose of the file's.
      first_row: the first row of the file's tensor that is ours.
      file_rows: number of rows of the file's tensor; None if all of them are ours.
    """

    name: str
    path: ParamPath
    file_shape: tuple[int, ...]
    transpose: bool = False
    first_row: int = 0
    file_rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of our parameter."""
        return self.file_shape[::-1] if self.transpose else self.file_shape

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor in the file."""
        return (self.file_rows or self.file_shape[0], *self.file_shape[1:])

    def flip(self, array: Any) -> Any:
        """Rows of the file's tensor in our orientation, or our parameter in the file's."""
        return array.T if self.transpose else array


def weight_map(config: TransformerConfig) -> list[MappedWeight]:
    """Every parameter, with the tensor of a checkpoint that holds it."""
    d, f, v = config.hidden_size, config.mlp_size, config.vocab_size
    k, g, h = config.num_kv_heads, config.group_size, config.head_dim
    family = config.of_family
    weights = [
        _plain("model.embed_tokens.weight", ("embedding",), v, d),
        _plain("model.norm.weight", ("norm", "scale"), d),
    ]
    if not config.tied_embeddings:
        weights.append(_plain("lm_head.weight", ("head",), v, d))
    heads = {"query": k * g * h, "key": k * h, "value": k * h}
    for i in range(config.num_layers):
        file, ours = f"model.layers.{i}", ("layers", i)
        norms = {
            "attention_norm": family.norms.attention,
            "after_attention_norm": family.norms.after_attention,
            "mlp_norm": family.norms.mlp,
            "after_mlp_norm": family.norms.after_mlp,
        }
        weights += [
            _plain(f"{file}.{name}.weight", (*ours, norm, "scale"), d)
            for norm, name in norms.items()
            if name is not None
        ]
        inner = (*ours, "attention")
        weights += [
            _linear(f"{file}.self_attn.o_proj", (*inner, "out"), k * g * h, d),
            _linear(f"{file}.mlp.down_proj", (*ours, "down"), f, d),
        ]
        projections = [
            _linear(f"{file}.self_attn.{name[0]}_proj", (*inner, name), d, size)
            for name, size in heads.items()
        ]
        gates = [_linear(f"{file}.mlp.{name}_proj", (*ours, name), d, f) for name in ("gate", "up")]
        if family.fused:
            projections = _rows_of(f"{file}.self_attn.qkv_proj.weight", projections)
            gates = _rows_of(f"{file}.mlp.gate_up_proj.weight", gates)
        weights += projections + gates
        for name, size in heads.items():
            letter = f"{file}.self_attn.{name[0]}"
            if family.qkv_bias:
                weights.append(_plain(f"{letter}_proj.bias", (*inner, f"{name}_bias"), size))
            if family.qk_norm != "none" and name != "value":
                scales = h if family.qk_norm == "head" else size
                path = (*inner, f"{name}_norm", "scale")
                weights.append(_plain(f"{letter}_norm.weight", path, scales))
    return weights


def _plain(name: str, path: ParamPath, *shape: int) -> MappedWeight:
    """A parameter with the same shape in the file."""
    return MappedWeight(name, path, shape)


def _linear(name: str, path: ParamPath, inputs: int, outputs: int) -> MappedWeight:
    return MappedWeight(f"{name}.weight", path, (outputs, inputs), transpose=True)


def _rows_of(name: str, entries: list[MappedWeight]) -> list[MappedWeight]:
    """The entries as consecutive rows of one tensor."""
    rows = [entry.file_shape[0] for entry in entries]
    return [
        dataclasses.replace(entry, name=name, first_row=sum(rows[:i]), file_rows=sum(rows))
        for i, entry in enumerate(entries)
    ]
