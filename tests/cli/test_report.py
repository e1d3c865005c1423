"""The report launcher: files out, and what it refuses."""

import json

import numpy as np
import pytest

from jax_power_smc.cli.report import report
from jax_power_smc.evaluation import claim, records
from jax_power_smc.evaluation.conditions import conditions_of
from jax_power_smc.report import plots
from tests.cli.command import assert_refused, call, outcomes
from tests.report import workdirs

PROBLEMS = ("algebra/1", "algebra/2", "number/3", "x")
# What is wrong -> what the sentence says.
BAD = {
    "no workdir": "Flag --workdir must have a value",
    "nothing there": "nothing is not the workdir of an evaluation.",
    "no records": "empty holds no finished item yet.",
    "damaged records": "line 1 of damaged/records.jsonl is not a record",
    "damaged config": "odd/config.json is not what a job wrote",
    "other records": "line 1 of other/records.jsonl is not a record as a job writes it (the",
    "wrong type": "line 1 of types/records.jsonl is not a record as a job writes it (info.ess is 7",
    "nested": "line 1 of nested/records.jsonl is not a record as a job writes it (its brackets are",
    "nested gold": "line 1 of gold/records.jsonl is not a record as a job writes it (its brackets",
    "types of a config": "config.json in config is not as this version of the package writes it (",
    "types of a summary": "config.json or summary.json in summary is not as this version of the",
    "nested summary": "deep/summary.json is not JSON (its brackets are nested too deeply)",
    "mixed records": "those of its job (plain, seed 0, 'algebra/1': model); they cannot share one",
    "earlier version": "earlier was written by an earlier version of this package, whose records",
    "close problem": "problem is 'algebra/7'; finished ones are 'algebra/2', 'algebra/1' and 2",
    "unknown problem": "problem is '?'; finished ones are 'algebra/1', 'algebra/2', 'number/3' and",
    "output is a file": "output is job/config.json, a file; it must be a directory.",
    "extra argument": "unexpected arguments: more",
}
FLAGS = {
    "no workdir": [],
    "nothing there": ["--workdir=nothing"],
    "no records": ["--workdir=empty"],
    "damaged records": ["--workdir=damaged"],
    "damaged config": ["--workdir=odd"],
    "other records": ["--workdir=other"],
    "wrong type": ["--workdir=types"],
    "nested": ["--workdir=nested"],
    "nested gold": ["--workdir=gold"],
    "types of a config": ["--workdir=config"],
    "types of a summary": ["--workdir=summary"],
    "nested summary": ["--workdir=deep"],
    "earlier version": ["--workdir=earlier"],
    "mixed records": ["--workdir=mixed"],
    "close problem": ["--workdir=job", "--problem=x", "--problem=algebra/7"],
    "unknown problem": ["--workdir=job", "--problem=?"],
    "output is a file": ["--workdir=job", "--output=job/config.json"],
    "extra argument": ["--workdir=job", "more"],
}


def write(directory, with_summary=True):
    config = workdirs.default_config(2)
    listed = workdirs.every_item(np.random.default_rng(0), config, PROBLEMS)
    return workdirs.write(directory, config, listed, PROBLEMS if with_summary else None)


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """name -> outcome of every command line that is wrong."""
    root = tmp_path_factory.mktemp("cli")
    write(root / "job")
    for name in ("empty", "damaged", "odd", "earlier"):
        workdirs.write(root / name, workdirs.default_config(2), [])
    (root / "damaged/records.jsonl").write_text('{"run": "smc"}\n')
    (root / "earlier/records.jsonl").write_text('{"run": "smc", "seed": 0, "id": "a"}\n')
    for name, mend in {
        "other": lambda record: {k: v for k, v in record.items() if k != "info"},
        "types": lambda record: record | {"info": record["info"] | {"ess": 7}},
        "gold": lambda record: record | {"gold": json.loads("[" * 600 + "]" * 600)},
        "mixed": lambda record: record | {"digest": record["digest"] | {"model": "0" * 12}},
    }.items():
        path = write(root / name) / "records.jsonl"
        first, *rest = path.read_text().splitlines(keepends=True)
        path.write_text("".join([json.dumps(mend(json.loads(first))) + "\n", *rest]))
    (root / "odd/config.json").write_text("[]")
    for name, file, part, value in (
        ("config", "config.json", "labels", 7),
        ("summary", "summary.json", "rows", [{"run": 3}]),
    ):
        path = write(root / name) / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    (write(root / "deep") / "summary.json").write_text("[" * 200_000)
    path = write(root / "nested") / "records.jsonl"
    path.write_text('{"id": ' + "[" * 200_000 + "]" * 200_000 + "}\n" + path.read_text())
    done = outcomes("report", FLAGS, root)
    assert not (root / "job/report").exists()
    return done


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, cli):
    assert_refused(cli[name], BAD[name])


def test_the_command_writes_the_page_and_its_plots(tmp_path):
    workdir = write(tmp_path / "job")
    code, out, err = call("report", f"--workdir={workdir}", "--problem=x")
    assert (code, err) == ("0", "")
    target = workdir / "report"
    lines = out.splitlines()
    assert any(line.startswith(" Power-SMC ") for line in lines)
    assert lines[-1].endswith(f"MB): {target / 'index.html'}")
    content = (target / "index.html").read_text()
    assert "Problem <bdi>x</bdi>" in content and "Problem <bdi>number/3</bdi>" not in content
    plots = sorted(path for path in target.iterdir() if path.name != "index.html")
    assert {path.suffix for path in plots} == {".png"} and f"{len(plots)} plots" in lines[-2]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in plots)
    assert content.count("data:image/png") == len(plots)


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes longest."""
    monkeypatch.setattr(plots, "figures", lambda data: [])
    monkeypatch.setattr(plots, "genealogy", lambda records, labels: [])


@pytest.mark.usefixtures("no_plots")
def test_an_unfinished_job_is_reported_elsewhere_and_again(tmp_path, capsys):
    workdir = write(tmp_path / "job", with_summary=False)
    before = sorted(path.name for path in workdir.iterdir())
    for _ in range(2):
        path = report(str(workdir), ["x", "x"], str(tmp_path / "new/out"))
    assert path == tmp_path / "new/out/index.html"
    assert "not finished: 24 items so far" in capsys.readouterr().out
    assert path.read_text().count("<h3 id=") == 1 + path.read_text().count('<h3 id="x')
    assert sorted(path.name for path in workdir.iterdir()) == before
    assert not list(path.parent.glob("*.tmp"))


@pytest.mark.usefixtures("no_plots")
def test_a_config_of_another_version_is_reported_without_a_table(tmp_path, capsys):
    workdir = write(tmp_path / "job", with_summary=False)
    held = json.loads((workdir / "config.json").read_text())
    held["config"]["samplers"]["smc"]["unknown"] = 1
    (workdir / "config.json").write_text(json.dumps(held | {"hash": claim.hash_of(held)}))
    made, path = conditions_of(held), workdir / "records.jsonl"
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    listed = [each | {"digest": made.digests(records.item_of(each))} for each in listed]
    path.write_text("".join(json.dumps(each) + "\n" for each in listed))
    content = report(str(workdir), ["x"]).read_text()
    assert "cannot be read by this version" in content
    assert "Power-SMC" not in capsys.readouterr().out
