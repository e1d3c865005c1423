"""The model that the package ships: how it was made, and that it is what the README says."""

import importlib.resources
import json
import pathlib
import random
import runpy

import jax
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.cli.train import FREE_FIELDS
from jax_power_smc.tiny_reasoner import problems
from tests.paths import ROOT

COUNT = 8


@pytest.fixture(scope="module")
def lm():
    return psmc.load("tiny-reasoner")


@pytest.fixture(scope="module")
def asked():
    return list(problems.problems("test", COUNT))


def test_it_is_small():
    root = importlib.resources.files("jax_power_smc") / "data"
    sizes = [path.stat().st_size for path in pathlib.Path(str(root)).rglob("*") if path.is_file()]
    assert 1e6 < sum(sizes) < 8e6


def test_it_was_trained_with_the_config_that_is_here(lm):
    record = json.loads((lm.directory / "training.json").read_text())
    config = runpy.run_path(str(ROOT / "configs/train_tiny_reasoner.py"))["get_config"]().to_dict()
    for name in FREE_FIELDS:
        config.pop(name, None)
        record["config"].pop(name, None)
    assert record["config"] == config
    assert record["step"] == config["steps"]
    assert record["parameters"] == sum(x.size for x in jax.tree.leaves(lm.params))


def scores(lm, problem, text):
    """Log p of each token of a solution and its end token."""
    prompt, eos = lm.encode(problem.question), lm.eos_ids[0]
    tokens = np.array([[*lm.tokenizer.encode(text), eos]], np.int32)
    return psmc.exact.score(lm.model, lm.params, prompt, tokens)[0]


def test_written_out_is_nearly_certain_and_stated_is_not(lm, asked):
    rng = random.Random(0)
    problem = asked[0]
    written = scores(lm, problem, problems.write_solution(problem, rng, 1.0))
    stated = scores(lm, problem, problems.write_solution(problem, rng, 0.0))
    forks = len(problem.steps)
    # All that is uncertain in a written solution are its forks, each near log 0.42.
    assert np.sum(written < -0.4) <= forks + 1
    assert written.sum() > -1.5 * forks
    # The right digits, stated, are a matter of luck.
    assert stated.sum() < 3 * written.sum()


@pytest.mark.slow
def test_the_power_distribution_solves_what_greedy_decoding_gets_wrong(lm, asked):
    def solved(sampler):
        result = psmc.sample(
            lm.model,
            lm.params,
            [lm.encode(problem.question) for problem in asked],
            key=jax.random.key(0),
            target=psmc.PowerTarget(4.0, lm.eos_ids),
            sampler=sampler,
            max_new_tokens=384,
        )
        texts = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in result.draw()]
        return sum(
            problems.parse_answer(text) == problem.answer
            for text, problem in zip(texts, asked, strict=True)
        )

    # Over 400 problems: greedy 0.2%, Power-SMC with N = 8 about two thirds.
    assert solved(psmc.Ancestral(0.0)) <= 1
    assert solved(psmc.PowerSMC(8)) >= 3
