"""The decode step: its conditional, the cache and tokens behind a fork, frozen prompts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_power_smc.engine.decode import PromptInputs, SharedInputs

from jax_power_smc import PowerSMC, PowerTarget, TableLM
from jax_power_smc.core import prng
from jax_power_smc.engine import decode, programs
from jax_power_smc.engine.layout import ONE_DEVICE
from jax_power_smc.models.cache_moves import copy_dead_rows, move_cache, take_ancestors
from jax_power_smc.smc import weights

NUM, CAPACITY = 6, 8
TABLE = TableLM(vocab_size=4, order=3)
PARAMS = TABLE.init(jax.random.key(2), scale=1.0)
# Multinomial resampling forks even where weights are nearly equal.
SAMPLER = PowerSMC(NUM, ess_threshold=1.0, resampling="multinomial")
SHARED = SharedInputs(SAMPLER.traced())
# A cache leaf of a shape that nothing else in the program has.
LEAF = (7, 11)


@dataclasses.dataclass(frozen=True)
class BigCache:
    """The table with a larger cache beside its own, written at the clock."""

    vocab_size: int = 4

    def prefill(self, params, prompt, length):
        return TABLE.prefill(params, prompt, length)

    def init_cache(self, params, num_particles, capacity):
        own = TABLE.init_cache(params, num_particles, capacity)
        return own, jnp.zeros((num_particles, *LEAF), jnp.float32)

    def decode(self, params, context, cache, token, step, clock):
        own, big = cache
        logits, own = TABLE.decode(params, context, own, token, step, clock)
        row = jnp.broadcast_to(
            token.astype(jnp.float32)[:, None, None], (token.shape[0], 1, LEAF[1])
        )
        big = jax.lax.dynamic_update_slice_in_dim(big, row, clock % LEAF[0], axis=1)
        return logits + 0 * jnp.sum(big), (own, big)


@dataclasses.dataclass(frozen=True)
class MovesItself(BigCache):
    """The same with a move of its own, which leaves a trace in a spare column."""

    def move(self, cache, source, destination, step, clock):
        assert step.shape == clock.shape == ()
        own, big = take_ancestors(cache, jnp.zeros_like(source).at[destination].set(source))
        return own, big.at[:, LEAF[0] - 1, 0].add(100.0)


def targets(caps, eos_ids=(1,), alpha=1.5):
    """Target arrays of len(caps) prompts."""
    arrays = PowerTarget(alpha, eos_ids).arrays(4, CAPACITY)
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (len(caps), *x.shape)), arrays)
    return stacked._replace(cap=jnp.asarray(caps, jnp.int32))


def begin(model, caps, *, eos_ids=(1,)):
    """Prefill and step 0 through the engine's own function."""
    count = len(caps)
    prompts = jnp.asarray([[(2 * i) % 4, (i + 1) % 4] for i in range(count)], jnp.int32)
    keys = prng.prompt_keys(jax.random.key(0), range(count))
    lengths = jnp.full((count,), 2, jnp.int32)
    inputs = PromptInputs(None, targets(caps, eos_ids), keys)
    prompts, state, infos = programs.prefill(
        PARAMS, SHARED, inputs, prompts, lengths, model=model, capacity=CAPACITY
    )
    cache = programs.empty_cache(model, PARAMS, count, NUM, CAPACITY)
    return prompts, state._replace(cache=cache), infos


def one_step(model, any_prompt, *, alone=False):
    """A function of (prompts, state, clock) that takes one step of the batch."""

    def one(prompts, state, clock):
        uniforms = prng.step_uniforms(prompts.key, state.step, NUM)
        return decode.decode_step(
            model, PARAMS, SHARED, prompts, state, uniforms, clock, any_prompt
        )

    if alone:
        return one
    return jax.vmap(one, in_axes=(0, 0, None), axis_name="prompts")


@functools.cache
def jitted_step(model):
    return jax.jit(one_step(model, decode.any_in_batch))


def program(any_prompt, count):
    """The compiled text of one step of ``count`` prompts (1: not vmapped)."""
    model = BigCache()
    prompts, state, _ = begin(model, [CAPACITY] * count)
    alone = count == 1  # as the engine does it: a batch of one bypasses vmap
    if alone:
        prompts, state = jax.tree.map(lambda x: x[0], (prompts, state))
    step = one_step(model, any_prompt, alone=alone)
    return (
        jax.jit(step, donate_argnums=(1,)).lower(prompts, state, jnp.int32(0)).compile().as_text()
    )


def selects_on_cache(text, count):
    """Lines that select on the whole cache leaf outside the branches of a conditional."""
    shape = ",".join(str(n) for n in ((count, NUM, *LEAF) if count > 1 else (NUM, *LEAF)))
    return [
        line
        for line in text.splitlines()
        if f"= f32[{shape}]" in line and " select(" in line and "/branch_" not in line
    ]


@pytest.mark.parametrize(
    ("count", "any_prompt"), [(1, decode.this_prompt), (2, decode.any_in_batch)]
)
def test_the_cache_moves_inside_a_conditional(count, any_prompt):
    text = program(any_prompt, count)
    assert text.count(" conditional(") == 1
    assert not selects_on_cache(text, count)


def test_a_predicate_per_prompt_would_select_on_the_cache():
    text = program(decode.this_prompt, 2)
    assert " conditional(" not in text and selects_on_cache(text, 2)


@pytest.mark.parametrize("count", [1, 2])
def test_the_engine_keeps_the_conditional_in_its_loop(count):
    model = BigCache()
    prompts, state, _ = begin(model, [CAPACITY] * count)
    args = PARAMS, SHARED, prompts, state, jnp.arange(1, 5, dtype=jnp.int32)
    specs = programs.SPECS[programs.decode_chunk](ONE_DEVICE, args)
    lowered = ONE_DEVICE.lower(programs.decode_chunk, {"model": model}, args, specs)
    text = lowered.compile().as_text()
    # One around the whole chunk (is any prompt running?), one around the cache move.
    assert text.count(" conditional(") == 2
    assert " while(" in text and not selects_on_cache(text, count)


def run_steps(model, caps, steps, **options):
    """The prompts; their states and infos after each step."""
    prompts, state, info = begin(model, caps, **options)
    states, infos = [state], [info]
    step = jitted_step(model)
    for t in range(1, steps):
        state, info = step(prompts, state, jnp.int32(t - 1))
        states.append(state)
        infos.append(info)
    return prompts, states, infos


@functools.cache
def forked_run():
    return run_steps(BigCache(), [CAPACITY] * 2, CAPACITY, eos_ids=())


def test_the_cache_follows_the_ancestors():
    _, states, infos = forked_run()
    assert sum(int(info.forks.sum()) for info in infos) > 5
    for t, state in enumerate(states[1:], start=1):
        tokens = np.asarray(state.tokens)
        own, big = (np.asarray(leaf) for leaf in state.cache)
        # Before step t the cache has read tokens 0 .. t-1 of the same particle.
        np.testing.assert_array_equal(own[:, :, :t], tokens[:, :, :t])
        np.testing.assert_array_equal(big[:, :, :t, 0], tokens[:, :, :t][:, :, : LEAF[0]])


@pytest.mark.parametrize("count", [1, 3])
def test_copying_dead_rows_is_taking_ancestors(count):
    rng = np.random.default_rng(0)
    cache = {"a": rng.normal(size=(count, 7, 3, 2)), "b": rng.integers(0, 99, (count, 7))}
    cache = jax.tree.map(jnp.asarray, cache)
    # Particles 1, 3 and 4 have died; none moves; one takes over all.
    kinds = [[0, 0, 2, 6, 2, 5, 6], list(range(7)), [4] * 7]
    for first in range(3):
        ancestors = jnp.asarray([kinds[(first + i) % 3] for i in range(count)], jnp.int32)
        got = jax.jit(jax.vmap(copy_dead_rows))(cache, ancestors)
        expected = jax.vmap(take_ancestors)(cache, ancestors)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        alone = jax.jit(copy_dead_rows)(jax.tree.map(lambda x: x[0], cache), ancestors[0])
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[0]), alone, expected)


def test_tokens_agree_with_the_recorded_genealogy():
    _, states, infos = forked_run()
    final = np.asarray(states[-1].tokens)
    slots = np.broadcast_to(np.arange(NUM), (2, NUM))
    for t in range(CAPACITY - 1, -1, -1):
        drawn = np.asarray(states[t].token)
        np.testing.assert_array_equal(np.take_along_axis(drawn, slots, axis=1), final[:, :, t])
        parent = np.asarray(infos[t].parent)
        slots = np.take_along_axis(parent, slots, axis=1)


def test_log_p_is_that_of_the_tokens():
    _, states, _ = forked_run()
    table = np.asarray(jax.nn.log_softmax(PARAMS.logits[0], axis=-1))
    for i, prompt in enumerate([[0, 1], [2, 2]]):
        for n in range(NUM):
            path = [4, *prompt, *np.asarray(states[-1].tokens)[i, n].tolist()]
            rows = [25 * a + 5 * b + c for a, b, c in zip(path, path[1:], path[2:], strict=False)]
            expected = sum(table[r, v] for r, v in zip(rows, path[3:], strict=False))
            got = float(states[-1].particles.log_prob[i, n])
            assert got == pytest.approx(expected, abs=1e-4)


def test_a_finished_prompt_is_frozen():
    _, states, infos = run_steps(BigCache(), [3, CAPACITY], 7, eos_ids=())
    still, later = states[2], states[6]
    for before, after in zip(
        jax.tree.leaves(still.particles), jax.tree.leaves(later.particles), strict=True
    ):
        np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(still.tokens[0], later.tokens[0])
    assert np.all(np.asarray(later.tokens)[0, :, 3:] == decode.PAD_ID)
    assert int(later.particles.length[1].max()) == 7
    assert all(int(info.forks[0]) == 0 for info in infos[3:])
    assert all(float(info.ess[0]) == NUM for info in infos[3:])


def test_the_cap_of_a_neighbour_changes_nothing():
    _, one, _ = run_steps(BigCache(), [5, 2], 8)
    _, two, _ = run_steps(BigCache(), [5, CAPACITY], 8)
    assert int(two[-1].particles.length[1].max()) > 2
    for left, right in zip(
        jax.tree.leaves((one[-1].particles, one[-1].tokens)),
        jax.tree.leaves((two[-1].particles, two[-1].tokens)),
        strict=True,
    ):
        np.testing.assert_array_equal(left[0], right[0])


def test_a_model_moves_its_own_cache():
    _, states, infos = run_steps(MovesItself(), [CAPACITY] * 2, 5, eos_ids=())
    moves = sum(bool((info.forks > 0).any()) for info in infos)
    assert moves > 0
    spare = np.asarray(states[-1].cache[1])[:, :, LEAF[0] - 1, 0]
    # Step 0 starts from equal weights and an empty cache; a later fork in any prompt moves all.
    np.testing.assert_allclose(spare, 100.0 * moves)
    _, default, _ = forked_run()
    np.testing.assert_array_equal(states[4].tokens, default[4].tokens)


def test_default_move_takes_the_cache_rows_of_the_ancestors():
    cache = (jnp.arange(3, dtype=jnp.int32), jnp.arange(6, dtype=jnp.int32).reshape(3, 2))
    zero = jnp.int32(0)
    moved = move_cache(TABLE, cache, jnp.array([2, 1, 2], jnp.int32), zero, zero)
    assert moved[0].tolist() == [2, 1, 2] and moved[1].tolist() == [[4, 5], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("logits", "expected"),
    [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32), (jnp.float64, jnp.float64)],
)
def test_weights_are_at_least_float32(x64, logits, expected):
    assert weights.weight_dtype(jnp.zeros(2, logits)) == expected
