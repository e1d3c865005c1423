"""The seconds of a phase do not include compiling."""

import math
import threading
import time

import jax
import jax.numpy as jnp
import pytest

import jax_power_smc as psmc
from jax_power_smc.core import prng
from jax_power_smc.engine import executables, timing
from jax_power_smc.engine.timing import PhaseTimer

PAUSE = 0.3


def compile_for(seconds: float) -> None:
    """Compiles something new for about so long."""

    def traced(x: jax.Array) -> jax.Array:
        time.sleep(seconds)
        return x + 1

    jax.jit(traced)(jnp.zeros(3)).block_until_ready()


def test_the_first_use_of_an_array_operation_counts_as_compiling():
    clock = PhaseTimer()
    compile_for(PAUSE)
    time.sleep(PAUSE)
    clock.book("decode")
    assert clock.seconds["compile"] >= PAUSE
    assert PAUSE <= clock.seconds["decode"] < 2 * PAUSE
    assert clock.seconds["prefill"] == 0


def test_all_seconds_are_booked_once():
    clock, began = PhaseTimer(), time.perf_counter()
    compile_for(PAUSE)
    clock.book("prefill")
    compile_for(PAUSE)
    clock.book("decode")
    assert sum(clock.seconds.values()) == pytest.approx(time.perf_counter() - began, abs=PAUSE / 3)


def test_time_before_start_belongs_to_no_phase():
    clock = PhaseTimer()
    compile_for(PAUSE)
    clock.start()
    clock.book("decode")
    assert sum(clock.seconds.values()) < PAUSE


def test_compiling_within_compiling_counts_once():
    def inner(x: jax.Array) -> jax.Array:
        time.sleep(PAUSE)
        return x * 2

    began, before = time.perf_counter(), timing.compile_seconds()
    jax.jit(lambda x: jax.jit(inner)(x) + 1)(jnp.zeros(5)).block_until_ready()
    compiled = timing.compile_seconds() - before
    assert PAUSE <= compiled <= time.perf_counter() - began


def test_preparing_counts_as_a_whole_if_anything_was_compiled():
    before = timing.compile_seconds()
    with timing.preparing():
        time.sleep(PAUSE)
    assert timing.compile_seconds() == before
    with timing.preparing():
        compile_for(PAUSE)
        time.sleep(PAUSE)
    assert timing.compile_seconds() - before >= 2 * PAUSE


def test_what_comes_after_the_end_belongs_to_no_phase():
    clock = PhaseTimer()
    time.sleep(PAUSE)
    end = time.perf_counter()
    time.sleep(PAUSE)
    clock.resume("decode", until=end)
    assert PAUSE <= clock.seconds["decode"] < 2 * PAUSE
    clock.resume("decode", until=end)
    assert clock.seconds["decode"] < 2 * PAUSE


def test_what_the_caller_compiles_meanwhile_does_not_count():
    clock = PhaseTimer()
    compile_for(PAUSE)
    clock.resume("decode", until=math.inf)
    assert clock.seconds["decode"] >= PAUSE and clock.seconds["compile"] == 0


class Pending:
    """Becomes ready when told to; a CPU may run a real program before the call returns."""

    def __init__(self) -> None:
        self.ready = threading.Event()

    def block_until_ready(self) -> "Pending":
        assert self.ready.wait(60)
        return self


def test_when_an_array_became_ready():
    times, array = timing.ReadyTimes(), Pending()
    assert times.last() == -math.inf
    times.watch(array)
    assert times.last() == math.inf
    began = time.perf_counter()
    array.ready.set()
    while times.last() == math.inf:
        time.sleep(PAUSE / 10)
    known = time.perf_counter()
    time.sleep(PAUSE)
    assert began <= times.last() <= known


@pytest.mark.parametrize("sampler", [psmc.Ancestral(), psmc.MetropolisHastings(num_blocks=2)])
def test_what_the_first_call_of_a_process_compiles_is_not_its_prefill(monkeypatch, sampler):
    model = psmc.TableLM(vocab_size=5, order=1)
    params = model.init(jax.random.key(0))
    settings = {
        "key": jax.random.key(1),
        "target": psmc.PowerTarget(2.0),
        "sampler": sampler,
        "max_new_tokens": 4,
    }
    psmc.sample(model, params, [[1, 2]], **settings)  # the programs are compiled
    real = prng.prompt_keys

    def slow_at_first(*args):
        compile_for(PAUSE)
        return real(*args)

    monkeypatch.setattr(prng, "prompt_keys", slow_at_first)
    compiled = executables.compiled_count()
    seconds = psmc.sample(model, params, [[1, 2]], **settings).info.seconds
    assert executables.compiled_count() == compiled
    assert seconds["compile"] >= PAUSE
    assert seconds["prefill"] + seconds["decode"] < PAUSE
