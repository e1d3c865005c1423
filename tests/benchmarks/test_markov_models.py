"""Tables with exact log Z."""

import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.benchmarks import markov_models

PROMPT, ALPHA = [0], 2.5


# The last prompt reaches positions beyond the last table.
@pytest.mark.parametrize("prompt", [PROMPT, [2, 0], [1, 0, 2, 1]])
@pytest.mark.parametrize("kind", markov_models.KINDS)
def test_moments_are_those_of_enumeration(kind, prompt):
    model, params = markov_models.make(3, 6, 0.7, kind, seed=1)
    listed = psmc.exact.enumerate(model, params, prompt, psmc.PowerTarget(ALPHA), 4)
    got = markov_models.exact_moments(model, params, prompt, ALPHA, 4)
    assert got.log_evidence == pytest.approx(listed.log_evidence, abs=1e-5)
    weights = np.exp(np.asarray(listed.log_gamma, np.float64) - listed.log_evidence)
    mean = float(np.sum(weights * np.asarray(listed.log_prob, np.float64)))
    assert got.mean_log_prob == pytest.approx(mean, abs=1e-5)


def test_alpha_one_has_evidence_one():
    model, params = markov_models.make(8, 16, 1.0, "inhomogeneous", seed=0)
    assert markov_models.exact_moments(
        model, params, PROMPT, 1.0, 16
    ).log_evidence == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("entropy", [0.5, 2.0])
def test_rows_have_the_entropy_on_average(entropy):
    _, params = markov_models.make(32, 2, entropy, "inhomogeneous", seed=3)
    logits = np.asarray(params.logits, np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    mean = -(np.exp(log_p) * log_p).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(mean, entropy, rtol=0.2)
    assert not np.array_equal(mean[0], mean[1]), "every step has rows of its own"


def test_a_homogeneous_table_has_one_set_of_rows():
    _, params = markov_models.make(4, 9, 0.5, "homogeneous", seed=0)
    assert params.logits.shape == (1, 25, 4) and params.logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("kind", "entropy", "message"),
    [("periodic", 0.5, "kind is 'periodic'"), ("homogeneous", 2.0, "entropy is 2.0")],
)
def test_what_cannot_be_is_refused(kind, entropy, message):
    with pytest.raises(ValueError, match=message):
        markov_models.make(4, 8, entropy, kind, seed=0)
