"""The transformer: against a second one in numpy, and decoding against the full forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_power_smc.models.cache_moves import move_cache
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import ParticleCache, Transformer, TransformerLM
from tests.models import oracle, small

PROMPT = [4, 19, 0, 7, 22]
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
every_shape = pytest.mark.parametrize("name", small.CONFIGS)


def scalar(value):
    return jnp.asarray(value, jnp.int32)


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
    """The module's forward pass, and the model's prefill and decode."""
    graph = nnx.split(model.abstract_module())[0]
    whole = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    return whole, jax.jit(model.prefill), jax.jit(model.decode)


def forward(model, params, sequences):
    """Logits [B, S, V] of whole sequences, through the module."""
    return np.asarray(compiled(model)[0](params, jnp.asarray(sequences, jnp.int32)))


def prefill(model, params, prompt):
    """The first tokens are ``PROMPT``, the others padding."""
    return compiled(model)[1](params, jnp.asarray(prompt, jnp.int32), scalar(len(PROMPT)))


def decode(model, params, context, cache, token, step, clock):
    token = jnp.asarray(token, jnp.int32)
    return compiled(model)[2](params, context, cache, token, scalar(step), scalar(clock))


def junk(cache):
    """The same cache, full of numbers that must never be read."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e3), cache)


def generated(seed, particles, length):
    return np.random.default_rng(seed).integers(0, 23, size=(particles, length))


# --- against numpy ---


@every_shape
def test_forward_equals_numpy(built, name):
    model, params = built(name)
    sequence = [*PROMPT, *PROMPT[::-1], 3, 3]
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
    out = forward(changed, params, [PROMPT])[0]
    expected = oracle.logits(changed.config, oracle.random_tensors(model.config), PROMPT)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert np.abs(out - forward(model, params, [PROMPT])[0]).max() > 1e-3


# --- prefill and decode against the full forward pass ---


@every_shape
@pytest.mark.parametrize("bucket", [5, 9])
@pytest.mark.parametrize("offset", [0, 5])
def test_decoding_equals_the_forward_pass_at_every_position(built, name, bucket, offset):
    # With offset 5 the clock passes the capacity of 6, and the last token fills it exactly.
    model, params = built(name)
    tokens = generated(0, particles=3, length=6)
    expected = forward(model, params, [[*PROMPT, *row] for row in tokens])
    logits, context = prefill(model, params, PROMPT + [9] * (bucket - len(PROMPT)))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected[0, len(PROMPT) - 1], **TOLERANCE)

    cache = junk(model.init_cache(params, 3, 6))
    for t in range(6):
        logits, cache = decode(model, params, context, cache, tokens[:, t], t, t + offset)
        np.testing.assert_allclose(logits, expected[:, len(PROMPT) + t], **TOLERANCE)


@pytest.mark.parametrize("name", ["llama-grouped-tied", "qwen2-grouped-untied"])
@pytest.mark.parametrize("ancestors", [[0, 0, 2], [2, 1, 2], [1, 1, 1]])
def test_moved_particles_decode_like_their_ancestors_tokens(built, name, ancestors):
    model, params = built(name)
    first, second = generated(1, 3, 3), generated(2, 3, 3)
    after = np.concatenate([first[ancestors], second], axis=1)
    expected = forward(model, params, [[*PROMPT, *row] for row in after])
    _, context = prefill(model, params, PROMPT)
    cache = model.init_cache(params, 3, 6)
    for t in range(3):
        _, cache = decode(model, params, context, cache, first[:, t], t, t)
    cache = move_cache(model, cache, jnp.asarray(ancestors, jnp.int32), jnp.int32(2), jnp.int32(2))
    for t in range(3, 6):
        logits, cache = decode(model, params, context, cache, second[:, t - 3], t, t)
        np.testing.assert_allclose(logits, expected[:, len(PROMPT) + t], **TOLERANCE)


def test_prompts_of_their_own_lengths_and_steps_share_a_clock(built):
    # Two slots of a batch: the second was filled 3 steps later, and reuses the ring.
    model, params = built("qwen2-grouped-untied")
    prompts, starts = [PROMPT, [1, 2, 3]], [2, 5]
    tokens = generated(3, particles=2, length=10)[:, None, :]  # [P, N=1, T]
    # Causal: what follows the position compared does not matter, so both can be of one length.
    whole = [forward(model, params, [[*prompts[p], *tokens[p, 0], 0, 0][:13]])[0] for p in range(2)]
    padded = jnp.asarray([PROMPT, [1, 2, 3, 8, 8]], jnp.int32)
    _, context = jax.jit(jax.vmap(model.prefill, in_axes=(None, 0, 0)))(
        params, padded, jnp.asarray([5, 3], jnp.int32)
    )
    cache = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), junk(model.init_cache(params, 1, 6)))
    both = jax.jit(jax.vmap(model.decode, in_axes=(None, 0, 0, 0, 0, None)))
    for clock in range(5, 8):
        if clock == 5:  # what the first slot did before the second began
            for early in range(2, 5):
                steps = jnp.asarray([early - 2, 0], jnp.int32)
                token = jnp.asarray([tokens[0, :, early - 2], [0]], jnp.int32)
                _, cache = both(params, context, cache, token, steps, scalar(early))
        steps = [clock - start for start in starts]
        token = jnp.asarray([tokens[p, :, steps[p]] for p in range(2)], jnp.int32)
        logits, cache = both(
            params, context, cache, token, jnp.asarray(steps, jnp.int32), scalar(clock)
        )
        for p in range(2):
            expected = whole[p][len(prompts[p]) + steps[p]]
            np.testing.assert_allclose(logits[p, 0], expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["llama-ungrouped-untied", "qwen2-one-key-head-tied"])
def test_padding_has_no_influence(built, name):
    model, params = built(name)
    results = []
    for padding in ([0, 0, 0, 0], [22, 7, 11, 3]):
        logits, context = prefill(model, params, PROMPT + padding)
        cache = model.init_cache(params, 3, 6)
        after, cache = decode(model, params, context, cache, [3, 5, 1], 0, 0)
        results.append((logits, after, cache))
    small.assert_equal_trees(*results)


def test_a_particle_does_not_see_its_neighbours(built):
    model, params = built("llama-grouped-tied")
    _, context = prefill(model, params, PROMPT)
    rows = []
    for neighbour in (3, 17):
        cache = model.init_cache(params, 3, 6)
        for t in range(2):
            logits, cache = decode(model, params, context, cache, [5, neighbour, 5], t, t)
        rows.append(logits)
    np.testing.assert_array_equal(rows[0][0], rows[1][0])
    np.testing.assert_array_equal(rows[0][2], rows[1][2])
    assert not np.array_equal(rows[0][1], rows[1][1])


# --- dtypes, identity, initialisation ---


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close_and_returns_float32_logits(built, dtype):
    exact, params = built("qwen2-grouped-untied")
    model = TransformerLM(exact.config, dtype)
    low = jax.tree.map(lambda x: x.astype(dtype), params)
    logits, context = prefill(model, low, PROMPT)
    cache = model.init_cache(low, 2, 4)
    after, cache = decode(model, low, context, cache, [3, 5], 0, 0)
    assert {x.dtype for x in jax.tree.leaves((context.keys, context.values, cache))} == {
        jnp.dtype(dtype)
    }
    assert logits.dtype == after.dtype == jnp.float32
    expected = forward(exact, params, [[*PROMPT, 3], [*PROMPT, 5]])
    np.testing.assert_allclose(logits, expected[0, -2], atol=0.15)
    np.testing.assert_allclose(after, expected[:, -1], atol=0.15)


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
        return model.prefill(params, jnp.zeros((2,), jnp.int32), scalar(2))[0]

    config = small.CONFIGS["llama-grouped-tied"]
    same = [TransformerLM(config), TransformerLM(TransformerConfig(**vars(config)), "float32")]
    _, params = built("llama-grouped-tied")
    for model in same:
        run(params, model)
    assert len(traces) == 1
    other = TransformerLM(TransformerConfig(**{**vars(config), "rope_theta": 77.0}))
    assert other != same[0] != TransformerLM(config, "bfloat16")
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


def test_cache_has_a_row_per_particle_and_no_more_than_it_needs(built):
    model, params = built("qwen2-grouped-untied")
    cache = model.init_cache(params, 3, 8)
    assert isinstance(cache, ParticleCache)
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
