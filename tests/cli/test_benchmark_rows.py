"""The benchmark of rows through the launcher, on settings small enough for a test."""

import importlib
import json
import runpy

import pytest
from absl import flags
from ml_collections import config_flags

from jax_power_smc.benchmarks import row_fit, tables, torch_baseline
from jax_power_smc.cli import benchmark_rows
from jax_power_smc.cli.benchmark import benchmark
from jax_power_smc.report.tables import print_tables
from tests.conftest import needs_stories
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "mlp_size": 16,
    "vocab_size": 64,
}
SMALL = {
    "throughput": {
        "prompts": (2, 3),
        "slots": 2,
        "max_new_tokens": 10,
        "smc": (3,),
        "swor": (2,),
        "mass_floors": (0.0, 1e-3),
        "baseline_smc": (3,),
    },
    "latency": {
        "prompts": 1,
        "num_particles": 12,
        "steps": 6,
        "answer_tokens": 9,
        "sharpened": ("tiny",),
    },
    "stories": {"particles": (3,), "keys": 2, "slots": 4, "max_new_tokens": 9},
    "flat": {
        "models": ("tiny",),
        "particles": (4,),
        "rows": (8,),
        "prompt_tokens": (5,),
        "max_new_tokens": 10,
        "warmup_tokens": 3,
    },
    "torch": {
        "num_particles": 12,
        "prompts": 2,
        "peer_prompts": 1,
        "max_new_tokens": 10,
        "sharpened": ("tiny",),
    },
    "fit": {
        "num_particles": 12,
        "prompts": 2,
        "max_new_tokens": 40,
        "sharpened": ("tiny",),
        "shape": {**SHAPE, "num_layers": 2},
        "prompt_tokens": 8,
        "memory": 2**20,
    },
}


def config(**changes):
    made = runpy.run_path(str(ROOT / "configs" / "rows.py"))["get_config"]()
    assert set(made.sections) == set(benchmark_rows.SECTIONS)
    made.models = {"tiny": SHAPE}
    made.texts = ("Once", "One day")
    for section, fields in SMALL.items():
        made[section].update(fields)
    with made.ignore_type():
        made.update({"repeats": 1, **changes})
    return made


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Of all sections; the baseline is this version too: what is compared is how, not what."""
    root = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_rows, "SHARP_STEPS", 24)
        path = benchmark(config(baseline=str(ROOT)), str(root))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_the_configuration_asks_for_is_allowed():
    benchmark_rows._check(runpy.run_path(str(ROOT / "configs" / "rows.py"))["get_config"]())


def of_section(figures, name):
    return [x for x in figures if x.get("section") == name]


def of(figures, metric, *names):
    return {
        tuple(x.get(name) for name in names): x["value"] for x in figures if x["metric"] == metric
    }


@pytest.mark.slow
def test_throughput_has_three_columns(figures):
    figures = of_section(figures, "throughput")
    names = ["plain", "smc 3", "swor 2, floor 0", "swor 2, floor 0.001"]
    places = {(n, name) for n in (2, 3) for name in names}
    for metric in ("multiple", "model_token_ratio", "rows_per_step", "multiple_of_baseline"):
        found = of(figures, metric, "prompts", "variant")
        assert found.keys() >= places and min(found.values()) > 0
    assert of(figures, "multiple", "prompts", "variant")[2, "plain"] == 1.0
    assert of(figures, "rows_per_step", "prompts", "variant")[2, "plain"] == 1.0
    assert of(figures, "multiple_of_baseline", "variant")[("baseline plain",)] == 1.0
    efficiency = of(figures, "efficiency", "prompts", "variant")
    assert efficiency.keys() == {place for place in places if place[1] != "plain"}
    assert of(figures, "baseline_speedup", "variant").keys() == {("plain",), ("smc 3",)}
    # Ten tokens without an end: three particles draw three times as many as plain decoding.
    drawn = of(figures, "drawn_tokens", "prompts", "variant")
    assert drawn[2, "smc 3"] == 3 * drawn[2, "plain"] == drawn[2, "baseline smc 3"] == 30


@pytest.mark.slow
def test_latency_is_over_one_particle_and_over_as_many_rows(figures):
    figures = of_section(figures, "latency")
    times = of(figures, "step_time", "model", "variant")
    models = "tiny-reasoner", "tiny"
    assert times.keys() == {(m, v) for m in models for v in ("many", "rows", "one")}
    for model in models:
        ratio = of(figures, "step_over_one", "model")[(model,)]
        assert ratio == pytest.approx(times[model, "many"] / times[model, "one"])
    answers = of(figures, "seconds_per_answer", "model", "variant")
    assert answers.keys() == {("tiny-reasoner", v) for v in ("plain", "smc 1", "smc 12")}


@pytest.mark.slow
def test_the_factor_of_the_logits_is_recorded(figures):
    (factor,) = (x for x in figures if x["metric"] == "logit_factor")
    assert factor["value"] > 1 and 4 <= factor["rows_per_step"] <= 7


@pytest.mark.slow
def test_the_tables_show_every_section(figures, capsys):
    made = list(tables.rows(figures))
    print_tables(made)
    text = capsys.readouterr().out
    sections = {x["section"] for x in figures if "section" in x}
    assert len(made) == 6 and sum(bool(table.rows) for table in made) == len(sections)
    assert "Multiples of plain decoding" in text and "swor 2, floor 0.001" in text


@needs_stories
@pytest.mark.skipif(not torch_baseline.available(), reason="torch is absent")
@pytest.mark.slow
def test_the_page_has_a_table_of_every_section(figures, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    row_tables = importlib.import_module("row_tables")
    monkeypatch.setattr(row_tables, "read", lambda name: figures)
    made = {make.__name__: make().splitlines() for make in row_tables.TABLES}
    assert {name: len(lines) - 2 for name, lines in made.items()} == {
        **{"row_throughput": 12, "row_latency": 2, "row_answers": 3, "row_counts": 1},
        **{"row_flat": 1, "row_torch": 2, "row_fit": 2},
    }
    assert made["row_throughput"][2].startswith("| 2 | plain |")


@needs_stories
@pytest.mark.slow
def test_tokens_through_the_model_are_counted_per_token(figures):
    figures = of_section(figures, "stories")
    assert of(figures, "drawn_tokens_per_token", "num_particles") == {(3,): 3.0}
    assert 1 < of(figures, "model_tokens_per_token", "num_particles")[(3,)] < 3


@pytest.mark.slow
def test_flat_logits_are_compared_with_the_baseline(figures):
    figures = of_section(figures, "flat")
    assert of(figures, "step_time", "variant").keys() == {("here",), ("baseline",)}
    assert of(figures, "over_baseline", "num_particles", "rows")[4, 8] > 0
    assert 2 < of(figures, "rows_per_step", "rows")[(8,)] <= 4


@pytest.mark.skipif(not torch_baseline.available(), reason="torch is absent")
@pytest.mark.slow
def test_torch_decodes_one_prompt_at_a_time(figures):
    figures = of_section(figures, "torch")
    places = {(m, v) for m in ("tiny-reasoner", "tiny") for v in ("at once", "one by one")}
    assert of(figures, "speedup", "model", "variant").keys() == places


@needs_stories
@pytest.mark.slow
def test_prompts_that_fit_follow_from_recorded_trajectories(figures):
    figures = of_section(figures, "fit")
    fitting = of(figures, "prompts_that_fit", "model")
    assert fitting.keys() == {("stories260K",), ("tiny",)} and min(fitting.values()) >= 1
    recorded = [x for x in figures if "trajectory" in x]
    assert {x["model"] for x in recorded} == {"stories260K", "tiny"} and len(recorded) == 4
    assert {len(row_fit.unpack(x["trajectory"])) for x in recorded} == {40}


def test_what_is_absent_is_left_out_and_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch_baseline, "available", lambda: False)
    sections, absent = ("stories", "torch"), str(tmp_path / "no_stories")
    path = benchmark(config(sections=sections, stories_model=absent), str(tmp_path))
    said = capsys.readouterr().out
    assert "config.baseline names no checkout" in said and "no_stories does not exist" in said
    assert "PyTorch is not installed; left out: torch." in said
    assert path.read_text() == ""


def changed(section, **fields):
    return config(**{section: fields})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (config(sections=("steps",)), "config.sections is 'steps'; allowed are throughput, "),
        (config(sections="flat"), "config.sections is 'flat'; it must be a tuple."),
        (config(repeats=0), "config.repeats is 0; it must be an integer of at least 1."),
        (config(alpha=-1.0), "alpha is -1.0"),
        (config(baseline="nowhere"), "config.baseline is 'nowhere'; it must be a checkout"),
        (config(models={"tiny": {"hidden": 3}}), "config.models.tiny cannot be read"),
        (changed("fit", shape={"hidden": 3}), "config.fit.shape cannot be read"),
        (changed("flat", models=("huge",)), "config.flat is 'huge'; allowed are tiny."),
        (changed("latency", sharpened=("huge",)), "config.latency is 'huge'; allowed are tiny."),
        (changed("throughput", smc=(0,)), "config.throughput.smc is 0"),
        (changed("throughput", mass_floors=(1.0,)), "config.throughput.mass_floors is 1.0"),
        (changed("stories", keys=0), "config.stories.keys is 0"),
    ],
)
def test_invalid_values_are_refused_before_anything_is_written(made, message, tmp_path):
    with pytest.raises(ValueError) as error:
        benchmark(made, str(tmp_path / "no"))
    assert message in str(error.value)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["rows", "fidelity", "benchmark"])
def test_a_config_is_read_from_a_relative_path(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(["launcher", f"--config=configs/{name}.py"])
    assert values.config.benchmark in (name, "speed")
