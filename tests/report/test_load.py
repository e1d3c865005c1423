"""What the report keeps of the records."""

import json

import numpy as np
import pytest

from jax_power_smc.report import load
from tests.report import workdirs

CONFIG = workdirs.default_config(2)


def test_an_item_keeps_numbers_of_the_particles_of_positive_weight(tmp_path):
    rng = np.random.default_rng(0)
    run = next(run for run in workdirs.runs_of(CONFIG) if run.name == "smc")
    flags = ({"loop": True, "note": "slow"}, {"finished": False, "very_short": True})
    parts = [workdirs.particle(rng, i, 3 + i, **own) for i, own in enumerate(flags)]
    one = workdirs.record(rng, run, 0, "a", particles=parts)
    for each, weight in zip(parts, (0.25, 0.75), strict=True):
        each["log_weight"] = float(np.log(weight))
    dead = workdirs.record(rng, run, 0, "b")
    for each in dead["particles"]:
        each["log_weight"] = None
    data = load.read_report(workdirs.write(tmp_path, CONFIG, [one, dead]))
    first, second = data.items_of("smc")
    assert first.weights == pytest.approx([0.25, 0.75]) and first.lengths.tolist() == [3, 4]
    assert (first.loops, first.very_short, first.unfinished) == pytest.approx((0.25, 0.75, 0.75))
    assert first.notes == ("slow",) and first.run == "smc"
    assert len(second.weights) == 0 and second.loops == 0 and second.scores.failed


def test_problems_are_read_in_the_order_in_which_they_are_named(tmp_path):
    records = workdirs.every_item(np.random.default_rng(0), CONFIG, "abc")
    data = load.read_report(workdirs.write(tmp_path, CONFIG, records, "abc"))
    got = load.read_problems(data, ["c", "a"])
    assert list(got) == ["c", "a"]
    for name, found in got.items():
        assert {each["run"] for each in found} == set(CONFIG.samplers)
        assert {each["id"] for each in found} == {name}


def test_a_config_that_was_edited_afterwards_is_refused(tmp_path):
    records = workdirs.every_item(np.random.default_rng(0), CONFIG, "ab")
    workdir = workdirs.write(tmp_path, CONFIG, records, "ab")
    held = json.loads((workdir / "config.json").read_text())
    held["config"]["alpha"] += 1
    (workdir / "config.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load.read_report(workdir)
