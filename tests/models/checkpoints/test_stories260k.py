"""A real trained model: reference logits, published greedy text, and sampling on it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_power_smc as psmc
from jax_power_smc.theory.exact import score
from tests.conftest import needs_stories

pytestmark = needs_stories

PROMPT_LENGTH = 40
BOS = 1  # and its EOS


@pytest.fixture(scope="module")
def lm(stories):
    return psmc.load(stories)


@pytest.fixture(scope="module")
def golden(stories):
    """tokens [257] and logits [257, 512], of a float64 implementation."""
    with np.load(stories / "golden_logits.npz") as file:
        return {name: file[name] for name in file}


@pytest.fixture(scope="module")
def greedy(stories):
    return json.loads((stories / "golden_greedy.json").read_text())


def test_config(lm):
    assert lm.config == psmc.TransformerConfig(
        vocab_size=512,
        hidden_size=64,
        num_layers=5,
        num_heads=8,
        num_kv_heads=4,
        head_dim=8,
        mlp_size=172,
        max_positions=512,
    )
    assert lm.eos_ids == (BOS,)
    assert sum(x.size for x in jax.tree.leaves(lm.params)) == 260_032


def test_full_forward_gives_the_reference_logits(lm, golden):
    graph = nnx.split(lm.model.abstract_module())[0]
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    logits = forward(lm.params, jnp.asarray(golden["tokens"][None], jnp.int32))[0]
    assert np.abs(np.asarray(logits) - golden["logits"]).max() < 1e-3


def test_prefill_and_decode_give_the_reference_logits(lm, golden):
    tokens = golden["tokens"]
    padded = np.full((2, 64), 77, np.int32)
    padded[:, :PROMPT_LENGTH] = tokens[:PROMPT_LENGTH]
    length = jnp.full((2,), PROMPT_LENGTH, jnp.int32)

    @jax.jit
    def run(params):
        cache = lm.model.init_cache(params, 2, len(tokens))
        zero = jnp.zeros_like(length)
        first, cache = lm.model.extend(params, cache, jnp.asarray(padded), zero, length)

        def body(state, token):
            cache, position = state
            both = jnp.stack([token, token])[:, None]
            after, cache = lm.model.extend(params, cache, both, position, jnp.ones_like(position))
            return (cache, position + 1), after[:, 0]

        rest = jnp.asarray(tokens[PROMPT_LENGTH:], jnp.int32)
        return first, jax.lax.scan(body, (cache, length), rest)[1]

    first, others = run(lm.params)
    expected = golden["logits"][None, :PROMPT_LENGTH]
    assert np.abs(np.asarray(first)[:, :PROMPT_LENGTH] - expected).max() < 1e-3
    assert others.shape == (257 - PROMPT_LENGTH, 2, 512)
    expected = golden["logits"][PROMPT_LENGTH:, None]
    assert np.abs(np.asarray(others) - expected).max() < 1e-3


def test_greedy_decoding_gives_the_published_text(lm, greedy):
    ids = greedy["greedy_ids"]
    # A second prompt further along the same text must continue in the same way.
    prompts = [ids[:1], ids[:PROMPT_LENGTH]]
    result = psmc.sample(
        lm.model,
        lm.params,
        prompts,
        key=jax.random.key(0),
        target=psmc.PowerTarget(alpha=1.0, eos_ids=lm.eos_ids),
        sampler=psmc.Ancestral(temperature=0),
        max_new_tokens=256,
    )
    outputs = result.draw()
    assert outputs[0] == ids[1:]
    assert outputs[1][: len(ids) - PROMPT_LENGTH] == ids[PROMPT_LENGTH:]
    text = lm.tokenizer.decode(ids[:1] + outputs[0], skip_special_tokens=True)
    assert text == greedy["greedy_text"] == greedy["published_greedy_text"]


@pytest.mark.parametrize(("threshold", "expect"), [(1.0, "often"), (0.0, "never")])
def test_log_probs_of_the_particles_are_those_of_their_tokens(lm, greedy, threshold, expect):
    # Were a cache row, a token or a log p moved wrongly by resampling, the two would differ.
    prompt = greedy["greedy_ids"][:12]
    result = psmc.sample(
        lm.model,
        lm.params,
        [prompt],
        key=jax.random.key(3),
        target=psmc.PowerTarget(alpha=2.0, eos_ids=lm.eos_ids),
        sampler=psmc.PowerSMC(num_particles=16, ess_threshold=threshold),
        max_new_tokens=64,
    )
    resamplings = int(result.info.resampled.sum())
    assert resamplings > 32 if expect == "often" else resamplings == 0
    forks = int(result.info.forks.sum())
    assert forks > 64 if expect == "often" else forks == 0
    tokens, lengths = np.asarray(result.tokens[0]), np.asarray(result.lengths[0])
    assert len({tuple(row) for row in tokens.tolist()}) > 1
    scores = score(lm.model, lm.params, prompt, tokens)
    inside = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    expected = np.where(inside, scores, 0.0).sum(axis=1)
    np.testing.assert_allclose(np.asarray(result.log_probs[0]), expected, atol=1e-3)
    assert np.all(expected < -1)
