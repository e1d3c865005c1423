"""Safetensors in and out: round trips, shards, dtypes, and every way a file can be wrong."""

import dataclasses
import io
import json
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jax_power_smc.models.checkpoints import safetensors_io
from jax_power_smc.models.checkpoints.hf_config import read_config
from jax_power_smc.models.checkpoints.safetensors_index import StoredTensor
from jax_power_smc.models.checkpoints.safetensors_io import load_params, save_pretrained
from jax_power_smc.models.checkpoints.weight_map import weight_map
from jax_power_smc.models.transformer.config import CheckpointError
from jax_power_smc.models.transformer.transformer import TransformerLM
from tests.models import oracle, small

CONFIG = small.CONFIGS["qwen2-grouped-untied"]
TIED = small.CONFIGS["llama-grouped-tied"]
every_shape = pytest.mark.parametrize("name", small.CONFIGS)


def write_shards(directory, tensors, num_shards):
    """Shards that cut through the middle of a layer, and their index."""
    names = sorted(tensors)
    weight_map = {}
    for i in range(num_shards):
        file = f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[i::num_shards]
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@every_shape
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saved_parameters_load_bit_equal(tmp_path, name, dtype):
    config = small.CONFIGS[name]
    small.write(tmp_path, config)
    params = load_params(tmp_path, config, dtype)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    target = tmp_path / "new" / "place"
    save_pretrained(target, config, params, eos_ids=(3,))
    assert read_config(target) == config
    small.assert_equal_trees(load_params(target, config, dtype), params)
    # The file is in the published orientation, not only in one that we read back.
    original = load_file(tmp_path / "model.safetensors")
    written = load_file(target / "model.safetensors")
    assert written.keys() == original.keys()
    for key, array in original.items():
        assert written[key].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(written[key], array.astype(jnp.dtype(dtype)))


def test_initial_parameters_round_trip(tmp_path):
    params = TransformerLM(CONFIG).init(jax.random.key(0))
    save_pretrained(tmp_path, CONFIG, params, eos_ids=(3,))
    small.assert_equal_trees(load_params(tmp_path, CONFIG), params)


@pytest.mark.parametrize(
    ("eos_ids", "bos_id", "expected"),
    [
        ((3,), None, {"eos_token_id": 3}),
        ((3, 5), 1, {"eos_token_id": [3, 5], "bos_token_id": 1}),
        ((), None, {"eos_token_id": []}),
    ],
)
def test_ids_and_dtype_are_written(tmp_path, eos_ids, bos_id, expected):
    params = TransformerLM(TIED, "bfloat16").init(jax.random.key(0))
    save_pretrained(tmp_path, TIED, params, eos_ids=eos_ids, bos_id=bos_id)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config[name] for name in expected} == expected
    assert config["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "generation_config.json").read_text()) == expected


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path):
    one, two = (TransformerLM(TIED).init(jax.random.key(i)) for i in (0, 1))
    for params in (one, two):
        save_pretrained(tmp_path, TIED, params, eos_ids=(3,))
    small.assert_equal_trees(load_params(tmp_path, TIED), two)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors"]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_shards_load_like_one_file(tmp_path, num_shards):
    tensors = small.write(tmp_path, CONFIG)
    whole = load_params(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").unlink()
    write_shards(tmp_path, tensors, num_shards)
    small.assert_equal_trees(load_params(tmp_path, CONFIG), whole)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_files_of_other_floats_are_converted(tmp_path, stored):
    tensors = {k: v.astype(stored) for k, v in oracle.random_tensors(CONFIG).items()}
    small.write(tmp_path, CONFIG, tensors)
    params = load_params(tmp_path, CONFIG)
    embedding = tensors["model.embed_tokens.weight"].astype(np.float32)
    assert params["embedding"][...].dtype == jnp.float32
    np.testing.assert_array_equal(params["embedding"][...], embedding)
    low = load_params(tmp_path, CONFIG, jnp.bfloat16)
    np.testing.assert_array_equal(
        np.asarray(low["embedding"][...]), embedding.astype(ml_dtypes.bfloat16)
    )


def test_what_old_exports_carry_is_ignored(tmp_path):
    tensors = small.write(tmp_path, TIED)
    plain = load_params(tmp_path, TIED)
    extra = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32),
    }
    save_file(tensors | extra, tmp_path / "model.safetensors")
    small.assert_equal_trees(load_params(tmp_path, TIED), plain)


# --- what is refused ---


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_tied_head_that_is_a_model_of_its_own(tmp_path, dtype):
    tensors = small.write(tmp_path, TIED)
    embedding = tensors["model.embed_tokens.weight"].astype(dtype)
    others = []
    for row, column in ((0, 0), (-1, -1)):
        head = embedding.copy()
        head[row, column] += dtype(0.25)
        others.append(head)
    for head in (*others, embedding[:-1], embedding.astype(np.float16)):
        changed = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
        save_file(tensors | changed, tmp_path / "model.safetensors")
        refused(tmp_path, "lm_head.weight differs", "tie_word_embeddings is true", config=TIED)


def refused(directory, *parts, config=CONFIG):
    with pytest.raises(CheckpointError) as error:
        load_params(directory, config)
    small.assert_one_sentence(error, *parts)
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.0.mlp.up_proj.weight",
    ],
)
def test_missing_tensor(tmp_path, name):
    tensors = oracle.random_tensors(CONFIG)
    del tensors[name]
    small.write(tmp_path, CONFIG, tensors)
    message = refused(tmp_path, tmp_path, f"missing {name}")
    assert message.count("missing ") == 1


@pytest.mark.parametrize("layers", [1, 3, 4096])
def test_another_number_of_layers_is_refused_before_any_is_built(tmp_path, monkeypatch, layers):
    small.write(tmp_path, CONFIG)
    monkeypatch.setattr(TransformerLM, "abstract_module", None)
    other = dataclasses.replace(CONFIG, num_layers=layers, windows=())
    words = f"num_hidden_layers is {layers} and they have {CONFIG.num_layers} layers"
    message = refused(tmp_path, words, config=other)
    assert len(message) < 3000 and message.count(";") <= 21


def test_misshaped_tensor_is_reported_once_with_both_shapes(tmp_path):
    tensors = oracle.random_tensors(CONFIG)
    # The transposed kernel: reshaping alone would take it.
    name = "model.layers.1.mlp.gate_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    small.write(tmp_path, CONFIG, tensors)
    message = refused(tmp_path, f"{name} has shape (16, 20), expected (20, 16)")
    assert message.count(name) == 1


def test_unexpected_tensor(tmp_path):
    tensors = oracle.random_tensors(TIED)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    small.write(tmp_path, TIED, tensors)
    refused(tmp_path, "unexpected model.layers.0.self_attn.q_proj.bias", config=TIED)


def test_more_layers_than_the_config_says(tmp_path):
    tensors = small.write(tmp_path, TIED)
    extra = {"model.layers.2.mlp.up_proj.weight": tensors["model.layers.1.mlp.up_proj.weight"]}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    refused(tmp_path, "unexpected model.layers.2.mlp.up_proj.weight", config=TIED)


def test_integers_are_not_weights(tmp_path):
    tensors = oracle.random_tensors(CONFIG)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].astype(np.int8)
    small.write(tmp_path, CONFIG, tensors)
    refused(tmp_path, f"{name} has dtype I8, expected one of F64, F32, F16, BF16")


def test_all_problems_are_reported_together(tmp_path):
    tensors = oracle.random_tensors(CONFIG)
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = np.zeros((5, 16), np.float32)
    tensors["surprise"] = np.zeros(1, np.float32)
    small.write(tmp_path, CONFIG, tensors)
    message = refused(
        tmp_path,
        "missing model.norm.weight",
        "missing lm_head.weight",
        "model.embed_tokens.weight has shape (5, 16), expected (23, 16)",
        "unexpected surprise",
    )
    assert message.count(";") == 3


def test_tensor_in_two_shards(tmp_path):
    tensors = oracle.random_tensors(CONFIG)
    write_shards(tmp_path, tensors, 2)
    one, two = (tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    name, array = next(iter(load_file(one).items()))
    save_file(load_file(two) | {name: array + 1}, two)
    refused(tmp_path, f"{name} occurs twice")


def test_no_weights(tmp_path):
    message = refused(tmp_path, tmp_path, "model.safetensors", "model.safetensors.index.json")
    assert "pickle" not in message


def test_pickles_are_never_loaded(tmp_path):
    # A pickle that would run code: were it opened, the flag file would appear.
    flag = tmp_path / "ran"
    program = f"cbuiltins\nopen\n(V{flag}\nVw\ntR."
    (tmp_path / "pytorch_model.bin").write_bytes(program.encode())
    refused(tmp_path, "neither model.safetensors", "pytorch_model.bin is a pickle", "never loaded")
    assert not flag.exists()


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_file(tmp_path, keep):
    small.write(tmp_path, CONFIG)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(tmp_path, file, "is not a readable safetensors file")


def test_file_of_something_else(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a picture, say" * 40)
    refused(tmp_path, tmp_path / "model.safetensors", "is not a readable safetensors file")


@pytest.mark.parametrize(
    ("index", "part"),
    [
        *((text, "is not a JSON object") for text in ("", "[]", "\x00", "[" * 10**5)),
        *((text, "is not a safetensors index") for text in ("{}", '{"weight_map": 3}')),
        *(
            (json.dumps({"weight_map": {"a": name}}), "must have names of safetensors files")
            for name in (
                5,
                "a.bin",
                "*.safetensors",
                "[a].safetensors",
                "a\0.safetensors",
                "..",
                "\x9ba.safetensors",
            )
        ),
    ],
)
def test_broken_index(tmp_path, index, part):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    refused(tmp_path, tmp_path / "model.safetensors.index.json", part)


def test_index_that_names_an_absent_shard(tmp_path):
    write_shards(tmp_path, oracle.random_tensors(CONFIG), 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, "names model-00002-of-00003.safetensors, which is not there")


def test_truncated_shard_is_named(tmp_path):
    write_shards(tmp_path, oracle.random_tensors(CONFIG), 3)
    shard = tmp_path / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    refused(tmp_path, shard, "is not a readable safetensors file")


def test_index_that_places_a_tensor_elsewhere(tmp_path):
    write_shards(tmp_path, oracle.random_tensors(CONFIG), 3)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    wrong = "model-00002-of-00003.safetensors"
    misplaced = next(name for name, file in index["weight_map"].items() if file != wrong)
    index["weight_map"] |= {misplaced: wrong, "model.made_up": wrong}
    path.write_text(json.dumps(index))
    message = refused(
        tmp_path, f"{misplaced} is not in {wrong}", f"model.made_up is not in {wrong}"
    )
    assert message.count(misplaced) == 1


def test_tensor_that_only_the_index_has_is_reported_once(tmp_path):
    tensors = oracle.random_tensors(CONFIG)
    write_shards(tmp_path, tensors, 2)
    file = tmp_path / "model-00001-of-00002.safetensors"
    held = load_file(file)
    name = "model.norm.weight" if "model.norm.weight" in held else next(iter(held))
    del held[name]
    save_file(held, file)
    message = refused(tmp_path, f"{name} is not in {file.name}, where", "index.json places it")
    assert message.count(name) == 1


def test_headers_decide_before_any_weight_is_read(tmp_path, monkeypatch):
    def read(self):
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(StoredTensor, "map", read)
    tensors = oracle.random_tensors(CONFIG)
    del tensors["model.norm.weight"]
    small.write(tmp_path, CONFIG, tensors)
    refused(tmp_path, "missing model.norm.weight")
    small.write(tmp_path, CONFIG)
    with pytest.raises(AssertionError, match="was read"):
        load_params(tmp_path, CONFIG)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_named(tmp_path, value, stored):
    tensors = {k: v.astype(stored) for k, v in oracle.random_tensors(CONFIG).items()}
    broken = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.bias"]
    for name in broken:
        tensors[name].flat[-1] = value
    small.write(tmp_path, CONFIG, tensors)
    message = refused(tmp_path, tmp_path, "NaN or infinite in float32", *broken)
    assert message.count("model.") == 2


def test_weights_too_large_for_the_dtype(tmp_path):
    tensors = oracle.random_tensors(CONFIG)
    tensors["model.norm.weight"][3] = 1e6
    small.write(tmp_path, CONFIG, tensors)
    assert load_params(tmp_path, CONFIG)["norm"]["scale"][...][3] == 1e6
    with pytest.raises(CheckpointError) as error:
        load_params(tmp_path, CONFIG, "float16")
    small.assert_one_sentence(error, "infinite in float16, in model.norm.weight")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_outlive_their_file(tmp_path, dtype):
    # A memory map of it would change with it.
    tensors = {k: v.astype(dtype) for k, v in oracle.random_tensors(CONFIG).items()}
    small.write(tmp_path, CONFIG, tensors)
    params = load_params(tmp_path, CONFIG, dtype)
    file = tmp_path / "model.safetensors"
    with open(file, "r+b") as stream:
        stream.write(bytes(file.stat().st_size))
    embedding = tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(np.asarray(params["embedding"][...]), embedding)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "is_large", "progress", "drawn"),
    [
        (Terminal, True, None, True),
        (Terminal, False, None, False),
        (Terminal, False, True, True),
        (Terminal, True, False, False),
        (io.StringIO, True, True, False),
    ],
)
def test_progress_is_shown_in_bytes_of_the_file(
    tmp_path, monkeypatch, stream, is_large, progress, drawn
):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", stderr := stream())
    tensors = {k: v.astype(np.float16) for k, v in oracle.random_tensors(CONFIG).items()}
    small.write(tmp_path, CONFIG, tensors)
    total = sum(array.nbytes for array in tensors.values())
    monkeypatch.setattr(safetensors_io, "LARGE", total - is_large)
    load_params(tmp_path, CONFIG, progress=progress)
    assert ("loading" in stderr.getvalue()) == drawn
    assert (f"{total / 1000:.1f}/{total / 1000:.1f} kB" in stderr.getvalue()) == drawn


def test_tensors_at_odd_places_of_the_file(tmp_path):
    # Old writers did not pad the header.
    tensors = small.write(tmp_path, CONFIG)
    expected = load_params(tmp_path, CONFIG)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    header += b" " * (1 + len(header) % 2)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert len(header) % 2 and len(tensors) == len(load_file(file))
    small.assert_equal_trees(load_params(tmp_path, CONFIG), expected)


def test_parameters_that_share_a_tensor(tmp_path, monkeypatch):
    # Keys and values of a layer as one tensor, which some families keep so.
    def fused_map(config):
        entries = []
        for entry in weight_map(config):
            letter = entry.name.split("_proj.")[0][-1]
            if ".k_proj." in entry.name or ".v_proj." in entry.name:
                rows = entry.file_shape[0]
                entry = dataclasses.replace(
                    entry,
                    name=entry.name.replace(f"{letter}_proj", "kv_proj"),
                    first_row=rows if letter == "v" else 0,
                    file_rows=2 * rows,
                )
            entries.append(entry)
        return entries

    tensors = small.write(tmp_path, CONFIG)
    plain = load_params(tmp_path, CONFIG)
    for name in [name for name in tensors if ".k_proj." in name]:
        value = tensors.pop(name.replace("k_proj", "v_proj"))
        tensors[name.replace("k_proj", "kv_proj")] = np.concatenate([tensors.pop(name), value])
    monkeypatch.setattr("jax_power_smc.models.checkpoints.safetensors_io.weight_map", fused_map)
    small.write(tmp_path, CONFIG, tensors)
    small.assert_equal_trees(load_params(tmp_path, CONFIG), plain)
    save_pretrained(tmp_path / "again", CONFIG, plain, eos_ids=())
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(written[name], array)
    short = "model.layers.0.self_attn.kv_proj.weight"
    tensors[short] = tensors[short][:-1]
    small.write(tmp_path, CONFIG, tensors)
    message = refused(tmp_path, f"{short} has shape (15, 16), expected (16, 16)")
    assert message.count(short) == 1
