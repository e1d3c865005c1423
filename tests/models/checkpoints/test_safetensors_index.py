"""Headers tell where every tensor lies; what is broken is refused in test_safetensors_io.py."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_power_smc.models.checkpoints.safetensors_index import (
    INDEX,
    WEIGHTS,
    read_headers,
    weight_files,
)

TENSORS = {
    "one": np.arange(6, dtype=np.float32).reshape(2, 3),
    "two": np.arange(4, dtype=np.float16),
    "three": np.full((1, 2, 2), 7, np.float64),
}


def write_shards(directory):
    """A shard for each tensor, and the index."""
    places = {name: f"shard-{name}.safetensors" for name in TENSORS}
    for name, file in places.items():
        save_file({name: TENSORS[name]}, directory / file)
    (directory / INDEX).write_text(json.dumps({"weight_map": places}))
    return places


@pytest.mark.parametrize("is_sharded", [False, True])
def test_headers_tell_where_the_tensors_lie(tmp_path, is_sharded):
    expected = {}
    if is_sharded:
        expected = write_shards(tmp_path)
    else:
        save_file(TENSORS, tmp_path / WEIGHTS, metadata={"format": "pt"})
    tensors, places = read_headers(tmp_path)
    assert places == expected
    assert {tensor.name for tensor in tensors} == TENSORS.keys()
    for tensor in tensors:
        array = TENSORS[tensor.name]
        assert (tensor.shape, tensor.size) == (array.shape, array.nbytes)
        assert tensor.file.name == places.get(tensor.name, WEIGHTS)
        np.testing.assert_array_equal(tensor.map(), array)
        assert tensor.map().dtype == array.dtype


def test_weight_files_are_those_that_are_read(tmp_path):
    assert weight_files(tmp_path) == []
    places = write_shards(tmp_path)
    assert weight_files(tmp_path) == [INDEX, *sorted(places.values())]
    save_file(TENSORS, tmp_path / WEIGHTS)
    assert weight_files(tmp_path) == [WEIGHTS]
