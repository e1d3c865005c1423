"""The configs of evaluations: each can be run, shown by its dry run up to the sampling."""

import runpy

import pytest

from jax_power_smc.cli.evaluate import evaluate
from jax_power_smc.evaluation import job_config
from jax_power_smc.models.checkpoints.tiny_random import tiny_model
from jax_power_smc.tasks.load import kind_of, load_task
from tests.cli.command import ROOT


def evaluations():
    """The configs that are of evaluations, by name."""
    made = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        config = runpy.run_path(str(path))["get_config"]()
        if "samplers" in config:
            made[path.stem] = config
    return made


CONFIGS = evaluations()


def test_the_configs_of_the_paper_are_there():
    papers = {name for name, config in CONFIGS.items() if config.model != "tiny-reasoner"}
    assert len(papers) == 9
    assert {CONFIGS[name].model for name in papers if CONFIGS[name].task == "math500"} == {
        "Qwen/Qwen2.5-Math-7B",
        "Qwen/Qwen2.5-7B",
        "microsoft/Phi-3.5-mini-instruct",
    }
    for name in papers:
        config = CONFIGS[name]
        assert name.split("_")[0] == config.task
        assert (config.alpha, config.max_new_tokens, config.dtype) == (4.0, 2048, "bfloat16")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_can_be_run(name):
    config = CONFIGS[name]
    if kind_of(config) == "code":
        config.allow_code_execution = True
    job_config.check(config)
    job_config.shrink(config)
    job_config.check(config)
    task = load_task(config)
    lm = tiny_model(config)
    assert len(task.problems) == 2
    for problem in task.problems:
        assert len(lm.encode(problem.prompt)) + config.max_new_tokens <= lm.model.max_positions


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.model != "tiny-reasoner"])
def test_every_config_of_the_paper_dry_runs(name, tmp_path, capsys):
    config = evaluations()[name]
    config.dry_run = True
    config.allow_code_execution = kind_of(config) == "code"
    made = evaluate(config, str(tmp_path))
    assert made["complete"] and made["problems"] == 2
    assert {row["run"] for row in made["rows"]} == set(config.samplers)
    assert capsys.readouterr().out.startswith("DRY RUN with random weights")
