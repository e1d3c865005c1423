"""The declared target: its door checks, and the support of every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import PowerTarget
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.targets import power
from jax_power_smc.targets.power import support

VOCAB, CAP = 5, 4


def allowed(target, p, step, cap=CAP):
    """The ids in the support of each row of p [N, V]."""
    p = np.atleast_2d(np.asarray(p, np.float32))
    with np.errstate(divide="ignore"):
        log_p = jnp.asarray(np.log(p))
    arrays = target.arrays(p.shape[1], cap)
    ends = jnp.broadcast_to(arrays.ends[None], log_p.shape)
    inside = support(Logits(log_p), arrays, ends, jnp.int32(step))
    return [np.flatnonzero(row).tolist() for row in np.asarray(inside)]


EVEN = np.full(VOCAB, 1 / VOCAB)


def by_sorting(logits, top_k=None, top_p=None):
    """The sets of top-k and top-p [R, V], by a stable sort; and how near top-p is to a tie [R]."""
    logits = np.asarray(logits, np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")
    inside, gap = np.ones(logits.shape, bool), np.full(len(logits), np.inf)
    ranks = np.argsort(order, axis=1, kind="stable")
    if top_k is not None:
        inside &= ranks < np.broadcast_to(top_k, len(logits))[:, None]
    if top_p is not None:
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = np.take_along_axis(p / p.sum(axis=1, keepdims=True), order, axis=1)
        wanted = np.broadcast_to(np.asarray(top_p, np.float64), len(logits))[:, None]
        before = np.cumsum(p, axis=1) - p
        keep = (before < wanted) | (wanted >= 1)
        inside &= np.take_along_axis(keep, ranks, axis=1)
        gap = np.abs(np.cumsum(p, axis=1) - wanted).min(axis=1)
    return inside, gap


jitted_sets = jax.jit(power._most_probable)


def random_logits(kind, rows=64, vocab=50):
    rng = np.random.default_rng(len(kind))
    logits = 2 * rng.normal(size=(rows, vocab))
    if kind == "ties":
        logits = np.round(logits)
    elif kind == "zeros of both signs":
        logits = np.round(logits / 2) * rng.choice([-1.0, 1.0], size=logits.shape)
    elif kind == "impossible tokens":
        logits[rng.random(logits.shape) < 0.7] = -np.inf
        logits[:, 0] = 1.0
    elif kind == "wide":
        logits = 10.0 ** rng.uniform(-30, 30, logits.shape) * rng.choice([-1, 1], logits.shape)
    elif kind == "all equal":
        logits = np.zeros_like(logits)
    return logits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "kind", ["plain", "ties", "zeros of both signs", "impossible tokens", "wide", "all equal"]
)
def test_the_most_probable_tokens_are_those_of_a_stable_sort(x64, kind, dtype):
    logits = random_logits(kind).astype(dtype)
    rows, vocab = logits.shape
    rng = np.random.default_rng(7)
    # A number of its own for every prefix, beyond the vocabulary too.
    top_k = rng.integers(1, vocab + 20, rows).astype(np.int32)
    top_p = rng.uniform(1e-6, 1, rows).astype(dtype)
    top_p[:4] = 1.0, 1e-30, 0.5, 1.0
    near = 1e-5 if dtype == np.float32 else 1e-12
    sizes = set()
    for k, p in ((top_k, None), (None, top_p), (top_k, top_p)):
        found = np.asarray(jitted_sets(logits, k, p))
        expected, gap = by_sorting(logits, k, p)
        # Sums in another order may differ where the mass is just that which is wanted.
        sure = gap > near
        assert sure.mean() > 0.6
        np.testing.assert_array_equal(found[sure], expected[sure])
        assert found.any(axis=1).all()
        sizes |= set(found.sum(axis=1).tolist())
    assert len(sizes) > 8 or kind == "wide"  # there, few tokens have all the mass


@pytest.mark.parametrize("top_k", [1, 3, 50, 51, 2**31 - 1])
def test_one_top_k_for_all(top_k):
    logits = random_logits("ties").astype(np.float32)
    found = np.asarray(jitted_sets(logits, np.int32(top_k), None))
    np.testing.assert_array_equal(found, by_sorting(logits, top_k)[0])
    assert (found.sum(axis=1) == min(top_k, 50)).all()


def test_full_support_is_everything_at_every_step():
    for step in range(CAP):
        assert allowed(PowerTarget(4.0, (1,)), EVEN, step) == [[0, 1, 2, 3, 4]]


def test_ending_tokens_are_masked_until_min_new_tokens():
    target = PowerTarget(4.0, (1, 3), min_new_tokens=2)
    assert allowed(target, EVEN, 0) == allowed(target, EVEN, 1) == [[0, 2, 4]]
    assert allowed(target, EVEN, 2) == allowed(target, EVEN, 3) == [[0, 1, 2, 3, 4]]


def test_forced_eos_allows_only_ending_tokens_at_the_last_step():
    target = PowerTarget(4.0, (1, 3), length="forced_eos")
    assert allowed(target, EVEN, CAP - 2) == [[0, 1, 2, 3, 4]]
    assert allowed(target, EVEN, CAP - 1) == [[1, 3]]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [0, 1, 2, 4]), (99, [0, 1, 2, 3, 4])],
)
def test_top_k_breaks_ties_by_id(top_k, expected):
    p = [0.125, 0.25, 0.25, 0.125, 0.25]
    assert allowed(PowerTarget(2.0, (), top_k=top_k), p, 0) == [expected]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.01, [2]),
        (0.5, [2]),  # reached exactly: the smallest set that reaches it
        (0.500001, [0, 2]),
        (0.75, [0, 2]),
        (0.76, [0, 1, 2]),
        (0.875, [0, 1, 2]),
        (0.9, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, expected):
    p = [0.25, 0.125, 0.5, 0.0625, 0.0625]
    assert allowed(PowerTarget(2.0, (), top_p=top_p), p, 0) == [expected]


def test_top_p_breaks_ties_by_id():
    assert allowed(PowerTarget(2.0, (), top_p=0.4), [0.25] * 4, 0) == [[0, 1]]


def test_top_p_of_one_keeps_tokens_that_rounding_would_drop():
    p = np.array([1.0, 1e-9, 1e-12, 1e-20])
    assert allowed(PowerTarget(2.0, (), top_p=1.0), p, 0) == [[0, 1, 2, 3]]


def test_top_k_and_top_p_intersect():
    p = [0.25, 0.125, 0.5, 0.0625, 0.0625]
    assert allowed(PowerTarget(2.0, (), top_k=1, top_p=0.7), p, 0) == [[2]]
    assert allowed(PowerTarget(2.0, (), top_k=4, top_p=0.7), p, 0) == [[0, 2]]


def test_truncation_is_of_the_unmasked_distribution():
    # The end token is the most probable: masking it may leave nothing, never the runner-up.
    p = [0.1, 0.6, 0.3]
    target = PowerTarget(2.0, (1,), min_new_tokens=1, top_k=1)
    assert allowed(target, p, 0) == [[]]
    assert allowed(target, p, 1) == [[1]]
    forced = PowerTarget(2.0, (0,), length="forced_eos", top_p=0.8)
    assert allowed(forced, p, CAP - 1) == [[]]


def test_every_particle_has_its_own_set():
    p = [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]]
    assert allowed(PowerTarget(2.0, (), top_k=2), p, 0) == [[0, 1], [1, 2], [0, 1]]


def test_numbers_keep_the_structure_of_the_arrays():
    def shape(target, cap):
        return jax.tree.map(lambda x: (x.shape, x.dtype), target.arrays(VOCAB, cap))

    assert shape(PowerTarget(1.0, (1,)), 4) == shape(
        PowerTarget(9.0, (0, 2), length="forced_eos", min_new_tokens=3), 77
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.99}, r"alpha is 0\.99; .*finite number of at least 1 and at most 1000000\."),
        ({"alpha": float("nan")}, "alpha is nan; .*finite"),
        ({"alpha": float("inf")}, "alpha is inf; .*finite"),
        ({"alpha": True}, "alpha is True"),
        ({"alpha": "4"}, "alpha is '4'"),
        ({"alpha": None}, "alpha is None"),
        ({"length": "forced"}, "length is 'forced'; allowed are stopped, forced_eos"),
        ({"length": "forced_eos", "eos_ids": ()}, "eos_ids is empty"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1; .*at least 0"),
        ({"min_new_tokens": 1.0}, r"min_new_tokens is 1\.0; .*integer"),
        ({"min_new_tokens": True}, "min_new_tokens is True; .*integer"),
        ({"top_k": 0}, "top_k is 0; .*at least 1"),
        ({"top_k": 2.0}, r"top_k is 2\.0; .*integer"),
        ({"top_k": True}, "top_k is True; .*integer"),
        ({"top_p": 0.0}, r"top_p is 0\.0; .*greater than 0 and at most 1\."),
        ({"top_p": 1.01}, r"top_p is 1\.01; .*greater than 0 and at most 1\."),
        ({"top_p": float("nan")}, r"top_p is nan; .*finite"),
        ({"top_p": True}, "top_p is True"),
        ({"eos_ids": 3}, "eos_ids is 3; .*sequence of token ids"),
        ({"eos_ids": (1.5,)}, r"eos_ids is \(1\.5,\)"),
        ({"eos_ids": (True,)}, r"eos_ids is \(True,\)"),
        ({"eos_ids": "12"}, "eos_ids is '12'"),
        ({"eos_ids": ("a",)}, r"eos_ids is \('a',\)"),
    ],
    ids=str,
)
def test_invalid_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PowerTarget(**{"alpha": 2.0, "eos_ids": (1,), **change})


def test_eos_ids_are_a_set():
    assert PowerTarget(2.0, (2, 1, 2)) == PowerTarget(2.0, (1, 2))
    assert PowerTarget(2.0, (1, 2)) != PowerTarget(2.0, (1, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_ids": (1, 5)}, r"eos_ids has \[5\]; ids must lie in \[0, 5\)"),
        ({"eos_ids": (-1,)}, r"eos_ids has \[-1\]"),
        ({"min_new_tokens": 5}, "min_new_tokens is 5; .*max_new_tokens, which is 4"),
        ({"min_new_tokens": 4, "length": "forced_eos"}, r"max_new_tokens \(4\).*lower it"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_the_vocabulary_or_the_cap_are_refused(change, message):
    target = PowerTarget(**{"alpha": 2.0, "eos_ids": (1,), **change})
    with pytest.raises(ValueError, match=message):
        target.check(VOCAB, CAP)


@pytest.mark.parametrize("value", [10**10, 2**31])
def test_top_k_beyond_any_vocabulary_restricts_nothing(value):
    target = PowerTarget(2.0, (1,), top_k=value)
    target.check(VOCAB, CAP)
    assert allowed(target, EVEN, 0) == [[0, 1, 2, 3, 4]]


def test_alpha_beyond_float32_is_refused():
    with pytest.raises(ValueError, match=r"alpha is 1e\+39"):
        PowerTarget(1e39, (1,)).check(VOCAB, CAP)


def test_equal_targets_are_equal_however_the_ids_are_given():
    assert PowerTarget(2.0, [1, 3]) == PowerTarget(2.0, (np.int64(1), 3))
    assert hash(PowerTarget(2.0, np.array([1, 3]))) == hash(PowerTarget(2.0, (1, 3)))
