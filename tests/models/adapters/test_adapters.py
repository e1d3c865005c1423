"""Adapters: whatever holds the cache, log p is that of the module on whole sequences."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_power_smc as psmc
from jax_power_smc import MetropolisHastings, PowerSMC, PowerTarget, WithoutReplacement
from jax_power_smc.engine import executables
from jax_power_smc.models import adapters
from jax_power_smc.testing import check_language_model
from tests.models.small import assert_one_sentence

pytestmark = pytest.mark.usefixtures("quick_compilation")

V, D, L, CAP, EOS = 5, 8, 24, 7, 1
# More prompts than slots, ragged: padding has something to spoil, and slots are filled again.
PROMPTS = [[0, 3], [2], [4, 4, 0, 2, 3], [3, 0, 2], [0, 0, 4, 3, 2, 2, 4]]
TARGET = PowerTarget(2.0, (EOS,))
SAMPLERS = {
    "smc": PowerSMC(4, ess_threshold=1.0, resampling="multinomial"),
    "swor": WithoutReplacement(4),
    "mh": MetropolisHastings(num_chains=2, num_blocks=3, moves_per_block=3),
}
TOLERANCE = {"atol": 3e-5, "rtol": 1e-5}


# --- The same models twice: on whole sequences, and with a cache ---


class Small(nnx.Module):
    """Two layers of Flax's own attention, with learned positions."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.place = nnx.Embed(L, D, rngs=rngs)
        self.layers = nnx.List(
            [nnx.MultiHeadAttention(2, in_features=D, decode=False, rngs=rngs) for _ in range(2)]
        )
        self.head = nnx.Linear(D, V, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)  # keys among the parameters
        self.seen = nnx.data(None)

    def __call__(self, tokens, decode=False):
        first = self.seen[...] if decode else 0
        at = first + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x = self.embed(tokens) + self.place(at)[None]
        mask = None if decode else nnx.make_causal_mask(tokens)
        for layer in self.layers:
            x = x + layer(x, mask=mask, decode=decode)
        if decode:
            self.seen[...] += tokens.shape[1]
        return 3 * self.head(self.dropout(x))


def give_cache(module, batch, capacity):
    module.seen = nnx.Cache(jnp.zeros((), jnp.int32))
    for layer in module.layers:
        layer.init_cache((batch, capacity, D))


def with_cache(module, tokens):
    return module(tokens, decode=True)


class Linen(nn.Module):
    """One layer of Linen's attention, with learned positions; ``decode`` is part of the module."""

    decode: bool

    @nn.compact
    def __call__(self, tokens):
        at = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        if self.decode:
            begun = self.has_variable("cache", "seen")
            seen = self.variable("cache", "seen", lambda: jnp.zeros((), jnp.int32))
            at = seen.value + at
            if begun:
                seen.value += 1
        x = nn.Embed(V, D)(tokens) + nn.Embed(L, D)(at)[None]
        attention = nn.MultiHeadDotProductAttention(2, qkv_features=D, decode=self.decode)
        mask = None if self.decode else nn.make_causal_mask(tokens)
        return 3 * nn.Dense(V)(x + attention(x, mask=mask))


def matrices(seed):
    """Parameters of the models by hand."""
    keys = jax.random.split(jax.random.key(seed), 6)
    shapes = {"e": (V, D), "p": (L, D), "q": (D, D), "k": (D, D), "v": (D, D), "o": (D, V)}
    return {
        name: (0.4 if name == "o" else 0.5) * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def attend(params, x, keys, values, mask):
    scores = jnp.einsum("bsd,btd->bst", x @ params["q"], keys)
    shares = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
    return (x + jnp.einsum("bst,btd->bsd", shares, values)) @ params["o"]


def whole(params, tokens):
    """One layer of attention, on whole sequences."""
    at = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    x = params["e"][tokens] + params["p"][at][None]
    mask = (at[None, :] <= at[:, None])[None]
    return attend(params, x, x @ params["k"], x @ params["v"], mask)


def appending(params, tokens, cache):
    """The same with a cache of [B, L, D], any number of tokens at a time."""
    first = cache["index"]
    at = first + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    x = params["e"][tokens] + params["p"][at][None]
    keys = jax.lax.dynamic_update_slice_in_dim(cache["k"], x @ params["k"], first, axis=1)
    values = jax.lax.dynamic_update_slice_in_dim(cache["v"], x @ params["v"], first, axis=1)
    mask = (jnp.arange(keys.shape[1], dtype=jnp.int32)[None, :] <= at[:, None])[None]
    logits = attend(params, x, keys, cache["sign"] * values, mask)
    after = {"k": keys, "v": values, "index": first + tokens.shape[1], "sign": cache["sign"]}
    return logits, after


def empty(params, batch, capacity):
    """Not all zeros: the scalar is 1, and the arrays hold what must never be read."""
    rows = jnp.full((batch, capacity, D), 1e3, jnp.float32)
    return {"k": rows, "v": rows, "index": 0, "sign": jnp.ones((), jnp.float32)}


def appending_to_rows(params, tokens, cache):
    """The same with an index for every row."""
    logits, after = appending(params, tokens, {**cache, "index": cache["index"][0]})
    return logits, {**after, "index": jnp.broadcast_to(after["index"], cache["index"].shape)}


def empty_rows(params, batch, capacity):
    return {**empty(params, batch, capacity), "index": jnp.zeros((batch,), jnp.int32)}


def at_index(cache, position):
    return {**cache, "index": position}


def recurrent(params, tokens, state):
    """A state that forgets nothing and cannot be rewound; one token at a time."""
    state = jnp.tanh(state @ params["q"] + params["e"][tokens[:, 0]])
    return (state @ params["o"])[:, None], state


def unrolled(params, tokens):
    logits, state = [], jnp.zeros((tokens.shape[0], D))
    for t in range(tokens.shape[1]):
        out, state = recurrent(params, tokens[:, t : t + 1], state)
        logits.append(out[:, 0])
    return jnp.stack(logits, axis=1)


def no_state(params, batch, capacity):
    return jnp.zeros((batch, D))


class Case(NamedTuple):
    """A model with its parameters, and logits [B, S, V] of whole sequences, by no adapter."""

    model: Any
    params: Any
    forward: Any


@functools.cache
def case(name):
    sizes = {"vocab_size": V, "max_positions": L}
    small = Small(nnx.Rngs(3))
    if name == "nnx":
        return Case(*adapters.from_nnx(small, **sizes), nnx.jit(small))
    if name == "nnx-cached":
        model, params = adapters.from_nnx(
            small,
            **sizes,
            init_cache=give_cache,
            position=("cache_index", "seen"),
            call=with_cache,
        )
        return Case(model, params, nnx.jit(small))
    if name.startswith("linen"):
        tokens = jnp.zeros((1, 3), jnp.int32)
        module = Linen(decode=name == "linen-cached")
        variables = module.init(jax.random.key(5), tokens)
        model, params = adapters.from_linen(
            module, variables, **sizes, position=("cache_index", "seen")
        )
        return Case(model, params, functools.partial(Linen(decode=False).apply, params))
    if name == "recurrent":
        model = adapters.CachedLM(recurrent, no_state, **sizes, position=None, one_token=True)
        return Case(model, matrices(2), functools.partial(unrolled, matrices(2)))
    model = {
        "plain": adapters.PlainLM(whole, V),
        "cached": adapters.CachedLM(appending, empty, **sizes, position=at_index),
        "cached-by-token": adapters.CachedLM(
            appending_to_rows, empty_rows, **sizes, position="index", one_token=True
        ),
    }[name]
    return Case(model, matrices(1), jax.jit(functools.partial(whole, matrices(1))))


CASES = [
    "plain", "cached", "cached-by-token", "nnx", "nnx-cached", "linen", "linen-cached", "recurrent"
]  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


def sample(name, sampler, prompts=PROMPTS, **options):
    here = case(name)
    settings = {
        "key": jax.random.key(0),
        "target": TARGET,
        "sampler": SAMPLERS.get(sampler, sampler),
        "max_new_tokens": CAP,
        "prompts_per_batch": 2,
    }
    return psmc.sample(here.model, here.params, prompts, **{**settings, **options})


@functools.cache
def sampled(name, sampler):
    """What several tests look at."""
    return sample(name, sampler)


def scores(name, prompts, sequences):
    """log p of every sequence [P][N], from the logits of whole sequences."""
    rows = [(*prompt, *row) for prompt, of in zip(prompts, sequences, strict=True) for row in of]
    tokens = np.zeros((len(rows), L), np.int32)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = row
    logits = np.asarray(case(name).forward(jnp.asarray(tokens)), np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    out, row = [], 0
    for prompt, of in zip(prompts, sequences, strict=True):
        out.append([])
        for generated in of:
            at = range(len(prompt) - 1, len(prompt) + len(generated) - 1)
            out[-1].append(sum(log_p[row, i, t] for i, t in zip(at, generated, strict=True)))
            row += 1
    return np.array(out)


# --- log p ---


def assert_scored(name, prompts, result):
    """Every particle's log p is that of its sequence; returns how many there are."""
    alive = np.isfinite(np.asarray(result.log_weights))
    expected = scores(name, prompts, result.sequences())
    np.testing.assert_allclose(np.asarray(result.log_probs)[alive], expected[alive], **TOLERANCE)
    return alive.sum()


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("plain", "smc"),
        ("cached", "smc"),
        ("nnx-cached", "smc"),
        ("recurrent", "smc"),
        ("nnx-cached", "mh"),
    ],
)
def test_log_probs_are_those_of_the_whole_sequences(name, sampler):
    result = sampled(name, sampler)
    assert assert_scored(name, PROMPTS, result) > len(PROMPTS)
    # Otherwise nothing would show that rows follow their ancestors, or that chains go back.
    if sampler == "mh":
        assert result.info.drawn_tokens.sum() > 2 * result.lengths.sum()
    else:
        assert result.info.forks[:, 1:-1].sum() > 10


def test_a_cache_changes_nothing():
    plain, cached = sampled("plain", "smc"), sampled("cached", "smc")
    np.testing.assert_array_equal(cached.tokens, plain.tokens)
    np.testing.assert_array_equal(cached.choice, plain.choice)
    np.testing.assert_allclose(cached.log_weights, plain.log_weights, **TOLERANCE)


def test_a_prompt_alone_gives_what_it_gives_in_refilled_slots():
    many = sampled("cached", "smc")
    for index in (1, 4):  # the first to enter, and the last
        prompt, options = [PROMPTS[index]], {"prompt_ids": [index], "prompts_per_batch": 1}
        alone = sample("cached", "smc", prompt, **options)
        np.testing.assert_array_equal(alone.tokens[0], many.tokens[index])
        np.testing.assert_allclose(alone.log_probs[0], many.log_probs[index], **TOLERANCE)


def test_as_many_particles_as_sequences_are_exact():
    name, sampler = "cached", WithoutReplacement(96, early_stop=0.0)
    result = sample(name, sampler, [PROMPTS[2]], max_new_tokens=3, prompts_per_batch=1)
    listed = psmc.exact.enumerate(case(name).model, case(name).params, PROMPTS[2], TARGET, 3)
    assert len(listed.sequences) == 1 + 4 + 16 * 5
    expected = scores(name, [PROMPTS[2]], [listed.sequences])[0]
    np.testing.assert_allclose(listed.log_prob, expected, **TOLERANCE)
    found = dict(zip(map(tuple, result.sequences()[0]), result.log_weights[0], strict=True))
    weights = [np.exp(float(found[sequence])) for sequence in listed.sequences]
    np.testing.assert_allclose(weights, list(listed.probabilities().values()), atol=1e-5)
    np.testing.assert_allclose(result.log_evidence[0], listed.log_evidence, atol=1e-4)


def test_a_stream_gives_the_same():
    here, expected = case("nnx-cached"), sampled("nnx-cached", "smc")
    engine_ = psmc.Engine(
        here.model,
        here.params,
        sampler=SAMPLERS["smc"],
        max_prompt_tokens=max(map(len, PROMPTS)),
        max_new_tokens=CAP,
        slots=2,
    )
    requests = [psmc.StreamRequest(prompt, TARGET, CAP) for prompt in PROMPTS]
    for done in engine_.stream(requests, key=jax.random.key(0)):
        assert done.error is None
        np.testing.assert_array_equal(done.result.tokens[0], expected.tokens[done.index])


# --- The protocol ---


@every_case
def test_the_protocol_is_obeyed(name):
    here = case(name)
    forward = lambda params, tokens: here.forward(tokens)  # noqa: E731
    check_language_model(here.model, here.params, forward=forward, capacity=L)


@every_case
def test_a_cache_may_have_more_entries_than_there_are_positions(name):
    # As a bucket of prompts may, and its padding.
    here, prompt, new = case(name), [2, 0, 3] * 6, [4, 1, 2, 0, 3, 3]
    forward = here.forward(jnp.asarray([[*prompt, *new]], jnp.int32))[0]
    cache = here.model.init_cache(here.params, 2, L + 8)
    extend = jax.jit(here.model.extend)
    block = jnp.asarray([[*prompt, *[4] * 14], [1] * 32], jnp.int32)
    at, count = jnp.zeros((2,), jnp.int32), jnp.asarray([18, 0], jnp.int32)
    logits, cache = extend(here.params, cache, block, at, count)
    np.testing.assert_allclose(logits[0, :18], forward[:18], **TOLERANCE)
    for position, token in enumerate(new, 18):
        at, count = jnp.asarray([position, 0], jnp.int32), jnp.asarray([1, 0], jnp.int32)
        column = jnp.asarray([[token], [2]], jnp.int32)
        logits, cache = extend(here.params, cache, column, at, count)
        np.testing.assert_allclose(logits[0, 0], forward[position], **TOLERANCE)


def test_a_cache_that_ignores_the_capacity_is_used_as_it_is():
    model = cached(empty_cache=always_all)
    check_language_model(model, matrices(1), forward=whole)


def always_all(params, batch, capacity):
    return empty(params, batch, L)


def test_float64(x64):
    params = jax.tree.map(lambda x: x.astype(jnp.float64), matrices(1))
    for model in (adapters.PlainLM(whole, V), cached(empty_cache=wide)):
        check_language_model(model, params, forward=whole)


def wide(params, batch, capacity):
    """``empty`` in float64; its index stays int32."""
    to = {"k": jnp.float64, "v": jnp.float64, "index": jnp.int32, "sign": jnp.float64}
    return {k: jnp.asarray(v, to[k]) for k, v in empty(params, batch, capacity).items()}


# --- Memory and identity ---


def test_temporaries_are_the_logits_of_all_positions():
    assert adapters.PlainLM(whole, V).temporaries(4, 1, 32) == 4 * 4 * V * 32
    assert adapters.PlainLM(whole, V, 20).temporaries(4, 16, 32) == 4 * 4 * V * 20


def test_models_of_the_same_functions_are_equal_and_compiled_once():
    sampled("nnx-cached", "smc")
    before, here = executables.compiled_count(), case("nnx-cached")
    again, params = adapters.from_nnx(
        Small(nnx.Rngs(4)),
        vocab_size=V,
        max_positions=L,
        init_cache=give_cache,
        position=("cache_index", "seen"),
        call=with_cache,
    )
    assert again == here.model and hash(again) == hash(here.model)
    settings = {"key": jax.random.key(0), "target": TARGET, "sampler": SAMPLERS["smc"]}
    psmc.sample(again, params, PROMPTS, **settings, max_new_tokens=CAP, prompts_per_batch=2)
    assert executables.compiled_count() == before
    assert adapters.PlainLM(whole, V) == adapters.PlainLM(whole, V)
    assert adapters.PlainLM(whole, V) != adapters.PlainLM(unrolled, V)
    assert case("cached").model != case("cached-by-token").model


# --- What is refused ---


def cached(**changes):
    fields = {"apply_fn": appending, "empty_cache": empty, "vocab_size": V, "max_positions": L}
    return adapters.CachedLM(**{**fields, "position": "index", **changes})


def changed(**leaves):
    """``appending``, whose cache comes back with other leaves."""

    def apply_fn(params, tokens, cache):
        logits, after = appending(params, tokens, cache)
        return logits, {**after, **leaves}

    return apply_fn


def also(**leaves):
    """``empty`` with further leaves, made for a batch."""

    def empty_cache(params, batch, capacity):
        return {**empty(params, batch, capacity), **{k: f(batch) for k, f in leaves.items()}}

    return empty_cache


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda: adapters.PlainLM(whole, 0), ["vocab_size is 0"]),
        (lambda: adapters.PlainLM(whole, V, 2.5), ["max_positions is 2.5"]),
        (lambda: cached(max_positions=None), ["max_positions is None"]),
        (lambda: cached(position=()), ["position is ()"]),
        (lambda: cached(position=3), ["position is 3"]),
        (lambda: cached(position=None), ["position is None", "one_token"]),
    ],
)
def test_bad_fields_are_refused(build, parts):
    with pytest.raises(ValueError) as error:
        build()
    assert_one_sentence(error, *parts)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (adapters.PlainLM(whole, V - 1), ["float32[2, 8, 5]", "[2, 8, 4]"]),
        (adapters.PlainLM(lambda p, t: whole(p, t)[:, -1], V), ["float32[2, 5]"]),
        (adapters.PlainLM(lambda p, t: whole(p, t).astype(jnp.int32), V), ["int32[2, 8, 5]"]),
        (adapters.PlainLM(lambda p, t: (whole(p, t), None), V), ["tuple"]),
        (cached(apply_fn=lambda p, t, c: appending(p, t, c)[0]), ["(logits, cache)"]),
        (cached(vocab_size=V - 1), ["float32[2, 1, 5]", "[2, 1, 4]"]),
        (cached(apply_fn=changed(index=jnp.zeros(()))), ["['index']", "int32[]", "float32[]"]),
        (cached(apply_fn=changed(more=jnp.zeros(()))), ["structure", "more"]),
        (cached(position="step"), ["'step'", "['index']", "['k']"]),
        (cached(position=lambda cache, at: {**cache, "k": at}), ["['k']", "int32[]"]),
        (
            cached(empty_cache=also(seen=lambda b: jnp.zeros((b,), jnp.int32))),
            ["'index'", "['seen']", "int32[2]"],
        ),
        (
            cached(empty_cache=also(k=lambda b: jnp.zeros((L, b, D)))),
            ["['k']", "[24, 2, 8]", "[24, 3, 8]"],
        ),
        (cached(empty_cache=also(k=lambda b: jnp.zeros((2, L, D)))), ["['k']", "[2, 24, 8]"]),
    ],
)
def test_bad_functions_are_refused_when_they_are_traced(model, parts):
    def use(params):
        vector = jnp.ones((2,), jnp.int32)
        cache = model.init_cache(params, 2, 8)
        return model.extend(params, cache, vector[:, None], vector, vector)

    with pytest.raises(ValueError) as error:
        jax.eval_shape(use, matrices(1))
    assert_one_sentence(error, *parts)


def test_bad_functions_are_refused_before_any_work():
    before = executables.compiled_count()
    settings = {"key": jax.random.key(0), "target": TARGET, "sampler": SAMPLERS["smc"]}
    for model in (adapters.PlainLM(whole, V - 1), cached(vocab_size=V - 1)):
        with pytest.raises(ValueError) as error:
            psmc.sample(model, matrices(1), PROMPTS[:2], **settings, max_new_tokens=CAP)
        assert_one_sentence(error, "apply_fn returned float32", "4 is vocab_size")
    assert executables.compiled_count() == before


def test_a_cache_that_cannot_rewind_is_refused_by_metropolis_hastings():
    with pytest.raises(ValueError) as error:
        sample("recurrent", "mh")
    assert_one_sentence(error, "MetropolisHastings", "cannot")
