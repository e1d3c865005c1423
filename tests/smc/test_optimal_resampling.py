"""Optimal resampling: its threshold, its counts, its mean, and that no mode is ever lost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.smc import optimal_resampling

pytestmark = pytest.mark.usefixtures("quick_compilation")

JUST_BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


def random_log_mass(seed, num, spread, impossible=0.2):
    rng = np.random.default_rng(seed)
    log_mass = spread * rng.normal(size=num)
    log_mass[rng.random(num) < impossible] = -np.inf
    return log_mass


def oracle_log_threshold(log_mass, num_keep):
    """The root of ``sum min(w/c, 1) = N`` by bisection in float64; -inf if all are kept."""
    finite = np.sort(log_mass[log_mass > -np.inf]).astype(np.float64)
    if len(finite) <= num_keep:
        return -np.inf
    low, high = finite[0] - 1, np.logaddexp.reduce(finite)
    for _ in range(200):
        middle = (low + high) / 2
        below = finite < middle
        # Only the small ones are summed: beside a 1 they would be rounded away.
        if np.exp(finite[below] - middle).sum() > num_keep - (~below).sum():
            low = middle
        else:
            high = middle
    return (low + high) / 2


# Few shapes, so that few programs are compiled: mass is padded with impossible candidates.
SIZES = (512, 2560, 8192)
UNIFORMS = 256


@functools.partial(jax.jit, static_argnames="num_keep")
def select_all(log_mass, uniforms, *, num_keep):
    """New log weights [U, M] for every uniform number, and log c."""
    new = jax.vmap(lambda u: optimal_resampling.select(log_mass, num_keep, u))(uniforms)
    return new, optimal_resampling.log_threshold(log_mass, num_keep)


def _run(log_mass, num_keep, uniforms, dtype):
    size, count = len(log_mass), len(uniforms)
    padded = np.full(next(s for s in SIZES if s >= size), -np.inf)
    padded[:size] = log_mass
    uniforms = np.concatenate([uniforms, np.zeros(-count % UNIFORMS)])
    parts = [
        jax.device_get(
            select_all(
                jnp.asarray(padded, dtype),
                jnp.asarray(uniforms[first : first + UNIFORMS], dtype),
                num_keep=num_keep,
            )
        )
        for first in range(0, len(uniforms), UNIFORMS)
    ]
    new = np.concatenate([part[0] for part in parts])[:count]
    assert (new[:, size:] == -np.inf).all()
    return new[:, :size], parts[0][1]


def kept(log_mass, num_keep, uniforms, dtype=jnp.float32):
    """New log weights [U, M]."""
    return _run(log_mass, num_keep, uniforms, dtype)[0]


def threshold(log_mass, num_keep, dtype=jnp.float32):
    """Log of c."""
    log_c = _run(log_mass, num_keep, np.zeros(1), dtype)[1]
    assert log_c.dtype == dtype
    return float(log_c)


def many_uniforms(seed=0, num=240):
    rng = np.random.default_rng(seed)
    edges = [0.0, 2.0**-149, 2.0**-24, 0.25, 0.5, 0.75, 1 - 2**-23, JUST_BELOW_ONE]
    return np.array([*edges, *rng.random(num)], np.float32)


# --- The threshold ----------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.3, 5.0, 150.0])
@pytest.mark.parametrize("num_keep", [1, 3, 16, 199])
def test_threshold_solves_its_equation(x64, num_keep, spread):
    for seed in range(4):
        log_mass = random_log_mass(seed, 260, spread)
        log_c = threshold(log_mass, num_keep, jnp.float64)
        assert log_c == pytest.approx(oracle_log_threshold(log_mass, num_keep), abs=1e-9)
        assert np.exp(np.minimum(log_mass - log_c, 0)).sum() == pytest.approx(num_keep, abs=1e-9)


@pytest.mark.parametrize("spread", [0.3, 5.0, 150.0])
@pytest.mark.parametrize("num_keep", [1, 3, 16, 199])
def test_threshold_in_float32(num_keep, spread):
    for seed in range(4):
        log_mass = random_log_mass(seed, 260, spread).astype(np.float32)
        log_c = threshold(log_mass, num_keep)
        # A few units in the last place of a number of this size.
        size = max(1.0, abs(log_c))
        assert log_c == pytest.approx(oracle_log_threshold(log_mass, num_keep), abs=1e-6 * size)


def test_the_example_of_the_docstring():
    log_mass = np.log([8, 4, 1, 1, 0.5, 0.5])
    assert np.exp(threshold(log_mass, 4)) == pytest.approx(1.5)
    weights = np.exp(kept(log_mass, 4, many_uniforms()))
    np.testing.assert_allclose(weights[:, :2], np.broadcast_to([8, 4], (len(weights), 2)))
    assert set(np.unique(weights[:, 2:].round(5)).tolist()) == {0.0, 1.5}


# --- Counts and mass --------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("num_keep", [1, 3, 4, 16, 199])
def test_exactly_n_are_kept_for_every_uniform(num_keep, spread):
    for seed, size in ((0, num_keep + 1), (1, num_keep + 2), (2, 3 * num_keep), (3, 500)):
        log_mass = random_log_mass(seed, size, spread, impossible=0.0).astype(np.float32)
        new = kept(log_mass, num_keep, many_uniforms(seed))
        assert ((new > -np.inf).sum(axis=1) == num_keep).all()
        totals = np.logaddexp.reduce(new.astype(np.float64), axis=1)
        np.testing.assert_allclose(
            totals, np.logaddexp.reduce(log_mass.astype(np.float64)), rtol=1e-6, atol=5e-6
        )


@pytest.mark.parametrize("tiny", [-16.0, -12.0, -8.0])
def test_exactly_n_are_kept_of_equal_ones_and_a_few_tiny_ones(tiny):
    # Shares are 1 up to rounding, and a running sum in float32 has steps of 1e-4 near 2048: two
    # points must not fall on one candidate, nor any beyond the last one.
    num = 2048
    for order in (1, -1):
        log_mass = np.array([0.0] * num + [tiny] * 30, np.float32)[::order]
        new = kept(log_mass, num, many_uniforms(num=40))
        assert ((new > -np.inf).sum(axis=1) == num).all()
        mass = np.exp(new.astype(np.float64)).sum(axis=1)
        np.testing.assert_allclose(mass, np.exp(log_mass.astype(np.float64)).sum(), rtol=1e-5)


def test_exactly_n_are_kept_of_nearly_equal_ones():
    num = 2048
    for seed, spread in enumerate((1e-7, 1e-5, 1e-3)):
        log_mass = spread * np.random.default_rng(seed).normal(size=num + 3)
        new = kept(log_mass, num, many_uniforms(seed, num=40))
        assert ((new > -np.inf).sum(axis=1) == num).all()


@pytest.mark.parametrize("num_keep", [1, 3, 16])
def test_the_mean_over_the_uniform_is_the_mass(x64, num_keep):
    # Between two breakpoints nothing changes, so midpoints and lengths integrate exactly.
    for seed in range(5):
        log_mass = random_log_mass(seed, 40, 3.0)
        log_mass -= np.logaddexp.reduce(log_mass)
        masses = jnp.asarray(log_mass)
        cdf = np.asarray(
            optimal_resampling.systematic_cdf(
                masses, optimal_resampling.log_threshold(masses, num_keep), num_keep
            )
        )
        assert cdf[-1] == int(cdf[-1]) >= 1
        points = np.unique(np.concatenate([[0.0, 1.0], cdf - np.floor(cdf)]))
        middle, length = (points[1:] + points[:-1]) / 2, np.diff(points)
        mean = length @ np.exp(kept(log_mass, num_keep, middle, jnp.float64))
        np.testing.assert_allclose(mean, np.exp(log_mass), rtol=0, atol=1e-12)


def test_certain_candidates_keep_their_weight_and_the_others_get_the_threshold(x64):
    log_mass = random_log_mass(3, 50, 3.0)
    log_c = oracle_log_threshold(log_mass, 16)
    new = kept(log_mass, 16, many_uniforms(), jnp.float64)
    above = log_mass > log_c
    assert 0 < above.sum() < 16
    assert (new[:, above] == log_mass[above]).all()
    survivors = new[:, ~above]
    np.testing.assert_allclose(survivors[survivors > -np.inf], log_c, atol=1e-9)
    # Every candidate of positive mass is kept for some uniform, none of mass zero for any.
    ever = (new > -np.inf).any(axis=0)
    assert not ever[log_mass == -np.inf].any()
    assert ever[np.exp(log_mass - log_c) > 0.05].all()


@pytest.mark.parametrize("num_keep", [3, 4, 199])
def test_few_candidates_are_all_kept_unchanged(num_keep):
    log_mass = np.array([-np.inf, -400.0, 3.0, -np.inf, -1e-3], np.float32)
    assert threshold(log_mass, num_keep) == -np.inf
    for row in kept(log_mass, num_keep, many_uniforms(num=3)):
        np.testing.assert_array_equal(row, log_mass)


@pytest.mark.parametrize("num_keep", [1, 4])
def test_nothing_at_all(num_keep):
    new = kept([-np.inf] * 4, num_keep, many_uniforms(num=3))
    assert (new == -np.inf).all()


@pytest.mark.parametrize("num_keep", [1, 3, 4])
def test_ties_are_kept_equally_often(x64, num_keep):
    grid = (np.arange(3000) + 0.5) / 3000
    new = kept([0.0] * 5, num_keep, grid, jnp.float64)
    assert ((new > -np.inf).sum(axis=1) == num_keep).all()
    np.testing.assert_allclose((new > -np.inf).mean(axis=0), num_keep / 5, atol=1e-3)
    np.testing.assert_allclose(new[new > -np.inf], np.log(5 / num_keep), atol=1e-12)


def test_a_candidate_just_at_the_threshold_is_certain():
    # c = 1: one candidate above, one equal to it, two that share the last point.
    log_mass = np.log([4.0, 1.0, 0.5, 0.5])
    new = np.exp(kept(log_mass, 3, many_uniforms()))
    np.testing.assert_allclose(new[:, 1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(new.sum(axis=1), 6.0, rtol=1e-6)


# --- A floor ----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="num_keep")
def _select_floored(log_mass, uniforms, log_floor, *, num_keep):
    select = functools.partial(optimal_resampling.select, log_mass, num_keep)
    new = jax.vmap(lambda u: select(u, log_floor))(uniforms)
    log_c = optimal_resampling.log_threshold(log_mass, num_keep)
    cdf = optimal_resampling.systematic_cdf(
        log_mass, jnp.maximum(log_c, log_floor), num_keep, log_floor > log_c
    )
    return new, cdf


def floored(log_mass, num_keep, uniforms, log_floor, dtype=jnp.float32):
    """New log weights [U, M], and the running sum of the systematic pass [M]."""
    size = next(n for n in (64, *SIZES) if n >= len(log_mass))
    padded = np.full(size, -np.inf)
    padded[: len(log_mass)] = log_mass
    arrays = (jnp.asarray(x, dtype) for x in (padded, uniforms, log_floor))
    new, cdf = jax.device_get(_select_floored(*arrays, num_keep=num_keep))
    assert (new[:, len(log_mass) :] == -np.inf).all()
    return new[:, : len(log_mass)], cdf[: len(log_mass)]


FLOORS = (1e-3, 0.02, 0.05, 0.3, 0.7, 0.99)


@pytest.mark.parametrize("num_keep", [1, 3, 16, 50])
def test_the_mean_under_a_floor_is_the_mass(x64, num_keep):
    binds = 0
    for seed, floor in enumerate(FLOORS):
        log_mass = random_log_mass(seed, 40, 2.0)
        log_mass -= np.logaddexp.reduce(log_mass)
        _, cdf = floored(log_mass, num_keep, np.zeros(1), np.log(floor), jnp.float64)
        binds += cdf[-1] != np.round(cdf[-1])
        points = np.unique(np.concatenate([[0.0, 1.0], cdf - np.floor(cdf)]))
        middle, length = (points[1:] + points[:-1]) / 2, np.diff(points)
        new, _ = floored(log_mass, num_keep, middle, np.log(floor), jnp.float64)
        np.testing.assert_allclose(length @ np.exp(new), np.exp(log_mass), rtol=0, atol=1e-12)
    assert binds > 1 or num_keep == 1  # a single one is chosen by its own threshold


@pytest.mark.parametrize("num_keep", [3, 16, 50])
def test_survivors_of_a_floor_are_counted_by_its_total(x64, num_keep):
    for seed, floor in enumerate(FLOORS):
        log_mass = random_log_mass(seed, 40, 2.0)
        log_mass -= np.logaddexp.reduce(log_mass)
        log_c = max(np.log(floor), oracle_log_threshold(log_mass, num_keep))
        above = log_mass >= log_c
        total = np.exp(log_mass[~above] - log_c).sum()
        new, _ = floored(log_mass, num_keep, many_uniforms(seed), np.log(floor), jnp.float64)
        counts = (new[:, ~above] > -np.inf).sum(axis=1)
        assert (np.floor(total - 1e-9) <= counts).all() and (counts <= np.ceil(total + 1e-9)).all()
        assert (counts + above.sum() <= num_keep).all()
        # Those above keep their weight, the others get the threshold.
        assert (new[:, above] == log_mass[above]).all()
        survivors = new[:, ~above]
        np.testing.assert_allclose(survivors[survivors > -np.inf], log_c, atol=1e-9)


def test_a_floor_below_the_threshold_changes_nothing():
    uniforms = many_uniforms()
    for seed, num_keep in ((0, 3), (1, 16), (2, 60)):
        log_mass = random_log_mass(seed, 60, 2.0).astype(np.float32)
        plain = kept(log_mass, num_keep, uniforms)
        log_c = threshold(log_mass, num_keep)
        for log_floor in (-np.inf, log_c - 1, log_c):
            new, _ = floored(log_mass, num_keep, uniforms, log_floor)
            np.testing.assert_array_equal(new, plain)


@pytest.mark.parametrize("num_keep", [1, 16, 2048])
def test_never_more_than_n_survive_a_floor_just_above_the_threshold(num_keep):
    for seed, spread in enumerate((1e-7, 1e-3, 2.0)):
        log_mass = spread * np.random.default_rng(seed).normal(size=num_keep + 3)
        log_mass = log_mass.astype(np.float32)
        log_floor = np.float32(threshold(log_mass, num_keep))
        for _ in range(3):
            log_floor = np.nextafter(log_floor, np.float32(np.inf))
            new, _ = floored(log_mass, num_keep, many_uniforms(num=40), log_floor)
            counts = (new > -np.inf).sum(axis=1)
            assert (counts <= num_keep).all() and (counts >= num_keep - 1).all()


@pytest.mark.parametrize("num_keep", [1, 5, 40])
def test_all_die_only_if_there_is_mass_elsewhere(num_keep):
    uniforms = many_uniforms()
    for seed, floor in enumerate(FLOORS):
        log_mass = random_log_mass(seed, 40, 2.0).astype(np.float32)
        total = np.logaddexp.reduce(log_mass.astype(np.float64))
        # A share of their own mass: somebody always survives, a single candidate for certain.
        new, _ = floored(log_mass, num_keep, uniforms, total + np.log(floor))
        assert (new > -np.inf).any(axis=1).all()
        alone, _ = floored(log_mass[:1], num_keep, uniforms, log_mass[0] + np.log(floor))
        np.testing.assert_array_equal(alone, np.broadcast_to(log_mass[:1], alone.shape))
        # Three times of four the pool holds the mass: then one survives with probability 1/4.
        new, _ = floored(log_mass, num_keep, many_uniforms(num=2000), total + np.log(4))
        counts = (new > -np.inf).sum(axis=1)
        assert set(counts.tolist()) == {0, 1}
        assert counts.mean() == pytest.approx(0.25, abs=0.05)


def test_nothing_at_all_under_a_floor():
    for log_floor in (-np.inf, -3.0):
        new, _ = floored(np.full(4, -np.inf), 3, many_uniforms(num=3), log_floor)
        assert (new == -np.inf).all()


# --- A mode of many small weights under a few dominating ones ----------------------------------


def two_modes():
    """16 dominating weights, then two modes of many small ones: (log masses, mode of each)."""
    rng = np.random.default_rng(0)
    log_mass = np.concatenate(
        [
            rng.uniform(-1, 0, 16),
            -31 + rng.uniform(-1, 1, 3000),
            -32 + rng.uniform(-1, 1, 5000),
        ]
    ).astype(np.float32)
    mode = np.repeat([0, 1, 2], [16, 3000, 5000])
    shuffled = rng.permutation(len(log_mass))
    return log_mass[shuffled], mode[shuffled]


def cancelling_log_threshold(log_mass, num_keep):
    """The textbook's c, as (total - sum of the k largest) / (N - k) in float32."""
    mass = np.exp(np.sort(np.asarray(log_mass))[::-1])
    total = mass.sum(dtype=np.float32)
    above = np.concatenate([[0], np.cumsum(mass, dtype=np.float32)])[:num_keep]
    rest = (total - above) / np.arange(num_keep, 0, -1, dtype=np.float32)
    fits = mass[:num_keep] <= rest
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(rest[np.argmax(fits)] if fits.any() else np.float32(0))


def test_a_mode_of_small_weights_keeps_its_survivors_and_its_mass():
    log_mass, mode = two_modes()
    new = kept(log_mass, 2048, many_uniforms(num=20)).astype(np.float64)
    exact = log_mass.astype(np.float64)
    log_c = oracle_log_threshold(log_mass, 2048)
    for row in new:
        assert (row[mode == 0] == log_mass[mode == 0]).all()
        for one in (1, 2):
            share = np.exp(np.minimum(exact[mode == one] - log_c, 0)).sum()
            # Candidates of both modes are interleaved, so a mode's count may be off by a few.
            assert (row[mode == one] > -np.inf).sum() == pytest.approx(share, rel=0.06)
        both = mode > 0
        assert (row[both] > -np.inf).sum() == 2048 - 16
        total = np.logaddexp.reduce(row[both])
        assert total == pytest.approx(np.logaddexp.reduce(exact[both]), abs=1e-4)
    # Over many uniforms the two modes share the points in proportion.
    many = kept(log_mass, 2048, (np.arange(200) + 0.5) / 200) > -np.inf
    for one in (1, 2):
        share = np.exp(np.minimum(exact[mode == one] - log_c, 0)).sum()
        assert many[:, mode == one].sum(axis=1).mean() == pytest.approx(share, rel=2e-3)


def test_the_cancelling_threshold_loses_that_mode():
    log_mass, mode = two_modes()
    exact = log_mass.astype(np.float64)
    truth = oracle_log_threshold(log_mass, 2048)
    wrong = float(cancelling_log_threshold(log_mass, 2048))
    assert threshold(log_mass, 2048) == pytest.approx(truth, abs=1e-4)
    with np.errstate(over="ignore"):
        survivors = np.exp(np.minimum(exact[mode > 0] - wrong, 0)).sum()
    # Either c is zero, so that nothing is drawn at all, or far too large.
    assert wrong == -np.inf or survivors < 0.5 * (2048 - 16)
    # Where nothing small is below the others, both formulas agree.
    easy = random_log_mass(0, 300, 1.0, impossible=0.0).astype(np.float32)
    assert float(cancelling_log_threshold(easy, 40)) == pytest.approx(
        oracle_log_threshold(easy, 40), abs=1e-4
    )


# --- Slots ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_slots", [1, 2, 9])
def test_survivors_keep_their_slots_and_newcomers_fill_free_ones(num_slots):
    rng = np.random.default_rng(num_slots)
    for _ in range(30):
        size = 4 * num_slots
        stays = rng.random(num_slots) < rng.random()
        own = np.where(stays, rng.permutation(size)[:num_slots], -1).astype(np.int32)
        candidates = np.setdiff1d(np.arange(size), own)
        count = rng.integers(0, (~stays).sum() + 1)
        others = np.zeros(size, bool)
        others[rng.permutation(candidates)[:count]] = True
        slots = np.asarray(optimal_resampling.place(jnp.asarray(own), jnp.asarray(others)))
        assert (slots[stays] == own[stays]).all()
        expected = sorted([*own[stays].tolist(), *np.nonzero(others)[0].tolist()])
        assert sorted(slots[slots >= 0].tolist()) == expected
        assert (slots < 0).sum() == num_slots - len(expected)


def test_place_example():
    own = jnp.array([4, -1, -1, 7, -1], jnp.int32)
    others = jnp.zeros(9, bool).at[jnp.array([2, 5])].set(True)
    assert optimal_resampling.place(own, others).tolist() == [4, 2, 5, 7, -1]
