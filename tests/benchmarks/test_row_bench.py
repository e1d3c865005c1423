"""What the sections of the benchmark of rows share."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc.benchmarks import decode_worker, row_bench
from jax_power_smc.benchmarks.decode_worker import Run, Work
from jax_power_smc.benchmarks.row_bench import PLAIN, Bench, Variant
from tests.benchmarks.test_decode_worker import SPEC

WORK = Work("PowerSMC", {"num_particles": 4}, [[1]], 8, 1)


def run(seconds, **counts):
    return Run(seconds, seconds / 2, 0.0, 1, 2, **counts)


def test_a_variant_has_the_keys_of_its_rounds_and_the_first_does_not_count():
    keys = []

    def keyed(key):
        keys.append(key)
        return run(float(len(keys)))

    variant = Variant(keyed)
    bench = Bench(4.0, 3, lambda *a: None, lambda *a: None)
    seconds = bench.measure("x", {"a": variant, "b": Variant(lambda key: run(2.0 + key))})
    assert keys == [0, 0, 1, 2]
    assert variant.mean(lambda run: run.seconds) == (2 + 3 + 4) / 3
    assert seconds.median("a") == 3.0 and seconds.ratio("a", "b") == 1.0
    halves = bench.measure(
        "x", {"a": Variant(lambda key: run(4.0))}, lambda run: run.decode_seconds
    )
    assert halves.median("a") == 2.0


def test_the_first_call_may_run_the_keys_of_all_rounds():
    keys = []
    variant = Variant(lambda key: keys.append(key) or run(1.0), keys=3)
    Bench(4.0, 3, lambda *a: None, lambda *a: None).measure("x", {"a": variant})
    assert keys == [1, 2, 0, 0, 1, 2]
    assert len(variant.runs) == 4, "what only compiles is not kept"


def test_the_first_run_may_end_early():
    works = []
    variant = row_bench.variant(lambda work: works.append(work) or run(1.0), WORK, 3)
    variant(), variant(), variant()
    assert [(work.key, work.cap) for work in works] == [(0, 3), (0, None), (1, None)]


def test_samplers_have_names_and_a_floor_replaces_the_early_stop():
    assert row_bench.name_of(PLAIN) == "plain" and row_bench.name_of(row_bench.smc(7)) == "smc 7"
    floored = row_bench.swor(16, 1e-3)
    assert row_bench.name_of(floored) == "swor 16, floor 0.001"
    assert floored[1]["early_stop"] == 0 and row_bench.swor(16, 0.0)[1]["early_stop"] == 1e-4


def test_runs_add_up():
    first = run(1.0, model_tokens=5, own_steps=2, rows_there=4, rows=[[1, 4]])
    both = row_bench.total([first, run(2.0, model_tokens=3, own_steps=3, rows_there=8, rows=[[1]])])
    assert both.seconds == 3.0 and both.tokens == 2 and both.mean_rows == 8 / 5
    assert both.rows_there == 8 and both.rows == [[1, 4], [1]]


def test_sharpened_logits_are_multiples():
    flat = decode_worker.load(SPEC)
    sharp = row_bench._times(flat, 3.0)

    def logits(subject):
        cache = subject.model.init_cache(subject.params, 1, 4)
        zero, tokens = jnp.zeros((1,), jnp.int32), jnp.array([[1, 2]], jnp.int32)
        return subject.model.extend(subject.params, cache, tokens, zero, zero + 2)[0]

    before = logits(flat)
    np.testing.assert_allclose(logits(sharp), 3 * before, rtol=1e-5)
    np.testing.assert_array_equal(logits(flat), before)


def test_without_a_factor_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(decode_worker, "decode", lambda *a: run(1.0, model_tokens=9, own_steps=1))
    bench = Bench(4.0, 1, lambda *a, **b: None, lambda *a: None)
    with pytest.raises(ValueError, match="no factor of tiny's logits between 1 and 256 gives 4 to"):
        row_bench.sharpened(bench, "tiny", decode_worker.load(SPEC), 16, 4, 8)
