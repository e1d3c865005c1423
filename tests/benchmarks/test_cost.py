"""The cost benchmark counts what the lemmas count, on a model that costs next to nothing."""

from types import SimpleNamespace

import pytest

from jax_power_smc.benchmarks import cost
from jax_power_smc.core import prng
from jax_power_smc.models.table_lm import TableLM

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

T, N, B, M = 8, 4, 2, 1


@pytest.fixture(scope="module")
def figures():
    model = TableLM(5, 1)
    lm = SimpleNamespace(model=model, params=model.init(prng.seed_key(0)))
    found = {}

    def write(metric, value, unit, **settings):
        found[metric, settings.get("method")] = value

    cost.measure(
        lm,
        [1, 2],
        alpha=2.0,
        max_new_tokens=T,
        num_particles=N,
        num_blocks=B,
        moves_per_block=M,
        repeats=1,
        write=write,
        progress=lambda title, done, total: None,
    )
    return found


def test_power_smc_takes_the_tokens_of_lemma_1(figures):
    assert figures["lemma_tokens", "smc"] == figures["model_tokens", "smc"] == T * N


def test_every_method_has_its_figures_and_both_edits_their_ratios(figures):
    methods = {"one sequence", "N sequences", "smc", "mh global", "mh last_block"}
    assert {method for metric, method in figures if metric == "seconds"} == methods
    for edit in ("mh global", "mh last_block"):
        for kind in ("wall", "work"):
            assert figures[f"predicted_{kind}_ratio", edit] > 0
            assert figures[f"measured_{kind}_ratio", edit] > 0
        measured = figures["model_tokens", "smc"] / figures["model_tokens", edit]
        assert figures["measured_work_ratio", edit] == measured
    assert figures["batched_gain", None] > 0
