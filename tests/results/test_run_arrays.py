"""Runs that do not belong together, and other bad arguments, are refused by name."""

import dataclasses
import math
import types

import jax
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.results.evidence import evidence_interval, kl_figure
from jax_power_smc.results.pimh import pimh
from jax_power_smc.results.pooling import pool
from tests.results.runs import KEY, TARGET, assert_same, first, with_evidence

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]

READERS = {
    "pool": lambda runs: pool(runs, KEY),
    "pimh": lambda runs: pimh(runs, KEY),
    "interval": evidence_interval,
    "figure": lambda runs: kl_figure(0.0, runs, exact=True),
}


@pytest.mark.parametrize("reader", list(READERS))
def test_refusals(few, reader):
    read = READERS[reader]
    run = few[1]
    other = {
        "run 1 has the target .*alpha=2.0": dataclasses.replace(
            run, target=dataclasses.replace(TARGET, alpha=2.0)
        ),
        "run 1 has 2 prompts and run 0 3": first(run, 2),
        "run 1 has max_new_tokens 3 and run 0 4": dataclasses.replace(
            run, tokens=run.tokens[:, :, :3]
        ),
        r"run 1 has no evidence \(NaN\)": with_evidence(run, [0.0, math.nan, 0.0]),
    }
    for message, wrong in other.items():
        with pytest.raises(ValueError, match=message) as caught:
            read([few[0], wrong])
        assert str(caught.value).endswith(".")
    with pytest.raises(ValueError, match="results has 0 runs"):
        read([])
    with pytest.raises(ValueError, match="single result"):
        read(few[0])
    if reader in ("pimh", "interval"):
        with pytest.raises(ValueError, match="results has 1 runs; at least 2 runs are needed"):
            read(few[:1])
    for message, wrong in {
        "results is 5; it must be a list of runs": 5,
        r"results\[1\] is a NoneType; it must be a SampleResult": [few[0], None],
        r"results\[0\] is a str; it must be a SampleResult": "ab",
        "results has 0 runs": iter(()),
    }.items():
        with pytest.raises(ValueError, match=message):
            read(wrong)


@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize("listing", [tuple, iter, lambda runs: dict(enumerate(runs)).values()])
def test_runs_may_come_from_any_iterable(few, reader, listing):
    one, two = READERS[reader](few), READERS[reader](listing(few))
    if reader == "pool":
        assert_same(one, two)
    else:
        jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("read", [pool, pimh])
def test_keys_and_ids_are_checked(few, read):
    with pytest.raises(ValueError, match="key is 0; it must be a single key"):
        read(few, 0)
    with pytest.raises(ValueError, match="must be a single key"):
        read(few, jax.random.split(KEY, 2))
    with pytest.raises(ValueError, match="prompt_ids has 2 entries for 3 prompts"):
        read(few, KEY, prompt_ids=[0, 1])


def test_pool_is_public():
    assert psmc.pool is pool and isinstance(psmc.evidence, types.ModuleType)


@pytest.mark.parametrize(
    "prompt_ids", [[-1, 0, 1], [0.5, 1, 2], [2**63, 0, 1], ["a", "b", "c"], [0, 1], 5]
)
def test_invalid_prompt_ids_are_refused(few, prompt_ids):
    with pytest.raises(ValueError, match="prompt_ids"):
        pool(few, KEY, prompt_ids=prompt_ids)
    with pytest.raises(ValueError, match="prompt_ids"):
        pimh(few, KEY, prompt_ids=prompt_ids)
