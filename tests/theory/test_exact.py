"""Enumeration against a brute force of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import PowerTarget, TableLM, WithoutReplacement
from jax_power_smc.theory import exact
from tests.models.test_base import AsDocumented
from tests.test_testing import Paged

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = TableLM(vocab_size=3, order=2)
CAP = 3
PROMPT = (2, 0)


def table(seed=0):
    """Logits per position; token 2 is impossible after two tokens 1."""
    params = MODEL.init(jax.random.key(seed), steps=5 + CAP, scale=1.5, dtype=jnp.float64)
    return params._replace(logits=params.logits.at[:, 1 * 4 + 1, 2].set(-jnp.inf))


def next_probabilities(params, prompt, generated):
    """p of the next token, read from the table by hand."""
    history = [3, 3, *prompt, *generated][-2:]
    position = len(prompt) + len(generated) - 1
    logits = np.asarray(params.logits)[position, 4 * history[0] + history[1]]
    p = np.exp(logits - logits.max())
    return p / p.sum()


def truncated(p, top_k, top_p):
    ranked = sorted(range(len(p)), key=lambda v: (-p[v], v))
    keep = set(ranked if top_k is None else ranked[:top_k])
    if top_p is not None:
        reached, inside = 0.0, set()
        for v in ranked:
            if reached >= top_p:
                break
            inside.add(v)
            reached += p[v]
        keep &= inside
    return keep


def brute_force(params, prompt, target, cap):
    """gamma of every sequence of positive weight, by recursion."""
    out = {}

    def go(generated, prob):
        t = len(generated)
        if t == cap or (generated and generated[-1] in target.eos_ids):
            out[tuple(generated)] = prob
            return
        p = next_probabilities(params, prompt, generated)
        for v in truncated(p, target.top_k, target.top_p):
            if v in target.eos_ids and t < target.min_new_tokens:
                continue
            if target.length == "forced_eos" and t == cap - 1 and v not in target.eos_ids:
                continue
            if p[v] > 0:
                go([*generated, v], prob * p[v])

    go([], 1.0)
    return out


TARGETS = [
    PowerTarget(3.0),
    PowerTarget(1.0, (1,)),
    PowerTarget(4.0, (1,)),
    PowerTarget(2.0, (0, 2)),
    PowerTarget(2.0, (1,), min_new_tokens=2),
    PowerTarget(2.0, (1,), length="forced_eos"),
    PowerTarget(2.0, (0, 2), length="forced_eos", min_new_tokens=1),
    PowerTarget(2.0, (1,), top_k=2),
    PowerTarget(2.0, (1,), top_p=0.7),
    PowerTarget(2.0, (0,), top_k=2, top_p=0.8, min_new_tokens=1),
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_enumeration_equals_brute_force(x64, target):
    params = table()
    listed = exact.enumerate(MODEL, params, PROMPT, target, CAP)
    truth = brute_force(params, PROMPT, target, CAP)
    assert set(listed.sequences) == set(truth) and len(listed.sequences) == len(truth)
    expected = np.log([truth[y] for y in listed.sequences])
    np.testing.assert_allclose(listed.log_prob, expected, rtol=1e-10)
    np.testing.assert_allclose(listed.log_gamma, target.alpha * expected, rtol=1e-10)
    log_z = np.log(sum(p**target.alpha for p in truth.values()))
    assert listed.log_evidence == pytest.approx(log_z, abs=1e-10)
    probabilities = listed.probabilities()
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-12)
    best = max(truth, key=truth.get)
    assert probabilities[best] == pytest.approx(
        np.exp(target.alpha * np.log(truth[best]) - log_z), rel=1e-9
    )


def test_stopped_sequences_at_alpha_one_sum_to_one(x64):
    listed = exact.enumerate(MODEL, table(), PROMPT, PowerTarget(1.0, (1,)), CAP)
    assert listed.log_evidence == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("prompt", [(0,), (1, 2), (2, 2, 1, 0, 1)])
def test_prompts_of_any_length(x64, prompt):
    target = PowerTarget(2.0, (1,))
    listed = exact.enumerate(MODEL, table(), prompt, target, CAP)
    truth = brute_force(table(), prompt, target, CAP)
    log_z = np.log(sum(p**2 for p in truth.values()))
    assert listed.log_evidence == pytest.approx(log_z, abs=1e-10)


def test_cap_of_one(x64):
    listed = exact.enumerate(MODEL, table(), PROMPT, PowerTarget(2.0, (1,)), 1)
    p = next_probabilities(table(), PROMPT, [])
    assert listed.sequences == [(0,), (1,), (2,)]
    assert listed.log_evidence == pytest.approx(np.log((p**2).sum()), abs=1e-12)


def test_score_gives_every_token_its_log_p(x64):
    tokens = np.array([[0, 1, 2], [1, 1, 0], [1, 1, 2]], np.int32)
    scores = exact.score(MODEL, table(), PROMPT, tokens)
    with np.errstate(divide="ignore"):
        expected = [
            [np.log(next_probabilities(table(), PROMPT, row[:t])[row[t]]) for t in range(3)]
            for row in tokens.tolist()
        ]
    np.testing.assert_allclose(scores, expected, rtol=1e-10)
    assert scores[2, 2] == -np.inf


def test_score_adds_nothing_after_the_end(x64):
    # A sequence that ends early is padded with token 0, which the model would score.
    rows = [[2, 1], [0, 0, 2], [1]]
    expected = [
        sum(np.log(next_probabilities(table(), PROMPT, row[:t])[row[t]]) for t in range(len(row)))
        for row in rows
    ]
    scores = exact.score(MODEL, table(), PROMPT, rows)
    assert scores.shape == (3, 3) and scores[0, 2] == scores[2, 1] == 0
    np.testing.assert_allclose(scores.sum(axis=1), expected, rtol=1e-10)
    # Behind the end even what is no token does not count.
    padded = jnp.asarray([[2, 1, -1], [0, 0, 2], [1, 2, 2]])
    for lengths in ([2, 3, 1], jnp.asarray([2, 3, 1]), np.array([2, 3, 1], np.uint8)):
        same = exact.score(MODEL, table(), jnp.asarray(PROMPT), padded, lengths)
        np.testing.assert_array_equal(same, scores)


def test_a_model_whose_rows_share_storage_is_scored_by_its_own_members():
    model, params = Paged(), Paged().init(0)
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=(3, 4))
    got = exact.score(model, params, [1, 2, 0], tokens)
    np.testing.assert_allclose(got, exact.score(AsDocumented(), params, [1, 2, 0], tokens), 1e-5)
    alone = [exact.score(model, params, [1, 2, 0], row[None])[0] for row in tokens]
    np.testing.assert_allclose(got, alone, rtol=1e-5)


def test_score_of_what_was_sampled_is_its_log_probs(x64):
    result = psmc.sample(
        MODEL,
        table(),
        [PROMPT],
        key=jax.random.key(0),
        target=PowerTarget(2.0, (1,)),
        sampler=WithoutReplacement(6),
        max_new_tokens=CAP,
    )
    assert len({len(row) for row in result.sequences()[0]}) > 1
    listed = exact.score(MODEL, table(), PROMPT, result.sequences()[0])
    padded = exact.score(MODEL, table(), PROMPT, result.tokens[0], result.lengths[0])
    np.testing.assert_allclose(listed.sum(axis=1), result.log_probs[0], rtol=1e-10)
    np.testing.assert_array_equal(padded[:, : listed.shape[1]], listed)


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        ([], None, "tokens must be lists of token ids"),
        ([[]], None, "tokens must be lists of token ids"),
        (5, None, "tokens must be lists of token ids"),
        ([0, 1], None, "tokens must be lists of token ids"),
        ([[0.5]], None, "tokens must be lists of token ids"),
        ([[True]], None, "tokens must be lists of token ids"),
        (["ab"], None, "tokens must be lists of token ids"),
        ([[0, 3]], None, "tokens has id 3; ids must lie in"),
        ([[0, -1]], None, "tokens has id -1; ids must lie in"),
        ([[0, 1]], [3], "lengths has 3 for a sequence of 2 tokens"),
        ([[0, 1]], [-1], "lengths has -1 for a sequence of 2 tokens"),
        ([[0, 1]], [1, 1], "lengths is .* it must be 1 integers"),
        ([[0, 1]], [1.0], "lengths is .* it must be 1 integers"),
    ],
)
def test_score_refuses(x64, tokens, lengths, message):
    with pytest.raises(ValueError, match=message):
        exact.score(MODEL, table(), PROMPT, tokens, lengths)


@pytest.mark.parametrize("function", ["score", "enumerate"])
@pytest.mark.parametrize("prompt", [[], [3], "ab", 0, [[0, 1]]])
def test_an_invalid_prompt_is_refused(x64, function, prompt):
    with pytest.raises(ValueError, match="prompt 0"):
        if function == "score":
            exact.score(MODEL, table(), prompt, [[0]])
        else:
            exact.enumerate(MODEL, table(), prompt, PowerTarget(2.0), CAP)


@pytest.mark.parametrize("cap", [np.int64(CAP), jnp.int32(CAP)], ids=["numpy", "jax"])
def test_a_cap_may_be_a_number_of_numpy_or_jax(x64, cap):
    listed = exact.enumerate(MODEL, table(), PROMPT, PowerTarget(2.0, (1,)), cap)
    plain = exact.enumerate(MODEL, table(), PROMPT, PowerTarget(2.0, (1,)), CAP)
    assert listed.sequences == plain.sequences


@pytest.mark.parametrize("cap", [0, -1, 2.0, True, "3", None])
def test_an_invalid_cap_is_refused(x64, cap):
    with pytest.raises(ValueError, match=r"max_new_tokens is .*; it must be an integer"):
        exact.enumerate(MODEL, table(), PROMPT, PowerTarget(2.0), cap)


def test_target_without_any_sequence_has_evidence_zero(x64):
    # The only token of the top-1 set is an end token, which is too early.
    params = table()
    params = params._replace(logits=params.logits.at[..., 1].add(50.0))
    target = PowerTarget(2.0, (1,), top_k=1, min_new_tokens=1)
    listed = exact.enumerate(MODEL, params, PROMPT, target, CAP)
    assert listed.sequences == [] and listed.log_evidence == -np.inf


def test_too_many_sequences_are_refused(x64):
    for cap in (40, 10**9):
        with pytest.raises(ValueError, match=rf"V\^T is 3\^{cap}; .*at most"):
            exact.enumerate(MODEL, table(), PROMPT, PowerTarget(2.0), cap)


def test_a_target_that_does_not_fit_is_refused(x64):
    with pytest.raises(ValueError, match=r"eos_ids has \[3\]"):
        exact.enumerate(MODEL, table(), PROMPT, PowerTarget(2.0, (3,)), CAP)
