"""Every program is lowered from shapes alone, for one device and for a mesh."""

import jax
import pytest

import jax_power_smc as psmc
from jax_power_smc.benchmarks.lowering import NAMES, Programs, Sizes
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.samplers import PowerSMC

CONFIG = psmc.TransformerConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=32,
    tied_embeddings=True,
    max_positions=256,
)


def programs(size=None, data=1):
    mesh = None if size is None else make_mesh(size, jax.devices()[: size * data])
    sizes = Sizes(prompts=2, rows=4, capacity=48, group=2, prompt_tokens=16, steps=3)
    return Programs(psmc.TransformerLM(CONFIG), mesh, PowerSMC(4), sizes)


@pytest.mark.parametrize(("size", "data"), [(None, 1), (2, 2)])
def test_shapes_are_those_of_the_sizes(size, data):
    made = programs(size, data)
    shards, heads = (1, 2) if size is None else (size * data, 1)
    assert {x.shape for x in jax.tree.leaves(made.cache)} == {(4, heads, 8, 48), (4, heads, 48, 8)}
    tables = {x.shape[0] for x in jax.tree.leaves(made.state.rows.cache)}
    assert tables == {4 * shards}
    assert made.state.prompts.row_of.shape == (2 * data, 4)


def test_parameters_of_one_device():
    whole, part = programs().local_params(), programs(2).local_params()
    assert whole["embedding"].shape == (64, 32)
    assert whole.keys() == part.keys()
    assert part["layers.0.gate"].shape == (32, 16)


@pytest.mark.parametrize("name", NAMES)
def test_every_program_lowers(name):
    lowered = programs().lower(name)
    leaves = jax.tree.leaves(lowered.out_info)
    rows = {"resize": 2, "prefill": 2}.get(name, 4)
    assert (rows, 2, 16 if name == "prefill" else 48, 8) in {x.shape for x in leaves}


def test_a_chunk_on_a_mesh_lowers():
    assert "all_reduce" in programs(2, 2).lower("decode_chunk").as_text()
