"""Proof 5 of docs/math.md: a tiny transformer, enumerated through its real prefill and cache."""

import jax
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import PowerSMC, PowerTarget, WithoutReplacement
from jax_power_smc.models.checkpoints.safetensors_io import load_params
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from tests.models import oracle, small

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = TransformerConfig(
    vocab_size=16,
    hidden_size=16,
    num_layers=2,
    mlp_size=20,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    tied_embeddings=False,
)
PROMPT = [3, 7, 7, 1]
CAP = 4
# Most tokens end a sequence, so that 4 + 16 + 64 prefixes go on and 1276 sequences are all.
TARGET = PowerTarget(2.0, tuple(range(4, 16)))
LEAVES = 12 * (1 + 4 + 16) + 64 * 16


@pytest.fixture(scope="module")
def tensors():
    return oracle.random_tensors(CONFIG, seed=5)


@pytest.fixture(scope="module")
def params(tensors, tmp_path_factory):
    directory = tmp_path_factory.mktemp("transformer")
    small.write(directory, CONFIG, tensors)
    return load_params(directory, CONFIG)


@pytest.fixture(scope="module")
def listed(params):
    return psmc.exact.enumerate(TransformerLM(CONFIG), params, PROMPT, TARGET, CAP)


def sample(params, sampler, count, **options):
    return psmc.plain.sample(
        TransformerLM(CONFIG),
        params,
        [PROMPT] * count,
        key=jax.random.key(2),
        target=TARGET,
        sampler=sampler,
        max_new_tokens=CAP,
        **options,
    )


def test_enumeration_agrees_with_the_transformer_written_in_numpy(listed, tensors):
    assert len(listed.sequences) == LEAVES
    for index in np.random.default_rng(0).integers(0, LEAVES, 12).tolist():
        y = listed.sequences[index]
        logits = oracle.logits(CONFIG, tensors, [*PROMPT, *y])[len(PROMPT) - 1 : -1]
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        expected = sum(log_p[t, v] for t, v in enumerate(y))
        assert listed.log_prob[index] == pytest.approx(expected, abs=1e-4)
    # The model is no table of its last token: what follows token 0 depends on how it was reached.
    follow = {y: p for y, p in zip(listed.sequences, listed.log_prob, strict=True) if len(y) == 3}
    ratios = [follow[(v, 0, 5)] - follow[(v, 0, 6)] for v in range(4)]
    assert np.ptp(ratios) > 0.02


def test_as_many_particles_as_leaves_are_exact(params, listed):
    result = sample(params, WithoutReplacement(LEAVES, early_stop=0.0), 1)
    assert float(result.log_evidence[0]) == pytest.approx(listed.log_evidence, abs=1e-5)
    rows, weights = result.sequences()[0], np.asarray(result.log_weights[0], np.float64)
    found = dict(zip(map(tuple, rows), weights, strict=True))
    assert set(found) == set(listed.sequences)
    truth = listed.log_gamma - listed.log_evidence
    np.testing.assert_allclose([found[y] for y in listed.sequences], truth, atol=1e-4)


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(PowerSMC(8, ess_threshold=1.0), id="power smc", marks=pytest.mark.slow),
        pytest.param(WithoutReplacement(4, 1, early_stop=0.0), id="without replacement"),
    ],
)
def test_evidence_is_unbiased(params, listed, sampler):
    count = 1024
    result = sample(params, sampler, count)
    assert result.info.forks.sum() > count / 4
    ratio = np.exp(np.asarray(result.log_evidence, np.float64) - listed.log_evidence)
    error = ratio.std() / np.sqrt(count)
    assert 1e-4 < error < 0.03
    assert abs(ratio.mean() - 1) < 4.5 * error
    # Every particle's log p is that of its sequence.
    log_prob = dict(zip(listed.sequences, listed.log_prob, strict=True))
    for rows, values in zip(result.sequences()[:50], np.asarray(result.log_probs), strict=False):
        for y, value in zip(rows, values, strict=True):
            assert value == pytest.approx(log_prob[tuple(y)], abs=1e-4)
