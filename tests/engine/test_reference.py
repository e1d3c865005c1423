"""The plain loop: its conditional, what a fork copies, frozen prompts, its arguments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import (
    Ancestral,
    MetropolisHastings,
    PowerSMC,
    PowerTarget,
    StopString,
    TableLM,
    WithoutReplacement,
)
from jax_power_smc.core import prng
from jax_power_smc.engine import batching, reference
from jax_power_smc.engine.reference import LoopInputs
from jax_power_smc.engine.state import PAD_ID
from jax_power_smc.smc import weights
from tests.models.small import assert_one_sentence

NUM, CAPACITY = 6, 8
TABLE = TableLM(vocab_size=4, order=3)
PARAMS = TABLE.init(jax.random.key(2), scale=1.0)
# Multinomial resampling forks even where weights are nearly equal.
SAMPLER = PowerSMC(NUM, ess_threshold=1.0, resampling="multinomial")
# A cache leaf of a shape that nothing else in the program has.
LEAF = (7, 11)
PROMPTS = [[0, 1], [2, 2]]


@dataclasses.dataclass(frozen=True)
class BigCache:
    """The table with a larger cache beside its own, written at the position."""

    vocab_size: int = 4

    def init_cache(self, params, num_rows, capacity):
        own = TABLE.init_cache(params, num_rows, capacity)
        return own, jnp.zeros((num_rows, *LEAF), jnp.float32)

    def extend(self, params, cache, tokens, position, count):
        own, big = cache
        logits, own = TABLE.extend(params, own, tokens, position, count)
        block = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        entry = jnp.where(block < count[:, None], (position[:, None] + block) % LEAF[0], LEAF[0])
        row = jnp.arange(len(tokens), dtype=jnp.int32)[:, None]
        big = big.at[row, entry].set(tokens[:, :, None].astype(jnp.float32), mode="drop")
        return logits + 0 * jnp.sum(big), (own, big)


MODEL = BigCache()


def targets(caps, eos_ids=(1,), alpha=1.5):
    """Inputs of len(caps) prompts, and the axes over which they are mapped."""
    arrays = PowerTarget(alpha, eos_ids).arrays(4, CAPACITY)
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (len(caps), *x.shape)), arrays)
    return LoopInputs(SAMPLER.traced(), stacked._replace(cap=jnp.asarray(caps, jnp.int32)))


IN_AXES = LoopInputs(None, 0, None)


def begin(caps, *, eos_ids=(1,)):
    """The inputs, keys and first states of len(caps) prompts."""
    count = len(caps)
    inputs = targets(caps, eos_ids)
    prompts = jnp.asarray(PROMPTS[:count], jnp.int32)
    start = functools.partial(reference.begin, MODEL, PARAMS, capacity=CAPACITY)
    lengths = jnp.full((count,), 2, jnp.int32)
    state = jax.vmap(start, in_axes=(IN_AXES, 0, 0))(inputs, prompts, lengths)
    return inputs, prng.prompt_keys(jax.random.key(0), range(count)), state


def one_step(any_prompt, *, alone=False):
    """A function of (inputs, keys, state, t) that takes step t of the batch."""

    def one(inputs, key, state, t):
        uniforms = prng.step_uniforms(key, t, NUM)
        return reference.decode_step(MODEL, PARAMS, inputs, state, uniforms, t, any_prompt)

    if alone:
        return one
    return jax.vmap(one, in_axes=(IN_AXES, 0, 0, None), axis_name="prompts")


jitted_step = jax.jit(one_step(batching.any_in_batch))


def program(any_prompt, count):
    """The compiled text of one step of ``count`` prompts (1: not vmapped)."""
    inputs, keys, state = begin([CAPACITY] * count)
    alone = count == 1  # as in the loop: a batch of one bypasses vmap
    if alone:
        keys, state = jax.tree.map(lambda x: x[0], (keys, state))
        inputs = inputs._replace(target=jax.tree.map(lambda x: x[0], inputs.target))
    step = jax.jit(one_step(any_prompt, alone=alone), donate_argnums=(2,))
    return step.lower(inputs, keys, state, jnp.int32(0)).compile().as_text()


def selects_on_cache(text, count):
    """Lines that select on the whole cache leaf outside the branches of a conditional."""
    shape = ",".join(str(n) for n in ((count, NUM, *LEAF) if count > 1 else (NUM, *LEAF)))
    return [
        line
        for line in text.splitlines()
        if f"= f32[{shape}]" in line and " select(" in line and "/branch_" not in line
    ]


@pytest.mark.parametrize(
    ("count", "any_prompt"), [(1, batching.this_prompt), (2, batching.any_in_batch)]
)
def test_the_cache_moves_inside_a_conditional(count, any_prompt):
    text = program(any_prompt, count)
    assert text.count(" conditional(") == 1
    assert not selects_on_cache(text, count)


def test_a_predicate_per_prompt_would_select_on_the_cache():
    text = program(batching.this_prompt, 2)
    assert " conditional(" not in text and selects_on_cache(text, 2)


@pytest.mark.parametrize("count", [1, 2])
def test_the_conditional_remains_in_the_loop(count):
    inputs = LoopInputs(SAMPLER.traced(), PowerTarget(1.5, (1,)).arrays(4, CAPACITY))
    lengths = jnp.full((count,), 2, jnp.int32)
    prompts, keys = jnp.asarray(PROMPTS[:count]), prng.prompt_keys(jax.random.key(0), range(count))
    sizes = {"model": MODEL, "capacity": CAPACITY, "mesh": None}
    lowered = reference._run_batch.lower(PARAMS, inputs, prompts, lengths, keys, **sizes)
    text = lowered.compile().as_text()
    assert text.count(" conditional(") == 1
    assert " while(" in text and not selects_on_cache(text, count)


def run_steps(caps, steps, **options):
    """The states after the start and after each step, and the infos of the steps."""
    inputs, keys, state = begin(caps, **options)
    states, infos = [state], []
    for t in range(steps):
        state, info = jitted_step(inputs, keys, state, jnp.int32(t))
        states.append(state)
        infos.append(info)
    return states, infos


@functools.cache
def forked_run():
    return run_steps([CAPACITY] * 2, CAPACITY, eos_ids=())


def test_the_cache_follows_the_ancestors():
    states, infos = forked_run()
    assert sum((np.asarray(info.parent) != np.arange(NUM)).sum() for info in infos) > 5
    for t, state in enumerate(states):
        prompts = np.repeat(np.asarray(PROMPTS)[:, None], NUM, axis=1)
        whole = np.concatenate([prompts, np.asarray(state.tokens)[:, :, :t]], axis=2)
        np.testing.assert_array_equal(state.last, whole[:, :, -1])
        assert (np.asarray(state.position) == 1 + t).all()
        # The cache holds all but the last token of the same particle.
        own, big = (np.asarray(leaf) for leaf in state.cache)
        np.testing.assert_array_equal(own[:, :, : 1 + t], whole[:, :, :-1])
        first = max(0, 1 + t - LEAF[0])  # what was not overwritten
        for position in range(first, 1 + t):
            entry = big[:, :, position % LEAF[0], 0]
            np.testing.assert_array_equal(entry, whole[:, :, position])


def test_tokens_agree_with_the_recorded_genealogy():
    states, infos = forked_run()
    final, log_probs = np.asarray(states[-1].tokens), np.asarray(states[-1].token_log_probs)
    slots = np.broadcast_to(np.arange(NUM), (2, NUM))
    for t in range(CAPACITY - 1, -1, -1):
        drawn, column = np.asarray(states[t + 1].last), states[t + 1].token_log_probs[:, :, t]
        np.testing.assert_array_equal(infos[t].token, drawn)
        np.testing.assert_array_equal(np.take_along_axis(drawn, slots, axis=1), final[:, :, t])
        column = np.take_along_axis(np.asarray(column), slots, axis=1)
        np.testing.assert_array_equal(column, log_probs[:, :, t])
        slots = np.take_along_axis(np.asarray(infos[t].parent), slots, axis=1)


def test_log_p_is_that_of_the_tokens():
    states, _ = forked_run()
    table = np.asarray(jax.nn.log_softmax(PARAMS.logits[0], axis=-1))
    for i, prompt in enumerate(PROMPTS):
        for n in range(NUM):
            path = [4, *prompt, *np.asarray(states[-1].tokens)[i, n].tolist()]
            rows = [25 * a + 5 * b + c for a, b, c in zip(path, path[1:], path[2:], strict=False)]
            expected = [table[r, v] for r, v in zip(rows, path[3:], strict=False)]
            got = np.asarray(states[-1].token_log_probs[i, n])
            np.testing.assert_allclose(got, expected, atol=1e-5)
            total = float(states[-1].particles.log_prob[i, n])
            assert total == pytest.approx(sum(expected), abs=1e-4)


def test_a_finished_prompt_is_frozen():
    states, infos = run_steps([3, CAPACITY], 7, eos_ids=())
    still, later = states[3], states[7]
    for before, after in zip(
        jax.tree.leaves((still.particles, still.tokens, still.cache)),
        jax.tree.leaves((later.particles, later.tokens, later.cache)),
        strict=True,
    ):
        np.testing.assert_array_equal(before[0], after[0])
    assert np.all(np.asarray(later.tokens)[0, :, 3:] == PAD_ID)
    assert int(later.particles.length[1].max()) == 7
    assert all(info.parent[0].tolist() == list(range(NUM)) for info in infos[3:])
    assert all(float(info.ess[0]) == NUM for info in infos[3:])
    assert [bool(info.live[0].any()) for info in infos] == [True, True] + [False] * 5


def test_the_cap_of_a_neighbor_changes_nothing():
    one, _ = run_steps([5, 2], 8)
    two, _ = run_steps([5, CAPACITY], 8)
    assert int(two[-1].particles.length[1].max()) > 2
    for left, right in zip(
        jax.tree.leaves((one[-1].particles, one[-1].tokens)),
        jax.tree.leaves((two[-1].particles, two[-1].tokens)),
        strict=True,
    ):
        np.testing.assert_array_equal(left[0], right[0])


@dataclasses.dataclass(frozen=True)
class Counting:
    """A model that fails to return numbers after a token was read twice, or one was left out."""

    vocab_size: int = 4

    def init_cache(self, params, num_rows, capacity):
        return TABLE.init_cache(params, num_rows, capacity), jnp.zeros((num_rows,), jnp.int32)

    def extend(self, params, cache, tokens, position, count):
        own, read = cache
        logits, own = TABLE.extend(params, own, tokens, position, count)
        wrong = (read != position) & (count > 0)
        logits = jnp.where(wrong[:, None, None], jnp.nan, logits)
        # Beyond the count they may be anything.
        block = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :, None]
        logits = jnp.where(block < count[:, None, None], logits, jnp.nan)
        return logits, (own, read + count)


SAMPLERS = [
    PowerSMC(NUM, order="published", ess_threshold=1.0, ramp_tokens=3),
    WithoutReplacement(NUM, 2, mass_floor=0.02),
    Ancestral(0.7, NUM),
]
END = PowerTarget(2.5, (1,))


def sample(sampler, model=TABLE, prompts=([0, 1], [3], [2, 2, 0]), target=END, **options):
    given = {"key": jax.random.key(5), "max_new_tokens": CAPACITY, **options}
    return psmc.plain.sample(model, PARAMS, prompts, target=target, sampler=sampler, **given)


def assert_same(one, two, rows=slice(None)):
    """Bit for bit, prompts ``rows`` of one against all of the other."""
    for name in ("tokens", "lengths", "finished", "log_probs", "log_weights", "choice"):
        left, right = np.asarray(getattr(one, name)), np.asarray(getattr(two, name))
        np.testing.assert_array_equal(left[rows], right, err_msg=name)
    for name in ("ess", "resampled", "forks", "parent", "num_rows", "copies", "drawn_tokens"):
        left, right = getattr(one.info, name), getattr(two.info, name)
        np.testing.assert_array_equal(left[rows], right, err_msg=name)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_every_token_is_read_once_and_logits_of_others_do_not_matter(sampler):
    result = sample(sampler, Counting())
    assert not result.info.bad_logits.any()
    assert_same(result, sample(sampler))


@pytest.mark.parametrize("sampler", SAMPLERS[:2], ids=str)
def test_company_and_mesh_change_nothing(sampler):
    result = sample(sampler)
    assert_same(result, sample(sampler, prompts=[[3]], prompt_ids=[1]), rows=[1])
    mesh = psmc.make_mesh(1, jax.devices()[:2])
    assert_same(result, sample(sampler, mesh=mesh))
    other = sample(sampler, prompt_ids=[4, 5, 6])
    assert not np.array_equal(other.tokens, result.tokens)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_what_is_reported_follows_from_the_particles(sampler):
    result = sample(sampler)
    info, lengths = result.info, np.asarray(result.lengths)
    inside = np.arange(CAPACITY) < lengths[:, :, None]
    log_probs = np.asarray(result.token_log_probs)
    assert (log_probs[inside] < 0).all() and not log_probs[~inside].any()
    np.testing.assert_allclose(log_probs.sum(axis=2), result.log_probs, atol=1e-5)
    assert result.failures() == [None] * 3
    # Every prefix that runs on is read once, and so was the prompt's last token.
    np.testing.assert_array_equal(info.model_tokens, 1 + info.num_rows.sum(axis=1))
    assert (info.num_rows <= NUM).all() and (info.num_rows[:, 0] <= 3).all()
    assert not info.num_rows[:, -1].any() and not info.preempted.any()
    assert (info.drawn_tokens >= info.model_tokens).all()
    # A row for each prefix: all copies but those of rows that were given back.
    lost = np.maximum(-np.diff(info.num_rows, axis=1, prepend=1), 0).sum(axis=1)
    gained = np.maximum(np.diff(info.num_rows, axis=1, prepend=1), 0).sum(axis=1)
    assert (info.copies >= gained).all() and (lost > 0).all()


def test_distinct_prefixes_by_hand():
    """Four particles: two leave the root with one token each, one of them forks, then it dies."""
    live = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    parent = [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    token = [[5, 5, 7, 7], [1, 2, 1, 1], [1, 3, 3, 4], [0, 0, 0, 0]]
    num_rows, copies = reference._distinct_prefixes(
        reference.StepInfo(
            ess=None,
            resampled=None,
            parent=np.array([parent], np.int32),
            token=np.array([token], np.int32),
            live=np.array([live], bool),
            bad_logits=None,
        )
    )
    assert num_rows.tolist() == [[2, 3, 2, 0]]
    # 7 beside 5; then 5-2 beside 5-1, while 7-1 keeps its row; then each has its parent's row.
    assert copies.tolist() == [[1, 1, 0, 0]]


def test_a_stop_rule_ends_sequences():
    rule = StopString("ab")
    result = sample(
        PowerSMC(NUM), target=PowerTarget(1.5, (1,), stop=rule), tokenizer=[b"a", None, b"b", b"c"]
    )
    texts = ["".join("a$bc"[v] for v in y) for rows in result.sequences() for y in rows]
    assert any(text.endswith("ab") for text in texts)
    for text, done in zip(texts, np.ravel(result.finished), strict=True):
        assert "ab" not in text[:-1] and done == text.endswith(("ab", "$"))


def test_float64_where_the_logits_are(x64):
    params = PARAMS._replace(logits=jnp.asarray(PARAMS.logits, jnp.float64))
    given = {"target": END, "sampler": PowerSMC(NUM), "max_new_tokens": CAPACITY}
    result = psmc.plain.sample(TABLE, params, PROMPTS, key=jax.random.key(0), **given)
    assert result.log_weights.dtype == result.token_log_probs.dtype == jnp.float64


@pytest.mark.parametrize(
    ("logits", "expected"),
    [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32), (jnp.float64, jnp.float64)],
)
def test_weights_are_at_least_float32(x64, logits, expected):
    assert weights.weight_dtype(jnp.zeros(2, logits)) == expected


def test_chains_are_refused_by_name():
    with pytest.raises(ValueError) as error:
        sample(MetropolisHastings(num_blocks=2))
    assert_one_sentence(error, "sampler is MetropolisHastings", "PowerSMC")


def test_a_mesh_that_splits_the_model_is_refused():
    with pytest.raises(ValueError) as error:
        sample(PowerSMC(2), mesh=psmc.make_mesh(2, jax.devices()[:2]))
    assert_one_sentence(error, "mesh is ", "'model'")


def test_arguments_are_checked_as_for_sample():
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        sample(PowerSMC(2), max_new_tokens=0)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        sample(PowerSMC(2), prompts=[[]])
