"""The digest of a model's files: what changes it, and what does not."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jax_power_smc as psmc
from jax_power_smc.evaluation import job_config
from jax_power_smc.models.checkpoints import fingerprint as module
from jax_power_smc.models.checkpoints.fingerprint import file_digests, hub_commit, of_digests
from jax_power_smc.models.checkpoints.safetensors_io import save_pretrained
from jax_power_smc.models.checkpoints.tiny_random import tiny_model
from tests.models import small

CONFIG = small.CONFIGS["llama-grouped-tied"]


@pytest.fixture
def directory(tmp_path):
    """A checkpoint with every file that a model may be loaded from."""
    params = psmc.TransformerLM(CONFIG).init(jax.random.key(0))
    save_pretrained(tmp_path, CONFIG, params, eos_ids=(3,))
    small.save_tokenizer(tmp_path, 20)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


def fingerprint(directory):
    return of_digests(file_digests(directory))


def nudge(file, name, index):
    """Changes one weight by its last bit."""
    tensors = load_file(file)
    flat = tensors[name].reshape(-1)
    flat[index] = np.nextafter(flat[index], np.float32(9))
    save_file(tensors, file, metadata={"format": "pt"})


def test_it_is_the_same_wherever_the_files_lie(directory, tmp_path_factory):
    copy = shutil.copytree(directory, tmp_path_factory.mktemp("copies") / "copy")
    first, again = psmc.load(directory), psmc.load(copy)
    assert first.fingerprint == fingerprint(directory) == again.fingerprint
    assert len(bytes.fromhex(first.fingerprint)) == 16
    assert first.commit is None


@pytest.mark.parametrize("chunk", [100, 2**24])
def test_every_weight_counts(directory, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    file = directory / "model.safetensors"
    content = file.read_bytes()
    seen = {fingerprint(directory)}
    for name, tensor in load_file(file).items():
        for index in (0, tensor.size // 2, -1):
            nudge(file, name, index)
            seen.add(fingerprint(directory))
            file.write_bytes(content)
    assert len(seen) == 1 + 3 * len(load_file(file))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    ],
)
def test_every_file_of_the_model_counts(directory, name):
    seen = {fingerprint(directory)}
    (directory / name).write_bytes((directory / name).read_bytes() + b" ")
    seen.add(fingerprint(directory))
    (directory / name).unlink()
    seen.add(fingerprint(directory))
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["README.md", "model.bin", "other.safetensors"])
def test_other_files_do_not_count(directory, name):
    before = fingerprint(directory)
    (directory / name).write_text("Something else.")
    assert fingerprint(directory) == before


def test_what_one_file_ends_with_is_not_what_the_next_begins_with(directory):
    seen = set()
    for first, second in (("ab", "c"), ("a", "bc")):
        (directory / "tokenizer.json").write_text(first)
        (directory / "tokenizer_config.json").write_text(second)
        seen.add(fingerprint(directory))
    assert len(seen) == 2


def test_every_shard_counts(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = {f"model-{i}.safetensors": {name: tensors[name]} for i, name in enumerate(tensors)}
    for name, shard in shards.items():
        save_file(shard, directory / name)
    places = {tensor: name for name, shard in shards.items() for tensor in shard}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    before = fingerprint(directory)
    assert psmc.load(directory).fingerprint == before
    nudge(directory / places["model.norm.weight"], "model.norm.weight", 3)
    assert fingerprint(directory) != before


def test_models_without_files_of_their_own_have_one():
    config = job_config.paper("owner/name", "qwen2", "math500")
    seen = {psmc.load("tiny-reasoner").fingerprint, tiny_model(config).fingerprint}
    assert tiny_model(config).fingerprint in seen
    config.architecture = "llama"
    seen.add(tiny_model(config).fingerprint)
    assert len(seen) == 3


def test_the_commit_is_that_of_the_cache():
    commit = "0123456789abcdef" * 2 + "01234567"
    cache = pathlib.Path("hub", "models--owner--model", "snapshots")
    assert hub_commit(cache / commit) == commit
    assert hub_commit(cache / "main") is None
    assert hub_commit(pathlib.Path("models", commit)) is None
