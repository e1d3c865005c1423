"""A vocabulary in shards: every device of a group finds what numpy finds in the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jax_power_smc.core.mesh import MODEL
from jax_power_smc.core.vocab_sharding import UNSHARDED, Logits, VocabSharding
from jax_power_smc.samplers import proposal as proposals
from jax_power_smc.samplers.without_replacement import WithoutReplacement
from jax_power_smc.targets.power import PowerTarget, support

pytestmark = pytest.mark.usefixtures("quick_compilation")

N, V = 5, 64
CUT, REPLICATED = PartitionSpec(None, MODEL), PartitionSpec()
SHARDS, EXTREMES = [2, 4, 8], [2, 8]


def on_all(shards, function, *args, specs=None):
    """What every device gives for ``function(vocabulary, *args)``, [devices, ...].

    Arrays [., V] are cut, unless specs says otherwise.
    """
    mesh = Mesh(np.array(jax.devices()[:shards]), (MODEL,))
    vocabulary = VocabSharding(MODEL, shards)

    def one(*args):
        return jax.tree.map(lambda x: x[None], function(vocabulary, *args))

    if specs is None:
        specs = tuple(CUT if x.ndim and x.shape[-1] == V else REPLICATED for x in args)
    mapped = jax.shard_map(
        one, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(MODEL), check_vma=False
    )
    return jax.tree.map(np.asarray, jax.jit(mapped)(*args))


def on_one(function, *args):
    """What the one device gives that has the whole vocabulary."""
    return jax.tree.map(np.asarray, jax.jit(functools.partial(function, UNSHARDED))(*args))


def assert_all(found, expected, **tolerance):
    """Every device has the expected values, and all have the same ones to the last bit."""
    for own in found:
        np.testing.assert_array_equal(own, found[0])
        np.testing.assert_allclose(own, expected, **({"rtol": 0} | tolerance))


def logits(seed=0, dtype=np.float32):
    """Rows [N, V] with -inf, ties within and across shards, and the largest in either half."""
    x = np.random.default_rng(seed).normal(size=(N, V)).astype(dtype)
    x[0, 40:] = -np.inf
    x[1, :63] = -np.inf
    x[2, [9, 11, 50]] = 7.0
    x[3, [31, 32]] = 7.0
    return x


@pytest.mark.parametrize("shards", SHARDS)
def test_sums_and_maxima(shards):
    x = logits()
    assert_all(on_all(shards, lambda v, x: v.max(jnp.max(x, axis=-1)), x), x.max(axis=-1))
    p = np.exp(x)
    found = on_all(shards, lambda v, x: v.sum(jnp.sum(x, axis=-1)), p)
    assert_all(found, p.sum(axis=-1), rtol=1e-6)


@pytest.mark.parametrize("shards", SHARDS)
def test_shards_side_by_side_are_the_whole(shards):
    x = logits()
    assert_all(on_all(shards, lambda v, x: v.all_gather(x), x), x)
    assert_all(
        on_all(shards, lambda v, x: v.all_gather(v.local_slice(x)), x, specs=(REPLICATED,)), x
    )
    found = on_all(shards, lambda v, x: v.local_slice(x), x, specs=(REPLICATED,))
    np.testing.assert_array_equal(np.concatenate(list(found), axis=-1), x)
    firsts = on_all(shards, lambda v: v.first(V // shards))
    assert firsts.tolist() == [i * V // shards for i in range(shards)] and firsts.dtype == np.int32


@pytest.mark.parametrize("shards", SHARDS)
def test_exactly_one_device_has_a_token(shards):
    tokens = np.arange(V, dtype=np.int32)
    local, mine = on_all(
        shards, lambda v, t: v.to_local(t, V // shards), tokens, specs=(REPLICATED,)
    )
    assert mine.sum(axis=0).tolist() == [1] * V
    assert local.min() == 0 and local.max() == V // shards - 1
    owner = mine.argmax(axis=0)
    np.testing.assert_array_equal(owner * (V // shards) + local[owner, tokens], tokens)
    # What lies beyond the vocabulary is nobody's, and is looked for within bounds.
    for outside in (-1, V, 10**6):
        at = np.array([outside], np.int32)
        local, mine = on_all(shards, lambda v, t: v.to_local(t, V // shards), at)
        assert not mine.any() and local.min() >= 0 and local.max() < V // shards


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_a_value_comes_from_its_owner_alone(shards, dtype):
    mine = np.arange(6)[None, :] % shards == np.arange(shards)[:, None]
    values = np.random.default_rng(1).normal(size=(shards, 6, 3)) * 8
    values[~mine] = np.nan if dtype in ("float32", "bfloat16") else 5
    values[0, 0] = [-np.inf, np.inf, np.nan] if dtype in ("float32", "bfloat16") else [0, 1, 2]
    values = jnp.asarray(values > 0 if dtype == "bool" else values).astype(dtype)
    lead = PartitionSpec(MODEL)
    found = on_all(
        shards, lambda v, x, m: v.from_owner(x[0], m[0]), values, mine, specs=(lead, lead)
    )
    owner = np.arange(6) % shards
    expected = np.asarray(values)[owner, np.arange(6)]
    assert found.dtype == expected.dtype
    for own in found:
        # numpy does not know which bfloat16 are no numbers.
        np.testing.assert_array_equal(own.astype(float), expected.astype(float))


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("table_rows", [1, N])
def test_looking_up_tokens(shards, table_rows):
    table = logits()[:table_rows]
    rows = np.array([[0, 0, 4], [1, 3, 2]], np.int32)
    tokens = np.array([[0, 63, 31], [62, 32, 50]], np.int32)
    expected = table[rows if table_rows > 1 else 0 * rows, tokens]
    lookup = functools.partial(on_all, shards, lambda v, *args: v.lookup(*args))
    assert_all(lookup(table, rows, tokens), expected)
    assert_all(lookup(table > 0, rows[0], tokens[0]), (expected > 0)[0])


@pytest.mark.parametrize("shards", SHARDS)
def test_the_first_of_the_largest(shards):
    x = logits()
    x = np.concatenate([x, np.full((1, V), -np.inf, np.float32), np.zeros((1, V), np.float32)])
    found = on_all(shards, lambda v, x: v.argmax(x), x)
    assert found.dtype == np.int32
    assert_all(found, np.argmax(x, axis=-1))
    assert found[0, 1:4].tolist() == [63, 9, 31]


@pytest.mark.parametrize("bad", [0, 13, 63])
@pytest.mark.parametrize("shards", SHARDS)
def test_argmax_with_a_nan_is_some_token(shards, bad):
    x = logits()
    x[:, bad] = np.nan
    found = on_all(shards, lambda v, x: v.argmax(x), x)
    assert (found == found[0]).all() and found.min() >= 0 and found.max() < V


@pytest.mark.parametrize("shards", SHARDS)
def test_all_devices_see_invalid_logits(shards):
    x = logits()
    x[0, 50], x[2, 3], x[4] = np.nan, np.inf, -np.inf
    found = on_all(shards, lambda v, x: proposals.normalise(Logits(x, v)).is_bad, x)
    assert_all(found, [True, False, True, False, True])


@pytest.mark.parametrize("shards", EXTREMES)
@pytest.mark.parametrize(("alpha", "support_rows"), [(1.0, 1), (4.0, N), (0.0, 1)])
def test_a_draw_is_that_of_the_whole_vocabulary(shards, support_rows, alpha):
    # Each part has whole blocks, so that the masses are those of one device, bit for bit.
    x = logits()
    allowed = np.random.default_rng(2).random((support_rows, V)) < 0.7
    allowed[0, 20:30] = True
    uniforms = np.random.default_rng(3).random((400, 2), np.float32)
    rows = np.arange(400, dtype=np.int32) % N
    exponent = jnp.float32(alpha)

    def draw(vocabulary, x, allowed, uniforms, rows):
        sharded = Logits(x, vocabulary)
        made = proposals.power_proposal(sharded, allowed, exponent)
        token = proposals.draw(made, rows, uniforms)
        log_p = proposals.log_prob(sharded, proposals.normalise(sharded), rows, token)
        return token, made.log_sum, log_p

    args = x, allowed, uniforms, rows
    expected = on_one(draw, *args)
    assert len(set(expected[0].tolist())) > 10
    found = on_all(shards, draw, *args, specs=(CUT, CUT, REPLICATED, REPLICATED))
    assert_all(found[0], expected[0])
    assert_all(found[1], expected[1], rtol=1e-5)
    assert_all(found[2], expected[2], rtol=1e-5)


@pytest.mark.parametrize("shards", EXTREMES)
@pytest.mark.parametrize("restriction", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.9}])
def test_the_most_probable_tokens_are_found_among_all(shards, restriction):
    x = logits()
    target = PowerTarget(2.0, (3,), min_new_tokens=4, **restriction).arrays(V, 8)
    step = jnp.int32(2)

    def allowed(vocabulary, x, ends):
        inside = support(Logits(x, vocabulary), target._replace(ends=ends[0]), ends, step)
        return vocabulary.all_gather(inside)

    ends = np.asarray(target.ends)[None]
    expected = on_one(allowed, x, ends)
    assert 0 < expected.sum() < N * V / 2
    assert_all(on_all(shards, allowed, x, ends), expected)


@pytest.mark.parametrize("shards", EXTREMES)
@pytest.mark.parametrize("count", [1, 7, 20, V])
def test_explicit_children_are_those_of_the_whole_vocabulary(shards, count):
    # More than a part has, and all of them.
    x = logits(5)
    allowed = np.arange(V)[None, :] % 3 > 0

    def explicit(vocabulary, x, allowed):
        return WithoutReplacement(N, count).explicit(Logits(x, vocabulary), allowed)

    found = on_all(shards, explicit, x, allowed)
    expected = on_one(explicit, x, allowed)
    for own in found:
        np.testing.assert_array_equal(own, found[0])
        for row in range(N):
            assert len(set(own[row].tolist())) == count
            # Among tokens without mass any may be chosen.
            value = np.where(allowed[0], x[row], -np.inf)
            np.testing.assert_array_equal(value[own[row]], value[expected[row]])
