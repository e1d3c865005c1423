"""The launcher of compiled programs: what it asks for, and what it writes."""

import json
import runpy

import pytest

from jax_power_smc.benchmarks import compiled
from jax_power_smc.cli.benchmark import benchmark
from tests.paths import ROOT

STEP = {"least": 4e9, "moved": 5e9, "seconds": 0.01, "share": 0.8, "moved_by_a_move": 3e6}
CHUNK = {
    "program": "decode_chunk",
    "versions": "jax 0",
    "compile_seconds": 12.5,
    "temporaries": 7_000_000,
    "kernels": 90,
    "collectives": 3,
    "collective_kinds": ["all-reduce f32[8]"],
    "copies": ["copy f32[8]", "copy f32[8]"],
    "full": STEP,
    "mixed": STEP,
}


def config(**changes):
    made = runpy.run_path(str(ROOT / "configs" / "compiled.py"))["get_config"]()
    made.update({"targets": ("v5e", "h200"), "rows": (16, 64), "layers": 2, **changes})
    return made


@pytest.fixture
def asked(monkeypatch):
    """The jobs, which nothing compiles, and the interpreters that would."""
    jobs = []

    def run(job, python):
        jobs.append((job, python))
        yield CHUNK
        yield {"program": "all", "versions": "jax 0", "planned": 11.0, "needed": 10.0}

    monkeypatch.setattr(compiled, "run", run)
    return jobs


def test_every_target_is_asked_in_its_environment(asked, tmp_path):
    given = config(python={"tpu": "a", "cuda": "b"}, keep_texts=True)
    benchmark(given, str(tmp_path))
    assert [(job.target, job.rows, job.prompts, python) for job, python in asked] == [
        *(("v5e", 16, 1, "a"), ("v5e", 64, 4, "a")),
        *(("h200", 16, 1, "b"), ("h200", 64, 4, "b")),
    ]
    job, _ = asked[0]
    assert (job.capacity, job.model["num_layers"], job.num_particles) == (2560, 2, 16)
    assert job.keep == str(tmp_path / "texts")


def test_figures_and_tables(asked, tmp_path, capsys):
    path = benchmark(config(targets=("h200",), rows=(16,)), str(tmp_path))
    figures = [json.loads(line) for line in path.read_text().splitlines()]
    (found,) = [x for x in figures if x["metric"] == "copies"]
    assert (found["value"], found["arrays"]) == (2, ["copy f32[8]"])
    assert {x["age"] for x in figures if x["metric"] == "share"} == {"full", "mixed"}
    (plan,) = [x for x in figures if x["metric"] == "planned"]
    assert (plan["program"], plan["value"], plan["unit"]) == ("all", 11, "bytes")
    assert all(x["target"] == "h200" and x["versions"] == "jax 0" for x in figures)
    text = capsys.readouterr().out
    assert "80.0%" in text and "4.00" in text and "7.0" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("tpu9",)}, "tpu9"),
        ({"programs": ("decode",)}, "decode"),
        ({"rows": (1,)}, "rows"),
        ({"max_new_tokens": 40_000}, "max_new_tokens"),
        ({"python": {"tpu": None, "cuda": ""}}, "config.python.tpu"),
    ],
)
def test_wrong_values_are_refused_before_any_work(asked, tmp_path, changes, message):
    given = config()
    if "python" in changes:
        given.python = changes["python"]
    else:
        given.update(changes)
    with pytest.raises(ValueError, match=message):
        benchmark(given, str(tmp_path))
    assert not asked and not list(tmp_path.iterdir())
