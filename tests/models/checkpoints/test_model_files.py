"""What is read of a model's directory: no file elsewhere, no JSON without end."""

import json
import os

import pytest
from safetensors.numpy import save_file

from jax_power_smc.models.checkpoints import model_files, safetensors_index
from jax_power_smc.models.checkpoints.fingerprint import file_digests
from jax_power_smc.models.checkpoints.model_files import own_file, read_object
from jax_power_smc.models.checkpoints.safetensors_index import INDEX, WEIGHTS, read_headers
from jax_power_smc.models.transformer.config import CheckpointError
from tests.models import small
from tests.models.checkpoints.test_safetensors_index import TENSORS, write_shards


@pytest.fixture
def model(tmp_path):
    """An empty directory of a model, beside weights that are not its own."""
    save_file(TENSORS, tmp_path / "elsewhere.safetensors")
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def index(directory, name):
    (directory / INDEX).write_text(json.dumps({"weight_map": {"one": name}}))


def to_name(model):
    index(model, "../elsewhere.safetensors")


def to_absolute_name(model):
    index(model, str(model.parent / "elsewhere.safetensors"))


def to_link(model):
    (model / "shard.safetensors").symlink_to(model.parent / "elsewhere.safetensors")
    index(model, "shard.safetensors")


def to_linked_directory(model):
    (model / "inner").symlink_to(model.parent)
    index(model, "inner/elsewhere.safetensors")


def to_circle(model):
    (model / "shard.safetensors").symlink_to("shard.safetensors")
    index(model, "shard.safetensors")


def to_weights(model):
    (model / WEIGHTS).symlink_to("../elsewhere.safetensors")


@pytest.mark.parametrize(
    "leads",
    [to_name, to_absolute_name, to_link, to_linked_directory, to_circle, to_weights],
)
def test_weights_elsewhere_are_refused_before_they_are_read(model, monkeypatch, leads):
    def read(file):
        raise AssertionError(f"{file} was read")

    leads(model)
    monkeypatch.setattr(safetensors_index, "_read_header", read)
    for reads in (read_headers, safetensors_index.weight_files, file_digests):
        with pytest.raises(CheckpointError) as error:
            reads(model)
        small.assert_one_sentence(error, model, "leads out of that directory")


def test_links_inside_are_followed_also_in_the_hubs_cache(tmp_path):
    plain = tmp_path / "plain"
    (plain / "real").mkdir(parents=True)
    places = write_shards(plain)
    for name in places.values():
        (plain / name).rename(plain / "real" / name)
        (plain / name).symlink_to(f"real/{name}")
    assert len(read_headers(plain)[0]) == len(TENSORS)

    cache = tmp_path / "cache" / "models--owner--model"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    write_shards(snapshot)
    for name in places.values():
        (snapshot / name).rename(cache / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (tmp_path / "link").symlink_to(tmp_path / "cache")  # as of a user whose home is on two disks
    reached = tmp_path / "link" / snapshot.relative_to(tmp_path / "cache")
    for directory in (snapshot, reached):
        assert len(read_headers(directory)[0]) == len(TENSORS)

    # Only the model's own blobs, and only if they are not a link themselves.
    (cache / "blobs").rename(tmp_path / "moved")
    (cache / "blobs").symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="leads out of"):
        read_headers(snapshot)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\0b", "~/../../x"])
def test_names_that_lead_out(model, name):
    with pytest.raises(CheckpointError) as error:
        own_file(model, name, "index.json")
    small.assert_one_sentence(error, model / "index.json", "names", "leads out")


def test_names_that_do_not(model, monkeypatch):
    monkeypatch.chdir(model)
    for directory in (model, model.relative_to(model)):
        assert own_file(directory, "a/../b.jinja") == directory / "a/../b.jinja"
        assert own_file(directory, "...") == directory / "..."


def test_json_objects(tmp_path):
    path = tmp_path / "a.json"
    assert read_object(path) == {}
    path.write_text('{"a": NaN, "b": [1]}')
    assert read_object(path)["b"] == [1]
    assert read_object(path, most=path.stat().st_size)["b"] == [1]
    with pytest.raises(CheckpointError) as error:
        read_object(path, most=path.stat().st_size - 1)
    small.assert_one_sentence(error, path, "has 20 bytes; at most 19 bytes")


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    path.touch()
    os.truncate(path, 2**40)  # a hole
    with pytest.raises(CheckpointError) as error:
        read_object(path)
    small.assert_one_sentence(error, path, model_files.LARGEST_JSON)


@pytest.mark.parametrize("content", ["[" * 10**5, '{"a": ' * 40 + "1" + "}" * 40, "7", "\x00"])
def test_other_content_is_one_sentence(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        read_object(tmp_path / "a.json")
    small.assert_one_sentence(error, tmp_path / "a.json", "is not a JSON object")
