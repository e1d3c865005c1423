"""Metropolis-Hastings: its exact kernel, what it converges to, its cache, and what it costs."""

import dataclasses
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jax_power_smc as psmc
from jax_power_smc import PowerTarget, StopString, TableLM, TransformerLM
from jax_power_smc.core import prng
from jax_power_smc.engine import batching, executables, mh_chains, mh_step
from jax_power_smc.engine.buckets import Sizes
from jax_power_smc.engine.collect import collect
from jax_power_smc.engine.mh_chains import ChainScheduler
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.models.table_lm import TableParams
from jax_power_smc.samplers import metropolis_hastings as mh
from jax_power_smc.samplers.metropolis_hastings import Entry, MetropolisHastings
from jax_power_smc.theory import cost_model
from tests.models import small
from tests.samplers.mh_kernel import Kernel

EOS = 1
# Three tokens, the middle one ends; what follows depends on the last two tokens.
MODEL = TableLM(vocab_size=3, order=2)
BYTES = [b"a", None, b"b"]
PROMPT = (0,)
CAP = 3
END = PowerTarget(2.5, (EOS,))
TARGETS = {
    "stopped": END,
    "restricted": dataclasses.replace(END, min_new_tokens=1, top_p=0.8),
    "forced": dataclasses.replace(END, length="forced_eos"),
    # After some prefixes the two most probable tokens do not end the sequence, which then must.
    "forced-top-2": dataclasses.replace(END, length="forced_eos", top_k=2),
    "stop-rule": dataclasses.replace(END, length="forced_eos", stop=StopString("ab")),
}


@functools.cache
def params(x64=False):
    """Rows differ and ends are rarer than a third, so that lengths vary."""
    with jax.enable_x64(x64):
        table = MODEL.init(jax.random.key(21), dtype=jnp.float32)
        return TableParams(jnp.asarray(table.logits.at[..., EOS].add(-0.7), float))


def tokenizer(target):
    return BYTES if target.stop is not None else None


@functools.cache
def enumerated(name, horizon=CAP):
    """pi of every sequence, of the prefixes of ``horizon`` tokens: before T nothing is forced."""
    target = TARGETS[name]
    if horizon < CAP:
        target = dataclasses.replace(target, length="stopped")
    with jax.enable_x64(True):
        return psmc.exact.enumerate(
            MODEL, params(x64=True), PROMPT, target, horizon, tokenizer=tokenizer(target)
        ).probabilities()


def run(sampler, target=END, *, prompts=(PROMPT,) * 4, seed=0, cap=CAP, **options):
    """The batch runner, with few different sizes, because each takes time to compile."""
    requests = requested(prompts, target, cap, options.pop("prompt_ids", None))
    scheduler = make(sampler, target, seed=seed, **options)
    assert list(scheduler.run(requests)) == requests
    result = collect(sampler, requests, scheduler.seconds)
    return result, result.info.acceptance_rate


def make(sampler, target=END, *, model=MODEL, weights=None, seed=0, width=4, bucket=8, capacity=16):
    """A batch runner of one width, one prompt length and one cap."""
    sizes = Sizes(width, width, bucket, capacity, chunk=capacity, rows=(1,), smallest_bucket=bucket)
    weights = params() if weights is None else weights
    return ChainScheduler(model, weights, sampler, jax.random.key(seed), sizes, tokenizer(target))


def requested(prompts, target, cap, ids=None):
    ids = range(len(prompts)) if ids is None else ids
    return [ActiveRequest(p, i, target, cap) for p, i in zip(prompts, ids, strict=True)]


def total_variation(one, other):
    return 0.5 * float(np.abs(np.asarray(one) - np.asarray(other)).sum())


def chi_square(result, chance):
    """p-value of the sequences of a result against probabilities."""
    counts = {}
    for rows in result.sequences():
        for row in rows:
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert set(counts) <= set(chance)
    total = sum(counts.values())
    common = [y for y in chance if total * chance[y] >= 10]
    observed = [counts.get(y, 0) for y in common]
    expected = [total * chance[y] for y in common]
    observed, expected = [*observed, total - sum(observed)], [*expected, total - sum(expected)]
    if expected[-1] < 1:
        observed, expected = observed[:-1], expected[:-1]
        expected = np.array(expected) * (sum(observed) / sum(expected))
    return scipy.stats.chisquare(observed, expected).pvalue


# --- the exact kernel ---


def kernel_and_target(name, horizon):
    """The kernel of the production move, and pi on its sequences."""
    target, exact = TARGETS[name], enumerated(name, horizon)
    kernel = Kernel(MODEL, params(x64=True), PROMPT, target, CAP, horizon, tokenizer(target))
    assert set(kernel.sequences) == set(exact)
    return kernel, np.array([exact[y] for y in kernel.sequences])


@pytest.mark.parametrize(
    ("name", "horizon"), [*((name, CAP) for name in TARGETS), ("forced", 2), ("restricted", 2)]
)
def test_every_cut_keeps_detailed_balance_and_what_is_before_it(x64, name, horizon):
    kernel, pi = kernel_and_target(name, horizon)
    moves = 0
    for cut in range(horizon):
        k = kernel(cut)
        np.testing.assert_allclose(k.sum(axis=1), 1, atol=1e-11)
        np.testing.assert_allclose(pi[:, None] * k, (pi[:, None] * k).T, atol=1e-12)
        for i, y in enumerate(kernel.sequences):
            for j, z in enumerate(kernel.sequences):
                assert k[i, j] == 0 or y[:cut] == z[:cut]
                moves += i != j and k[i, j] > 0
            assert len(y) > cut or k[i, i] == pytest.approx(1)
    assert moves > len(pi)


def test_global_edits_converge_and_last_block_edits_do_given_the_earlier_blocks(x64):
    kernel, pi = kernel_and_target("stopped", CAP)
    per_cut = [kernel(cut) for cut in range(CAP)]

    def limit(edit):
        """The distribution to which the last block's moves lead from every sequence."""
        *_, last = MetropolisHastings(2, 1, edit).schedule(CAP)
        assert last.horizon == CAP and last.first == (0 if edit == "global" else CAP // 2)
        return np.linalg.matrix_power(np.mean(per_cut[last.first :], axis=0), 2**11)

    np.testing.assert_allclose(limit("global"), np.tile(pi, (len(pi), 1)), atol=1e-8)
    frozen = [y[: CAP // 2] for y in kernel.sequences]
    given = np.array([[pi[j] * (a == b) for j, b in enumerate(frozen)] for a in frozen])
    given /= given.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(limit("last_block"), given, atol=1e-8)
    assert total_variation(given[0], pi) > 0.1


# --- V = {0, EOS}, p = 1/2, T = 2, alpha = 2: pi = (2/3, 1/6, 1/6) ---

COIN = TableLM(vocab_size=2)
HALF = PowerTarget(2.0, (EOS,))
LONG = [(0, 0), (0, EOS)]


def coin(dtype=jnp.float32):
    return TableParams(jnp.zeros((1, 3, 2), dtype))


def test_the_coin_converges_at_five_eighths_per_move(x64):
    kernel = Kernel(COIN, coin(jnp.float64), PROMPT, HALF, 2, 2)
    assert kernel.sequences == [*LONG, (EOS,)]
    pi = np.array([1 / 6, 1 / 6, 2 / 3])
    step = (kernel(0) + kernel(1)) / 2
    law = np.array([0.5, 0.5, 0.0])
    for n in range(20):
        assert total_variation(law, pi) == pytest.approx(2 / 3 * (5 / 8) ** n, abs=1e-12)
        law = law @ step


def test_many_coins_converge_at_five_eighths_per_move():
    count, target = 20_000, HALF.arrays(2, 2)
    last, zero = jnp.asarray(PROMPT, jnp.int32), jnp.int32(0)
    empty = mh_step.begin(COIN, coin(), last, jnp.int32(1), 1, 2, capacity=3)

    def one(key, second):
        """Whether the chain is at (EOS,) after each move, started at (0, second)."""
        prompt = mh_step.ChainPrompt(last[0], zero, target, key)

        def step(state, entry):
            uniforms = mh_step.move_uniforms(key, entry, 1, jnp.float32)
            cut = mh.draw_cut(jax.random.fold_in(key, 1), entry)
            state = mh_step.move(
                COIN, coin(), None, prompt, state, entry, cut, uniforms, batching.this_prompt
            )
            return state, state.chains.tokens[0, 0] == EOS

        log_s = jnp.full((1, 2), -jnp.log(2.0))
        started = empty._replace(
            chains=empty.chains._replace(
                tokens=jnp.stack([0, second])[None],
                log_p=log_s,
                log_s=log_s,
                length=jnp.full((1,), 2, jnp.int32),
                finished=second[None] == EOS,
            )
        )
        (*moves,) = MetropolisHastings(1, 6).schedule(2)
        entries = jax.tree.map(lambda *x: jnp.stack(x), *moves[1:])
        return jax.lax.scan(step, started, entries)[1]

    seconds = jnp.arange(count, dtype=jnp.int32) % 2
    keys = prng.prompt_keys(jax.random.key(8), range(count))
    ended = np.asarray(jax.jit(jax.vmap(one))(keys, seconds), np.float64)
    chance = 2 / 3 * (1 - (5 / 8) ** np.arange(1, 7))
    z = (ended.mean(axis=0) - chance) / np.sqrt(chance * (1 - chance) / count)
    assert np.abs(z).max() < 4


def test_the_published_rule_fails_on_the_coin():
    """It limits cuts and proposals to the current length, and truncates the ratio to that."""
    half = Fraction(1, 2)

    def proposals(prefix, room):
        """Sequences of at most ``room`` more tokens, with q: every token has q = 1/2."""
        if room == 0 or EOS in prefix:
            return {prefix: Fraction(1)}
        out = {}
        for v in (0, EOS):
            for y, q in proposals((*prefix, v), room - 1).items():
                out[y] = out.get(y, 0) + half * q
        return out

    def step(law):
        after = {}
        for y, weight in law.items():
            for cut in range(len(y)):
                for z, q in proposals(y[:cut], len(y) - cut).items():
                    # p^2 / q is 1/2 for every token, and as many of y count as z has.
                    ratio = half ** (len(z) - cut) / half ** (len(z) - cut)
                    chance = weight * q * min(1, ratio) / len(y)
                    after[z] = after.get(z, 0) + chance
                    after[y] = after.get(y, 0) + weight * q / len(y) - chance
        return after

    pi = {(EOS,): Fraction(2, 3), LONG[0]: Fraction(1, 6), LONG[1]: Fraction(1, 6)}
    law = dict.fromkeys(LONG, half)
    for _ in range(60):
        law = step(law)
        assert sum(law.values()) == 1
    assert float(law[(EOS,)]) == pytest.approx(0.5) and float(law[(0,)]) == pytest.approx(0.5)
    gap = sum(abs(law.get(y, 0) - pi.get(y, 0)) for y in {*law, *pi}) / 2
    assert float(gap) == pytest.approx(0.5)


# --- what the batch runner converges to ---


MANY = 1024  # chains, of each of four prompts


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "restricted"])
def test_chains_converge_to_the_enumerated_target(name):
    target, exact = TARGETS[name], enumerated(name)
    result, rate = run(MetropolisHastings(2, 200, num_chains=MANY), target, seed=2)
    assert chi_square(result, exact) > 1e-4
    assert np.all((rate > 0.2) & (rate < 1)) and np.isfinite(result.log_weights).all()
    if target.length == "forced_eos":
        assert np.all(result.finished) and not result.info.unfinished_mass.any()
    # Without moves it is low-temperature sampling, which the test can distinguish.
    plain, rate = run(MetropolisHastings(2, 0, num_chains=MANY), target, seed=2)
    dead = np.isneginf(plain.log_weights)
    assert dead.any() or chi_square(plain, exact) < 1e-6
    assert np.isnan(rate).all()


def test_at_alpha_one_every_move_is_accepted():
    target = PowerTarget(1.0, (EOS,))
    result, rate = run(MetropolisHastings(1, 10, num_chains=MANY), target)
    np.testing.assert_array_equal(rate, 1.0)
    plain = psmc.exact.enumerate(MODEL, params(), PROMPT, target, CAP)
    assert chi_square(result, plain.probabilities()) > 1e-4


def test_a_sequence_ends_at_the_stop_rule_and_is_padded():
    target = PowerTarget(1.5, (EOS,), stop=StopString("ab"))
    result, _ = run(MetropolisHastings(4, 6, num_chains=MANY), target, cap=8)
    spelled = ["".join("a$b"[v] for v in y) for rows in result.sequences() for y in rows]
    tokens = np.asarray(result.tokens).reshape(-1, 8)
    for text, row, done in zip(spelled, tokens, np.ravel(result.finished), strict=True):
        assert "ab" not in text[:-1] and "$" not in text[:-1]
        assert done == text.endswith(("ab", "$")) and (done or len(text) == 8)
        assert not row[len(text) :].any()
    assert len({len(text) for text in spelled}) > 4
    assert any(text.endswith("ab") for text in spelled)


# --- density zero ---


def test_a_target_that_excludes_everything_is_a_failure():
    # Top-1 after the prompt leaves one token; if that is the end token, it comes too early.
    best = np.argmax(params().logits[0], axis=1)[3 * 4 :][:3]  # after one token
    fine = next(v for v in range(3) if best[v] != best[0])
    target = PowerTarget(3.0, (int(best[0]),), top_k=1, min_new_tokens=1)
    sampler = MetropolisHastings(2, 3, num_chains=MANY)
    result, _ = run(sampler, target, prompts=[PROMPT, (fine,)])
    assert np.isneginf(result.log_weights[0]).all() and np.isfinite(result.log_weights[1]).all()
    failures = result.failures()
    assert "all particles have weight zero" in failures[0] and failures[1] is None
    assert not np.asarray(result.lengths)[0].any()


def test_chains_of_density_zero_have_weight_zero_and_never_return():
    target = TARGETS["forced-top-2"]
    plain, _ = run(MetropolisHastings(1, 0, num_chains=MANY), target)
    dead = np.isneginf(plain.log_weights)
    assert 0.2 < dead.mean() < 0.8
    lengths = np.asarray(plain.lengths)
    assert np.all(lengths[dead] == CAP - 1) and not np.asarray(plain.finished)[dead].any()
    np.testing.assert_allclose(np.exp(plain.log_weights).sum(axis=1), 1, rtol=1e-5)
    assert not dead[np.arange(4), np.asarray(plain.choice)].any()


def test_acceptance_by_hand():
    """Chains: less likely, more likely, out of density zero, into it, within it, a self-move."""
    zero = -np.inf
    old = [[-1, -2, 0], [-1, -2, -3], [-1, -2, zero], [-1, -2, -3], [-1, zero, 0], [-1, -2, 0]]
    new = [[-1, -2, -0.5], [-1, -1, 0], [-1, -9, -9], [-1, zero, 0], [-1, -9, zero], [-1, -2, 0]]
    start = mh.start(6, CAP, jnp.float32)
    of = [start._replace(log_s=jnp.asarray(x, jnp.float32)) for x in (old, new)]
    for u, accepted in (
        (0.0, [True, True, True, False, True, True]),
        (0.6, [True, True, True, False, True, True]),  # exp(-0.5) is 0.607
        (0.61, [False, True, True, False, True, True]),
        (1 - 2**-24, [False, True, True, False, True, True]),
    ):
        got = mh.accepts(*of, jnp.int32(1), jnp.full((6,), u, jnp.float32))
        assert np.asarray(got).tolist() == accepted


def test_idle_slots_draw_nothing(four):
    prompts, sampler, _, _ = four
    first, scheduler = next(sampler.schedule(10)), make(sampler)
    prompt, state = scheduler.start(requested(prompts[:2], END, 10), 8)
    state = scheduler.move(None, prompt, state, first)
    assert np.all(state.drawn[:2] > 0) and not np.any(state.drawn[2:])


# --- the result ---


@pytest.fixture(scope="module")
def four():
    prompts, sampler = [(0,), (2, 0), (2,), (0, 0, 2)], MetropolisHastings(3, 5, num_chains=4)
    result, rate = run(sampler, prompts=prompts, cap=10)
    # The tests below would prove little about a run in which nothing happens.
    assert len(set(np.asarray(result.lengths).ravel())) > 3
    assert np.all((rate > 0) & (rate < 1)) and len(set(rate)) > 1
    return prompts, sampler, result, rate


def test_shapes_weights_and_info(four):
    _, _, result, rate = four
    assert result.tokens.shape == (4, 4, 10) and result.tokens.dtype == jnp.int32
    assert result.lengths.shape == result.finished.shape == result.log_probs.shape == (4, 4)
    np.testing.assert_allclose(result.log_weights, -np.log(4), rtol=1e-6)
    assert np.isnan(result.log_evidence).all() and rate.shape == (4,)
    info = result.info
    assert info.ess.shape == info.forks.shape == (4, 10) and (info.ess == 4).all()
    assert not info.forks.any() and not info.resampled.any() and not info.dropped_mass.any()
    np.testing.assert_array_equal(info.parent, np.tile(np.arange(4), (4, 10, 1)))
    np.testing.assert_array_equal(info.particle_index, np.tile(np.arange(4), (4, 1)))
    assert set(info.seconds) == {"compile", "prefill", "decode"} and min(info.seconds.values()) >= 0
    assert result.failures() == [None] * 4 and (result.info.coalescence == 0).all()


def test_the_choice_is_uniform_over_chains_of_positive_density():
    start = mh.start(4, CAP, jnp.float32)
    dead = start._replace(log_s=start.log_s.at[1, 0].set(-jnp.inf))
    grid = (jnp.arange(1200, dtype=jnp.float32) + 0.5) / 1200
    finish = jax.jit(jax.vmap(mh.finish, in_axes=(None, 0)))
    for state, share in ((start, [0.25] * 4), (dead, [1 / 3, 0, 1 / 3, 1 / 3])):
        choice = np.asarray(finish(state, grid[:, None]).choice)
        np.testing.assert_allclose(np.bincount(choice, minlength=4) / 1200, share, atol=2e-3)


def test_log_probs_are_those_of_the_model_at_temperature_one(four):
    prompts, _, result, _ = four
    for i, prompt in enumerate(prompts):
        scores = psmc.exact.score(MODEL, params(), prompt, np.asarray(result.tokens[i]))
        inside = np.arange(10) < np.asarray(result.lengths[i])[:, None]
        np.testing.assert_allclose(
            result.log_probs[i], (scores * inside).sum(axis=1), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    "options",
    [
        {"rows": [3, 1, 0, 2]},
        {"rows": [1], "width": 1},
        {"rows": [0, 1, 2, 3], "width": 6, "bucket": 16, "capacity": 32},
        {"rows": [2, 0]},
        {"rows": [0], "neighbours": [(2, 2), (1,)]},
    ],
    ids=["order", "alone", "sizes", "idle rows", "neighbours"],
)
def test_a_prompt_gives_the_same_among_any_neighbours(four, options):
    prompts, sampler, expected, rates = four
    options = dict(options)
    rows, others = options.pop("rows"), options.pop("neighbours", [])
    result, rate = run(
        sampler,
        prompts=[prompts[i] for i in rows] + others,
        prompt_ids=rows + [70 + i for i in range(len(others))],
        cap=10,
        **options,
    )
    names = ("tokens", "lengths", "finished", "log_probs", "log_weights", "choice")
    for here, there in enumerate(rows):
        for name in names:
            np.testing.assert_array_equal(
                getattr(result, name)[here], getattr(expected, name)[there], err_msg=name
            )
        assert result.info.model_tokens[here] == expected.info.model_tokens[there]
        assert rate[here] == rates[there]
    other, _ = run(sampler, prompts=prompts, cap=10, seed=1)
    assert not np.array_equal(other.tokens, expected.tokens)


def test_numbers_and_schedule_are_traced(four):
    before, target = executables.compiled_count(), PowerTarget(4.0, (0, 2), min_new_tokens=2)
    run(MetropolisHastings(5, 1, "last_block", num_chains=4), target, cap=8)
    assert executables.compiled_count() == before


# --- the model's cache ---

CONFIG = "llama-grouped-tied"
TINY = TransformerLM(small.CONFIGS[CONFIG])
HORIZON = 12


@jax.jit
def in_one_pass(weights, prompts, tokens):
    """log p [P, N, T, V] before every token [P, N, T], all of a sequence read at once."""
    (num_prompts, num, cap), length = tokens.shape, prompts.shape[1]
    whole = jnp.concatenate([jnp.repeat(prompts[:, None], num, axis=1), tokens], axis=2)
    whole = whole.reshape(-1, length + cap)
    none = jnp.zeros(whole.shape[:1], jnp.int32)
    cache = TINY.init_cache(weights, *whole.shape)
    logits, _ = TINY.extend(weights, cache, whole, none, none + whole.shape[1])
    logits = logits[:, length - 1 : -1].reshape(num_prompts, num, cap, -1)
    return jax.nn.log_softmax(logits, axis=-1)


def test_the_cache_is_right_after_accepted_and_after_rejected_moves(tmp_path):
    """All log p after every move, as drawn, against one pass over the whole sequence."""
    _, weights = small.build(CONFIG, tmp_path)
    target, sampler = PowerTarget(1.5, (1, 3)), MetropolisHastings(3, 12, num_chains=4)
    prompts, key = [(4, 19, 0), (7, 2, 11), (5, 5, 5)], jax.random.key(1)
    sizes = {"width": 3, "bucket": 3, "capacity": HORIZON}
    scheduler = make(sampler, target, model=TINY, weights=weights, seed=1, **sizes)
    requests = requested(prompts, target, HORIZON)
    assert len(list(scheduler.run(requests))) == 3
    result = collect(sampler, requests, scheduler.seconds)
    prompt, state = scheduler.start(requests, 3)
    moved_before = kept_before = np.zeros((3, 4), bool)
    after_moved = after_kept = 0
    for entry in sampler.schedule(HORIZON):
        before, cut = jax.device_get(state.chains), int(mh.draw_cut(key, entry))
        state = scheduler.move(None, prompt, state, entry)
        now = jax.device_get(state.chains)
        log_p = np.asarray(in_one_pass(weights, jnp.asarray(prompts, jnp.int32), now.tokens))
        inside = np.arange(HORIZON) < now.length[:, :, None]
        scores = np.take_along_axis(log_p, now.tokens[..., None], axis=3)[..., 0]
        np.testing.assert_allclose(now.log_p, scores * inside, atol=1e-4)
        log_s = np.logaddexp.reduce(1.5 * log_p, axis=3)
        np.testing.assert_allclose(now.log_s, log_s * inside, atol=1e-4)
        # Chains in which this move drew from a cache that the previous one had left.
        moved = (now.tokens != before.tokens).any(axis=2) & (not entry.grow)
        after_moved += int((moved & moved_before).sum()) * (cut > 0)
        after_kept += int((moved & kept_before).sum()) * (cut > 0)
        moved_before, kept_before = moved, ~moved & (cut < before.length)
    assert after_moved >= 10 and after_kept >= 10, (after_moved, after_kept)
    np.testing.assert_array_equal(result.tokens, now.tokens)
    np.testing.assert_allclose(result.log_probs, (scores * inside).sum(axis=2), atol=1e-3)
    assert len(set(np.ravel(result.lengths))) > 1


LEAF = (7, 11)


@dataclasses.dataclass(frozen=True)
class BigCache:
    """A table with a cache leaf of a shape that nothing else in the program has."""

    vocab_size: int = 3

    def init_cache(self, params, num_rows, capacity):
        own = MODEL.init_cache(params, num_rows, capacity)
        return own, jnp.zeros((num_rows, *LEAF), jnp.float32)

    def extend(self, params, cache, tokens, position, count):
        own, big = cache
        logits, own = MODEL.extend(params, own, tokens, position, count)
        row = jnp.arange(len(tokens), dtype=jnp.int32)
        entry = jnp.where(count > 0, position % LEAF[0], LEAF[0])
        big = big.at[row, entry].set(tokens[:, :1].astype(jnp.float32), mode="drop")
        return logits + 0 * jnp.sum(big), (own, big)


def selects_on_the_cache():
    """Selects on the big leaf in the compiled move of two prompts."""
    key, sampler = jax.random.key(0), MetropolisHastings(1, 1, num_chains=5)
    scheduler = make(sampler, model=BigCache(), width=2)
    batch = scheduler.arrays(requested([PROMPT] * 2, END, CAP), 8)
    sizes = {"num_chains": 5, "num_tokens": 16, "capacity": 24}
    start = functools.partial(mh_chains.start_batch, model=BigCache(), **sizes)
    prompt, state = jax.eval_shape(start, params(), *batch)
    *_, entry = sampler.schedule(CAP)
    move = jax.jit(functools.partial(mh_chains.move_batch, model=BigCache()))
    move = move.lower(params(), key, None, prompt, state, entry)
    shape = ",".join(str(n) for n in (2, 5, *LEAF))
    lines = move.compile().as_text().splitlines()
    return sum(f"= f32[{shape}]" in line and " select(" in line for line in lines)


def test_the_only_select_on_the_cache_is_accepting_or_not():
    assert selects_on_the_cache() == 1


def test_a_loop_per_prompt_would_select_on_the_cache_at_every_step(monkeypatch):
    monkeypatch.setattr(batching, "any_in_batch", batching.this_prompt)
    assert selects_on_the_cache() > 1


# --- what it costs ---


SEEDS = 4000


@jax.jit
def _cuts(entries):
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS, dtype=jnp.uint32))
    over_seeds = jax.vmap(mh.draw_cut, in_axes=(0, None))
    return jax.vmap(over_seeds, in_axes=(None, Entry(0, 0, 0, 0)))(keys, entries)


def cuts(edit, cap):
    """[entries, seeds] cuts of B = 4 and M = 3, and the entries."""
    schedule = MetropolisHastings(4, 3, edit).schedule(cap)
    entries = jax.tree.map(lambda *x: np.stack(x), *schedule)
    return np.asarray(_cuts(entries)), entries


@pytest.mark.parametrize("edit", mh.EDITS)
def test_the_counter_is_that_of_the_lemmas(edit):
    """On a model that never ends: Lemma 2 (global) and Lemma 3 (last block)."""
    sampler, cap = MetropolisHastings(4, 3, edit, num_chains=4), 12
    lemma = cost_model.mh_tokens(cap, 4, 3, edit)
    drawn, entries = cuts(edit, cap)
    spent = (entries.horizon[:, None] - drawn).sum(axis=0)
    # One run: the cuts that were drawn, for every chain.
    for seed in (0, 1):
        result, rate = run(sampler, PowerTarget(2.0), prompts=[(0,), (2,)], cap=cap, seed=seed)
        assert result.info.model_tokens.tolist() == [4 * spent[seed]] * 2
        assert (np.asarray(result.lengths) == cap).all() and not result.finished.any()
        assert ((rate > 0) & (rate <= 1)).all()
    # Over the cuts: the lemma, exactly and in the mean.
    mean = np.where(entries.grow, entries.first, (entries.first + entries.horizon - 1) / 2)
    assert (entries.horizon - mean).sum() == pytest.approx(lemma)
    assert abs(spent.mean() - lemma) / (spent.std() / np.sqrt(SEEDS)) < 4


@pytest.mark.parametrize("edit", mh.EDITS)
def test_cuts_are_uniform_on_their_range(edit):
    drawn, entries = cuts(edit, 10)
    for row, first, horizon, grow in zip(drawn, *entries[1:], strict=True):
        assert row.min() >= first and row.max() < horizon
        counts = np.bincount(row - first, minlength=horizon - first)
        if grow:
            assert counts[0] == SEEDS
        else:
            assert scipy.stats.chisquare(counts).pvalue > 1e-4
    # No two entries share their cuts.
    moves = drawn[~entries.grow]
    assert len({tuple(row) for row in moves.tolist()}) == len(moves)


def test_tokens_after_the_end_cost_nothing():
    result, _ = run(MetropolisHastings(3, 0, num_chains=4), cap=9)
    assert np.asarray(result.lengths).min() < 9
    np.testing.assert_array_equal(result.info.model_tokens, np.asarray(result.lengths).sum(axis=1))


@pytest.mark.parametrize(
    ("sampler", "cap", "horizons"),
    [
        (MetropolisHastings(3, 2), 10, [3, 3, 3, 6, 6, 6, 10, 10, 10]),
        (MetropolisHastings(1, 1), 5, [5, 5]),
        (MetropolisHastings(4, 0), 4, [1, 2, 3, 4]),
    ],
)
def test_the_schedule_grows_block_by_block(sampler, cap, horizons):
    entries = list(sampler.schedule(cap))
    assert [int(e.horizon) for e in entries] == horizons
    assert [int(e.index) for e in entries] == list(range(len(entries)))
    period, before = sampler.moves_per_block + 1, 0
    for i, entry in enumerate(entries):
        assert bool(entry.grow) == (i % period == 0)
        assert entry.first == (before if entry.grow else 0)
        before = entry.horizon
    last = dataclasses.replace(sampler, edit="last_block")
    for i, entry in enumerate(last.schedule(cap)):
        assert entry.first == entries[i - i % period].first


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_blocks": 0}, "num_blocks is 0; it must be an integer of at least 1."),
        ({"num_blocks": 2.0}, "num_blocks is 2.0; it must be an integer of at least 1."),
        ({"num_blocks": 40_000}, "num_blocks is 40000; it must be an integer of at most 2^15."),
        ({"moves_per_block": -1}, "moves_per_block is -1; it must be an integer of at least 0."),
        ({"moves_per_block": True}, "moves_per_block is True; it must be an integer of at least"),
        ({"edit": "first"}, "edit is 'first'; allowed are global, last_block."),
        ({"num_chains": 0}, "num_chains is 0; it must be an integer of at least 1."),
        ({"num_chains": "2"}, "num_chains is '2'; it must be an integer of at least 1."),
    ],
)
def test_values_outside_their_range_are_refused(options, sentence):
    with pytest.raises(ValueError) as error:
        MetropolisHastings(**options)
    assert str(error.value).startswith(sentence)
    small.assert_one_sentence(error)


def test_more_blocks_than_tokens_are_refused():
    with pytest.raises(ValueError) as error:
        run(MetropolisHastings(4), cap=3)
    small.assert_one_sentence(error, "num_blocks is 4", "max_new_tokens, which is 3")
    MetropolisHastings(4).check(4)


def test_the_defaults_are_those_of_the_paper_and_the_edits_those_of_the_cost_model():
    assert dataclasses.astuple(MetropolisHastings()) == (16, 10, "global", 1)
    assert mh.EDITS == cost_model.EDITS and MetropolisHastings(num_chains=3).num_particles == 3


class Forwards(TableLM):
    """A table that cannot rewind, as a recurrent state cannot."""

    can_rewind = False


def test_a_model_that_cannot_rewind_is_refused_by_name():
    options = {"key": jax.random.key(0), "target": END, "max_new_tokens": CAP}
    given = Forwards(vocab_size=3, order=2), params(), [PROMPT]
    with pytest.raises(ValueError) as error:
        psmc.sample(*given, sampler=MetropolisHastings(2, 1), **options)
    small.assert_one_sentence(
        error, "MetropolisHastings, which rewinds", "can_rewind", "allowed are WithoutReplacement"
    )
    assert psmc.sample(*given, sampler=psmc.Ancestral(), **options).finished.shape == (1, 1)
