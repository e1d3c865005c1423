"""The fields of an evaluation, changed by flags as a user changes them."""

import dataclasses
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from jax_power_smc.evaluation import job_config
from jax_power_smc.evaluation.job_config import check
from jax_power_smc.samplers import Ancestral, MetropolisHastings, PowerSMC, WithoutReplacement
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_rules import StopBoxed, StopString
from tests.cli.command import ROOT

CONFIG = ROOT / "configs/math500_qwen25_math_7b.py"


def parsed(*arguments, config=CONFIG):
    """The config as the launchers get it."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    argv = ["program", f"--config={config}", *(f"--config.{a}" for a in arguments)]
    with pytest.MonkeyPatch.context() as patch:
        # It looks there for the fields that are given.
        patch.setattr(sys, "argv", argv)
        values(argv)
    return values.config


# --- Samplers ---------------------------------------------------------------------------------


def test_the_samplers_of_the_paper_in_the_order_of_the_table():
    config = parsed()
    assert list(job_config.samplers(config).items()) == [
        ("temperature_1", Ancestral(1.0)),
        ("low_temperature", Ancestral(0.25)),
        ("mh", MetropolisHastings(16, 10)),
        ("smc", PowerSMC(64, ess_threshold=0.5, ramp_tokens=100)),
        ("swor", WithoutReplacement(16)),
    ]
    assert (config.alpha, config.max_new_tokens, config.dtype) == (4.0, 2048, "bfloat16")


def test_a_shared_value_reaches_all_samplers():
    made = job_config.samplers(parsed("num_particles=8", "ramp_tokens=0", "ess_threshold=0.25"))
    assert made["smc"] == PowerSMC(8, ess_threshold=0.25)
    # It has an N of its own.
    assert made["swor"] == WithoutReplacement(16)
    assert job_config.samplers(parsed("alpha=2.0"))["low_temperature"] == Ancestral(0.5)


def test_a_value_of_one_sampler_reaches_no_other(tmp_path):
    both = tmp_path / "both.py"
    both.write_text(
        "from jax_power_smc.evaluation import job_config\n"
        "def get_config():\n"
        "    config = job_config.default()\n"
        "    for name, kind in (('a', 'smc'), ('b', 'swor'), ('c', 'smc')):\n"
        "        shared = job_config.shared(config, 'num_particles')\n"
        "        config.samplers[name] = job_config.entry(kind, **shared)\n"
        "    return config\n"
    )
    one = parsed("samplers.a.num_particles=32", config=both)
    assert [job_config.samplers(one)[name].num_particles for name in "abc"] == [32, 64, 64]
    assert one.num_particles == 64
    for order in (1, -1):
        arguments = ["num_particles=8", "samplers.a.num_particles=32"][::order]
        made = job_config.samplers(parsed(*arguments, config=both))
        assert [made[name].num_particles for name in "abc"] == [32, 8, 8]


def test_fields_that_are_none_can_be_set_by_flags():
    config = parsed(
        "limit=3", "dtype=float32", "chat=False", "top_p=0.9", "slots=2", "seeds=(1,2)",
        "data=a.json", "samplers.swor.explicit_children=5", "samplers.smc.order=published",
        "samplers.smc.proposal_temperature=0.5", "samplers.mh.label=chains",
    )  # fmt: skip
    check(config)
    made = job_config.samplers(config)
    assert (config.limit, config.chat, config.top_p, config.seeds) == (3, False, 0.9, (1, 2))
    assert made["swor"].explicit_children == 5
    assert made["smc"].proposal_temperature == 0.5 and made["smc"].order == "published"
    assert job_config.labels(config)["mh"] == "chains"


@pytest.mark.parametrize("kind", job_config.KINDS)
def test_an_entry_has_every_field_of_its_class(kind):
    needed = {"num_particles": 3} if kind in ("smc", "swor") else {}
    entry = job_config.entry(kind, **needed)
    assert {*entry} - {"kind", "label"} == {
        field.name for field in dataclasses.fields(job_config.KINDS[kind])
    }
    config = job_config.default()
    config.samplers.x = entry
    assert job_config.samplers(config) == {"x": job_config.KINDS[kind](**needed)}


# --- Dry runs ---------------------------------------------------------------------------------


def test_a_dry_run_is_small():
    small = parsed("seeds=(3,4)", "min_new_tokens=100", "samplers.swor.explicit_children=9")
    job_config.shrink(small)
    check(small)
    assert small.is_locked
    assert (small.limit, small.max_new_tokens, small.seeds) == (2, 16, (3,))
    assert small.min_new_tokens == 15 and small.dry_run and small.model == parsed().model
    assert job_config.samplers(small) == {
        "temperature_1": Ancestral(1.0),
        "low_temperature": Ancestral(0.25),
        "mh": MetropolisHastings(2, 1),
        "smc": PowerSMC(4, ramp_tokens=4),
        "swor": WithoutReplacement(4, explicit_children=4),
    }


def test_a_dry_run_never_grows():
    small = parsed(
        "limit=1", "max_new_tokens=1", "samplers.smc.num_particles=2", "ramp_tokens=0",
        "samplers.mh.num_blocks=1",
    )  # fmt: skip
    job_config.shrink(small)
    check(small)
    assert (small.limit, small.max_new_tokens) == (1, 1)
    made = job_config.samplers(small)
    assert made["smc"] == PowerSMC(2) and made["mh"] == MetropolisHastings(1, 1)


# --- The table's order and labels, and the target -------------------------------------------------


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
    assert "".join(job_config.samplers(config)) == "fdecba"


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
    assert job_config.labels(config)["name"] == label


# --- The target -------------------------------------------------------------------------------


def test_the_target_is_that_of_the_fields():
    config = paper(alpha=2.0, length="forced_eos", min_new_tokens=3, top_k=5, top_p=0.5)
    expected = PowerTarget(2.0, (7,), "forced_eos", min_new_tokens=3, top_k=5, top_p=0.5)
    assert job_config.target(config, (7,)) == expected
    assert job_config.target(paper(stop="boxed"), (7,)).stop == StopBoxed()
    assert job_config.target(paper(stop="\n\n"), (7,)).stop == StopString("\n\n")
