"""The TPU kernel of the generated half: its arithmetic step by step, and that it lowers for TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.models.transformer import attention, kernels

pytestmark = pytest.mark.usefixtures("quick_compilation")

H = 128
plain = jax.jit(attention._generated_by_products)


def kernel(*args):
    return kernels.generated_half(*args, interpret=True)


def half(n, heads, group, capacity, dtype=jnp.float32, seed=0):
    """Random q [N, K, G, H], k [N, K, H, T], v [N, K, T, H]; scores of standard deviation 1."""
    rng = np.random.default_rng(seed)
    shapes = (n, heads, group, H), (n, heads, H, capacity), (n, heads, capacity, H)
    q, k, v = (rng.normal(size=shape) for shape in shapes)
    return tuple(jnp.asarray(x, dtype) for x in (q / np.sqrt(H), k, v))


def ring(capacity, clock, step):
    """[T]: the entries written at most ``step`` steps before ``clock``."""
    return jnp.asarray((clock - np.arange(capacity)) % capacity <= step)


def with_junk(k, v, valid):
    """Large numbers in what is not valid, so that any leak shows."""
    junk = jnp.asarray(1e4, k.dtype)
    k = jnp.where(valid[None, None, None, :], k, junk)
    return k, jnp.where(valid[None, None, :, None], v, junk)


def assert_close(ours, theirs, part_error=1e-5, sum_error=1e-5):
    """Errors relative to the sum of the weights, the scale of both unnormalised sums."""
    (part, top, total), (plain_part, plain_top, plain_total) = ours, theirs
    assert {x.dtype for x in ours} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(top, plain_top, rtol=sum_error, atol=sum_error)
    np.testing.assert_allclose(total, plain_total, rtol=sum_error)
    error = np.abs(part - plain_part) / np.asarray(plain_total)
    assert part.shape == plain_part.shape
    assert error.max() < part_error


@pytest.mark.parametrize(
    ("capacity", "clock", "step"),
    [
        pytest.param(128, 99, 0, id="one-entry"),
        pytest.param(256, 5, 255, id="everything"),
        pytest.param(384, 20, 60, id="wraps-and-skips-the-middle"),
        pytest.param(384, 200, 10, id="only-the-middle"),
        pytest.param(384, 383, 200, id="skips-the-first"),
        pytest.param(512, 30, 100, id="wraps-in-one-block"),
        pytest.param(1024, 700, 60, id="skips-the-first-of-two"),
    ],
)
def test_kernel_equals_the_plain_form(capacity, clock, step):
    q, k, v = half(2, 2, 3, capacity)
    valid = ring(capacity, clock, step)
    k, v = with_junk(k, v, valid)
    assert_close(kernel(q, k, v, valid), plain(q, k, v, valid))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("n", "heads", "group"), [(1, 1, 1), (1, 1, 7), (3, 1, 8), (1, 2, 9), (3, 2, 16)]
)
def test_every_number_of_heads_and_rows(n, heads, group, dtype):
    q, k, v = half(n, heads, group, 384, dtype)
    valid = ring(384, 20, 300)
    k, v = with_junk(k, v, valid)
    # The weights are rounded to bfloat16 before the second product, relative to another maximum.
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    assert_close(kernel(q, k, v, valid), plain(q, k, v, valid), part_error=tolerance)


def test_a_maximum_that_rises_from_block_to_block():
    # Scores far apart: the running sums are rescaled by e^-100 and not lost or doubled.
    q, k, v = half(1, 1, 2, 384)
    rising = jnp.repeat(jnp.asarray([0.0, 100.0, 101.0]), 128)
    q = q.at[..., 0].set(1.0)
    k = k.at[:, :, 0, :].add(rising[None, None])
    valid = ring(384, 383, 383)
    assert_close(kernel(q, k, v, valid), plain(q, k, v, valid), sum_error=1e-4)
    back = k[..., ::-1]
    assert_close(kernel(q, back, v, valid), plain(q, back, v, valid), sum_error=1e-4)


@pytest.mark.parametrize("capacity", [128, 384])
def test_an_empty_half_has_no_weight(capacity):
    q, k, v = half(2, 1, 3, capacity)
    part, top, total = kernel(q, k, v, jnp.zeros(capacity, bool))
    np.testing.assert_array_equal(top, np.float32(attention._MASKED))
    assert np.isfinite(part).all() and np.isfinite(total).all()


def prompts(count, n):
    """q, k, v of several prompts."""
    halves = [half(n, 1, 3, 384, seed=i) for i in range(count)]
    return [jnp.stack(x) for x in zip(*halves, strict=True)]


RINGS = (20, 60), (200, 10), (383, 383), (0, 0)


@pytest.mark.parametrize("n", [1, 2])
def test_prompts_with_masks_of_their_own(n):
    q, k, v = prompts(4, n)
    valid = jnp.stack([ring(384, *at) for at in RINGS])
    k, v = jax.vmap(with_junk)(k, v, valid)
    ours = jax.jit(jax.vmap(kernel, axis_name="prompts"))(q, k, v, valid)
    assert_close(ours, jax.vmap(plain)(q, k, v, valid))


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        pytest.param((0, 0, 0, 0), (0, 0, 0, 0), id="all"),
        pytest.param((0, 0, 0, None), (0, 0, 0, None), id="one-mask"),
        pytest.param((None, None, None, 0), (0, 0, 0, None), id="masks-of-each-row"),
        pytest.param((0, 0, 0, None), (None, None, None, 0), id="rows-of-each-mask"),
    ],
)
def test_two_axes_of_prompts(inner, outer):
    # What an axis does not batch has no such axis at all.
    args = [x.reshape(2, 2, *x.shape[1:]) for x in prompts(4, 2)]
    args.append(jnp.stack([ring(384, *at) for at in RINGS]).reshape(2, 2, 384))
    for i, axes in enumerate(zip(inner, outer, strict=True)):
        for axis in (1, 0):
            if axes[1 - axis] is None:
                args[i] = jnp.take(args[i], 1, axis=axis)
    ours, theirs = (jax.jit(jax.vmap(jax.vmap(x, inner), outer))(*args) for x in (kernel, plain))
    assert_close(ours, theirs)


def test_blocks_without_entries_are_not_requested():
    has_entries = [[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    one_entry = np.arange(128) == 77
    valid = np.kron(np.asarray(has_entries), one_entry).astype(bool)
    got = kernels._requested_blocks(jnp.asarray(valid), 128)
    expected = [[0, 0, 0, 3], [2, 2, 2, 2], [1, 1, 1, 3], [0, 1, 2, 3], [0, 0, 0, 0]]
    np.testing.assert_array_equal(got, expected)


def test_blocks_without_entries_are_not_used():
    # A NaN stays a NaN under any weight.
    q, k, v = half(2, 1, 2, 384)
    valid = ring(384, 20, 60)  # nothing in the block in the middle
    block = jnp.arange(384) // 128 == 1
    k = jnp.where(block[None, None, None, :], jnp.nan, k)
    v = jnp.where(block[None, None, :, None], jnp.nan, v)
    for x in kernel(q, k, v, valid):
        assert np.isfinite(x).all()


@pytest.mark.parametrize(
    ("dtype", "dim", "capacity", "size"),
    [
        ("bfloat16", 128, 2048, 512),
        ("bfloat16", 128, 768, 256),
        ("float32", 128, 384, 128),
        ("float32", 128, 96, None),
        ("float32", 64, 512, None),
        ("float16", 128, 512, None),
    ],
)
def test_which_shapes_are_served(dtype, dim, capacity, size):
    k = jax.ShapeDtypeStruct((2, 1, dim, capacity), dtype)
    assert kernels.block_size(k) == size
    if size is None:
        q = jax.ShapeDtypeStruct((2, 1, 3, dim), dtype)
        v = jax.ShapeDtypeStruct((2, 1, capacity, dim), dtype)
        with pytest.raises(ValueError, match="does not support"):
            jax.eval_shape(kernel, q, k, v, jax.ShapeDtypeStruct((capacity,), bool))


def shapes(n, capacity, dtype="bfloat16", prompts=(), length=160, heads=4, group=7, dim=128):
    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct((*prompts, *sizes), dtype)

    return (
        shape(n, heads, group, dim),
        shape(heads, dim, length),
        shape(heads, length, dim),
        shape(length, dtype=bool),
        shape(n, heads, dim, capacity),
        shape(n, heads, capacity, dim),
        shape(capacity, dtype=bool),
    )


def lowered(function, args, platform):
    return str(jax.export.export(jax.jit(function), platforms=[platform])(*args).mlir_module())


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"n": 64, "capacity": 2048}, id="production"),
        pytest.param({"n": 64, "capacity": 2048, "prompts": (8,)}, id="production-prompts"),
        pytest.param({"n": 1, "capacity": 384, "dtype": "float32", "prompts": (8,)}, id="float32"),
        pytest.param({"n": 4, "capacity": 256, "heads": 1, "group": 1}, id="small"),
    ],
)
def test_the_kernel_is_what_a_tpu_gets(sizes):
    function = attention.shared_prompt_attention
    if "prompts" in sizes:
        function = jax.vmap(function, axis_name="prompts")
    module = lowered(function, shapes(**sizes), "tpu")
    assert module.count("@tpu_custom_call") == 1
    assert "stablehlo.while" not in module  # no loop over prompts
    assert "@tpu_custom_call" not in lowered(function, shapes(**sizes), "cpu")


def test_other_shapes_take_the_plain_form_on_a_tpu():
    module = lowered(attention.shared_prompt_attention, shapes(4, 96), "tpu")
    assert "@tpu_custom_call" not in module


def test_without_jit_nothing_of_the_kernel_runs_on_cpu():
    args = [jnp.ones(x.shape, x.dtype) for x in shapes(2, 128, heads=1, group=2, length=4)]
    out = attention.shared_prompt_attention(*args)
    np.testing.assert_allclose(out.astype(jnp.float32), 1.0, atol=0.01)
    out = jax.vmap(attention.shared_prompt_attention)(*(x[None] for x in args))
    np.testing.assert_allclose(out.astype(jnp.float32), 1.0, atol=0.01)


def test_traces_with_64_bit_types_enabled(x64):
    jax.eval_shape(attention.shared_prompt_attention, *shapes(2, 128))
    assert "@tpu_custom_call" in lowered(attention.shared_prompt_attention, shapes(2, 128), "tpu")
