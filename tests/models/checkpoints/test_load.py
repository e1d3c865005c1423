"""``load``: a directory becomes a model, parameters, tokenizer and eos set, or one sentence."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from transformers import AutoConfig

import jax_power_smc as psmc
from jax_power_smc.models.checkpoints import hub
from jax_power_smc.models.checkpoints.load import EMBEDDED
from jax_power_smc.models.checkpoints.safetensors_io import save_pretrained
from tests.models import small

CONFIG = small.CONFIGS["qwen2-grouped-untied"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original")
    params = psmc.TransformerLM(CONFIG).init(jax.random.key(0))
    save_pretrained(directory, CONFIG, params, eos_ids=(3, 5), bos_id=1)
    small.save_tokenizer(directory, 20)
    return directory, params


@pytest.fixture
def directory(original, tmp_path):
    """A good checkpoint, to be broken."""
    return shutil.copytree(original[0], tmp_path / "model")


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(directory, *parts, kind=psmc.CheckpointError):
    with pytest.raises(kind) as error:
        psmc.load(directory)
    assert isinstance(error.value, ValueError)
    small.assert_one_sentence(error, *parts)


def test_good_directory(original):
    directory, params = original
    lm = psmc.load(str(directory))
    assert lm.model == psmc.TransformerLM(CONFIG)
    assert lm.config == CONFIG
    assert lm.eos_ids == (3, 5)
    assert lm.directory == directory
    assert lm.tokenizer.encode("w7 w2 w19") == [7, 2, 19]
    assert lm.tokenizer.decode([7, 2]) == "w7 w2"
    small.assert_equal_trees(lm.params, params)


def test_tokenizer_is_that_of_the_file_whatever_the_family(original):
    # The library would guess by model_type, and for "qwen2" guess byte pairs.
    tokenizer = psmc.load(original[0]).tokenizer
    assert len(tokenizer) == 20
    assert tokenizer.encode("w3 w3 unheard") == [3, 3, 0]


def test_dtype_is_that_of_parameters_and_model(original):
    lm = psmc.load(original[0], dtype=jnp.bfloat16)
    assert lm.model.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(lm.params)} == {jnp.dtype(jnp.bfloat16)}


def test_loaded_model_samples(original):
    lm = psmc.load(original[0])
    result = psmc.sample(
        lm.model,
        lm.params,
        [lm.tokenizer.encode("w7 w2")],
        key=jax.random.key(0),
        target=psmc.PowerTarget(alpha=2.0, eos_ids=lm.eos_ids),
        sampler=psmc.PowerSMC(num_particles=2),
        max_new_tokens=3,
    )
    assert result.tokens.shape == (1, 2, 3)
    assert all(isinstance(text, str) for text in result.texts(lm.tokenizer)[0])


def test_the_transformers_library_reads_our_config(original):
    theirs = AutoConfig.from_pretrained(original[0])
    assert theirs.model_type == "qwen2"
    assert theirs.num_key_value_heads == CONFIG.num_kv_heads
    assert theirs.head_dim == CONFIG.head_dim
    assert theirs.rope_parameters["rope_theta"] == CONFIG.rope_theta
    assert theirs.rms_norm_eps == CONFIG.norm_eps
    assert theirs.tie_word_embeddings is False


def test_dtype_that_is_not_allowed(original):
    with pytest.raises(ValueError) as error:
        psmc.load(original[0], dtype=jnp.int8)
    small.assert_one_sentence(error, "dtype is int8", "float32, bfloat16, float16")


@pytest.mark.parametrize("name", ["no-such-model", "no/such/directory"])
def test_unknown_name(name):
    refused(name, repr(name), "neither a directory nor an embedded model", ", ".join(EMBEDDED))


def test_name_of_a_model_on_the_hub():
    # Offline here, as all tests are.
    refused(
        "owner/model-7B", "'owner/model-7B' is neither a directory nor fully in the hub's cache"
    )


def test_path_is_not_looked_for_on_the_hub():
    refused(pathlib.Path("owner/model-7B"), "neither a directory nor an embedded model")


def test_directory_goes_before_the_hub(original, tmp_path, monkeypatch):
    shutil.copytree(original[0], tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    small.assert_equal_trees(psmc.load("owner/model").params, original[1])


def fake_hub(directory, monkeypatch):
    """A hub whose only commit is a directory; returns the requests that it will have seen."""
    asked = []

    def fetch(name, revision, patterns=hub.ALL, seconds=None):
        del seconds
        asked.append((name, revision, patterns))
        return directory

    monkeypatch.setattr("jax_power_smc.models.checkpoints.hub.fetch", fetch)
    return asked


def test_a_model_of_the_hub_is_one_commit(original, monkeypatch):
    directory, params = original
    asked = fake_hub(directory, monkeypatch)
    lm = psmc.load("owner/model", revision="v1")
    small.assert_equal_trees(lm.params, params)
    assert lm.directory == directory
    assert asked == [
        ("owner/model", "v1", hub.SMALL),
        ("owner/model", directory.name, (*hub.SMALL, "model.safetensors")),
    ]


def test_weights_are_not_fetched_for_what_cannot_be_used(directory, monkeypatch):
    asked = fake_hub(directory, monkeypatch)
    with pytest.raises(ValueError, match="dtype is int8"):
        psmc.load("owner/model", dtype="int8")
    (directory / "tokenizer.json").unlink()
    refused("owner/model", "has no tokenizer.json")
    rewrite(directory / "config.json", model_type="gpt2")
    refused("owner/model", "gpt2", kind=psmc.UnsupportedModelError)
    assert asked == [("owner/model", None, hub.SMALL)] * 3


def test_revision_of_what_is_not_on_the_hub(original):
    for name in ("tiny-reasoner", original[0]):
        with pytest.raises(ValueError) as error:
            psmc.load(name, revision="v1")
        small.assert_one_sentence(
            error, "revision is 'v1'", f"{str(name)!r}, which is not on the hub"
        )


def test_mesh_and_shardings_place_the_parameters(original):
    mesh = jax.make_mesh((1,), ("x",))
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("x"))
    for options, expected in (
        ({"mesh": mesh}, replicated),
        ({"shardings": split}, split),
        ({"mesh": mesh, "shardings": lambda path, shape: split}, split),
    ):
        lm = psmc.load(original[0], **options)
        assert {x.sharding for x in jax.tree.leaves(lm.params)} == {expected}
        small.assert_equal_trees(lm.params, original[1])


def test_file_in_place_of_a_directory(directory):
    refused(directory / "config.json", "neither a directory nor an embedded model")


def test_empty_directory(tmp_path):
    refused(tmp_path, tmp_path, "has no config.json")


def test_unsupported_architecture(directory):
    rewrite(directory / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    refused(
        directory,
        "GPT2LMHeadModel",
        "LlamaForCausalLM, MistralForCausalLM",
        kind=psmc.UnsupportedModelError,
    )


def test_unsupported_rope(directory):
    rewrite(directory / "config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0})
    refused(directory, "rope_type 'yarn'", "'default'", kind=psmc.UnsupportedModelError)


def test_no_weights(directory):
    (directory / "model.safetensors").unlink()
    refused(directory, "neither model.safetensors nor model.safetensors.index.json")


def test_only_a_pickle(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    refused(directory, "pytorch_model.bin is a pickle")


def test_no_tokenizer(directory):
    (directory / "tokenizer.json").unlink()
    refused(directory, directory, "has no tokenizer.json")


@pytest.mark.parametrize("content", ["{", "{}", "no"])
def test_broken_tokenizer(directory, content):
    (directory / "tokenizer.json").write_text(content)
    what = "the tokenizer in" if content == "{}" else "tokenizer.json is not a JSON object"
    refused(directory, directory, what)


def test_tokenizer_larger_than_the_embedding(directory):
    small.save_tokenizer(directory, CONFIG.vocab_size + 1)
    refused(directory, "has ids up to 23", "only 23 rows")


def test_eos_outside_the_vocabulary(directory):
    rewrite(directory / "generation_config.json", eos_token_id=[3, 23, -1])
    refused(directory, "eos ids [23, -1]", "vocabulary of 23")


@pytest.mark.parametrize("value", ["</s>", [3, "x"], 3.0, True, {"id": 3}])
def test_eos_that_is_not_an_id(directory, value):
    rewrite(directory / "generation_config.json", eos_token_id=value)
    refused(directory, "generation_config.json", f"eos_token_id {value!r}", "integer or a list")


@pytest.mark.parametrize("content", ["[]", "{"])
def test_generation_config_that_is_not_an_object(directory, content):
    (directory / "generation_config.json").write_text(content)
    refused(directory, "generation_config.json", "is not a JSON object")
