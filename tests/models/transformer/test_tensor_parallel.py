"""Transformers of every family on a mesh: where their parameters lie, and that nothing changes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

import jax_power_smc as psmc
from jax_power_smc import PowerSMC, PowerTarget
from jax_power_smc.core import mesh
from jax_power_smc.core.mesh import MODEL
from jax_power_smc.engine import layout as mesh_layout
from jax_power_smc.engine import memory_plan
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.tensor_parallel import (
    UNSHARDED_MODEL,
    TensorParallel,
    dotted,
    sharding,
    spec,
)
from jax_power_smc.models.transformer.transformer import TransformerLM
from tests.models import small

pytestmark = pytest.mark.usefixtures("quick_compilation")

V = 64
_SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 4,
    "mlp_size": 24,
    "tied_embeddings": False,
    "max_positions": 256,
}
_SOFTCAPS = {"attention_softcap": 5.0, "final_softcap": 3.0, "query_scalar": 6.0}
CONFIGS = {
    "biases": TransformerConfig(**_SIZES, family="qwen2"),
    "norm-over-all-heads": TransformerConfig(**_SIZES, family="olmo2"),
    "norm-over-each-head": TransformerConfig(**_SIZES, family="qwen3"),
    "windows-softcaps-tied": TransformerConfig(
        **{**_SIZES, "tied_embeddings": True}, **_SOFTCAPS, family="gemma2", windows=(3, 0)
    ),
    "multipliers": TransformerConfig(
        **_SIZES, family="granite", residual_multiplier=0.4, logits_divisor=0.5
    ),
    # 23 tokens cannot be cut: they are whole on all devices.
    "whole-vocabulary": TransformerConfig(**{**_SIZES, "vocab_size": 23}, family="qwen2"),
}
# Of K = 4 key/value heads each device has two, or one.
QUICK = {"windows-softcaps-tied": (4,)}
PAIRS = [
    pytest.param(name, size, marks=[] if size in QUICK.get(name, ()) else [pytest.mark.pods])
    for name in CONFIGS
    for size in (1, 2, 4)
]
PROMPTS = [[1], [2, 3, 4], [5, 6, 7, 8, 9, 10, 11]]


@functools.cache
def model_and_params(name):
    """Random parameters, with norms and biases away from where they start."""
    model = TransformerLM(CONFIGS[name])
    noise = np.random.default_rng(0)

    def moved(x):
        return x + jnp.asarray(0.3 * noise.normal(size=x.shape), x.dtype) if x.ndim <= 3 else x

    return model, jax.tree.map(moved, model.init(jax.random.key(1)))


def sample(name, where):
    model, params = model_and_params(name)
    return psmc.sample(
        model,
        params,
        PROMPTS,
        key=jax.random.key(2),
        target=PowerTarget(1.5, (1,)),
        sampler=PowerSMC(4, 0.9),
        max_new_tokens=9,
        mesh=where,
    )


@functools.cache
def on_one_device(name):
    return sample(name, None)


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_a_mesh_gives_what_one_device_gives(name, size):
    found, expected = sample(name, mesh.make_mesh(size)), on_one_device(name)
    assert expected.info.forks.sum() > 0 and len(set(np.asarray(expected.tokens).ravel())) > 9
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.info.parent, expected.info.parent)
    for field in ("log_weights", "log_probs", "log_evidence"):
        left, right = getattr(found, field), getattr(expected, field)
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-4, err_msg=field)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_on_a_mesh_give_what_one_device_gives(name, size):
    """A prefill, a move and steps; each device has the keys and values of its own heads."""
    model, params = model_and_params(name)
    part, where = model.on(size), mesh.make_mesh(size)
    tokens = np.random.default_rng(3).integers(0, 23, (3, 10))
    tokens[2, :6] = tokens[0, :6]
    lengths = jnp.asarray([6, 4, 6], jnp.int32)

    def run(model, params, tokens):
        cache = model.init_cache(params, 3, 16)
        start = jnp.zeros_like(lengths)
        # Row 2 has nothing yet; it continues as a copy of row 0.
        first, cache = model.extend(params, cache, tokens[:, :6], start, lengths.at[2].set(0))
        pair = [jnp.asarray(x, jnp.int32) for x in ([0], [2], [6], 1)]
        cache = model.move(cache, *pair)
        found = [first[:2, :4]]
        for t in range(3):
            token = jnp.take_along_axis(tokens, (lengths + t)[:, None], axis=1)
            logits, cache = model.extend(params, cache, token, lengths + t, jnp.ones_like(lengths))
            found.append(logits)
        return found, cache

    placed = part.vocabulary.axis
    mapped = jax.shard_map(
        lambda params, tokens: run(part, params, tokens)[0],
        mesh=where,
        in_specs=(part.param_specs(params), PartitionSpec()),
        out_specs=PartitionSpec(None, None, placed),
        check_vma=False,
    )
    tokens = jnp.asarray(tokens, jnp.int32)
    found = jax.jit(mapped)(params, tokens)
    expected, cache = jax.jit(functools.partial(run, model))(params, tokens)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    local = jax.eval_shape(lambda: part.init_cache(params, 3, 16))
    for whole, own in zip(jax.tree.leaves(cache), jax.tree.leaves(local), strict=True):
        assert own.size * size == whole.size


# --- what lies where ---


def specs(name, size):
    """path -> spec of every parameter."""
    config = CONFIGS[name]
    parallel = TensorParallel.for_config(config, size)
    state = nnx.state(TransformerLM(config).abstract_module())
    return {dotted(p): spec(p, config, parallel) for p, _ in nnx.to_flat_state(state)}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_matrix_is_cut_and_every_vector_of_the_stream_whole(name, size):
    config = CONFIGS[name]
    state = nnx.state(TransformerLM(config).abstract_module())
    where = mesh.make_mesh(size)
    for path, leaf in nnx.to_flat_state(state):
        placed = sharding(path, config, where)
        share = math.prod(leaf.shape) // math.prod(placed.shard_shape(leaf.shape))
        is_vocabulary = path[0] in ("embedding", "head")
        over_heads = path[-2] in ("query_norm", "key_norm") if len(path) > 1 else False
        if is_vocabulary:
            cut = name != "whole-vocabulary"
        elif over_heads:
            cut = config.family == "olmo2"
        else:
            cut = path[-1] != "scale"
        assert share == (size if cut else 1), dotted(path)


def test_the_axes_that_are_cut():
    found = specs("biases", 2)
    expected = {
        "embedding": PartitionSpec(MODEL),
        "head": PartitionSpec(MODEL),
        "norm.scale": PartitionSpec(),
        "layers.0.attention.query": PartitionSpec(None, MODEL),
        "layers.1.attention.value_bias": PartitionSpec(MODEL),
        "layers.1.attention.out": PartitionSpec(MODEL),
        "layers.0.gate": PartitionSpec(None, MODEL),
        "layers.0.down": PartitionSpec(MODEL),
        "layers.0.mlp_norm.scale": PartitionSpec(),
    }
    assert {path: found[path] for path in expected} == expected
    assert set(specs("biases", 1).values()) == {PartitionSpec()}


def test_one_device_exchanges_nothing():
    x = jnp.ones(3)
    assert TensorParallel.for_config(CONFIGS["biases"], 1) is UNSHARDED_MODEL
    assert UNSHARDED_MODEL.sum(x) is x and UNSHARDED_MODEL.vocabulary.axis is None
    model = TransformerLM(CONFIGS["biases"])
    assert model.on(1) == model and model.on(2) != model and model.on(2) == model.on(2)
    assert hash(model.on(2)) == hash(model.on(2)) and len({model, model.on(2), model.on(4)}) == 3


@pytest.mark.parametrize(
    ("changes", "size", "parts"),
    [
        ({}, 8, "4 key/value heads"),
        ({"num_kv_heads": 2}, 4, "2 key/value heads"),
        ({"mlp_size": 26}, 4, "26 columns of the MLP"),
    ],
)
def test_what_a_mesh_does_not_divide_is_refused(changes, size, parts):
    model = TransformerLM(TransformerConfig(**{**_SIZES, **changes}))
    # Before anything is made of the parameters.
    with pytest.raises(ValueError) as error:
        psmc.sample(
            model,
            nnx.state(model.abstract_module()),
            PROMPTS,
            key=jax.random.key(0),
            target=PowerTarget(1.0),
            sampler=PowerSMC(2),
            max_new_tokens=2,
            mesh=mesh.make_mesh(size),
        )
    small.assert_one_sentence(error, f"{size} devices on its axis 'model'", f"model's {parts}")


# --- loading ---


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    small.write(directory, CONFIGS["biases"], eos_token_id=3)
    small.save_tokenizer(directory, 20)
    return directory


def made_by_jax(size):
    """A mesh of explicit axes: they are part of the types of the arrays on it."""
    return jax.make_mesh((8 // size, size), ("data", "model"))


@pytest.mark.parametrize("make", [mesh.make_mesh, made_by_jax])
def test_loading_puts_every_part_on_its_device(checkpoint, make):
    plain, placed = psmc.load(checkpoint), psmc.load(checkpoint, mesh=make(4))
    whole = dict(nnx.to_flat_state(plain.params))
    expected = specs("biases", 4)
    held = dict.fromkeys(jax.devices(), 0)
    for path, leaf in nnx.to_flat_state(placed.params):
        assert leaf[...].sharding.spec == expected[dotted(path)]
        assert len(leaf[...].addressable_shards) == 8
        for shard in leaf[...].addressable_shards:
            held[shard.device] += shard.data.nbytes
            np.testing.assert_array_equal(shard.data, np.asarray(whole[path][...])[shard.index])
    total = memory_plan.tree_bytes(plain.params)
    assert len(set(held.values())) == 1 and total / 4 < held[jax.devices()[0]] < total / 3.5
    assert mesh.mesh_of(placed.params) == mesh.make_mesh(4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [mesh.make_mesh, made_by_jax])
def test_what_was_loaded_onto_a_mesh_runs_there_without_being_told(checkpoint, make):
    given = {
        "key": jax.random.key(0),
        "target": PowerTarget(1.5, (3,)),
        "sampler": PowerSMC(2),
        "max_new_tokens": 4,
    }
    plain, placed = psmc.load(checkpoint), psmc.load(checkpoint, mesh=make(4))
    expected = psmc.sample(plain.model, plain.params, PROMPTS, **given)
    found = psmc.sample(placed.model, placed.params, PROMPTS, **given)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_loading_on_a_mesh_that_does_not_divide_the_model(checkpoint):
    with pytest.raises(ValueError) as error:
        psmc.load(checkpoint, mesh=mesh.make_mesh(8))
    small.assert_one_sentence(error, "do not divide the model's 4 key/value heads")


@pytest.mark.parametrize("axes", [("x", "y"), ("model", "data")])
def test_a_mesh_with_other_axes_gets_copies(checkpoint, axes):
    other = Mesh(np.array(jax.devices()).reshape(4, 2), axes)
    for leaf in jax.tree.leaves(psmc.load(checkpoint, mesh=other).params):
        assert leaf.sharding.is_fully_replicated


# --- memory ---


@pytest.mark.parametrize("make", [mesh.make_mesh, made_by_jax])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_plan_of_one_of_the_devices(size, make):
    model, params = model_and_params("biases")
    layout = mesh_layout.layout_of(model, mesh.make_mesh(size))

    def plan_of(params, layout):
        sizes = {"capacity": 96, "bucket": 64, "slots": 8, "chunk": 8, "group": lambda slots: 2}
        return memory_plan.plan(
            model, params, 4, **sizes, rows=lambda slots: (slots, 4 * slots), layout=layout
        )

    alone, one = plan_of(params, mesh_layout.ONE_DEVICE), plan_of(params, layout)
    assert one.row == alone.row // size
    where = mesh_layout.Layout(make(size), layout.model)
    placed = where.put(params, layout.params(params))
    assert plan_of(placed, layout) == one
    device = jax.devices()[3]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(placed)
        for shard in leaf.addressable_shards
        if shard.device == device
    )
    assert one.params == held
    assert one.total <= alone.total and (size == 1) == (one.total == alone.total)
    # As the caches themselves are, of two rows on every device.
    caches = layout.zeros(lambda: layout.model.init_cache(params, 2 * 8, 96), mesh.PER_DEVICE)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(caches))
    assert held == 2 * one.row
