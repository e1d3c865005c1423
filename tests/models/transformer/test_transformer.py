"""The transformer: against a second one in numpy, and decoding against the full forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_power_smc.models.cache_moves import insert_rows, resize_cache
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.kv_cache import KVCache
from jax_power_smc.models.transformer.transformer import Transformer, TransformerLM
from tests.models import oracle, small

CAPACITY = 16
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
every_shape = pytest.mark.parametrize("name", small.CONFIGS)
every_layout = pytest.mark.parametrize("layout", ["flat", "by_head"])


@functools.cache
def _built(name, directory):
    return small.build(name, directory)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """name -> (model, parameters), each made once."""
    directory = tmp_path_factory.mktemp("models")
    return lambda name: _built(name, directory)


@functools.cache
def compiled(model):
    """The module's forward pass, and the model's extend and move."""
    graph = nnx.split(model.abstract_module())[0]
    whole = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    return whole, jax.jit(model.extend), jax.jit(model.move)


def forward(model, params, sequences):
    """Logits [B, S, V] of whole sequences, through the module."""
    return np.asarray(compiled(model)[0](params, jnp.asarray(sequences, jnp.int32)))


def extend(model, params, cache, tokens, position, count=None):
    """Tokens [R, B] at positions [R]; all count unless a number is given for each row."""
    tokens = jnp.asarray(tokens, jnp.int32)
    count = np.full(len(tokens), tokens.shape[1]) if count is None else count
    numbers = jnp.asarray(position, jnp.int32), jnp.asarray(count, jnp.int32)
    return compiled(model)[1](params, cache, tokens, *numbers)


def used_before(model, params, rows, capacity=CAPACITY):
    """A cache full of what other prompts left, which must never be read."""
    cache = model.init_cache(params, rows, capacity)
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e3), cache)


def sequences(seed, rows, length=CAPACITY):
    return np.random.default_rng(seed).integers(0, 23, size=(rows, length))


def with_layout(model, layout):
    return TransformerLM(model.config, model.dtype, model.parallel, layout)


# --- against numpy ---


@every_shape
def test_forward_equals_numpy(built, name):
    model, params = built(name)
    sequence = [4, 19, 0, 7, 22, 22, 7, 0, 19, 4, 3, 3]
    expected = oracle.logits(model.config, oracle.random_tensors(model.config), sequence)
    out = forward(model, params, [sequence, sequence[::-1]])
    np.testing.assert_allclose(out[0], expected, atol=1e-4)
    backwards = oracle.logits(model.config, oracle.random_tensors(model.config), sequence[::-1])
    np.testing.assert_allclose(out[1], backwards, atol=1e-4)


@pytest.mark.parametrize("field", ["rope_theta", "norm_eps"])
def test_constants_of_the_config_are_used(built, field):
    # Without this, a constant common to both sides of the test above would go unseen.
    model, params = built("llama-grouped-tied")
    changed = TransformerLM(
        TransformerConfig(**{**vars(model.config), field: getattr(model.config, field) * 500})
    )
    sequence = [4, 19, 0, 7, 22]
    out = forward(changed, params, [sequence])[0]
    expected = oracle.logits(changed.config, oracle.random_tensors(model.config), sequence)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert np.abs(out - forward(model, params, [sequence])[0]).max() > 1e-3


# --- rows against the full forward pass ---


@every_shape
@every_layout
@pytest.mark.parametrize("blocks", [[1] * 16, [16], [9, 1, 1, 1, 1, 1, 1, 1], [1, 7, 8], [5, 11]])
def test_any_blocks_equal_the_forward_pass_at_every_position(built, name, layout, blocks):
    model, params = built(name)
    model, tokens = with_layout(model, layout), sequences(0, rows=3)
    expected = forward(model, params, tokens)
    cache, done = used_before(model, params, 3), 0
    for block in blocks:
        part = tokens[:, done : done + block]
        logits, cache = extend(model, params, cache, part, [done] * 3)
        assert logits.dtype == jnp.float32 and cache.layout == layout
        np.testing.assert_allclose(logits, expected[:, done : done + block], **TOLERANCE)
        done += block
    assert done == CAPACITY


@every_shape
@pytest.mark.parametrize("rows", [1, 4])
def test_rows_of_their_own_lengths_stall_and_go_on(built, name, rows):
    model, params = built(name)
    tokens, lengths = sequences(1, rows), np.array([3, 7, 1, 9])[:rows]
    expected = forward(model, params, tokens)
    cache = used_before(model, params, rows)
    logits, cache = extend(model, params, cache, tokens[:, :9], [0] * rows, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], **TOLERANCE)
    position, random = lengths.copy(), np.random.default_rng(2)
    while (position < CAPACITY).any():
        count = (position < CAPACITY) & (random.random(rows) < 0.7)
        at = np.minimum(position, CAPACITY - 1)
        token = tokens[np.arange(rows), at][:, None]
        logits, cache = extend(model, params, cache, token, position, count)
        for row in np.flatnonzero(count):
            np.testing.assert_allclose(logits[row, 0], expected[row, at[row]], **TOLERANCE)
        position += count


@every_layout
@pytest.mark.parametrize("block", [1, 4])
def test_a_row_without_tokens_stays_as_it_is(built, layout, block):
    model, params = built("llama-grouped-tied")
    model, tokens = with_layout(model, layout), sequences(3, rows=3)
    _, before = extend(model, params, used_before(model, params, 3), tokens[:, :8], [0] * 3)
    count = [0, block, 0]
    logits, after = extend(model, params, before, tokens[:, 8 : 8 + block], [8, 8, CAPACITY], count)
    assert np.isfinite(logits).all()
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x[0], y[0])
        np.testing.assert_array_equal(x[2], y[2])
        assert not np.array_equal(x[1], y[1])


def test_only_the_tokens_that_count_are_written_and_read(built):
    model, params = built("qwen2-one-key-head-tied")
    results = []
    for padding in ([0, 0, 0], [22, 7, 11]):
        cache = used_before(model, params, 2)
        tokens = [[1, 2, *padding], [3, 4, 5, 6, *padding[:1]]]
        logits, cache = extend(model, params, cache, tokens, [0, 0], [2, 4])
        after, cache = extend(model, params, cache, [[3], [5]], [2, 4])
        results.append((logits[0, :2], logits[1, :4], after, cache))
    small.assert_equal_trees(*results)


def test_a_row_does_not_see_its_neighbors(built):
    model, params = built("llama-grouped-tied")
    found = []
    for neighbor in (3, 17):
        cache = model.init_cache(params, 3, CAPACITY)
        for position in range(2):
            logits, cache = extend(model, params, cache, [[5], [neighbor], [5]], [position] * 3)
        found.append(logits)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][2], found[1][2])
    assert not np.array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["llama-grouped-tied", "qwen2-one-key-head-tied"])
@every_layout
def test_moved_rows_go_on_as_their_sources(built, name, layout):
    model, params = built(name)
    model = with_layout(model, layout)
    first, second = sequences(4, rows=4, length=6), sequences(5, rows=4, length=5)
    cache = used_before(model, params, 4)
    lengths = np.array([6, 2, 4, 1])
    _, cache = extend(model, params, cache, first, [0] * 4, lengths)
    # Row 0 to rows 1 and 3; the third pair is beyond the count.
    moved = [jnp.asarray(x, jnp.int32) for x in ([0, 0, 1, 1], [3, 1, 2, 2], [6, 6, 2, 2], 2)]
    cache = compiled(model)[2](cache, *moved)
    parents, lengths = [0, 0, 2, 0], np.array([6, 6, 4, 6])
    whole = [[*first[p, :n], *x, 0, 0] for p, n, x in zip(parents, lengths, second, strict=True)]
    expected = forward(model, params, [x[:11] for x in whole])
    for t in range(5):
        logits, cache = extend(model, params, cache, second[:, t : t + 1], lengths + t)
        for row in range(4):
            np.testing.assert_allclose(logits[row, 0], expected[row, lengths[row] + t], **TOLERANCE)


@pytest.mark.parametrize("block", [1, 3])
def test_a_rewound_row_forgets_what_it_had(built, block):
    model, params = built("qwen2-grouped-untied")
    assert model.can_rewind
    tokens, other = sequences(6, rows=2), sequences(7, rows=2)
    _, cache = extend(model, params, used_before(model, params, 2), tokens, [0, 0])
    cut = np.array([4, 9])
    changed = [[*x[:n], *y[n:]] for x, y, n in zip(tokens, other, cut, strict=True)]
    expected = forward(model, params, changed)
    for done in range(0, 6, block):
        part = [row[n + done : n + done + block] for row, n in zip(changed, cut, strict=True)]
        logits, cache = extend(model, params, cache, part, cut + done)
        for row, n in enumerate(cut):
            np.testing.assert_allclose(
                logits[row], expected[row, n + done : n + done + block], **TOLERANCE
            )


@every_layout
@pytest.mark.parametrize(("rows", "capacity"), [(5, 24), (2, 24), (3, 16)])
def test_inserted_rows_go_on_in_a_cache_of_another_size(built, layout, rows, capacity):
    model, params = built("qwen2-grouped-untied")
    model, tokens = with_layout(model, layout), sequences(11, rows=2)
    expected = forward(model, params, tokens)
    lengths = np.array([5, 8])
    small_cache = used_before(model, params, 3, capacity=8)
    padded = [*tokens[:, :8], [0] * 8]
    _, prefilled = extend(model, params, small_cache, padded, [0] * 3, [*lengths, 0])
    # The third of the group is padding.
    cache = used_before(model, params, 4, capacity=12)
    cache = insert_rows(model, cache, jnp.asarray([1, 0, 4], jnp.int32), prefilled)
    cache = resize_cache(model, params, cache, rows, capacity)
    for leaf, other in zip(
        jax.tree.leaves(cache),
        jax.tree.leaves(model.init_cache(params, rows, capacity)),
        strict=True,
    ):
        assert leaf.shape == other.shape
    for t in range(4):
        token, position = np.zeros((rows, 1)), np.zeros(rows)
        token[:2, 0] = tokens[[1, 0], lengths[[1, 0]] + t]
        position[:2] = lengths[[1, 0]] + t
        logits, cache = extend(model, params, cache, token, position, np.arange(rows) < 2)
        for row, prompt in enumerate([1, 0]):
            wanted = expected[prompt, lengths[prompt] + t]
            np.testing.assert_allclose(logits[row, 0], wanted, **TOLERANCE)


@pytest.mark.parametrize("rows", [1, 3])
def test_prompts_of_their_own_under_vmap(built, rows):
    model, params = built("qwen2-grouped-untied")
    tokens = sequences(8, rows=2 * rows)
    expected = forward(model, params, tokens).reshape(2, rows, CAPACITY, -1)
    mapped = jax.jit(jax.vmap(model.extend, in_axes=(None, 0, 0, 0, 0)))
    tokens = jnp.asarray(tokens.reshape(2, rows, -1), jnp.int32)
    cache = jax.tree.map(lambda x: jnp.stack([x, x]), used_before(model, params, rows))
    lengths = np.array([[3, 5, 1], [9, 2, 6]])[:, :rows]
    _, cache = mapped(params, cache, tokens[:, :, :9], 0 * jnp.int32(lengths), jnp.int32(lengths))
    for t in range(4):
        at = jnp.int32(lengths + t)
        token = jnp.take_along_axis(tokens, at[..., None], axis=2)
        logits, cache = mapped(params, cache, token, at, jnp.ones_like(at))
        wanted = np.take_along_axis(expected, np.asarray(at)[..., None, None], axis=2)
        np.testing.assert_allclose(logits, wanted, **TOLERANCE)


# --- dtypes, identity, initialisation ---


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_layout
def test_half_precision_stays_close_and_returns_float32_logits(built, dtype, layout):
    exact, params = built("qwen2-grouped-untied")
    model = TransformerLM(exact.config, dtype, layout=layout)
    low = jax.tree.map(lambda x: x.astype(dtype), params)
    tokens = sequences(9, rows=2)
    logits, cache = extend(model, low, model.init_cache(low, 2, CAPACITY), tokens[:, :5], [0, 0])
    after, cache = extend(model, low, cache, tokens[:, 5:6], [5, 5])
    assert {x.dtype for x in jax.tree.leaves(cache)} == {jnp.dtype(dtype)}
    assert logits.dtype == after.dtype == jnp.float32
    expected = forward(exact, params, tokens)
    np.testing.assert_allclose(logits, expected[:, :5], atol=0.15)
    np.testing.assert_allclose(after[:, 0], expected[:, 5], atol=0.15)


@every_layout
def test_double_precision_is_double_all_the_way(built, x64, layout):
    single, params = built("qwen2-grouped-untied")
    model = TransformerLM(single.config, "float64", layout=layout)
    double = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    tokens = sequences(10, rows=2)
    expected = np.asarray(forward(model, double, tokens))
    cache = used_before(model, double, 2)
    _, cache = extend(model, double, cache, tokens[:, :15], [0, 0])
    logits, cache = extend(model, double, cache, tokens[:, 15:], [15, 15])
    assert {x.dtype for x in (logits, *jax.tree.leaves(cache))} == {jnp.dtype("float64")}
    np.testing.assert_allclose(logits[:, 0], expected[:, 15], atol=1e-13)
    tensors = oracle.random_tensors(model.config)
    for row, sequence in enumerate(tokens):
        reference = oracle.logits(model.config, tensors, sequence)
        # The frequencies of the rotation are those of float32.
        np.testing.assert_allclose(expected[row], reference, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "int8", "int32"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError) as error:
        TransformerLM(small.CONFIGS["llama-grouped-tied"], dtype)
    small.assert_one_sentence(error, f"dtype is {dtype}", "float32, bfloat16, float16")


def test_equal_models_are_traced_once(built):
    traces = []

    @functools.partial(jax.jit, static_argnames="model")
    def run(params, model):
        traces.append(model)
        zeros = jnp.zeros((2,), jnp.int32)
        return model.extend(params, model.init_cache(params, 2, 4), zeros[:, None], zeros, zeros)[0]

    config = small.CONFIGS["llama-grouped-tied"]
    same = [TransformerLM(config), TransformerLM(TransformerConfig(**vars(config)), "float32")]
    _, params = built("llama-grouped-tied")
    for model in same:
        run(params, model)
    assert len(traces) == 1
    other = TransformerLM(TransformerConfig(**{**vars(config), "rope_theta": 77.0}))
    assert other != same[0] != TransformerLM(config, "bfloat16")
    assert (
        same[0] != TransformerLM(config, layout="flat") != TransformerLM(config, layout="by_head")
    )
    run(params, other)
    assert len(traces) == 2


def test_init_is_a_function_of_its_key_and_fits_the_loaded_structure(built):
    loaded, params = built("qwen2-grouped-untied")
    model = TransformerLM(loaded.config)
    small.assert_equal_trees(model.init(jax.random.key(1)), model.init(jax.random.key(1)))
    one, two = (jax.tree.leaves(model.init(jax.random.key(i))) for i in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert jax.tree.structure(params) == jax.tree.structure(model.init(jax.random.key(0)))
    shapes = [x.shape for x in jax.tree.leaves(params)]
    assert shapes == [x.shape for x in one]


def test_cache_has_what_its_rows_need_and_no_more(built):
    model, params = built("qwen2-grouped-untied")
    cache = model.init_cache(params, 3, 8)
    assert isinstance(cache, KVCache)
    # Keys and values of 2 layers, 2 key/value heads, 8 tokens, head dimension 4.
    assert [x.shape[0] for x in jax.tree.leaves(cache)] == [3] * 4
    assert [x.size for x in jax.tree.leaves(cache)] == [3 * 2 * 8 * 4] * 4


def test_module_is_a_flax_module_that_can_be_trained():
    config = small.CONFIGS["qwen2-one-key-head-tied"]
    module = Transformer(config, rngs=nnx.Rngs(0))
    tokens = jnp.asarray([[1, 2, 3, 4], [5, 6, 7, 8]], jnp.int32)

    def loss(module):
        log_p = jax.nn.log_softmax(module(tokens[:, :-1]), axis=-1)
        return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1))

    gradients = nnx.jit(nnx.grad(loss))(module)
    for path, leaf in nnx.to_flat_state(gradients):
        assert bool(jnp.all(jnp.isfinite(leaf[...]))), path
        assert float(jnp.max(jnp.abs(leaf[...]))) > 0, path
