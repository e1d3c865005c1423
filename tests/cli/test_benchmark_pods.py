"""The calculation for many devices through the launcher, of a model small enough for a test."""

import importlib.util
import json
import runpy

import pytest
from ml_collections import ConfigDict

from jax_power_smc.benchmarks import pods
from jax_power_smc.cli.benchmark import benchmark
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = ROOT / "configs" / "pods.py"
D, V, N, S, T, ROWS, LAYERS = 16, 64, 2, 8, 8, 3, 5
SMALL = {
    "model": {
        "family": "qwen2",
        "hidden_size": D,
        "num_layers": LAYERS,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 4,
        "mlp_size": 24,
        "vocab_size": V,
        "tied_embeddings": False,
    },
    "num_particles": (N,),
    "prompt_tokens": S,
    "max_new_tokens": T,
    "layers": (1, 2),
    "checked_layers": 3,
}
MACHINE = {
    "meshes": ((4, 2),),
    "prompts_per_shard": ROWS,
    "memory_bytes": 1e7,
    "memory_bandwidth": 1e3,
    "link_bandwidth": 1e2,
    "seconds_per_collective": 2.0,
}


def config(machine=None, **changes):
    made = runpy.run_path(str(CONFIG))["get_config"]().to_dict()
    machines = {"small": {**MACHINE, **(machine or {})}}
    return ConfigDict({**made, **SMALL, "machines": machines, **changes})


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    root = tmp_path_factory.mktemp("pods")
    path = benchmark(config(), str(root))
    assert path == root / "pods.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def value(lines, metric):
    (found,) = (line["value"] for line in lines if line["metric"] == metric)
    return found


@pytest.mark.slow
def test_what_layers_exchange(lines):
    listed = [line for line in lines if line["metric"] == "collective_bytes"]
    assert all(line["mesh"] == "4x2" and line["group"] == 2 for line in listed)
    (stream,) = (line for line in listed if line["per_layer"])
    # Two sums a layer and that of the embedding, of all rows of a device in float32.
    assert stream["kind"] == "all-reduce" and stream["value"] == 4 * ROWS * N * D
    assert stream["per_layer"] == 2 and stream["per_step"] == 2 * LAYERS + 1
    assert value(lines, "collectives_per_layer") == 2
    assert value(lines, "collectives_per_step") == sum(line["per_step"] for line in listed)
    # One of two devices passes on as much as it gets: twice half of the array.
    assert value(lines, "sent_per_layer") == 2 * stream["value"]


@pytest.mark.slow
def test_memory_and_times(lines):
    # bfloat16; each of two devices has two of four heads, and half of every matrix.
    attention = 4 * D * D + 3 * D
    matrices = 2 * V * D + LAYERS * (attention + 3 * 24 * D)
    weights = 2 * (matrices // 2 + D * (2 * LAYERS + 1))
    assert value(lines, "weights") == weights
    of_token = 2 * LAYERS * 2 * D // 2
    kv = value(lines, "keys_and_values")
    assert kv == pytest.approx(ROWS * (S + N * T) * of_token, rel=0.01)
    # All but the embedding, of which a step reads a few rows.
    seconds = (weights - 2 * V * D // 2 + kv) / 1e3
    assert value(lines, "memory_time") == pytest.approx(seconds)
    links = value(lines, "sent_per_step") / 1e2
    assert value(lines, "link_time") == pytest.approx(links)
    assert value(lines, "collective_share") == pytest.approx(links / (links + seconds))
    links += 2.0 * value(lines, "collectives_per_step")
    share = value(lines, "collective_share_with_overhead")
    assert share == pytest.approx(links / (links + seconds))
    assert value(lines, "prompts_that_fit") == ROWS and value(lines, "share_of_memory") < 1


@pytest.mark.slow
def test_too_little_memory_is_said(tmp_path):
    made = config({"memory_bytes": 1e4, "meshes": ((8, 1),)}, checked_layers=None)
    lines = [json.loads(x) for x in benchmark(made, str(tmp_path)).read_text().splitlines()]
    assert value(lines, "prompts_that_fit") == 0 and value(lines, "share_of_memory") > 1
    assert value(lines, "collectives_per_step") == value(lines, "sent_per_step") == 0


@pytest.mark.slow
def test_layers_that_differ_are_noticed(monkeypatch, tmp_path):
    original = pods.per_step

    def uneven(model, where, load):
        found = original(model, where, load)
        return found + found if model.config.num_layers == 3 else found

    monkeypatch.setattr(pods, "per_step", uneven)
    with pytest.raises(ValueError, match="3 layers do not exchange"):
        benchmark(config(), str(tmp_path))


@pytest.mark.parametrize(
    ("machine", "changes", "message"),
    [
        ({}, {"dtype": "float64"}, "config.dtype is 'float64'"),
        ({}, {"layers": (2, 2)}, r"config.layers is \(2, 2\); it must be two numbers"),
        ({}, {"layers": (2, 4, 6)}, "it must be two numbers, the smaller first"),
        ({}, {"num_particles": (0,)}, "config.num_particles is 0"),
        ({}, {"checked_layers": 0}, "config.checked_layers is 0"),
        ({}, {"model": {"hidden": 3}}, "config.model cannot be read"),
        ({"memory_bandwidth": 0}, {}, "config.machines.small.memory_bandwidth is 0"),
        ({"seconds_per_collective": -1}, {}, "seconds_per_collective is -1"),
        ({"prompts_per_shard": 0}, {}, "prompts_per_shard is 0"),
        ({"meshes": ((8,),)}, {}, r"config.machines.small.meshes has \(8,\)"),
        ({"meshes": ((1, 8),)}, {}, "do not divide the model's 4 key/value heads"),
        ({"meshes": ((64, 2),)}, {}, "a mesh of 128 devices; this process has only 8"),
    ],
)
def test_bad_input_is_refused_before_any_work(machine, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        benchmark(config(machine, **changes), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_topology_needs_its_compiler(tmp_path):
    with pytest.raises(ValueError, match=r"topology is 'v5e:4x4', for which nothing can be comp"):
        benchmark(config({"topology": "v5e:4x4"}), str(tmp_path))
    assert not (tmp_path / "pods.jsonl").exists()


def test_a_machine_lacks_a_field(tmp_path):
    made = config()
    del made.machines.small["link_bandwidth"]
    with pytest.raises(ValueError, match=r"config.machines.small lacks link_bandwidth"):
        benchmark(made, str(tmp_path / "new"))
