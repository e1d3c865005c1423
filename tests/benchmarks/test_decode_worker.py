"""Counts of a run against the results of ``sample``."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.benchmarks import decode_worker
from jax_power_smc.benchmarks.decode_worker import Work

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = {
    "shape": {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "mlp_size": 16,
    },
    "dtype": "float32",
}
WORK = Work("PowerSMC", {"num_particles": 4}, [[1, 2, 3], [4]], 8, 2, key=5)


def test_the_counts_are_those_of_the_results():
    subject = decode_worker.load(SPEC)._replace(eos_ids=(3,))
    run = decode_worker.decode(subject, WORK)
    result = psmc.sample(
        subject.model,
        subject.params,
        WORK.prompts,
        key=jax.random.key(WORK.key),
        target=psmc.PowerTarget(WORK.alpha, (3,)),
        sampler=psmc.PowerSMC(4),
        max_new_tokens=8,
        prompts_per_batch=2,
    )
    lengths = np.asarray(result.lengths)[np.arange(2), np.asarray(result.choice)]
    assert run.tokens == lengths.sum()
    assert run.drawn_tokens == result.info.drawn_tokens.sum()
    assert run.model_tokens == result.info.model_tokens.sum() == sum(map(sum, run.rows))
    assert [len(rows) for rows in run.rows] == [run.own_steps - len(run.rows[1]), len(run.rows[1])]
    assert run.mean_rows == run.model_tokens / run.own_steps
    assert run.steps >= max(map(len, run.rows)) and run.rows_there >= max(map(max, run.rows))
    assert 0 < run.decode_seconds <= run.seconds


def test_settings_of_a_run():
    subject = decode_worker.load(SPEC)._replace(eos_ids=(3,))
    whole = dataclasses.replace(WORK, ends=False, rows=8)
    run = decode_worker.decode(subject, whole)
    assert run.tokens == 16 and run.own_steps == 16 and run.rows_there == 8
    assert decode_worker.decode(subject, dataclasses.replace(whole, cap=3)).tokens == 6
    with pytest.raises(ValueError, match=r"a prompt alone needs \d rows"):
        decode_worker.decode(subject, dataclasses.replace(whole, alpha=1.0, rows=1))


def test_jobs_are_answered_line_by_line():
    job = {"model": SPEC, "work": dataclasses.asdict(WORK)}
    answers = io.StringIO()
    decode_worker.main(io.StringIO(2 * (json.dumps(job) + "\n")), answers)
    first, second = (json.loads(line) for line in answers.getvalue().splitlines())
    assert first["tokens"] == second["tokens"] == 16 and first["rows"] == second["rows"]
    assert decode_worker.load(SPEC) is decode_worker.load(SPEC)
