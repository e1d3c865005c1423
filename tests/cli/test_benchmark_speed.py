"""The speed benchmark through the launcher, on settings small enough for a test."""

import json
import runpy

import pytest

from jax_power_smc.benchmarks import torch_baseline
from jax_power_smc.cli import benchmark_speed
from jax_power_smc.cli.benchmark import benchmark
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = {
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "mlp_size": 8,
    "vocab_size": 16,
}
SMALL = {
    "steps": {"particles": (1, 4), "max_new_tokens": (6,)},
    "throughput": {
        "num_particles": 2,
        "slots": 2,
        "prompts": 5,
        "longest_prompt": 9,
        "max_new_tokens": 9,
    },
    "torch_batch_1": {"particles": (1,), "prompt_tokens": (5,), "max_new_tokens": 6},
    "torch": {"particles": (4,), "prompt_tokens": (5,), "max_new_tokens": 6},
}


def config(**changes):
    made = runpy.run_path(str(ROOT / "configs" / "benchmark.py"))["get_config"]()
    assert set(made.sections) == set(benchmark_speed.SECTIONS)
    made.models = {"tiny": SHAPE}
    for section, fields in SMALL.items():
        made[section].update({"models": ("tiny",), **fields})
    with made.ignore_type():
        made.update({"repeats": 1, "bandwidth_bytes": 2**16, **changes})
    return made


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    root = tmp_path_factory.mktemp("speed")
    path = benchmark(config(), str(root))
    assert (root / "steps.png").read_bytes().startswith(b"\x89PNG")
    return [json.loads(line) for line in path.read_text().splitlines()]


def of(figures, metric, *names):
    return {
        tuple(x[name] for name in names): x["value"]
        for x in figures
        if x["metric"] == metric and set(names) <= x.keys()
    }


@pytest.mark.slow
def test_steps_are_multiples_of_one_sequence(figures):
    names = "sampler", "num_particles"
    times, multiples = (of(figures, m, *names) for m in ("step_time", "step_multiple"))
    expected = {("ancestral", 1), *((s, n) for s in ("smc", "swor") for n in (1, 4))}
    assert (
        multiples.keys() == expected
        and times.keys() >= expected
        and multiples["ancestral", 1] == 1.0
    )
    for place, multiple in multiples.items():
        assert times[place] > 0 and multiple > 0
    share, moved = (of(figures, m, *names) for m in ("roofline_share", "step_bytes"))
    # Four particles of so small a model may well share a row at every step.
    assert moved["smc", 1] <= moved["smc", 4] and min(share.values()) > 0


@pytest.mark.slow
def test_the_other_sections_have_their_figures(figures):
    methods = of(figures, "throughput_ratio", "method")
    assert methods.keys() == {("slots",), ("slots, looking at once",), ("batches",)}
    assert methods["batches",] == 1.0
    assert of(figures, "copy_bandwidth", "array_bytes")[2**16,] > 0


@pytest.mark.skipif(not torch_baseline.available(), reason="torch is absent")
@pytest.mark.slow
def test_torch_is_compared_where_it_is_installed(figures):
    names = "num_particles", "peer"
    assert of(figures, "speedup", *names).keys() == {
        (1, "transformers generate"),
        (4, "transformers generate"),
        (4, "Power-SMC in a Python loop"),
    }


def test_torch_is_left_out_if_it_is_not_installed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch_baseline, "available", lambda: False)
    path = benchmark(config(sections=("torch",)), str(tmp_path))
    assert "PyTorch is not installed; left out: torch." in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 1  # the bandwidth


def changed(section, **fields):
    return config(**{section: fields})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (config(sections=("stepz",)), "config.sections is 'stepz'; allowed are steps, throughput"),
        (config(sections="steps"), "config.sections is 'steps'; it must be a tuple."),
        (config(repeats=0), "config.repeats is 0; it must be an integer of at least 1."),
        (config(dtype="int8"), "config.dtype is 'int8'; allowed are"),
        (config(alpha=-1.0), "alpha is -1.0"),
        (config(models={"tiny": {"hidden": 3}}), "config.models.tiny cannot be read"),
        (config(models={"tiny": {"num_layers": 0}}), "num_layers is 0"),
        (changed("steps", models=("huge",)), "config.steps.models is 'huge'; allowed are tiny."),
        (changed("steps", particles=(0,)), "config.steps.particles is 0"),
        (changed("steps", particles=4), "config.steps.particles is 4; it must be a tuple."),
        (changed("torch", max_new_tokens=1), "config.torch.max_new_tokens is 1"),
        (changed("throughput", slots=-2), "config.throughput.slots is -2"),
    ],
)
def test_invalid_values_are_refused_before_anything_is_written(made, message, tmp_path):
    with pytest.raises(ValueError) as error:
        benchmark(made, str(tmp_path / "no"))
    assert message in str(error.value)
    assert not (tmp_path / "no").exists()
