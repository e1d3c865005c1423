"""The engine by rows against the plain loop, in float64: the same decisions, whatever the rows.

Mutations of the step show that the comparison notices what could go wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import Ancestral, PowerSMC, PowerTarget, WithoutReplacement
from jax_power_smc.engine import device_rows, programs, rows, step
from jax_power_smc.engine.device_rows import DeviceRows
from jax_power_smc.engine.program_specs import SPECS
from tests.engine.runs import (
    CAP,
    MODEL,
    PARAMS,
    PROMPTS,
    assert_same,
    make,
    plain,
    plain_of,
    run,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAIN = PowerTarget(1.5, (5,))
SMC = PowerSMC(6, 0.9)
FEW, AMPLE = 7, 18
# Each sampler with static settings of its own is another set of programs, so that targets and the
# settings that are numbers are spread over them: sampler, target, rows.
CASES = {
    "systematic": (SMC, PLAIN, FEW),
    "systematic, ample rows": (SMC, PLAIN, AMPLE),
    "one particle": (PowerSMC(1), PLAIN, 2),
    "stratified": (PowerSMC(6, 1.0, "stratified"), PowerTarget(2.0, (5, 2), top_k=3), FEW),
    "residual": (
        PowerSMC(6, 0.9, "residual", check_every=2),
        PowerTarget(3.0, (5,), length="forced_eos", min_new_tokens=3),
        FEW,
    ),
    "multinomial": (
        PowerSMC(6, 1.0, "multinomial", ramp_tokens=4),
        PowerTarget(2.0, (5,), top_p=0.8, stop=psmc.StopString("ca")),
        FEW,
    ),
    "published": (PowerSMC(6, 0.9, order="published", ramp_tokens=3), PLAIN, FEW),
    "published, proposal": (
        PowerSMC(6, 0.9, "residual", order="published", proposal_temperature=0.5, check_every=2),
        PowerTarget(2.0, (), stop=psmc.StopRegex("[ab]c")),
        FEW,
    ),
    "swor": (WithoutReplacement(5, early_stop=0.0), PLAIN, FEW),
    "swor, tails": (
        WithoutReplacement(5, explicit_children=2, ramp_tokens=3),
        PowerTarget(2.0, (5,), length="forced_eos", top_k=4),
        FEW,
    ),
    "ancestral": (
        Ancestral(0.8, 6),
        PowerTarget(1.0, (5,), min_new_tokens=2, stop=psmc.StopString("aa")),
        FEW,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_engine_decides_as_the_plain_loop(integrity, case):
    sampler, target, num_rows = CASES[case]
    engine = make(sampler, rows=num_rows)
    assert_same(run(engine, target), plain(sampler, target))
    assert len(integrity) > 3
    assert (engine.stats.stalls > 0) == (num_rows == FEW)


# The same programs with other numbers.
NUMBERS = {
    "systematic": [
        (PowerSMC(6, 0.0), PowerTarget(1.0, (5,))),
        (PowerSMC(6, 1.0, ramp_tokens=5, check_every=3), PowerTarget(4.0, (5,))),
        (SMC, PowerTarget(2.0, (0,))),
    ],
    "swor": [
        (WithoutReplacement(5, mass_floor=0.02), PLAIN),
        (WithoutReplacement(5, mass_floor=0.2, early_stop=0.0, ramp_tokens=4), PLAIN),
        (WithoutReplacement(5, early_stop=0.05), PowerTarget(2.0, (5,))),
    ],
    "ancestral": [
        (Ancestral(0.0, 6), CASES["ancestral"][1]),
        (Ancestral(2.0, 6), CASES["ancestral"][1]),
        (Ancestral(1.0, 6), PowerTarget(1.0, (5, 1), min_new_tokens=4, stop=psmc.StopString("ab"))),
    ],
}


@pytest.mark.parametrize(("case", "number"), [(case, i) for case in NUMBERS for i in range(3)])
def test_other_numbers(integrity, case, number):
    sampler, target = NUMBERS[case][number]
    assert_same(run(make(sampler, rows=FEW), target), plain(sampler, target))


def test_something_happens_in_these_cases():
    result = plain(SMC, PLAIN)
    assert result.info.forks.sum() > 10 and result.info.resampled.sum() > 5
    assert len(set(np.asarray(result.lengths).ravel().tolist())) > 4
    cut = plain(*CASES["swor, tails"][:2])
    assert (cut.info.num_rows.max(axis=1) > 2).all()


@pytest.mark.parametrize("order", [[4, 2, 0, 1, 3], [1, 3, 2, 0, 4]])
def test_neither_order_of_arrival_nor_company_matters(integrity, order):
    assert_same(run(make(SMC, rows=FEW), PLAIN, order=order), plain(SMC, PLAIN))


def test_few_rows_make_prompts_stall_and_give_them_all_back():
    engine = make(SMC, rows=FEW)
    results = run(engine, PLAIN)
    stats = engine.stats
    assert stats.stalls > 5 and stats.preemptions == stats.resumed > 0
    assert stats.recomputed > stats.resumed
    assert sum(int(one.info.preempted[0]) for one in results) == stats.preemptions
    assert stats.rows_used <= stats.rows_there == FEW
    assert stats.table_steps == FEW * stats.steps >= stats.row_steps > stats.steps
    # A resumed prompt gets rows without copies; what a chunk that is lost copied counts as well.
    assert stats.copied_rows == sum(int(one.info.copies[0]) for one in results)
    assert stats.by_device == (stats.row_steps,)
    assert stats.fullest_device == stats.mean_device == stats.row_steps / stats.steps


def test_the_length_of_chunks_does_not_matter(integrity):
    assert_same(run(make(SMC, rows=FEW, chunk=1), PLAIN), plain(SMC, PLAIN))


# --- What nobody may read ---


@pytest.fixture
def garbage(monkeypatch):
    """Before every chunk, whatever is not in use gets other values: free rows, stale entries."""
    original, chance = DeviceRows.decode_chunk, np.random.default_rng(0)

    def other(x, where):
        x = np.asarray(x)
        noise = chance.integers(0, 4, x.shape).astype(x.dtype)
        return jnp.asarray(np.where(where.reshape(-1, *(1,) * (x.ndim - 1)), noise, x))

    def soiled(self, row_limit):
        prompts, table = self._state
        free = np.asarray(table.owner) >= self.allocator.slots_per_shard
        cache = jax.tree.map(lambda x: other(x, free), table.cache)
        if isinstance(self.model, type(MODEL)):
            stalled = np.append(np.asarray(prompts.stalled), False)[np.asarray(table.owner)]
            known = np.asarray(table.position) + stalled
            entry = np.arange(self.capacity)
            stale = chance.integers(0, 4, cache.shape).astype(np.int32)
            cache = jnp.asarray(np.where(entry >= known[:, None], stale, np.asarray(cache)))
        table = table._replace(
            cache=cache,
            token=other(table.token, free),
            position=other(table.position, free),
            stop_state=other(table.stop_state, free),
        )
        # What a prompt that does not stall has as its draw means nothing.
        idle = ~np.asarray(prompts.stalled)
        draw = jax.tree.map(lambda x: other(x, idle), prompts.draw)
        self._state = self._state._replace(prompts=prompts._replace(draw=draw), rows=table)
        return original(self, row_limit)

    monkeypatch.setattr(DeviceRows, "decode_chunk", soiled)


@pytest.mark.parametrize("num_rows", [FEW, AMPLE])
def test_garbage_in_what_is_not_in_use_changes_nothing(garbage, integrity, num_rows):
    assert_same(run(make(SMC, rows=num_rows), PLAIN), plain(SMC, PLAIN))


# --- A transformer ---

CONFIG = psmc.TransformerConfig(
    vocab_size=6,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_size=8,
)


def test_a_transformer_whose_prompts_stall_and_resume(garbage, integrity):
    with jax.enable_x64(True):
        model = psmc.TransformerLM(CONFIG, jnp.float64)
        params = model.init(jax.random.key(2))
        # Sharper than at random, so that particles share prefixes for a while.
        params = jax.tree.map(lambda x: 2.0 * x, params)
        engine = make(SMC, rows=FEW, model=model, params=params)
    target = PowerTarget(1.5)
    found = run(engine, target)
    assert_same(found, plain_of(model, params, SMC, target))
    assert engine.stats.preemptions > 0
    copied = sum(int(one.info.copies[0]) for one in found)
    assert copied > 10 and sum(int(one.info.forks.sum()) for one in found) > 3


# --- Mutations ---


def second_child_in_the_parents_row(state, args, go):
    del args
    return go(state)


def stale_row_of(state, args, go):
    """Particles whose prompt copied rows keep pointing where they pointed before."""
    after, record = go(state)
    copied = (record.copies > 0)[:, None] & (after.prompts.row_of < after.rows.owner.shape[0])
    row_of = jnp.where(copied, state.prompts.row_of, after.prompts.row_of)
    return after._replace(prompts=after.prompts._replace(row_of=row_of)), record


def draw_again(state, args, go):
    """A prompt that did not get its rows forgets its draw, and takes the step again."""
    # The field is of no meaning while nothing is pending: here it marks the second attempt.
    again = state.prompts.draw.ess < 0
    after, record = go(state, again)
    failed = after.prompts.stalled & ~state.prompts.stalled

    def kept(old, new):
        return jnp.where(failed.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

    particles = jax.tree.map(kept, state.prompts.particles, after.prompts.particles)
    draw = after.prompts.draw._replace(ess=jnp.where(failed, -1.0, 0.0))
    prompts = after.prompts._replace(
        particles=particles, draw=draw, stalled=after.prompts.stalled & ~failed
    )
    return after._replace(prompts=prompts), record


def resample_again(state, args, go):
    """A prompt that waits resamples once more: every second particle takes the one before it."""
    size = state.prompts.draw.token.shape[1]
    taken = jnp.arange(size, dtype=jnp.int32) // 2 * 2

    def move(x):
        if x.ndim < 2:
            return x
        return jnp.where(state.prompts.stalled[:, None], x[:, taken], x)

    prompts = state.prompts._replace(
        particles=jax.tree.map(move, state.prompts.particles),
        draw=jax.tree.map(move, state.prompts.draw),
    )
    return go(state._replace(prompts=prompts))


MUTATIONS = [second_child_in_the_parents_row, stale_row_of, draw_again, resample_again]


@pytest.fixture
def mutate(monkeypatch):
    """Puts a mutated step into a chunk program of its own."""
    original, chunk, prefixes = step.decode_step, programs.decode_chunk, rows.distinct_prefixes

    def mutated(*args, **static):
        return chunk(*args, **static)

    def apply(mutation):
        def decode_step(model, params, shared, inputs, state, uniforms, row_limit):
            def go(state, again=None):
                changed = uniforms
                if again is not None:
                    changed = jax.tree.map(
                        lambda u: jnp.where(
                            again.reshape(-1, *(1,) * (u.ndim - 1)), (u + 0.5) % 1.0, u
                        ),
                        uniforms,
                    )
                return original(model, params, shared, inputs, state, changed, row_limit)

            return mutation(state, None, go)

        monkeypatch.setattr(programs, "decode_step", decode_step)
        if mutation is second_child_in_the_parents_row:

            def share(*args):
                found = prefixes(*args)
                nobody = jnp.zeros_like(found.copies)
                return found._replace(keeps=found.keeps | found.copies, copies=nobody)

            monkeypatch.setattr(rows, "distinct_prefixes", share)
        monkeypatch.setitem(SPECS, mutated, SPECS[chunk])
        monkeypatch.setattr(device_rows, "_OF_MODEL", {*device_rows._OF_MODEL, mutated})
        monkeypatch.setattr(programs, "decode_chunk", mutated)

    return apply


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda f: f.__name__)
def test_the_comparison_notices(mutate, mutation):
    # Prompts that forget their draws would preempt each other for ever with fewer rows.
    num_rows = 11 if mutation is draw_again else FEW
    engine = make(SMC, rows=num_rows)
    assert_same(run(engine, PLAIN), plain(SMC, PLAIN))
    assert engine.stats.stalls > 0
    mutate(mutation)
    found = run(make(SMC, rows=num_rows), PLAIN)
    with pytest.raises(AssertionError, match="of prompt"):
        assert_same(found, plain(SMC, PLAIN))


@pytest.mark.parametrize("mutation", MUTATIONS[:2], ids=lambda f: f.__name__)
def test_the_integrity_check_notices(mutate, integrity, mutation):
    mutate(mutation)
    with pytest.raises(AssertionError, match=r"prefix|is lost"):
        run(make(SMC, rows=FEW), PLAIN)


def test_the_frame_of_the_mutations_changes_nothing(mutate):
    mutate(lambda state, args, go: go(state))
    assert_same(run(make(SMC, rows=FEW), PLAIN), plain(SMC, PLAIN))


def test_constants_of_this_module():
    assert max(len(prompt) for prompt in PROMPTS) + CAP <= 32 and PARAMS.logits.dtype == np.float64
