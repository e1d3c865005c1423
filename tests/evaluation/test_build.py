"""What is built from a config: samplers in the order of the table, their labels, the target."""

import pytest

from jax_power_smc.evaluation import build, job_config
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_rules import StopBoxed, StopString


def paper(**changes):
    config = job_config.paper("owner/name", "qwen2", "math500")
    config.update(changes)
    return config


def test_plain_decoding_comes_first_however_it_is_called():
    config = job_config.default()
    entries = {
        "a": job_config.entry("swor", num_particles=4),
        "b": job_config.entry("smc", num_particles=4, ramp_tokens=2),
        "c": job_config.entry("smc", num_particles=4),
        "d": job_config.entry("ancestral", temperature=0.0),
        "e": job_config.entry("ancestral", num_samples=4),
        "f": job_config.entry("ancestral"),
    }
    config.samplers.update(entries)
    assert "".join(build.samplers(config)) == "fdecba"


@pytest.mark.parametrize(
    ("kind", "values", "label"),
    [
        ("ancestral", {}, "temperature 1"),
        ("ancestral", {"temperature": 0.25}, "temperature 1/4"),
        ("ancestral", {"temperature": 1 / 3}, "temperature 1/3"),
        ("ancestral", {"temperature": 0.6}, "temperature 0.6"),
        ("ancestral", {"temperature": 0.0}, "greedy"),
        ("ancestral", {"num_samples": 16}, "16 samples at temperature 1"),
        ("ancestral", {"num_samples": 16, "temperature": 0.25}, "16 samples at temperature 1/4"),
        ("mh", {}, "Metropolis-Hastings"),
        ("smc", {"num_particles": 3}, "Power-SMC"),
        ("smc", {"num_particles": 3, "ramp_tokens": 100}, "Power-SMC, ramp 100"),
        ("swor", {"num_particles": 3}, "without replacement"),
        ("swor", {"num_particles": 3, "label": "ours"}, "ours"),
    ],
)
def test_labels(kind, values, label):
    config = job_config.default()
    config.samplers.name = job_config.entry(kind, **values)
    assert build.labels(config)["name"] == label


# --- The target -------------------------------------------------------------------------------


def test_the_target_is_that_of_the_fields():
    config = paper(alpha=2.0, length="forced_eos", min_new_tokens=3, top_k=5, top_p=0.5)
    expected = PowerTarget(2.0, (7,), "forced_eos", min_new_tokens=3, top_k=5, top_p=0.5)
    assert build.target(config, (7,)) == expected
    assert build.target(paper(stop="boxed"), (7,)).stop == StopBoxed()
    assert build.target(paper(stop="\n\n"), (7,)).stop == StopString("\n\n")
