"""Evaluations by several processes of this machine: how they are started and what they recorded."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import uuid

import pytest

from jax_power_smc.evaluation import records
from jax_power_smc.evaluation.conditions import conditions_of
from tests.cli.command import ROOT
from tests.evaluation import tiny

# The last sampler's chains run in batches, the others' prompts in slots.
RUNS = ("temperature_1", "smc", "swor", "mh")
# Enough where there are many processes: each of them compiles for itself.
FEW = ("smc", "mh")
# No number of processes that is tried divides it.
LIMIT = 7
# Seconds after which a process that says nothing is lost, and after which a run hangs.
LOST, HANGS = 10, 300
# In the environment of everything that a run has started.
MARK = "PODS_TEST"
SMALL = {"num_particles": 4, "max_new_tokens": 16, "slots": 2, "limit": LIMIT}


class Pods:
    """Starts evaluations of one model.

    Args:
      root: a directory for it.

    Attributes:
      model: its directory.
    """

    def __init__(self, root):
        self._root = root
        # Its answers depend on all of the prompt, so that a mix-up of any kind would show; two
        # heads of each kind, so that it can be cut in two.
        self.model = tiny.write_random(root / "model", num_kv_heads=2)

    def command(self, workdir, *flags, runs=RUNS, **values):
        """The command line of an evaluation, fields of the config changed to ``values``."""
        config = self._root / f"{'-'.join(runs)}.py"
        config.write_text(
            f"import runpy\n\ndef get_config():\n"
            f"    config = runpy.run_path({str(ROOT / 'configs/tiny_reasoner.py')!r})\n"
            f"    config = config['get_config']()\n"
            f"    config.samplers.mh.update(num_blocks=4, moves_per_block=2)\n"
            f"    for name in set(config.samplers) - {set(runs)!r}:\n"
            f"        del config.samplers[name]\n"
            f"    return config\n"
        )
        fields = {"model": self.model} | SMALL | values
        return [
            *(sys.executable, "-m", "launch.evaluate", f"--config={config}"),
            *(f"--workdir={workdir}", f"--lost_seconds={LOST}"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *flags,
        ]

    def alone(self, workdir, **values):
        """One process does it; what it printed."""
        run = Running([self.command(workdir, **values)])
        assert run.codes() == [0], run.said()
        return run.said()[0]

    def together(self, workdir, count, *flags, start=None, devices=1, odd=None, **values):
        """Several processes do it; those of ``start`` only, if not all.

        ``odd`` are values that only the last one has.
        """
        port = free_port()
        commands = [
            self.command(
                workdir,
                *(f"--coordinator=localhost:{port}", f"--num_processes={count}"),
                *(f"--process_id={index}", *flags),
                **values | ((odd or {}) if index == count - 1 else {}),
            )
            for index in (range(count) if start is None else start)
        ]
        return Running(commands, devices)


class Running:
    """Processes that were started together.

    Args:
      commands: of each.
      devices: that each of them sees.

    Attributes:
      left_at_the_end: processes that were still there when these had ended, descendants of any
        degree too.
    """

    def __init__(self, commands, devices=1):
        self._mark = uuid.uuid4().hex
        environment = environment_of(devices) | {MARK: self._mark}
        self.processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command in commands
        ]
        self._said = None
        self.left_at_the_end = []

    def codes(self):
        """Exit codes, when all of them have ended."""
        self.said()
        return [process.returncode for process in self.processes]

    def outputs(self):
        """(stdout, stderr) of each, when all of them have ended."""
        if self._said is None:
            try:
                self._said = [process.communicate(timeout=HANGS) for process in self.processes]
            finally:
                self.left_at_the_end = marked(self._mark)
                for process in self.left_at_the_end:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
        return self._said

    def said(self):
        """All that each has printed, when all of them have ended."""
        return [out + err for out, err in self.outputs()]


def environment_of(devices):
    """In which a process sees so many devices, and compiles quickly."""
    return os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def marked(mark):
    """Ids of the processes that have it in their environment."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        # What has ended and waits for its parent has no environment any more.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (
                entry / "environ"
            ).read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def free_port():
    """One that nobody listens at."""
    with socket.socket() as chosen:
        chosen.bind(("localhost", 0))
        return chosen.getsockname()[1]


def shards(workdir):
    """Names of the files of records."""
    return sorted(path.name for path in pathlib.Path(workdir).glob("records*.jsonl"))


def written(workdir):
    """Records so far."""
    files = pathlib.Path(workdir).glob("records*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in files)


def wait_for(workdir, count, running):
    """Until so many records are there, and the processes are still at work."""
    deadline = time.monotonic() + HANGS
    while written(workdir) < count:
        assert all(process.poll() is None for process in running.processes), running.said()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read(workdir):
    """Item -> its record without seconds; lines must be whole, and no item twice."""
    found = {}
    made = conditions_of(json.loads((pathlib.Path(workdir) / "config.json").read_text()))
    for name in shards(workdir):
        text = (pathlib.Path(workdir) / name).read_text()
        assert text.endswith("\n") or not text
        for record in map(json.loads, text.splitlines()):
            del record["seconds"]
            item = records.item_of(record)
            assert record["digest"] == made.digests(item)
            assert item not in found, f"{item} was recorded twice"
            found[item] = record
    return found


def rounded(value):
    """Numbers that may differ a little: the order of a sum depends on the company."""
    if isinstance(value, dict):
        return {name: rounded(x) for name, x in value.items()}
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def assert_same(workdir, reference, runs=RUNS):
    """The records of a workdir are those of another with these runs, the tokens exactly."""
    ours, theirs = read(workdir), read(reference)
    assert sorted(ours) == sorted(item for item in theirs if item[0] in runs)
    for item, record in ours.items():
        for own, other in zip(record["particles"], theirs[item]["particles"], strict=True):
            assert own["tokens"] == other["tokens"], item
        assert rounded(record) == theirs[item], item
