"""The power proposal, its normaliser and the two-level draw."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.core.vocab_sharding import BLOCK_SIZE, Logits, block_of
from jax_power_smc.samplers.proposal import draw, log_prob, normalise, power_proposal

JUST_BELOW_ONE = np.float32(1 - 2**-24)


def random_log_p(seed, num, vocab, impossible=()):
    logits = np.random.default_rng(seed).normal(scale=2.0, size=(num, vocab))
    logits[:, list(impossible)] = -np.inf
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def everything(log_p):
    return jnp.ones(log_p.shape, bool)


def power(log_p, allowed, exponent):
    """p^a on the allowed tokens, by numpy."""
    return np.where(allowed, np.exp(log_p), 0.0) ** exponent * allowed


def pieces(points):
    ends = [0.0, *sorted({p for p in points if 1e-12 < p < 1 - 1e-12}), 1.0]
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(ends)]


def distribution_of_draw(proposal):
    """[V'] the exact distribution of the draw from proposal 0, integrated over both numbers."""
    block_mass, mass = np.asarray(proposal.block_mass[0]), np.asarray(proposal.mass[0])
    first = pieces((np.cumsum(block_mass) / block_mass.sum()).tolist())
    inner = [np.cumsum(m) / m.sum() for m in mass if m.sum() > 0]
    second = pieces(np.concatenate(inner).tolist())
    cells = list(itertools.product(first, second))
    uniforms = jnp.asarray([[a[0], b[0]] for a, b in cells])
    tokens = draw(proposal, jnp.zeros(len(cells), jnp.int32), uniforms)
    chance = [a[1] * b[1] for a, b in cells]
    return np.bincount(np.asarray(tokens), weights=chance, minlength=mass.size)


@pytest.mark.parametrize("exponent", [1.0, 2.5, 8.0])
@pytest.mark.parametrize("block_size", [1, 3, 7, 512])
def test_two_level_draw_has_the_one_level_distribution(x64, exponent, block_size):
    # 7 tokens: blocks of 3 leave the last block with one token and two of padding.
    log_p = random_log_p(1, 1, 7, impossible=(2,))
    allowed = np.array([[True, True, True, False, True, True, True]])
    proposal = power_proposal(
        Logits(jnp.asarray(log_p)), jnp.asarray(allowed), jnp.asarray(exponent), block_size
    )
    truth = power(log_p, allowed, exponent)[0]
    got = distribution_of_draw(proposal)
    np.testing.assert_allclose(got[:7], truth / truth.sum(), atol=1e-12)
    assert got[2] == 0 and got[3] == 0 and np.all(got[7:] == 0)


@pytest.mark.parametrize("block_size", [1, 2, 5, 64])
@pytest.mark.parametrize("exponent", [1.0, 3.0])
def test_log_sum_is_that_of_the_power_over_the_support(x64, block_size, exponent):
    log_p = random_log_p(2, 6, 11, impossible=(10,))
    allowed = np.random.default_rng(3).random((6, 11)) < 0.6
    allowed[:, 4] = True
    proposal = power_proposal(
        Logits(jnp.asarray(log_p)), jnp.asarray(allowed), jnp.asarray(exponent), block_size
    )
    truth = np.log(power(log_p, allowed, exponent).sum(axis=1))
    np.testing.assert_allclose(proposal.log_sum, truth, rtol=1e-12)


def test_log_sum_at_exponent_one_is_zero():
    log_p = jnp.asarray(random_log_p(4, 3, 1000), jnp.float32)
    proposal = power_proposal(Logits(log_p), everything(log_p), jnp.float32(1.0))
    np.testing.assert_allclose(proposal.log_sum, 0.0, atol=1e-6)


def test_log_sum_is_minus_alpha_less_one_times_renyi_entropy(x64):
    log_p, alpha = random_log_p(5, 2, 9), 4.0
    renyi = np.log((np.exp(log_p) ** alpha).sum(axis=1)) / (1 - alpha)
    proposal = power_proposal(Logits(jnp.asarray(log_p)), everything(log_p), jnp.asarray(alpha))
    np.testing.assert_allclose(proposal.log_sum, -(alpha - 1) * renyi, rtol=1e-12)


def test_large_exponent_does_not_underflow():
    log_p = jnp.full((1, 2000), -np.log(2000), jnp.float32)
    proposal = power_proposal(Logits(log_p), everything(log_p), jnp.float32(64.0))
    assert float(proposal.log_sum[0]) == pytest.approx(-63 * np.log(2000), rel=1e-5)


def test_exponent_zero_is_uniform_over_the_possible_tokens():
    log_p = jnp.asarray(random_log_p(6, 1, 5, impossible=(0, 3)), jnp.float32)
    proposal = power_proposal(Logits(log_p), everything(log_p), jnp.float32(0.0))
    assert np.asarray(proposal.mass[0, 0]).tolist() == [0, 1, 1, 0, 1]
    assert float(proposal.log_sum[0]) == pytest.approx(np.log(3), rel=1e-6)


def test_empty_support_is_minus_infinity_and_not_nan():
    log_p = jnp.asarray(random_log_p(7, 3, 4), jnp.float32)
    allowed = jnp.asarray([[False] * 4, [True] * 4, [False] * 4])
    proposal = power_proposal(Logits(log_p), allowed, jnp.float32(2.0))
    assert np.isneginf(proposal.log_sum).tolist() == [True, False, True]
    assert not np.isnan(proposal.mass).any()
    token = draw(proposal, jnp.arange(3, dtype=jnp.int32), jnp.full((3, 2), 0.9))
    assert int(token[0]) == 0 and int(token[2]) == 0


@pytest.mark.parametrize("vocab", [BLOCK_SIZE - 1, BLOCK_SIZE, 2 * BLOCK_SIZE + 1])
def test_impossible_tokens_are_never_drawn(vocab):
    rng = np.random.default_rng(vocab)
    log_p = random_log_p(8, 1, vocab)
    allowed = rng.random((1, vocab)) < 0.05
    allowed[0, [0, vocab - 1]] = False
    log_p[0, 3] = -np.inf
    allowed[0, [3, vocab // 2]] = True
    proposal = power_proposal(
        Logits(jnp.asarray(log_p, jnp.float32)), jnp.asarray(allowed), jnp.float32(1.5)
    )
    edges = np.array([0.0, 0.5, JUST_BELOW_ONE], np.float32)
    corners = np.array(list(itertools.product(edges, edges)), np.float32)
    uniforms = np.concatenate([corners, rng.random((3000, 2)).astype(np.float32)])
    rows = jnp.zeros(len(uniforms), jnp.int32)
    token = np.asarray(draw(proposal, rows, jnp.asarray(uniforms)))
    assert np.all(allowed[0, token]) and not np.any(token == 3)
    assert len(set(token.tolist())) > 10


def test_particles_draw_independently_of_each_other():
    rng = np.random.default_rng(9)
    log_p = random_log_p(9, 4, 6)
    uniforms = rng.random((4, 2)).astype(np.float32)
    own = jnp.arange(4, dtype=jnp.int32)

    def tokens(log_p, uniforms):
        log_p = jnp.asarray(log_p, jnp.float32)
        proposal = power_proposal(Logits(log_p), everything(log_p), jnp.float32(2.0), 4)
        return np.asarray(draw(proposal, own, jnp.asarray(uniforms))), proposal.log_sum

    before, log_sum = tokens(log_p, uniforms)
    for row in range(4):
        other_p, other_u = random_log_p(90 + row, 4, 6), rng.random((4, 2)).astype(np.float32)
        other_p[row], other_u[row] = log_p[row], uniforms[row]
        after, other_sum = tokens(other_p, other_u)
        assert after[row] == before[row] and other_sum[row] == log_sum[row]


def test_drawing_through_parents_equals_moving_the_logits():
    log_p = jnp.asarray(random_log_p(10, 5, 8), jnp.float32)
    rows = jnp.array([3, 3, 0, 4, 1], jnp.int32)
    uniforms = jnp.asarray(np.random.default_rng(1).random((5, 2)), jnp.float32)
    through = draw(
        power_proposal(Logits(log_p), everything(log_p), jnp.float32(1.0), 3), rows, uniforms
    )
    moved = power_proposal(Logits(log_p[rows]), everything(log_p), jnp.float32(1.0), 3)
    direct = draw(moved, jnp.arange(5, dtype=jnp.int32), uniforms)
    np.testing.assert_array_equal(through, direct)


def test_draws_are_the_same_under_jit_with_a_traced_exponent():
    log_p = jnp.asarray(random_log_p(11, 3, 8), jnp.float32)
    uniforms = jnp.asarray(np.random.default_rng(2).random((3, 2)), jnp.float32)
    own, traces = jnp.arange(3, dtype=jnp.int32), []

    def run(exponent):
        traces.append(1)
        return draw(power_proposal(Logits(log_p), everything(log_p), exponent), own, uniforms)

    compiled = jax.jit(run)
    for exponent in (1.0, 2.0, 7.0):
        expected = run(jnp.float32(exponent))
        np.testing.assert_array_equal(compiled(jnp.float32(exponent)), expected)
    assert len(traces) == 3 + 1


# --- Large vocabularies -----------------------------------------------------------------------

# With a block that divides it, and without any (a prime).
LARGE = [2**15, 2**15 + 3]


def large_logits(vocab, rows=3):
    return np.random.default_rng(vocab).normal(scale=4, size=(rows, vocab)).astype(np.float32)


def exact_log_p(logits):
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def supports(vocab, rows=3):
    """One support for all particles, and one for each."""
    rng = np.random.default_rng(1)
    return rng.random((1, vocab)) < 0.5, rng.random((rows, vocab)) < 0.5


def test_blocks_divide_the_vocabulary_where_they_can():
    sizes = (1, 37, 512, 152064, 128256, 32000, 151936)
    assert [block_of(v) for v in sizes] == [1, 37, 16, 396, 334, 200, 32]
    assert block_of(2**15 + 3) == BLOCK_SIZE


@pytest.mark.parametrize("vocab", LARGE)
def test_large_vocabulary_agrees_with_float64(vocab):
    logits = large_logits(vocab) + 100  # unnormalised
    log_p, own = exact_log_p(logits), jnp.arange(3, dtype=jnp.int32)
    normaliser = normalise(Logits(jnp.asarray(logits)))
    tokens = jnp.asarray(logits.argmax(axis=1), jnp.int32)
    np.testing.assert_allclose(
        log_prob(Logits(jnp.asarray(logits)), normaliser, own, tokens), log_p.max(axis=1), atol=2e-5
    )
    for allowed in supports(vocab):
        proposal = power_proposal(Logits(jnp.asarray(logits)), jnp.asarray(allowed), jnp.float32(3))
        power = np.where(allowed, np.exp(3 * log_p), 0)
        np.testing.assert_allclose(proposal.log_sum, np.log(power.sum(axis=1)), atol=1e-4)
        # Draws: each token's cumulative mass brackets its uniform numbers.
        uniforms = np.random.default_rng(2).random((999, 2)).astype(np.float32)
        rows = np.arange(999) % 3
        token = np.asarray(draw(proposal, jnp.asarray(rows), jnp.asarray(uniforms)))
        assert (np.broadcast_to(allowed, logits.shape)[rows, token]).all()
        size = proposal.logits.shape[-1]
        blocks = np.pad(power, ((0, 0), (0, -vocab % size))).reshape(3, -1, size)
        edges = [np.cumsum(blocks.sum(axis=2), axis=1), np.cumsum(blocks, axis=2)]
        for row, t, u in zip(rows, token, uniforms, strict=True):
            for cdf, index, number in (
                (edges[0][row], t // size, u[0]),
                (edges[1][row, t // size], t % size, u[1]),
            ):
                below = cdf[index - 1] if index else 0.0
                assert below / cdf[-1] - 1e-5 <= number <= cdf[index] / cdf[-1] + 1e-5


@pytest.mark.parametrize("vocab", [40, *LARGE])
def test_a_tiny_tail_survives(vocab):
    logits = large_logits(vocab)
    logits[:, 7] += 100 * np.log(10)  # all else has 1e-100 of its mass, at exponent 1
    allowed = np.arange(vocab)[None] != 7
    truth = np.logaddexp.reduce(np.where(allowed, exact_log_p(logits) * 4, -np.inf), axis=1)
    assert (truth < -800).all()
    for support in (allowed, np.repeat(allowed, 3, axis=0)):
        proposal = power_proposal(Logits(jnp.asarray(logits)), jnp.asarray(support), jnp.float32(4))
        np.testing.assert_allclose(proposal.log_sum, truth, rtol=1e-6)
        uniforms = jnp.asarray(np.random.default_rng(2).random((300, 2)), jnp.float32)
        token = np.asarray(draw(proposal, jnp.arange(300) % 3, uniforms))
        assert (token != 7).all() and len(set(token.tolist())) > 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vocab", [40, *LARGE])
def test_bad_logits_affect_only_their_particle(vocab, bad):
    logits, own = large_logits(vocab), jnp.arange(3, dtype=jnp.int32)
    allowed, uniforms = jnp.ones((1, vocab), bool), jnp.full((3, 2), 0.7, jnp.float32)

    def run(logits):
        proposal = power_proposal(Logits(jnp.asarray(logits)), allowed, jnp.float32(2))
        return (
            normalise(Logits(jnp.asarray(logits))).is_bad,
            proposal.log_sum,
            draw(proposal, own, uniforms),
        )

    good = run(logits)
    logits[1, 5 : (vocab if bad == -np.inf else 6)] = bad
    logits[1, :5] = bad if bad == -np.inf else logits[1, :5]
    is_bad, log_sum, token = (np.asarray(x) for x in run(logits))
    assert is_bad.tolist() == [False, True, False] and not good[0].any()
    assert log_sum[1] == -np.inf and token[1] == 0
    for row in (0, 2):
        assert log_sum[row] == good[1][row] and token[row] == good[2][row]


# Arrays of the logits' size that are written: none if blocks divide V; padding costs two.
@pytest.mark.parametrize(("vocab", "arrays"), [(2**17, 0), (2**15 + 3, 2)])
def test_what_sampling_writes(vocab, arrays):
    num = 16

    def step(logits, ends, exponent, rows, uniforms):
        normaliser = normalise(Logits(logits))
        proposal = power_proposal(Logits(logits), ~ends, exponent, normaliser=normaliser)
        token = draw(proposal, rows, uniforms)
        return token, log_prob(Logits(logits), normaliser, rows, token), proposal.log_sum

    shapes = (
        jax.ShapeDtypeStruct((num, vocab), jnp.float32),
        jax.ShapeDtypeStruct((1, vocab), bool),
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((num,), jnp.int32),
        jax.ShapeDtypeStruct((num, 2), jnp.float32),
    )
    compiled = jax.jit(step).lower(*shapes).compile()
    # All that is left: two arrays [V] of bounds and the masses of the blocks.
    size = num * vocab * 4
    assert compiled.memory_analysis().temp_size_in_bytes < (arrays + 0.3) * size
