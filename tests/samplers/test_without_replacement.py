"""Without-replacement SMC: exact on small trees, no duplicates, unbiased, and what it reports."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jax_power_smc as psmc
from jax_power_smc import PowerTarget, TableLM, WithoutReplacement
from jax_power_smc.core import prng
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.engine import batching, reference
from jax_power_smc.engine.reference import LoopInputs
from jax_power_smc.engine.state import PAD_ID
from tests.models.small import assert_one_sentence

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB, CAP, EOS = 3, 4, 1
# The whole history matters, and every step has a table of its own.
MODEL = TableLM(VOCAB, order=CAP)
PARAMS = MODEL.init(jax.random.key(8), steps=CAP, scale=1.2)
PROMPTS = [[0], [2, 0], [1, 2, 2], [2]]
END = PowerTarget(2.5, (EOS,))
# Two tokens go on: 1 + 2 + 4 + 8 * 3 sequences.
LEAVES = 31


@dataclasses.dataclass(frozen=True)
class LeastProbable(WithoutReplacement):
    """The worst explicit children: the least probable ones."""

    def explicit(self, logits, allowed):
        return super().explicit(Logits(-logits.values), allowed)


LEAST_PROBABLE = LeastProbable(2, 1, early_stop=0.0)


def exactly(num_particles, explicit_children=None, ramp_tokens=0):
    return WithoutReplacement(num_particles, explicit_children, ramp_tokens, early_stop=0.0)


def sample(sampler, target=END, *, prompts=PROMPTS, seed=0, params=PARAMS, cap=CAP, **options):
    return psmc.plain.sample(
        MODEL,
        params,
        prompts,
        key=jax.random.key(seed),
        target=target,
        sampler=sampler,
        max_new_tokens=cap,
        **options,
    )


@functools.cache
def enumerated(prompt, target, cap=CAP):
    return psmc.exact.enumerate(MODEL, PARAMS, list(prompt), target, cap)


def log_z(prompt, target=END):
    return enumerated(tuple(prompt), target).log_evidence


def alive(result):
    return np.isfinite(np.asarray(result.log_weights))


@functools.partial(jax.jit, static_argnames=("cap",))
def walk(target, sampler, keys, *, cap=CAP):
    """States and infos of every step of the prompt [2, 0], [R, T, ...], and final weights."""
    inputs, prompt = LoopInputs(sampler, target), jnp.array([2, 0], jnp.int32)

    def one(key):
        def body(state, step):
            uniforms = prng.step_uniforms(key, step, sampler.population_size)
            after = reference.decode_step(
                MODEL, PARAMS, inputs, state, uniforms, step, batching.any_in_batch
            )
            return after[0], after

        first = reference.begin(MODEL, PARAMS, inputs, prompt, jnp.int32(2), cap)
        last, after = jax.lax.scan(body, first, jnp.arange(cap, dtype=jnp.int32))
        final = reference.finish(inputs, last.particles, prng.final_uniforms(key))
        return *after, final

    return jax.vmap(one, axis_name="prompts")(keys)


def walked(sampler, runs=16, target=END, seed=3):
    keys = prng.prompt_keys(jax.random.key(seed), range(runs))
    arrays = target.arrays(VOCAB, CAP)
    return jax.device_get(walk(arrays, sampler.traced(), keys))


def prefixes(state, run, step):
    """(index, tokens, ended, log weight) of every particle of positive weight after a step."""
    particles = state.particles
    for row in np.nonzero(np.isfinite(particles.log_weight[run, step]))[0].tolist():
        length = int(particles.length[run, step, row])
        weight = particles.log_weight[run, step, row] + particles.log_evidence[run, step]
        yield (
            row,
            tuple(state.tokens[run, step, row, :length].tolist()),
            bool(particles.ended[run, step, row]),
            float(weight),
        )


def chi_square(counts, chance):
    """p-value of observed counts against probabilities; rare outcomes are pooled."""
    total = sum(counts.values())
    assert set(counts) <= set(chance)
    common = [y for y in chance if total * chance[y] >= 10]
    observed = [counts.get(y, 0) for y in common]
    expected = [total * chance[y] for y in common]
    if total - sum(expected) > 1:
        observed.append(total - sum(observed))
        expected.append(total - sum(expected))
    expected = np.array(expected) * (sum(observed) / sum(expected))
    return scipy.stats.chisquare(observed, expected).pvalue


# --- Zero variance ----------------------------------------------------------------------------


TARGETS = [
    END,
    PowerTarget(1.0, (EOS,)),
    PowerTarget(4.0, ()),
    PowerTarget(2.5, (EOS, 2), min_new_tokens=2),
    PowerTarget(2.5, (EOS,), "forced_eos", min_new_tokens=1),
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_as_many_particles_as_leaves_list_the_target_without_noise(target):
    cap = CAP if target.eos_ids else 3  # 27 sequences if none ends
    for seed, ramp_tokens in ((0, 0), (1, 0), (0, 2), (0, 9)):
        result = sample(exactly(LEAVES, ramp_tokens=ramp_tokens), target, seed=seed, cap=cap)
        for index, prompt in enumerate(PROMPTS[:2]):
            listed = enumerated(tuple(prompt), target, cap)
            assert len(listed.sequences) <= LEAVES
            assert float(result.log_evidence[index]) == pytest.approx(listed.log_evidence, abs=5e-6)
            keep = alive(result)[index]
            rows = [tuple(row) for row in np.array(result.sequences()[index], object)[keep]]
            assert sorted(rows) == sorted(listed.sequences)
            weights = dict(zip(rows, np.asarray(result.log_weights[index])[keep], strict=True))
            truth = listed.log_gamma - listed.log_evidence
            np.testing.assert_allclose([weights[y] for y in listed.sequences], truth, atol=5e-5)


def test_fewer_particles_have_noise():
    results = [sample(exactly(5), dataclasses.replace(END, alpha=1.3), seed=s) for s in range(2)]
    assert np.abs(results[0].log_evidence - results[1].log_evidence).max() > 1e-3


# --- Every step -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_particles", "explicit_children"),
    [(3, 1), pytest.param(5, None, marks=pytest.mark.slow)],
)
def test_no_two_particles_are_ever_equal(num_particles, explicit_children):
    state, info, final = walked(exactly(num_particles, explicit_children))
    full = 0
    for run in range(16):
        for step in range(CAP):
            rows = list(prefixes(state, run, step))
            sequences = [tokens for _, tokens, _, _ in rows]
            assert len(set(sequences)) == len(sequences)
            running = [tokens for _, tokens, ended, _ in rows if not ended]
            pool = [tokens for _, tokens, ended, _ in rows if ended]
            assert len(running) <= num_particles and len(pool) <= num_particles
            assert all(len(y) == step + 1 and EOS not in y for y in running)
            assert all(y[-1] == EOS and EOS not in y[:-1] for y in pool)
            full += len(running) == num_particles
    assert full and info.resampled.any()
    assert ((final.particle_index >= 0).sum(axis=1) <= num_particles).all()


@pytest.mark.parametrize(("num_particles", "explicit_children"), [(3, 1), (5, None)])
@pytest.mark.parametrize("ramp_tokens", [0, 3])
def test_every_step_conserves_the_mass(num_particles, explicit_children, ramp_tokens):
    """The evidence after a step is the sum of the weights of all children, and of the pool."""
    sampler = exactly(num_particles, explicit_children, ramp_tokens)
    state, _, _ = walked(sampler)
    # log p of every prefix that continues [2, 0], by the model itself.
    listed = enumerated((2, 0), PowerTarget(1.0))
    log_p = collections.defaultdict(lambda: -np.inf)
    for y, value in zip(listed.sequences, listed.log_prob.astype(np.float64), strict=True):
        for length in range(len(y) + 1):
            log_p[y[:length]] = np.logaddexp(log_p[y[:length]], value)

    def exponent(step):
        return 1 + (END.alpha - 1) * min(1, step / ramp_tokens) if ramp_tokens else END.alpha

    for run in range(16):
        before, old = [((), False, 0.0)], 1.0
        for step in range(CAP):
            new, total = exponent(step), []
            for y, ended, weight in before:
                weight += (new - old) * log_p[y]
                if ended:
                    total.append(weight)
                else:
                    children = [log_p[(*y, v)] - log_p[y] for v in range(VOCAB)]
                    total += [weight + new * child for child in children]
            expected = np.logaddexp.reduce(total)
            assert state.particles.log_evidence[run, step] == pytest.approx(expected, abs=2e-5)
            before = [(y, e, w) for _, y, e, w in prefixes(state, run, step)]
            assert np.logaddexp.reduce([w for _, _, w in before]) == pytest.approx(
                expected, abs=2e-5
            )
            old = new


def test_following_the_parents_replays_the_tokens():
    result = sample(exactly(5), prompts=[[2, 0]] * 16, seed=3)
    state, info, final = walked(exactly(5), seed=3)
    np.testing.assert_array_equal(result.info.particle_index, final.particle_index)
    np.testing.assert_array_equal(result.info.parent, info.parent)
    moved = 0
    for run in range(16):
        for particle, row in enumerate(final.particle_index[run].tolist()):
            if row < 0:
                continue
            written = []
            for step in reversed(range(CAP)):
                parent = int(result.info.parent[run, step, row])
                before = int(state.particles.length[run, step - 1, parent]) if step else 0
                after = int(state.particles.length[run, step, row])
                assert after - before in (0, 1)
                if after > before:
                    written.append(int(state.tokens[run, step, row, after - 1]))
                moved += parent != row
                row = parent
            assert row == 0  # the root
            tokens = result.sequences()[run][particle]
            assert written[::-1] == tokens
    assert moved > 16


def test_coalescence_is_the_common_prefix():
    # No two particles of a step are equal, so those that share tokens share ancestors, too.
    result = sample(LEAST_PROBABLE, prompts=PROMPTS * 16)
    keep = alive(result)
    lengths = []
    for index, rows in enumerate(result.sequences()):
        rows = [row for row, there in zip(rows, keep[index], strict=True) if there]
        shared = 0
        while all(len(row) > shared and row[shared] == rows[0][shared] for row in rows):
            shared += 1
        lengths.append(CAP if len(rows) == 1 else shared)
    assert result.info.coalescence.tolist() == lengths
    assert len(set(lengths)) > 1


# --- What is reported -------------------------------------------------------------------------


def test_unused_particles_are_empty():
    result = sample(exactly(LEAVES), cap=2)
    keep = alive(result)
    assert (keep.sum(axis=1) == 1 + 2 * 3).all()
    for name, nothing in (("lengths", 0), ("finished", False), ("log_probs", 0)):
        assert (np.asarray(getattr(result, name))[~keep] == nothing).all()
    assert (np.asarray(result.tokens)[~keep] == PAD_ID).all()
    assert np.isneginf(np.asarray(result.log_weights)[~keep]).all()
    assert (result.info.particle_index[~keep] == -1).all() and (
        result.info.particle_index[keep] >= 0
    ).all()
    assert keep[np.arange(4), np.asarray(result.choice)].all()
    # ESS of the weights after the last step, of which none was dropped.
    weights = np.exp(np.asarray(result.log_weights, np.float64))
    ess = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
    np.testing.assert_allclose(result.info.ess[:, -1], ess, rtol=1e-4)
    assert (result.info.distinct_roots == VOCAB).all()
    # An unused particle would be the empty sequence and have no answer.
    answers = [[tuple(row) for row in rows] for rows in result.sequences()]
    heaviest = np.argmax(weights, axis=1)
    assert result.vote(answers) == [answers[i][k] for i, k in enumerate(heaviest)]
    assert (
        result.vote([["none" if not row else None for row in rows] for rows in answers])
        == [None] * 4
    )
    assert () not in [tuple(row) for row in result.draw() + result.best()]


def test_one_particle_returns_one_sequence():
    result = sample(exactly(1, 1), prompts=PROMPTS * 4)
    assert (np.asarray(result.log_weights) == 0).all()
    assert len({tuple(row) for row in result.draw()}) > 2
    assert (np.asarray(result.choice) == 0).all()


@pytest.mark.parametrize(("num_particles", "explicit_children"), [(1, 1), (5, None)])
def test_alpha_one_has_evidence_one(num_particles, explicit_children):
    result = sample(exactly(num_particles, explicit_children), PowerTarget(1.0, (EOS,)), seed=5)
    np.testing.assert_allclose(result.log_evidence, 0.0, atol=3e-6)
    assert (np.asarray(sample(exactly(num_particles, explicit_children)).log_evidence) < -0.1).all()


def test_tokens_are_counted():
    state, info, _ = walked(exactly(5))
    running = np.isfinite(state.particles.log_weight[:, :, :5]).sum(axis=2)
    drawn = state.particles.drawn[:, -1]
    # Every running particle of every step was drawn, and so were those that ended.
    assert (drawn >= running.sum(axis=1)).all() and (drawn <= 2 * 5 * CAP).all()
    result = sample(exactly(5), prompts=[[2, 0]] * 16, seed=3)
    np.testing.assert_array_equal(result.info.drawn_tokens, drawn)
    # No two running particles are equal: each is a token through the model, except at the cap.
    assert not result.info.num_rows[:, -1].any()
    np.testing.assert_array_equal(result.info.num_rows[:, :-1], running[:, :-1])
    np.testing.assert_array_equal(result.info.model_tokens, 1 + running[:, :-1].sum(axis=1))
    forks = (info.parent[:, :, :5] != np.arange(5)).sum(axis=2)
    np.testing.assert_array_equal(result.info.forks, forks)
    np.testing.assert_array_equal(result.info.resampled, info.resampled)


# --- Mass floor -------------------------------------------------------------------------------


def test_a_floor_keeps_fewer_but_never_nobody():
    def running(sampler, target):
        state, _, _ = walked(sampler, target=target)
        alive = np.isfinite(state.particles.log_weight)
        return alive[:, :, :5].sum(axis=2), alive[:, :, 5:].sum(axis=2), state

    def floored(mass_floor):
        return dataclasses.replace(exactly(5), mass_floor=mass_floor)

    for target in (END, PowerTarget(2.5, ())):
        all_of_them, _, _ = running(exactly(5), target)
        fewer, _, _ = running(floored(0.05), target)
        few, pool, state = running(floored(0.9), target)
        assert few.mean() < fewer.mean() < all_of_them.mean()
        # Where nothing has ended, somebody runs on.
        assert (few + pool > 0).all() and np.isfinite(state.particles.log_evidence).all()
        assert (few == 0).any() == (pool > 0).any() == (target is END)


def test_a_floor_is_off_while_a_ramp_runs():
    walks = [
        walked(dataclasses.replace(exactly(5, ramp_tokens=CAP), mass_floor=mass_floor))
        for mass_floor in (0.0, 0.9)
    ]
    jax.tree.map(np.testing.assert_array_equal, *walks)


# --- Early stop -------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stop", [0.3, 0.05, 1e-4])
@pytest.mark.parametrize("num_particles", [5, LEAVES])
def test_what_an_early_stop_leaves_out_is_bounded(early_stop, num_particles):
    prompts = PROMPTS * 16
    target = dataclasses.replace(END, alpha=4.0)
    options = {"prompts": prompts}
    full = sample(exactly(num_particles), target, **options)
    stopped = sample(WithoutReplacement(num_particles, early_stop=early_stop), target, **options)
    dropped = stopped.info.dropped_mass
    assert (full.info.dropped_mass == 0).all()
    assert (dropped >= 0).all() and (dropped < early_stop).all()
    stops = dropped > 0
    assert stops.any() or early_stop < 1e-3
    lost = 1 - np.exp(np.asarray(stopped.log_evidence) - np.asarray(full.log_evidence))
    # The random numbers are the same, so up to the stop both runs are, too.
    assert (lost <= dropped + 1e-5).all() and (lost >= -1e-5).all()
    np.testing.assert_array_equal(
        np.asarray(stopped.log_evidence)[~stops], np.asarray(full.log_evidence)[~stops]
    )
    if stops.any():
        assert lost[stops].max() > 0.02 * dropped.max()
        finished, there = np.asarray(stopped.finished), alive(stopped)
        assert finished[stops][there[stops]].all()
        assert not finished[~there].any()
        assert (stopped.info.drawn_tokens[stops] <= full.info.drawn_tokens[stops]).all()
        if num_particles == LEAVES:  # against the truth, not another estimate
            truth = np.array([log_z(p, target) for p in prompts])
            left = 1 - np.exp(np.asarray(stopped.log_evidence) - truth)
            assert (left <= dropped + 1e-5).all() and (left >= -1e-5).all()


def test_no_early_stop_while_a_ramp_runs():
    target, options = dataclasses.replace(END, alpha=4.0), {"prompts": PROMPTS}
    always = sample(WithoutReplacement(5, early_stop=1.0), target, **options)
    assert (always.info.dropped_mass > 0).all()
    ramped = sample(WithoutReplacement(5, ramp_tokens=CAP + 1, early_stop=1.0), target, **options)
    unstopped = sample(exactly(5, ramp_tokens=CAP + 1), target, **options)
    assert (ramped.info.dropped_mass == 0).all()
    np.testing.assert_array_equal(ramped.tokens, unstopped.tokens)
    np.testing.assert_array_equal(ramped.log_evidence, unstopped.log_evidence)
    # A ramp that ends at the third token protects nothing after it.
    short = sample(WithoutReplacement(5, ramp_tokens=2, early_stop=1.0), target, **options)
    assert (short.info.dropped_mass > 0).any()
    assert (np.asarray(short.lengths).max(axis=1)[short.info.dropped_mass > 0] <= 3).all()
    full = sample(exactly(5, ramp_tokens=2), target, **options)
    lost = 1 - np.exp(np.asarray(short.log_evidence) - np.asarray(full.log_evidence))
    assert (lost <= short.info.dropped_mass + 1e-5).all() and (lost >= -1e-5).all()


def test_the_default_stops_early():
    assert WithoutReplacement(5).early_stop == 1e-4
    # A first token that nearly always ends: nothing else is worth a second step.
    params = PARAMS._replace(logits=PARAMS.logits.at[..., EOS].add(9.0))
    result = sample(WithoutReplacement(5), params=params)
    assert (result.info.dropped_mass > 0).all() and (result.info.dropped_mass < 1e-4).all()
    assert result.draw() == [[EOS]] * 4
    assert (np.asarray(result.lengths).max(axis=1) == 1).all()


# --- Expectations -----------------------------------------------------------------------------


def test_the_draw_follows_the_target_where_nothing_is_left_out():
    count = 4096
    result = sample(exactly(LEAVES), prompts=[[2, 0]] * count, seed=2)
    counts = collections.Counter(tuple(row) for row in result.draw())
    chance = enumerated((2, 0), END).probabilities()
    assert chi_square(counts, chance) > 1e-5
    # The test can distinguish another alpha.
    assert chi_square(counts, enumerated((2, 0), PowerTarget(2.2, (EOS,))).probabilities()) < 1e-5


def z_scores(sampler, alpha=END.alpha):
    """Of Z_hat, and of Z_hat where the draw has a given first token, against enumeration."""
    count = 4096
    result = sample(sampler, prompts=[[2, 0]] * count, seed=7)
    evidence = np.exp(np.asarray(result.log_evidence, np.float64))
    listed = enumerated((2, 0), dataclasses.replace(END, alpha=alpha))
    gamma, first = np.exp(listed.log_gamma), np.array([y[0] for y in listed.sequences])
    drawn = np.array([row[0] for row in result.draw()])
    scores = []
    for name in ("Z", *range(VOCAB)):
        values = evidence if name == "Z" else evidence * (drawn == name)
        truth = gamma.sum() if name == "Z" else gamma[first == name].sum()
        if np.count_nonzero(values) < 50:
            assert truth < 0.02 * gamma.sum()
            continue
        scores.append((values.mean() - truth) / (values.std() / np.sqrt(count)))
    return np.array(scores)


@pytest.mark.parametrize("ramp_tokens", [0, 2])
def test_the_wrong_explicit_child_changes_no_expectation(ramp_tokens):
    sampler = dataclasses.replace(LEAST_PROBABLE, ramp_tokens=ramp_tokens)
    assert np.abs(z_scores(sampler)).max() < 4.5


def test_one_particle_with_one_explicit_child_is_unbiased():
    assert np.abs(z_scores(exactly(1, 1))).max() < 4.5
    # The scores can distinguish a target that is nearly the same.
    assert np.abs(z_scores(exactly(1, 1), alpha=2.4)).max() > 4.5


# --- Neighbours, arguments --------------------------------------------------------------------

ARRAYS = ("tokens", "lengths", "finished", "log_probs", "log_weights", "log_evidence", "choice")
INFO = ("ess", "resampled", "forks", "parent", "particle_index", "dropped_mass", "num_rows")


def assert_same(one, two, rows, other_rows):
    """Bit for bit, prompts ``rows`` of one against ``other_rows`` of the other."""
    for names, left, right in ((ARRAYS, one, two), (INFO, one.info, two.info)):
        for name in names:
            np.testing.assert_array_equal(
                np.asarray(getattr(left, name))[rows],
                np.asarray(getattr(right, name))[other_rows],
                err_msg=name,
            )


def test_neighbours_and_order_change_no_bit():
    sampler, everyone = WithoutReplacement(5, early_stop=0.05), [0, 1, 2, 3]
    together = sample(sampler)
    assert together.info.forks.sum() > 3 and (together.info.dropped_mass > 0).any()
    # The table's results are exact, so the width of the batch does not matter either.
    order = [2, 0, 3, 1]
    turned = sample(sampler, prompts=[PROMPTS[i] for i in order], prompt_ids=order)
    assert_same(together, turned, order, everyone)
    for index in (0, 2):
        alone = sample(sampler, prompts=[PROMPTS[index]], prompt_ids=[index])
        assert_same(together, alone, [index], [0])
    others = sample(sampler, prompts=[PROMPTS[1], [0, 0], [0], [2, 2]], prompt_ids=[1, 9, 8, 7])
    assert_same(together, others, [1], [0])
    # What does matter is the id of a prompt.
    assert not np.array_equal(together.tokens, sample(sampler, prompt_ids=[4, 5, 6, 7]).tokens)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_particles": 0}, "num_particles"),
        ({"num_particles": 2.0}, "num_particles"),
        ({"num_particles": True}, "num_particles"),
        ({"explicit_children": 0}, "explicit_children"),
        ({"explicit_children": "all"}, "explicit_children"),
        ({"ramp_tokens": -1}, "ramp_tokens"),
        ({"ramp_tokens": None}, "ramp_tokens"),
        ({"mass_floor": -1e-9}, "mass_floor"),
        ({"mass_floor": 1.0}, "mass_floor"),
        ({"mass_floor": float("nan")}, "mass_floor"),
        ({"mass_floor": False}, "mass_floor"),
        ({"early_stop": -1e-9}, "early_stop"),
        ({"early_stop": 1.5}, "early_stop"),
        ({"early_stop": float("nan")}, "early_stop"),
        ({"early_stop": True}, "early_stop"),
    ],
)
def test_invalid_values_are_refused(change, name):
    with pytest.raises(ValueError) as error:
        WithoutReplacement(**{"num_particles": 4, **change})
    assert str(error.value).startswith(f"{name} is ")
    assert_one_sentence(error, repr(change[name]))


def test_defaults_and_the_largest_values():
    assert WithoutReplacement(5) == WithoutReplacement(5, None, 0, 0.0, 1e-4)
    WithoutReplacement(1, explicit_children=10**6, ramp_tokens=0, early_stop=1)
    # More explicit children than tokens are all of them.
    logits, allowed = jnp.array([[-3.0, -1.0, -2.0]] * 4), jnp.ones((1, 3), bool)
    assert WithoutReplacement(4, 50).explicit(Logits(logits), allowed).tolist() == [[1, 2, 0]] * 4
    assert WithoutReplacement(2, None).explicit(Logits(logits), allowed).tolist() == [[1, 2]] * 4


def test_a_target_that_excludes_everything_is_a_failure():
    # Every token ends the sequence, and it may not end yet.
    target = PowerTarget(2.5, (0, 1, 2), min_new_tokens=1)
    result = sample(exactly(5), target)
    assert np.isneginf(result.log_evidence).all() and np.isneginf(result.log_weights).all()
    assert (np.asarray(result.lengths) == 0).all() and (result.info.particle_index == -1).all()
    assert all("weight zero" in failure for failure in result.failures())
