"""The torch peers: the same model, the same algorithm."""

import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_power_smc.benchmarks import torch_baseline
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from tests.models import small

PROMPT = [3, 1, 4]
TINY = TransformerConfig(
    vocab_size=5,
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_size=8,
    tied_embeddings=False,
)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def build(config, dtype=jnp.float32):
    """A random model, here and there."""
    model = TransformerLM(config, dtype)
    params = model.init(jax.random.key(7))
    return model, params, torch_baseline.to_torch(model, params)


@pytest.fixture(scope="module")
def tiny(torch):
    return build(TINY)[2]


def our_logits(model, params, tokens):
    module = nnx.merge(nnx.graphdef(model.abstract_module()), params)
    return np.asarray(module(jnp.asarray(tokens, jnp.int32)))


def logits_of(torch, torch_model, tokens):
    with torch.inference_mode():
        return torch_model(torch.tensor(tokens)).logits.double().numpy()


@pytest.mark.parametrize("name", small.CONFIGS)
def test_to_torch_computes_the_same_logits(torch, name, tmp_path):
    model, params = small.build(name, tmp_path)
    theirs = torch_baseline.to_torch(model, params)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (2, 40))
    ours = our_logits(model, params, tokens)
    np.testing.assert_allclose(logits_of(torch, theirs, tokens), ours, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_to_torch_keeps_the_dtype(torch, dtype):
    model, params, theirs = build(TINY, jnp.dtype(dtype))
    assert {str(p.dtype) for p in theirs.parameters()} == {f"torch.{dtype}"}
    assert not theirs.training
    assert not any(p.requires_grad for p in theirs.parameters())
    assert theirs.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(
        logits_of(torch, theirs, [PROMPT]),
        our_logits(model, params, [PROMPT]),
        atol=2e-4 if dtype == "float32" else 0.1,
    )


def test_generate_draws_so_many_tokens_from_the_model(torch, tiny):
    drawn = torch_baseline.generate(tiny, PROMPT, 4000, 2, seed=1)
    assert drawn.tokens.shape == (4000, 2)
    p = np.exp(log_softmax(logits_of(torch, tiny, [PROMPT])[0, -1]))
    shares = np.bincount(drawn.tokens[:, 0], minlength=5) / 4000
    assert np.all(np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / 4000) + 1e-3)
    timing = drawn.timing
    assert timing.prefill > 0 and timing.decode > 0
    assert timing.total == timing.prefill + timing.decode
    assert timing.per_token == timing.decode / 2
    assert torch_baseline.generate(tiny, PROMPT, 1, 9).tokens.shape == (1, 9)
    assert not tiny._forward_hooks


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def exact(torch, torch_model, alpha, horizon):
    """Every continuation and its alpha log p."""
    paths = np.array(list(itertools.product(range(5), repeat=horizon)))
    full = np.concatenate([np.tile(PROMPT, (len(paths), 1)), paths], axis=1)
    log_p = log_softmax(logits_of(torch, torch_model, full)[:, len(PROMPT) - 1 : -1])
    return paths, alpha * np.take_along_axis(log_p, paths[..., None], axis=2).sum(axis=(1, 2))


@pytest.mark.parametrize("preallocate", [True, False])
def test_power_smc_is_unbiased(torch, tiny, preallocate):
    alpha, horizon, runs = 4.0, 3, 400
    paths, log_weight = exact(torch, tiny, alpha, horizon)
    z = np.exp(log_weight).sum()
    by_token = np.bincount(paths[:, -1], np.exp(log_weight), minlength=5)
    last = int(np.argsort(by_token)[-2])
    estimates, below, resamplings = [], [], 0
    for seed in range(runs):
        # Resampled whenever the weights are not equal.
        run = torch_baseline.power_smc(
            tiny,
            PROMPT,
            16,
            alpha,
            horizon,
            ess_threshold=1.0,
            seed=seed,
            preallocate=preallocate,
            warm_up=False,
        )
        evidence = math.exp(run.log_evidence)
        estimates.append(evidence)
        below.append(evidence * np.exp(run.log_weights)[run.tokens[:, -1] == last].sum())
        resamplings += run.resamplings
    assert resamplings > runs
    # Z and an unnormalised expectation that depends on the drawn tokens.
    for found, truth in ((estimates, z), (below, by_token[last])):
        error = np.std(found, ddof=1) / math.sqrt(runs)
        assert error < truth / 20
        assert abs(np.mean(found) - truth) < 4 * error


def test_particles_that_end_keep_their_weight(torch, tiny):
    """E[Z_hat] is that of the sequences that stop at their first end token."""
    alpha, horizon, runs = 1.5, 3, 200
    end = int(logits_of(torch, tiny, [PROMPT])[0, -1].argmax())
    paths = itertools.product(range(5), repeat=horizon)
    stopped = {path[: path.index(end) + 1] if end in path else path for path in paths}
    total = 0.0
    for path in stopped:
        log_p = log_softmax(logits_of(torch, tiny, [PROMPT + list(path)])[0])
        total += np.exp(alpha * sum(log_p[len(PROMPT) - 1 + t, v] for t, v in enumerate(path)))
    estimates, steps = [], []
    for seed in range(runs):
        run = torch_baseline.power_smc(
            tiny, PROMPT, 4, alpha, horizon, seed=seed, warm_up=False, eos_ids=(end,)
        )
        estimates.append(np.exp(run.log_evidence))
        after = np.cumsum(run.tokens == end, axis=1) > 0
        np.testing.assert_array_equal(run.tokens[after], end)
        # The loop ends when all have; resampling may drop the last that has not.
        steps.append(run.timing.tokens)
        assert 1 + (~after[:, :-1]).any(axis=0).sum() <= steps[-1]
    assert min(steps) < max(steps) == horizon
    error = np.std(estimates) / np.sqrt(runs)
    assert abs(np.mean(estimates) - total) < 5 * error


def test_both_caches_give_the_same_run(tiny):
    runs = [
        torch_baseline.power_smc(
            tiny, PROMPT, 7, 3.0, 20, ess_threshold=1.0, preallocate=p, warm_up=w
        )
        for p, w in ((True, True), (False, False))
    ]
    assert runs[0].tokens.shape == (7, 20)
    assert runs[0].resamplings == runs[1].resamplings > 2
    np.testing.assert_array_equal(runs[0].tokens, runs[1].tokens)
    np.testing.assert_allclose(runs[0].log_weights, runs[1].log_weights, atol=1e-4)
    assert runs[0].log_evidence == pytest.approx(runs[1].log_evidence, abs=1e-4)
    assert runs[0].timing.tokens == 20 and runs[0].timing.decode > 0


def test_particles_keep_their_own_past(torch, tiny):
    """Without resampling the weights are those of the tokens, teacher forced."""
    alpha = 2.0
    run = torch_baseline.power_smc(tiny, PROMPT, 6, alpha, 8, ess_threshold=0.0, seed=5)
    full = np.concatenate([np.tile(PROMPT, (6, 1)), run.tokens], axis=1)
    log_p = log_softmax(logits_of(torch, tiny, full)[:, len(PROMPT) - 1 : -1])
    log_sum = np.logaddexp.reduce(alpha * log_p, axis=-1).sum(axis=1)
    assert run.resamplings == 0
    np.testing.assert_allclose(run.log_weights + run.log_evidence, log_sum - math.log(6), atol=1e-4)


@pytest.mark.parametrize("preallocate", [True, False])
def test_resampled_particles_take_their_cache_along(torch, tiny, preallocate):
    """The last forward pass saw each particle's own past."""
    seen = []
    hook = tiny.register_forward_hook(lambda *call: seen.append(call[-1].logits[:, -1].numpy()))
    run = torch_baseline.power_smc(
        tiny, PROMPT, 6, 3.0, 12, ess_threshold=1.0, preallocate=preallocate, warm_up=False
    )
    hook.remove()
    assert run.resamplings > 5
    full = np.concatenate([np.tile(PROMPT, (6, 1)), run.tokens[:, :-1]], axis=1)
    expected = logits_of(torch, tiny, full)[:, -1]
    # The last step may have resampled once more, which changes the order.
    distance = np.abs(expected[:, None] - seen[-1][None]).max(axis=2)
    assert np.all(distance.min(axis=1) < 1e-4)


def test_alpha_one_has_equal_weights(tiny):
    run = torch_baseline.power_smc(tiny, PROMPT, 5, 1.0, 6)
    np.testing.assert_allclose(run.log_weights, -math.log(5), atol=1e-5)
    assert run.log_evidence == pytest.approx(0, abs=1e-4)
    assert run.resamplings == 0


def test_resampling_is_systematic(torch):
    weights = np.array([0.05, 0.0, 0.6, 0.35])
    for u in (0.0, 0.3, 0.999):
        points = (torch.arange(4) + u) / 4
        parent = torch_baseline._invert(torch, torch.tensor(weights)[None], points[None])[0].numpy()
        expected = np.searchsorted(np.cumsum(weights), (np.arange(4) + u) / 4, side="right")
        np.testing.assert_array_equal(parent, expected)


def test_no_draw_falls_behind_the_last_index(torch):
    weights = torch.full((1, 3), 0.1)
    uniforms = torch.tensor([[0.0, 1 - 2**-24, 1.0]])
    assert torch_baseline._invert(torch, weights, uniforms)[0].tolist() == [0, 2, 2]
    assert torch_baseline._invert(torch, torch.tensor([[0.0, 1.0, 0.0]]), uniforms)[0].tolist() == [
        1,
        1,
        1,
    ]


def test_describe(torch):
    about = torch_baseline.describe()
    assert about["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert about["transformers"][0] == "5"
    assert torch_baseline.available()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"prompt_ids": []}, "prompt_ids is empty"),
        ({"num_particles": 0}, "num_particles is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"ess_threshold": 1.5}, "ess_threshold is 1.5"),
    ],
)
def test_values_outside_their_range_are_refused(tiny, change, part):
    arguments = {"prompt_ids": PROMPT, "num_particles": 2, "alpha": 2.0, "max_new_tokens": 2}
    with pytest.raises(ValueError) as error:
        torch_baseline.power_smc(tiny, **(arguments | change))
    small.assert_one_sentence(error, part)


def test_without_torch_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    model = TransformerLM(TINY)
    for call in (
        torch_baseline.describe,
        lambda: torch_baseline.to_torch(model, model.init(jax.random.key(0))),
        lambda: torch_baseline.generate(None, PROMPT, 1, 1),
        lambda: torch_baseline.power_smc(None, PROMPT, 1, 2.0, 1),
    ):
        with pytest.raises(ValueError) as error:
            call()
        small.assert_one_sentence(error, "torch", "not installed")
    assert not torch_baseline.available()
