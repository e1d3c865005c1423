"""The benchmark launcher on settings small enough for a test."""

import json
import runpy

import pytest

from jax_power_smc.cli.benchmark import benchmark
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")


def config(**changes):
    made = runpy.run_path(str(ROOT / "configs" / "fidelity.py"))["get_config"]()
    made.update(
        {
            "runs": 8,
            "vocab_size": 6,
            "kinds": ("inhomogeneous",),
            "horizons": (12,),
            "entropies": (0.5,),
            "seeds": (0,),
            "smc_particles": (4,),
            "smc_ramps": (0.0, 0.25),
            "swor_particles": (16,),
            "swor_ramps": (0.0,),
            "mh_particles": (4,),
            "models": (),
            "text_models": (),
            **changes,
        }
    )
    return made


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmark")
    path = benchmark(config(), str(root))
    assert (root / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_setting_has_every_figure(figures):
    settings = [("smc", 4, 0.0), ("smc", 4, 0.25), ("swor", 16, 0.0), ("mh", 4, 0.0)]
    output = ["mean_log_prob", "mean_length", "model_tokens"]
    evidence = ["gap", "gap_error", "sd_log_evidence"]
    got = [
        (x["name"], x["num_particles"], x["ramp_share"], x["metric"])
        for x in figures
        if "name" in x
    ]
    assert got == [
        (*setting, metric)
        for setting in settings
        for metric in (output if setting[0] == "mh" else evidence + output)
    ]
    assert all(x["device"].startswith("cpu") for x in figures)


@pytest.mark.slow
def test_the_table_itself_has_exact_figures(figures):
    exact = {x["metric"]: x["value"] for x in figures if "name" not in x}
    assert exact.keys() == {"exact_log_evidence", "exact_mean_log_prob"}
    # Jensen: alpha log p averages to at least log Z under pi_alpha, whose entropy is not negative.
    assert exact["exact_log_evidence"] >= 4.0 * exact["exact_mean_log_prob"]


@pytest.mark.slow
def test_the_chain_is_given_about_the_tokens_of_the_particles(figures):
    tokens = {x["name"]: x["value"] for x in figures if x["metric"] == "model_tokens"}
    assert tokens["mh"] == pytest.approx(4 * 12, rel=0.25)


@pytest.mark.slow
def test_language_models_have_evidence_and_accuracy(tmp_path):
    small = {"swor_particles": (), "smc_particles": (), "mh_particles": ()}
    models = {
        "models": ("tiny-reasoner",),
        "text_models": ("nowhere",),
        "prompts": 2,
        "max_new_tokens": 8,
        "model_runs": 2,
        "smc_ramps": (0.0,),
        "model_smc_particles": (2,),
        "model_swor_particles": (2, 4),
        "model_mh_particles": (2,),
    }
    path = benchmark(config(**small, **models), str(tmp_path))
    lines = [json.loads(line) for line in path.read_text().splitlines() if "model" in line]
    got = {(x["name"], x["num_particles"], x["metric"]): x["value"] for x in lines if "name" in x}
    with_evidence = {key[:2] for key in got if key[2] == "mean_log_evidence"}
    assert with_evidence == {("smc", 2), ("swor", 2), ("swor", 4)}
    for name, num in with_evidence:
        assert got[name, num, "accuracy"] == 0.0, "eight tokens are too few for an answer"
        difference = got["swor", 4, "mean_log_evidence"] - got[name, num, "mean_log_evidence"]
        gaps = got[name, num, "estimated_gap"] - got["swor", 4, "estimated_gap"]
        assert gaps == pytest.approx(difference, abs=1e-6)
    assert got["swor", 4, "estimated_gap"] >= 0, "Jensen"
    assert ("mh", 2, "mean_log_prob") in got and ("mh", 2, "estimated_gap") not in got


@pytest.mark.slow
def test_without_replacement_spreads_less_and_has_a_small_gap(figures):
    def of(metric):
        return {(x["name"], x["ramp_share"]): x["value"] for x in figures if x["metric"] == metric}

    spread, gaps = of("sd_log_evidence"), of("gap")
    assert spread["swor", 0.0] < 0.1 * spread["smc", 0.0]
    assert abs(gaps["swor", 0.0]) < 0.05
    # On average a gap is not negative; the error is that of eight runs.
    assert all(gap > -5 * of("gap_error")[name] - 1e-3 for name, gap in gaps.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "spead"}, "config.benchmark is 'spead'; allowed are fidelity"),
        ({"alpha": 0.5}, "alpha is 0.5"),
        ({"runs": 1}, "config.runs is 1"),
        ({"kinds": ("odd",)}, "kind is 'odd'"),
        ({"swor_particles": (0,)}, "config.swor_particles is 0"),
        ({"entropies": (0.5, 9.0)}, "entropy is 9.0; it must lie between"),
        ({"entropies": ("x",)}, "entropy is 'x'; it must be a finite number"),
        ({"horizons": (12, 0)}, "config.horizons is 0"),
        ({"horizons": (8.0,)}, "config.horizons is 8.0"),
        ({"seeds": ("a",)}, r"seeds\[0\] is 'a'"),
        ({"seeds": (0, 0)}, "they must differ"),
        ({"seeds": (2**32,)}, "at most"),
        (
            {"smc_ramps": (-0.05,)},
            "config.smc_ramps is -0.05; .* of at least 0 and at most 1",
        ),
        ({"smc_ramps": ("a",)}, "config.smc_ramps is 'a'"),
        ({"swor_ramps": (float("inf"),)}, "config.swor_ramps is inf"),
        ({"models": ("nowhere",)}, "'nowhere' is neither a directory"),
        ({"models": (3,)}, "config.models is 3; it must be non-empty text"),
        ({"texts": ("fine", " ")}, "config.texts is ' '"),
        ({"texts": (), "text_models": ("nowhere",)}, "config.texts is empty"),
        ({"models": ("tiny-reasoner",), "max_new_tokens": 10**6}, "the model has .* positions"),
    ],
)
def test_bad_input_is_refused_before_any_work(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        benchmark(config(**changes), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_an_older_file_is_kept(tmp_path):
    (tmp_path / "fidelity.jsonl").write_text("older\n")
    with pytest.raises(ValueError, match="entropy"):
        benchmark(config(entropies=(9.0,)), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["fidelity.jsonl"]
    nothing = config(horizons=())
    benchmark(nothing, str(tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "fidelity.1.jsonl": "older\n",
        "fidelity.jsonl": "",
    }
