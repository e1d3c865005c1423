"""A job that is killed again and again ends with the records of an undisturbed one."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from jax_power_smc.evaluation import records
from tests.cli.command import ROOT
from tests.evaluation import tiny

KILLS, LIMIT, SEEDS = 10, 24, (0, 1, 2)
RUNS = ("samples", "mh", "smc", "swor")
TOTAL = LIMIT * len(SEEDS) * len(RUNS)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A function of a workdir: starts the job there."""
    root = tmp_path_factory.mktemp("killed")
    # Its answers depend on all of the prompt, so that a mix-up of any kind would show.
    model = tiny.write_random(root / "model")
    config = root / "config.py"
    config.write_text(
        f"import runpy\n\ndef get_config():\n"
        f"    config = runpy.run_path({str(ROOT / 'configs/tiny_reasoner.py')!r})['get_config']()\n"
        f"    for name in set(config.samplers) - {set(RUNS)!r}:\n"
        f"        del config.samplers[name]\n"
        f"    return config\n"
    )
    values = {
        "model": model,
        "limit": LIMIT,
        "seeds": SEEDS,
        "num_particles": 4,
        "max_new_tokens": 24,
        "slots": 3,
    }
    flags = [f"--config.{name}={value}" for name, value in values.items()]

    def start(workdir, *more):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.evaluate", f"--config={config}"),
                *(f"--workdir={workdir}", f"--compilation_cache={root / 'compiled'}", *flags),
                *more,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def written(workdir):
    """Records so far."""
    path = pathlib.Path(workdir) / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def finish(process, code=0):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == code, out
    return out


def read(workdir):
    """Item -> its record without the seconds; every line must be whole, and no item twice."""
    lines = (workdir / "records.jsonl").read_text().splitlines()
    found = {}
    for record in map(json.loads, lines):
        del record["seconds"]
        item = records.item_of(record)
        assert item not in found, f"{item} was recorded twice"
        found[item] = record
    return found


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(x) for name, x in value.items()}
    if isinstance(value, list):
        return [rounded(x) for x in value]
    # Prompts enter at other clocks after a restart: another order of the same sums.
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def test_ten_kills_at_random_moments_change_nothing(command, tmp_path):
    finish(command(tmp_path / "undisturbed"))
    undisturbed = read(tmp_path / "undisturbed")
    assert len(undisturbed) == TOTAL
    rng, workdir = random.Random(0), tmp_path / "killed"
    before = 0
    for kill in range(KILLS):
        process = command(workdir)
        # At a random share of what the remaining kills leave to do, and at any point of an item.
        share = (TOTAL - before) * rng.uniform(0.2, 1.0) / (KILLS - kill)
        goal = before + int(share) if kill else 0  # the first one while it starts
        deadline = time.monotonic() + 240
        while written(workdir) < goal and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03) if kill else rng.uniform(0, 2))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was through before it was killed"
        before = written(workdir)
    assert 0 < before < TOTAL
    out = finish(command(workdir))
    assert f"{before} of {TOTAL} items were finished" in out
    killed = read(workdir)
    assert killed.keys() == undisturbed.keys()
    for item, record in killed.items():
        assert rounded(record) == undisturbed[item], item


@pytest.mark.parametrize("code", [0, 75])
def test_a_job_that_is_terminated_ends_well_and_says_how_to_go_on(command, tmp_path, code):
    process = command(tmp_path, f"--stopped_exit_code={code}")
    while written(tmp_path) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out = finish(process, code)
    count = written(tmp_path)
    assert 5 <= count < TOTAL
    assert f"Stopped with {count} of {TOTAL} items finished; the same command resumes it." in out
