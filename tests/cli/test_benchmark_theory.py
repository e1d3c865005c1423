"""The theory benchmark through the launcher, on settings small enough for a test."""

import contextlib
import io
import json
import runpy

import pytest
from ml_collections import ConfigDict

from jax_power_smc.cli.benchmark import benchmark
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_PROMPTS, CAP = 2, 12


def config(**changes):
    made = runpy.run_path(str(ROOT / "configs" / "theory.py"))["get_config"]()
    small = {"prompts": NUM_PROMPTS, "num_particles": 2, "max_new_tokens": CAP, "num_costliest": 3}
    made.update({**small, "temperatures": (0.2, 0.5), **changes})
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir, the lines of figures, and what was printed."""
    root = tmp_path_factory.mktemp("theory")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        path = benchmark(config(), str(root))
    assert path == root / "theory.jsonl"
    return root, [json.loads(x) for x in path.read_text().splitlines()], printed.getvalue()


def test_the_pictures_are_drawn(run):
    for name in ("theorem.png", "step_costs.png"):
        assert (run[0] / name).read_bytes().startswith(b"\x89PNG")


def test_every_figure_is_there(run):
    lines = run[1]
    by_metric = {}
    for x in lines:
        assert x["value"] is not None and x["device"].startswith("cpu") and x["alpha"] == 4.0
        by_metric.setdefault(x["metric"], []).append(x)
    of_temperatures = {
        name: [x["temperature"] for x in group]
        for name, group in by_metric.items()
        if "temperature" in group[0]
    }
    names = ("mean_relative_variance", "max_relative_variance", "share_above_one")
    assert of_temperatures.keys() == {*names, "log_second_moment"}
    assert all(grid == [0.2, 0.25, 0.5, 1.0] for grid in of_temperatures.values())
    steps = sum(x["steps"] for x in by_metric["sequence_cost"])
    assert len(by_metric["step_cost"]) == steps == by_metric["share_above_one"][0]["steps"]
    assert len(by_metric["costliest"]) == 3
    assert [x["prompt"] for x in by_metric["costliest_share"]] == list(range(NUM_PROMPTS))


def test_the_theorem_holds_on_the_embedded_model(run):
    found = {x["temperature"]: x["value"] for x in run[1] if x["metric"] == "log_second_moment"}
    assert found[0.25] < 1e-9 and min(found[0.2], found[0.5]) > 1e-4


def test_the_tables_show_what_was_measured(run):
    _, lines, printed = run
    assert "1/alpha = 0.25" in printed and "infinite" not in printed
    for x in lines:
        if x["metric"] == "costliest":
            text = f"{x['before']}[{x['token']}]".replace("\n", "\\n")
            (row,) = (row for row in printed.splitlines() if row.rstrip().endswith(text))
            assert row.split()[:3] == [f"{x['value']:.2f}", str(x["prompt"]), str(x["step"])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "theorem"}, "allowed are fidelity, cost_model, theory"),
        ({"alpha": 0.5}, "alpha is 0.5"),
        ({"alpha": 1.0}, "config.alpha is 1.0; it must be a finite number greater than 1"),
        ({"prompts": 0}, "config.prompts is 0"),
        ({"num_particles": 0}, "config.num_particles is 0"),
        ({"num_traces": 0}, "config.num_traces is 0"),
        ({"num_costliest": -1}, "config.num_costliest is -1"),
        ({"temperatures": (0.5, 0.0)}, "config.temperatures is 0.0; .* at least 1e-06"),
        ({"model": "nowhere"}, "'nowhere' is neither a directory"),
        ({"max_new_tokens": 2000}, "max_new_tokens is 2000; .* the model has 1024 positions"),
    ],
)
def test_bad_input_is_refused_before_any_work(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        benchmark(config(**changes), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_single_temperature_is_no_list(tmp_path):
    made = config().to_dict()
    with pytest.raises(ValueError, match=r"config.temperatures is 0.5; it must be a tuple"):
        benchmark(ConfigDict({**made, "temperatures": 0.5}), str(tmp_path / "new"))


def test_a_missing_field_is_named(tmp_path):
    made = config()
    del made.num_traces
    with pytest.raises(ValueError, match="the config lacks num_traces"):
        benchmark(made, str(tmp_path))
