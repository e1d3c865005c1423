"""Independent runs of a small model, for the tests of what is estimated from several runs.

The statistical tests repeat one prompt: each copy has its own id, so one call of the engine gives
as many independent runs as there are copies.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jax_power_smc as psmc
from jax_power_smc import (
    PowerSMC,
    PowerTarget,
    SampleInfo,
    SampleResult,
    TableLM,
    WithoutReplacement,
)
from jax_power_smc.engine.independent_runs import independent_runs
from jax_power_smc.models.table_lm import TableParams

INF = np.inf
MODEL = TableLM(vocab_size=4, order=2)
CAP = 4
TARGET = PowerTarget(2.5, (1,))
PROMPT = [0]
COPIES = 4000
RUNS = 32
KEY = jax.random.key(7)
SAMPLERS = {
    "smc": PowerSMC(2, ess_threshold=0.95),
    "swor": WithoutReplacement(2, early_stop=0.0),
}


def table():
    """Some first tokens lead to sure continuations and others do not: two particles miss some."""
    sure = 1.5 * np.array([[0, -0.5, 0, 0], [0] * 4, [0, -1, 1.5, 0.5], [0, -0.7, 0.3, 0.8]])
    noise = np.random.default_rng(1).normal(size=(1, MODEL.num_histories, 4))
    logits = 0.3 * noise
    last = np.arange(MODEL.num_histories) % (MODEL.vocab_size + 1)
    logits[0, last < 4] += sure[last[last < 4]]
    logits[0, MODEL.vocab_size * (MODEL.vocab_size + 1) + PROMPT[0]] = [0.3, -0.7, 0.0, 0.2]
    return TableParams(jnp.asarray(logits, jnp.float32))


PARAMS = table()


@functools.cache
def listed():
    """The enumeration."""
    return psmc.exact.enumerate(MODEL, PARAMS, PROMPT, TARGET, CAP)


def log_z():
    return listed().log_evidence


def target_probabilities():
    """[terminals], pi_alpha."""
    return np.array(list(listed().probabilities().values()))


def run_copies(function, sampler, **options):
    """``sample`` or ``independent_runs`` on COPIES copies of the prompt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax_power_smc.engine.slot_plan.CHUNK_ON_CPU", CAP)  # no idle steps
        return function(
            MODEL,
            PARAMS,
            [PROMPT] * COPIES,
            target=TARGET,
            sampler=sampler,
            max_new_tokens=CAP,
            prompts_per_batch=COPIES,
            **options,
        )


def sample(sampler, num_runs, **options):
    key = jax.random.key(1)
    return run_copies(independent_runs, sampler, key=key, num_runs=num_runs, **options)


@functools.cache
def runs_of(name):
    """RUNS runs of COPIES copies of the prompt. Compiling takes most of the time: do it once."""
    return sample(SAMPLERS[name], RUNS)


def changed(result, change, info_change):
    """The result with functions applied to all its arrays, and others to those of its info."""
    info = {f.name: getattr(result.info, f.name) for f in dataclasses.fields(SampleInfo)}
    info.update({k: info_change(k, v) for k, v in info.items() if k != "seconds"})
    arrays = {f.name: getattr(result, f.name) for f in dataclasses.fields(SampleResult)}
    arrays = {k: v for k, v in arrays.items() if k not in ("target", "info")}
    arrays = {k: jnp.asarray(change(k, np.asarray(v))) for k, v in arrays.items()}
    return dataclasses.replace(result, **arrays, info=SampleInfo(**info))


def first(result, count):
    """The first prompts only."""
    return changed(result, lambda _, x: x[:count], lambda _, x: x[:count])


PER_PARTICLE = (
    *("tokens", "lengths", "finished", "log_probs", "token_log_probs", "log_weights"),
    *("particle_index", "loops", "very_short"),
)


def widened(result):
    """One more particle, unused."""
    fill = {"log_weights": -INF, "particle_index": -1}

    def more(name, x):
        if name not in PER_PARTICLE:
            return x
        width = [(0, 0), (0, 1), *[(0, 0)] * (x.ndim - 2)]
        return np.pad(x, width, constant_values=fill.get(name, 0))

    return changed(result, more, more)


# --- Terminals ---


def codes(tokens, lengths):
    """A sequence as a number in base V+1; 0 stands for "nothing"."""
    inside = np.arange(CAP) < np.asarray(lengths)[..., None]
    return np.where(inside, np.asarray(tokens) + 1, 0) @ (MODEL.vocab_size + 1) ** np.arange(CAP)


def code_of(sequence):
    padded = [*sequence, *[0] * (CAP - len(sequence))]
    return int(codes(padded, len(sequence)))


@functools.cache
def known():
    """[terminals], the code of each."""
    return np.array([code_of(y) for y in listed().sequences])


def terminals(result):
    """[P, N], the index of every particle in the enumeration."""
    code = codes(result.tokens, result.lengths)
    order = np.argsort(known())
    at = order[np.minimum(np.searchsorted(known()[order], code), len(order) - 1)]
    assert (known()[at] == code)[np.isfinite(result.log_weights)].all()
    return at


def drawn(result):
    """[P], the index of every draw in the enumeration."""
    choice = np.asarray(result.choice)[:, None]
    return np.take_along_axis(terminals(result), choice, axis=1)[:, 0]


def p_value(at):
    """Chi-square of indices [P] against pi_alpha, terminals of few expected hits together."""
    pi = target_probabilities()
    expected, observed = len(at) * pi, np.bincount(at, minlength=len(pi))
    rare = expected < 5
    assert np.sum(~rare) > 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return scipy.stats.chisquare(observed, expected).pvalue


def largest_z(at, weights):
    """Largest |z| over groups of terminals of ``E[sum_i w_i 1{y_i = y}] = gamma(y)``.

    Terminals with little of the mass make one group: their few hits are heavy-tailed.
    """
    gamma = np.exp(listed().log_gamma)
    group = np.where(gamma > 0.01 * gamma.sum(), np.arange(len(gamma)), len(gamma))
    names, group = np.unique(group, return_inverse=True)
    assert len(names) > 5
    truth = np.bincount(group, gamma)
    inside = group[at][:, :, None] == np.arange(len(names))
    values = np.sum(weights[:, :, None] * inside, axis=1)
    values = np.append(values, weights.sum(axis=1)[:, None], axis=1)
    error = values.std(axis=0, ddof=1) / math.sqrt(len(at))
    return np.max(np.abs(values.mean(axis=0) - np.append(truth, gamma.sum())) / error)


# --- Results with other numbers ---


def with_evidence(result, log_evidence, weights=None):
    """The result with other evidence [P], and other weights [N] for every prompt."""
    changes = {"log_evidence": jnp.asarray(log_evidence, jnp.float32)}
    if weights is not None:
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.broadcast_to(weights, result.log_weights.shape))
        changes["log_weights"] = jnp.asarray(log_weights, jnp.float32)
    return dataclasses.replace(result, **changes)


def saying_nothing(result):
    """The result with particles so improbable that they bound no evidence from below."""
    return dataclasses.replace(result, log_probs=jnp.full_like(result.log_probs, -1e4))


def assert_same(one, two, but=()):
    for left, right in ((one, two), (one.info, two.info)):
        for name in {f.name for f in dataclasses.fields(left)} - {"info", *but}:
            a, b = getattr(left, name), getattr(right, name)
            assert type(a) is type(b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
            np.testing.assert_array_equal(a, b, err_msg=name)


def with_dropped(result, dropped):
    info = dataclasses.replace(result.info, dropped_mass=np.asarray(dropped, np.float32))
    return dataclasses.replace(result, info=info)


def failed(result, prompts):
    """The result with all weights and the evidence of some prompts zero."""
    log_weights, evidence = np.array(result.log_weights), np.array(result.log_evidence)
    log_weights[prompts], evidence[prompts] = -INF, -INF
    result = dataclasses.replace(result, log_weights=jnp.asarray(log_weights))
    return with_evidence(result, evidence)
