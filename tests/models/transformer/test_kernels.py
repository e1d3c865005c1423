"""The TPU kernel: interpreted against the plain form, and that it lowers for TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jax_power_smc.models.transformer import cached_attention, kernels
from jax_power_smc.models.transformer.attention import Scoring
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM

pytestmark = pytest.mark.usefixtures("quick_compilation")

T = 384  # three blocks
K, G = 2, 3
SCORINGS = {
    "plain": Scoring(1.0),
    "softcap": Scoring(1.0, softcap=1.5),
    "window-1": Scoring(1.0, window=1),
    "window-70": Scoring(1.0, window=70),
    "window-and-softcap": Scoring(1.0, softcap=1.5, window=200),
    "window-beyond-all": Scoring(1.0, window=1000),
}
# The new token is the first, the last, the last and first of a block, in the middle; free rows have
# positions too, also one beyond the end.
POSITIONS = [0, T - 1, 127, 128, 200, 5, T, 301]
LIVE = [1, 1, 1, 1, 1, 0, 0, 1]


@functools.cache
def kernel(scoring, interpret=True):
    limits = {"softcap": scoring.softcap, "window": scoring.window}
    return jax.jit(functools.partial(kernels.decode, **limits, interpret=interpret))


@functools.cache
def plain(scoring):
    """On any platform but TPUs and GPUs."""
    return jax.jit(functools.partial(cached_attention.decode, "flat", scoring))


def arrays(positions, live, dim=128, heads=K, group=G, capacity=T, dtype=jnp.float32, seed=0):
    """Arguments of both; beyond a row's end large numbers, so that any leak shows."""
    rng, rows = np.random.default_rng(seed), len(positions)
    shapes = [(rows, heads, group, dim), *[(rows, heads, dim)] * 2]
    q, new_keys, new_values = (rng.normal(size=shape) for shape in shapes)
    filled = np.arange(capacity)[None, :, None] < np.asarray(positions)[:, None, None]
    leaves = [
        np.where(filled, rng.normal(size=(rows, capacity, heads * dim)), 1e4) for _ in range(2)
    ]
    numbers = [jnp.asarray(x, jnp.int32) for x in (positions, live)]
    floats = [q / np.sqrt(dim), new_keys, new_values, *leaves]
    return [jnp.asarray(x, dtype) for x in floats] + numbers


def assert_same(got, expected, live, tolerance=1e-5):
    live = np.asarray(live) > 0
    out, wanted = (np.asarray(x[0], np.float32) for x in (got, expected))
    np.testing.assert_allclose(out[live], wanted[live], atol=tolerance, rtol=tolerance)
    assert not out[~live].any()
    for leaf, other in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("name", SCORINGS)
def test_kernel_equals_the_plain_form(name):
    args = arrays(POSITIONS, LIVE)
    assert_same(kernel(SCORINGS[name])(*args), plain(SCORINGS[name])(*args), LIVE)


def test_memory_and_copies_as_on_a_chip():
    # Copies take effect when they are waited for, and memory begins as NaN.
    scoring, args = SCORINGS["window-and-softcap"], arrays(POSITIONS, LIVE)
    args[3:5] = [leaf.at[5:7].set(jnp.nan) for leaf in args[3:5]]  # of free rows
    chip = pltpu.InterpretParams(dma_execution_mode="on_wait", uninitialized_memory="nan")
    assert_same(kernel(scoring, chip)(*args), plain(scoring)(*args), LIVE)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("dim", "heads", "group"), [(64, 2, 1), (96, 4, 7), (128, 1, 8), (128, 2, 9), (256, 1, 2)]
)
def test_every_size_of_heads(dim, heads, group, dtype):
    args = arrays(POSITIONS, LIVE, dim, heads, group, dtype=dtype)
    # The weights are rounded to bfloat16 before the second product, relative to another maximum.
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    scoring = SCORINGS["window-and-softcap"]
    assert_same(kernel(scoring)(*args), plain(scoring)(*args), LIVE, tolerance)


@pytest.mark.parametrize("live", [[0], [1], [0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1]])
def test_few_rows(live):
    positions = [150, 3, 260][: len(live)]
    args = arrays(positions, live)
    assert_same(kernel(SCORINGS["plain"])(*args), plain(SCORINGS["plain"])(*args), live)


def test_scores_that_rise_from_block_to_block():
    # The running sums are rescaled by e^-100, and neither lost nor doubled.
    args = arrays([T - 1, 300], [1, 1])
    rising = jnp.repeat(jnp.asarray([0.0, 100.0, 101.0]), 128)[None, :, None]
    args[0] = jnp.ones_like(args[0])
    args[1] = jnp.zeros_like(args[1])
    args[3] = jnp.broadcast_to(rising / 128, args[3].shape)
    got = kernel(SCORINGS["plain"])(*args)
    assert_same(got, plain(SCORINGS["plain"])(*args), [1, 1], 1e-4)


def test_blocks_that_are_not_needed_are_not_read():
    # A NaN stays a NaN under any weight.
    scoring = SCORINGS["window-70"]
    args = arrays([T - 1, 120, 5], [1, 1, 0])
    for i in (3, 4):
        args[i] = args[i].at[0, :256].set(jnp.nan).at[1, 128:].set(jnp.nan).at[2].set(jnp.nan)
    assert np.isfinite(kernel(scoring)(*args)[0]).all()


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (None, [(0, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]),
        (100, [(0, 0), (2, 0), (2, 1), (3, 2)]),
        (1, [(0, 0), (2, 1), (3, 2)]),
    ],
)
def test_the_items_are_the_blocks_of_live_rows(window, expected):
    position = jnp.asarray([0, 200, 128, 380], jnp.int32)
    live = jnp.asarray([True, False, True, True])
    found = kernels.plan(position, live, 3, 128, window)
    number = int(found.sizes[0])
    pairs = zip(found.row.tolist(), found.block.tolist(), strict=True)
    assert list(pairs)[:number] == expected and int(found.sizes[1]) == 3
    assert found.order[np.asarray(live)].tolist() == [0, 1, 2]
    # Beyond them, what is valid to look at.
    assert int(found.row.min()) >= 0 and int(found.row.max()) < 4
    assert int(found.block.min()) >= 0 and int(found.block.max()) < 3


@pytest.mark.parametrize("shared", [False, True])
def test_prompts_under_vmap_are_more_rows(shared):
    second = (POSITIONS, LIVE) if shared else (POSITIONS[::-1], LIVE[::-1])
    several = [arrays(POSITIONS, LIVE), arrays(*second, seed=1)]
    args = [jnp.stack(x) for x in zip(*several, strict=True)]
    axes = [0] * 7
    if shared:  # what an axis does not batch has no such axis at all
        args[5], axes[5] = args[5][0], None
    ours, theirs = (
        jax.jit(jax.vmap(function(SCORINGS["plain"]), axes))(*args) for function in (kernel, plain)
    )
    for p in range(2):
        assert_same([x[p] for x in ours], [x[p] for x in theirs], args[6][p])


@pytest.mark.parametrize(
    ("dtype", "heads", "dim", "capacity", "size"),
    [
        ("bfloat16", 1, 128, 2048, 512),
        ("bfloat16", 4, 128, 2048, 256),
        ("bfloat16", 4, 128, 384, 128),
        ("bfloat16", 32, 128, 2048, 128),
        ("float32", 2, 64, 512, 512),
        ("float32", 1, 64, 512, None),
        ("float32", 2, 128, 96, None),
        ("float16", 1, 128, 512, None),
        ("float64", 1, 128, 512, None),
        ("float32", 8, 16, 512, None),
    ],
)
def test_which_leaves_are_served(dtype, heads, dim, capacity, size):
    keys = jax.ShapeDtypeStruct((2, capacity, heads * dim), dtype)
    assert kernels.block_size(keys, dim) == size
    if size is None and dtype != "float64":
        args = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((2, heads, 3, dim),)]
        args += [jax.ShapeDtypeStruct((2, heads, dim), dtype)] * 2 + [keys] * 2
        args += [jax.ShapeDtypeStruct((2,), jnp.int32)] * 2
        with pytest.raises(ValueError, match="does not support"):
            jax.eval_shape(kernels.decode, *args)


def test_more_items_than_scalar_memory_lists_are_not_served():
    keys = jax.ShapeDtypeStruct((4096, 8192, 512), jnp.bfloat16)
    assert kernels.block_size(keys, 128) is None


# --- which implementation a platform gets ---


def decode_for(platform, layout="flat", dtype="bfloat16", head_dim=128, windows=()):
    """The program of a step of a two-layer model, as text."""
    config = TransformerConfig(
        vocab_size=64,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        mlp_size=96,
        windows=windows,
    )
    model = TransformerLM(config, dtype, layout=layout)
    params = jax.eval_shape(model.init, jax.random.key(0))
    cache = jax.eval_shape(lambda: model.init_cache(None, 8, 512))
    number = jax.ShapeDtypeStruct((8,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((8, 1), jnp.int32)
    args = params, cache, tokens, number, number
    exported = jax.export.export(jax.jit(model.extend), platforms=[platform])
    return str(exported(*args).mlir_module())


@pytest.mark.parametrize("windows", [(), (100, 0)])
@pytest.mark.parametrize(("dtype", "head_dim"), [("bfloat16", 128), ("float32", 64)])
def test_a_tpu_gets_the_kernel_in_every_layer(dtype, head_dim, windows):
    module = decode_for("tpu", dtype=dtype, head_dim=head_dim, windows=windows)
    assert module.count("stablehlo.custom_call @tpu_custom_call") == 2
    assert "stablehlo.scatter" not in module  # the kernel writes


@pytest.mark.parametrize(
    ("platform", "layout", "head_dim"),
    [("cpu", "flat", 128), ("cuda", "flat", 128), ("tpu", "by_head", 128), ("tpu", "flat", 48)],
)
def test_others_get_products(platform, layout, head_dim):
    module = decode_for(platform, layout, head_dim=head_dim)
    assert "custom_call @tpu_custom_call" not in module
    assert "stablehlo.scatter" in module


def test_traces_with_64_bit_types_enabled(x64):
    assert decode_for("tpu").count("stablehlo.custom_call @tpu_custom_call") == 2
