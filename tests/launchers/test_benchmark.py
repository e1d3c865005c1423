"""The benchmark launcher on settings small enough for a test."""

import json
import pathlib
import runpy

import pytest

from jax_power_smc.launchers.benchmark import benchmark

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).resolve().parents[2]


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
            "models": (),
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


def test_every_setting_has_every_figure(figures):
    settings = [("smc", 4, 0.0), ("smc", 4, 0.25), ("swor", 16, 0.0)]
    metrics = ["gap", "gap_error", "sd_log_evidence", "mean_log_prob"]
    got = [(x["name"], x["num_particles"], x["ramp_share"], x["metric"]) for x in figures]
    assert got == [(*setting, metric) for setting in settings for metric in metrics]
    assert all(x["unit"] == "nats" and x["device"].startswith("cpu") for x in figures)


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
        ({"benchmark": "speed"}, "config.benchmark is 'speed'; allowed are fidelity"),
        ({"alpha": 0.5}, "alpha is 0.5"),
        ({"runs": 1}, "config.runs is 1"),
        ({"kinds": ("odd",)}, "config.kinds is 'odd'"),
        ({"swor_particles": (0,)}, "num_particles is 0"),
        ({"models": ("nowhere",)}, "'nowhere' is neither a directory"),
    ],
)
def test_bad_input_is_refused_before_any_work(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        benchmark(config(**changes), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
