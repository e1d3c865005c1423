"""Where parameters go: one device, many, and how much memory it takes to get there."""

import json
import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jax_power_smc.models.checkpoints import placement
from jax_power_smc.models.transformer.transformer import TransformerLM
from tests.models import small
from tests.paths import ROOT

CONFIG = small.CONFIGS["qwen2-grouped-untied"]


def run(program, directory):
    """What a program prints, as JSON, in a process with 8 CPU devices."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.fspath(ROOT),
        # Memory that is freed goes back at once, and does not hide what is taken next.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, os.fspath(directory)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def state():
    return nnx.state(TransformerLM(CONFIG).abstract_module())


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1,), ("x",))


# --- copies ---


@pytest.mark.parametrize("block", [1, 7, 64, 10**6])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
def test_a_copy_has_the_values_of_the_view(monkeypatch, block, stored, dtype):
    monkeypatch.setattr(placement, "BLOCK", block)
    file = np.random.default_rng(0).normal(size=(12, 10)).astype(stored)
    for view in (file, file.T, file.T.reshape(10, 2, 3, 2)[3:7, 1:, :, ::1], file[:, 4]):
        out, finite = placement.copy_slice(view, np.dtype(dtype))
        assert finite and out.flags.c_contiguous
        np.testing.assert_array_equal(out, view.astype(dtype))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(monkeypatch, stored, value):
    monkeypatch.setattr(placement, "BLOCK", 8)
    largest = float(ml_dtypes.finfo(stored).max)
    for place in np.ndindex(4, 5):
        view = np.full((4, 5), -largest, stored)
        assert placement.copy_slice(view.T, view.dtype)[1]
        view[place] = value
        assert not placement.copy_slice(view.T, view.dtype)[1]


def test_a_copy_is_taken_over_by_the_device():
    out, _ = placement.copy_slice(np.ones((3, 5), np.float32), np.dtype(np.float32))
    assert jax.device_put(out).unsafe_buffer_pointer() == out.ctypes.data


# --- what shardings may be ---


def test_a_function_is_asked_for_every_parameter(state, mesh):
    shardings = {}

    def choose(path, shape):
        axis = "x" if shape == (16, 24) else None
        shardings[path] = NamedSharding(mesh, PartitionSpec(axis)), shape
        return shardings[path][0]

    found = placement.resolve_shardings(choose, state)
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}
    assert {path: shape for path, (_, shape) in shardings.items()} == shapes
    assert found == {path: sharding for path, (sharding, _) in shardings.items()}
    assert found["layers", 1, "attention", "query"].spec == PartitionSpec("x")


def test_a_pytree_gives_each_parameter_its_own(state, mesh):
    # As many different shardings as there are ranks, so that an exchange would show.
    tree = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)), state)
    found = placement.resolve_shardings(tree, state)
    for path, leaf in nnx.to_flat_state(state):
        assert len(found[path].spec) == leaf.ndim


def test_one_sharding_holds_for_all(state, mesh):
    sharding = NamedSharding(mesh, PartitionSpec())
    found = placement.resolve_shardings(sharding, state)
    assert set(found.values()) == {sharding}
    assert len(found) == len(jax.tree.leaves(state))


@pytest.mark.parametrize("shardings", [3, "replicated", {"embedding": None}, {}, [1, 2]])
def test_what_is_not_a_sharding_is_refused(state, shardings):
    with pytest.raises(ValueError) as error:
        placement.resolve_shardings(shardings, state)
    small.assert_one_sentence(error, "shardings")


def test_function_that_gives_something_else(state):
    with pytest.raises(ValueError) as error:
        placement.resolve_shardings(lambda path, shape: PartitionSpec(), state)
    small.assert_one_sentence(error, "gives P() for embedding", "must be a jax.sharding.Sharding")


# --- many devices ---

SHARDED = """
import json, pathlib, sys
import jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
import jax_power_smc as psmc
from jax_power_smc.models.checkpoints import placement
from tests.models import small

root = pathlib.Path(sys.argv[1])
config = small.CONFIGS["qwen2-grouped-untied"]
small.write(root, config, eos_token_id=3)
small.save_tokenizer(root, 20)
mesh = jax.make_mesh((4, 2), ("x", "y"))
specs = {
    ("layers", 0, "attention", "query"): P("x", "y"),
    ("layers", 0, "attention", "out"): P("y", "x"),
    ("layers", 0, "gate"): P(None, ("x", "y")) if config.mlp_size % 8 == 0 else P("x"),
    ("layers", 1, "down"): P("x"),
    ("layers", 1, "attention", "query_bias"): P("y"),
}

def choose(path, shape):
    return NamedSharding(mesh, specs.get(path, P()))

def same(params, other):
    a, b = dict(nnx.to_flat_state(params)), dict(nnx.to_flat_state(other))
    assert a.keys() == b.keys()
    return all(
        np.array_equal(shard.data, np.asarray(b[path][...])[shard.index])
        for path in a for shard in a[path][...].addressable_shards
    )

def placed(params, choose):
    return all(
        leaf[...].sharding.is_equivalent_to(choose(path, leaf.shape), leaf.ndim)
        and len(leaf[...].addressable_shards) == 8
        for path, leaf in nnx.to_flat_state(params)
    )

out = {}
for dtype in ("float32", "bfloat16"):
    plain = psmc.load(root, dtype=dtype)
    lm = psmc.load(root, dtype=dtype, shardings=choose)
    out[f"sharded {dtype}"] = same(lm.params, plain.params) and placed(lm.params, choose)
    lm = psmc.load(root, dtype=dtype, mesh=mesh)
    everywhere = lambda path, shape: NamedSharding(mesh, P())
    out[f"replicated {dtype}"] = same(lm.params, plain.params) and placed(lm.params, everywhere)
plain = psmc.load(root)
out["not committed"] = bool((plain.params["norm"]["scale"][...] + jax.device_put(
    np.float32(1), jax.devices()[5])).sum() > 0)

# What is asked of the memory map, one slice for each part, however many devices hold it.
class Recorder(np.ndarray):
    asked = []
    def __getitem__(self, index):
        part = np.asarray(self).__getitem__(index)
        self.asked.append(part.shape)
        return part
view = np.zeros((16, 2, 3, 4), np.float32).view(Recorder)
placement.place(view, np.dtype("float32"), NamedSharding(mesh, P("x")))
out["asked"] = Recorder.asked
try:
    psmc.load(root, shardings=lambda path, shape: NamedSharding(mesh, P("x")))
except ValueError as error:
    out["uneven"] = str(error)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return run(SHARDED, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["sharded", "replicated"])
def test_shards_hold_their_slices(sharded, how, dtype):
    assert sharded[f"{how} {dtype}"]


def test_without_shardings_parameters_are_not_bound_to_a_device(sharded):
    assert sharded["not committed"]


def test_only_the_slices_of_the_shards_are_read(sharded):
    assert sharded["asked"] == [[4, 2, 3, 4]] * 4


def test_uneven_shards_are_refused(sharded):
    assert "embedding" in sharded["uneven"] and "(23, 16)" in sharded["uneven"]
    assert "does not divide evenly" in sharded["uneven"]


# --- memory ---

MEMORY = """
import gc, json, pathlib, sys, threading
import jax, ml_dtypes, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jax_power_smc.models.checkpoints import safetensors_io
from jax_power_smc.models.transformer import config
from tests.models import oracle, small

root = pathlib.Path(sys.argv[1])
sizes = config.TransformerConfig(
    vocab_size=64, hidden_size=512, num_layers=1, num_heads=8, num_kv_heads=8, head_dim=8,
    mlp_size=8192)
largest = 4 * 512 * 8192
tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in oracle.random_tensors(sizes).items()}
small.write(root, sizes, tensors)
del tensors
mesh = jax.make_mesh((8,), ("x",))
split = lambda path, shape: NamedSharding(mesh, P("x" if shape[0] % 8 == 0 else None))

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

def peak(shardings):
    samples, stop = [], threading.Event()
    def sample():
        while not stop.is_set():
            samples.append(anonymous())
            stop.wait(0.0005)
    gc.collect()
    before = anonymous()
    thread = threading.Thread(target=sample)
    thread.start()
    params = safetensors_io.load_params(root, sizes, shardings=shardings)
    samples.append(anonymous())
    stop.set()
    thread.join()
    held = sum(x.nbytes for x in jax.tree.leaves(params))
    return (max(samples) - before - held) / largest

out = {}
for name, shardings in (("default", None), ("split", split)):
    peak(shardings)  # what is compiled and imported once
    out[name] = peak(shardings)
print(json.dumps(out))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_takes_little_more_memory_than_the_parameters(tmp_path):
    # In units of the largest tensor, beyond what the parameters themselves take.
    for extra in run(MEMORY, tmp_path).values():
        assert -0.5 < extra < 0.5, extra
