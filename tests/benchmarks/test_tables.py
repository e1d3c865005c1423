"""Tables and pictures of figures that are known."""

import json

import numpy as np
import pytest

from jax_power_smc.benchmarks import plots, records, tables
from jax_power_smc.report.tables import print_tables
from tests.paths import ROOT

PLACE = {"kind": "inhomogeneous", "horizon": 8, "entropy": 0.5}


def table_lines(name, num, ramp, seed, gap, error, log_prob):
    about = {**PLACE, "seed": seed, "name": name, "num_particles": num, "ramp_share": ramp}
    figures = {"gap": gap, "gap_error": error, "mean_log_prob": log_prob}
    return [{"metric": k, "value": v, **about} for k, v in figures.items() if v is not None]


LINES = [
    {"metric": "exact_mean_log_prob", "value": -5.0, **PLACE, "seed": 0},
    {"metric": "exact_mean_log_prob", "value": -7.0, **PLACE, "seed": 1},
    *table_lines("smc", 4, 0.25, 0, 2.0, 0.3, -6.0),
    *table_lines("smc", 4, 0.25, 1, 4.0, 0.4, -9.0),
    *table_lines("mh", 4, 0.0, 0, None, None, -5.5),
]
MODEL = {"model": "small", "prompts": 3, "max_new_tokens": 9, "num_particles": 2, "name": "swor"}


def test_figures_are_averaged_over_seeds():
    means = tables.mean_over_seeds(LINES)
    place = ("inhomogeneous", 8, 0.5)
    assert means["gap"] == {place: {"smc 4, ramp 0.25 T": (3.0, pytest.approx(0.25))}}
    short = means["shortfall"][place]
    # 1 and 2 nats short of what is exact for each seed.
    assert short["smc 4, ramp 0.25 T"] == (1.5, pytest.approx(0.5))
    assert short["mh 4"][0] == 0.5 and np.isnan(short["mh 4"][1])


def test_a_figure_that_is_not_finite_is_left_out():
    broken = [*LINES, {**LINES[-1], "seed": 1, "value": None}]
    # NaN is not equal to itself, its text is.
    assert str(tables.mean_over_seeds(broken)) == str(tables.mean_over_seeds(LINES))


def printed(made, capsys):
    print_tables(made)
    return capsys.readouterr().out


def test_the_tables_show_what_was_measured(capsys):
    model = [
        {"metric": "mean_log_evidence", "value": -12.5, **MODEL, "ramp_share": 0.0},
        {"metric": "accuracy", "value": 0.75, **MODEL, "ramp_share": 0.0},
        {"metric": "accuracy", "value": 0.5, **MODEL, "ramp_share": 0.5},
        {"metric": "mean_log_evidence", "value": None, **MODEL, "ramp_share": 0.5},
    ]
    text = printed(tables.fidelity([*LINES, *model]), capsys)
    assert "E[log Z_hat], nats" in text and "H 0.5" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["smc", "4,", "ramp", "0.25", "T", "3.00"] in rows
    assert ["smc", "4,", "ramp", "0.25", "T", "1.50"] in rows
    assert ["mh", "4", "0.50"] in rows
    assert "small: 3 prompts, T 9" in text
    assert ["swor", "2", "-12.50", "0.75"] in rows
    assert ["swor", "2,", "ramp", "0.5", "T", "0.50"] in rows


def recorded(name):
    return records.read(ROOT / "docs" / "records" / f"{name}.jsonl")


def test_every_section_of_the_recorded_speed_figures_has_a_table(capsys):
    figures = recorded("speed_cpu")
    text = printed(tables.speed(figures), capsys)
    assert all(made.rows for made in tables.speed(figures))
    place = ("50M", "swor", 512)
    found = {
        x["num_particles"]: x["value"]
        for x in figures
        if x["metric"] == "step_multiple"
        and (x["model"], x["sampler"], x["max_new_tokens"]) == place
    }
    shown = [f"{found[n]:.2f}" for n in sorted(found)]
    assert ["50M", "32", "512", "swor", *shown] in [line.split() for line in text.splitlines()]
    assert printed(tables.speed([]), capsys) == ""


def test_the_picture_is_drawn_only_from_tables(tmp_path):
    figures, picture = tmp_path / "lines.jsonl", tmp_path / "picture.png"
    figures.write_text(
        json.dumps({"metric": "accuracy", "value": 0.5, **MODEL, "ramp_share": 0.0}) + "\n"
    )
    plots.fidelity(figures, picture)
    assert not picture.exists()
    figures.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    plots.fidelity(figures, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
