"""Every parameter has its tensor, and goes to the file and back without change."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from flax import nnx

from jax_power_smc.models.checkpoints.weight_map import weight_map
from jax_power_smc.models.transformer.families import FAMILIES
from jax_power_smc.models.transformer.transformer import TransformerLM
from tests.models import small

CONFIG = small.CONFIGS["llama-ungrouped-untied"]


def of_family(family):
    return dataclasses.replace(CONFIG, num_heads=4, family=family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_mapped_once(family):
    config = of_family(family)
    state = nnx.state(TransformerLM(config).abstract_module())
    entries = weight_map(config)
    shapes = {path: tuple(leaf.shape) for path, leaf in nnx.to_flat_state(state)}
    assert {entry.path: entry.shape for entry in entries} == shapes
    assert len(entries) == len(shapes)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_covered_without_overlap(family):
    entries = weight_map(of_family(family))
    for name in {entry.name for entry in entries}:
        parts = [entry for entry in entries if entry.name == name]
        rows = sorted((part.first_row, part.first_row + part.file_shape[0]) for part in parts)
        assert rows[0][0] == 0 and rows[-1][1] == parts[0].tensor_shape[0]
        assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(rows))
        assert len({part.tensor_shape for part in parts}) == 1


def test_parameters_go_to_the_file_and_back():
    for entry in weight_map(CONFIG):
        array = np.arange(math.prod(entry.shape)).reshape(entry.shape)
        stored = entry.flip(array)
        assert stored.shape == entry.file_shape
        np.testing.assert_array_equal(entry.flip(stored), array)


def test_a_linear_layer_is_stored_as_outputs_by_inputs():
    entry = next(e for e in weight_map(CONFIG) if e.path == ("layers", 1, "attention", "out"))
    assert entry.name == "model.layers.1.self_attn.o_proj.weight"
    assert entry.shape == (CONFIG.num_heads * CONFIG.head_dim, CONFIG.hidden_size)
    array = np.arange(math.prod(entry.shape)).reshape(entry.shape)
    assert entry.flip(array)[3, 5] == array[5, 3]
