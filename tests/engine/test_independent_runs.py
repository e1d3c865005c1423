"""Runs with keys folded from one key, which can be continued."""

import jax
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.engine.independent_runs import independent_runs
from tests.results.runs import (
    CAP,
    KEY,
    MODEL,
    PARAMS,
    SAMPLERS,
    TARGET,
    assert_same,
    run_copies,
    runs_of,
    sample,
)

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]


def test_runs_are_those_of_folded_keys_and_can_be_continued():
    runs = runs_of("smc")
    key = jax.random.fold_in(jax.random.key(1), 1)
    own = run_copies(psmc.sample, SAMPLERS["smc"], key=key)
    assert_same(own, runs[1], but=["seconds"])
    (later,) = sample(SAMPLERS["smc"], 1, first_run=2)
    assert_same(later, runs[2], but=["seconds"])
    logs = np.stack([r.log_evidence for r in runs[:3]])
    assert np.mean(logs[0] == logs[1]) < 0.2 > np.mean(logs[1] == logs[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_runs": 0}, "num_runs is 0; it must be an integer of at least 1"),
        ({"num_runs": 1.5}, "num_runs is 1.5"),
        ({"first_run": -1}, "first_run is -1; it must be an integer of at least 0"),
        ({"key": 3}, "key is 3; it must be a single key"),
        ({"key": np.zeros(2, np.uint32)}, "must be a single key"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
    ids=str,
)
def test_runs_refuse(change, message):
    options = {"target": TARGET, "sampler": SAMPLERS["smc"], "max_new_tokens": CAP}
    with pytest.raises(ValueError, match=message):
        independent_runs(MODEL, PARAMS, [[0]], **{"key": KEY, "num_runs": 1, **options, **change})
