"""Saved models: what comes back, and what is refused; shardings are in test_placement."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jax_power_smc as psmc
from jax_power_smc.models.checkpoints import saved
from jax_power_smc.models.checkpoints.checkpoint import save_pretrained
from tests.models import small

CONFIG = small.CONFIGS["qwen2-grouped-untied"]
TEMPLATE = "{{ messages[0].content }}"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A model as it was loaded from safetensors."""
    directory = tmp_path_factory.mktemp("original")
    params = psmc.TransformerLM(CONFIG).init(jax.random.key(0))
    save_pretrained(directory, CONFIG, params, eos_ids=(3, 5), bos_id=1)
    small.save_tokenizer(directory, 20)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "pytorch_model.bin").write_bytes(b"not copied")
    return psmc.load(directory)


@pytest.fixture(scope="module")
def directory(original, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "new" / "model"
    saved.save(directory, original)
    return directory


@pytest.fixture
def copy(directory, tmp_path):
    """A saved model, to be broken."""
    return shutil.copytree(directory, tmp_path / "model")


def refused(directory, *parts, **options):
    with pytest.raises(psmc.CheckpointError) as error:
        psmc.load(directory, **options)
    small.assert_one_sentence(error, *parts)
    return str(error.value)


def save_refused(directory, loaded, *parts):
    with pytest.raises(psmc.CheckpointError) as error:
        saved.save(directory, loaded)
    small.assert_one_sentence(error, *parts)


def test_all_comes_back(original, directory):
    lm = psmc.load(str(directory))
    small.assert_equal_trees(lm.params, original.params)
    assert lm.model == original.model
    assert lm.config == CONFIG
    assert lm.eos_ids == (3, 5)
    assert lm.directory == directory
    assert lm.encode("w7 w2") == [7, 2]
    assert lm.tokenizer.chat_template == TEMPLATE


def test_no_more_than_the_largest_is_restored_at_a_time(directory, monkeypatch):
    sizes = []
    restore = ocp.PyTreeCheckpointer.restore

    def record(self, path, args):
        sizes.append(sum(math.prod(leaf.shape) for leaf in args.item.values()))
        return restore(self, path, args=args)

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", record)
    leaves = jax.tree.leaves(psmc.load(directory).params)
    assert sum(sizes) == sum(leaf.size for leaf in leaves)
    assert max(sizes) == max(leaf.size for leaf in leaves)
    assert len(sizes) < len(leaves)


def test_only_the_files_of_the_model_are_kept(directory):
    assert sorted(path.name for path in directory.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        saved.PARAMS,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_converted_as_from_safetensors(original, directory, dtype):
    expected = psmc.load(original.directory, dtype=dtype)
    small.assert_equal_trees(psmc.load(directory, dtype=dtype).params, expected.params)


def test_low_precision_is_saved_as_it_is(original, tmp_path):
    lm = psmc.load(original.directory, dtype="bfloat16")
    saved.save(tmp_path / "low", lm)
    wide = psmc.load(tmp_path / "low").params
    small.assert_equal_trees(wide, jax.tree.map(lambda x: x.astype(jnp.float32), lm.params))


def test_parameters_are_those_of_the_model_not_of_its_directory(original, tmp_path):
    params = jax.tree.map(lambda x: x + 1, original.params)
    saved.save(tmp_path / "changed", dataclasses.replace(original, params=params))
    small.assert_equal_trees(psmc.load(tmp_path / "changed").params, params)


def test_a_saved_model_can_be_saved_and_moved(directory, tmp_path):
    saved.save(tmp_path / "first", psmc.load(directory))
    (tmp_path / "first").rename(tmp_path / "second")
    small.assert_equal_trees(psmc.load(tmp_path / "second").params, psmc.load(directory).params)


def test_an_empty_directory_is_filled(original, tmp_path):
    (tmp_path / "empty").mkdir()
    saved.save(tmp_path / "empty", original)
    small.assert_equal_trees(psmc.load(tmp_path / "empty").params, original.params)


def test_nothing_is_overwritten(original, tmp_path):
    (tmp_path / "precious").write_text("text")
    before = sorted(tmp_path.iterdir())
    save_refused(tmp_path, original, tmp_path, "is there already")
    save_refused(tmp_path / "precious", original, "precious is there already")
    assert sorted(tmp_path.iterdir()) == before


def test_source_that_is_gone(original, tmp_path):
    lost = dataclasses.replace(original, directory=tmp_path / "gone")
    save_refused(tmp_path / "new", lost, tmp_path / "gone", "has no config.json any more")
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_nothing(original, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", full)
    with pytest.raises(OSError, match="no space left"):
        saved.save(tmp_path / "new", original)
    assert not list(tmp_path.iterdir())


def test_all_problems_are_reported_together(copy):
    path = copy / "config.json"
    config = json.loads(path.read_text()) | {"layer_types": None}
    path.write_text(
        json.dumps(config | {"vocab_size": 24, "num_hidden_layers": 1, "tie_word_embeddings": True})
    )
    message = refused(
        copy,
        "embedding has shape (23, 16), expected (24, 16)",
        "unexpected head",
        "unexpected layers.1.gate",
    )
    assert "missing" not in message
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    message = refused(copy, "missing layers.2.attention.query_bias", "missing layers.2.gate")
    assert "unexpected" not in message


def test_weights_that_are_not_finite_are_named(original, tmp_path):
    leaves = dict(nnx.to_flat_state(original.params))
    leaf = leaves["layers", 1, "gate"]
    leaves["layers", 1, "gate"] = leaf.replace(leaf[...].at[0, 0].set(1e30))
    large = dataclasses.replace(original, params=nnx.from_flat_state(list(leaves.items())))
    saved.save(tmp_path / "large", large)
    psmc.load(tmp_path / "large", dtype="bfloat16")
    message = refused(tmp_path / "large", "infinite in float16, in layers.1.gate", dtype="float16")
    assert message.count("layers") == 1


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_broken_checkpoint(copy, damage):
    for path in list((copy / saved.PARAMS).rglob("*")):
        if path.is_file():
            if damage == "empty":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(copy, copy / saved.PARAMS, "is not a readable checkpoint")


def test_what_is_not_a_sharding(directory):
    with pytest.raises(ValueError, match="must be a jax"):
        psmc.load(directory, shardings=lambda path, shape: None)
