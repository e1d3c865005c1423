"""Evaluations by several processes of this machine: how they are started and what they recorded."""

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
from tests.evaluation import tiny
from tests.launchers.command import ROOT

# The last sampler's chains run in batches, the others' prompts in slots.
RUNS = ("temperature_1", "smc", "swor", "mh")
# No number of processes that is tried divides it.
LIMIT = 7
# Seconds after which a process that says nothing is lost, and after which a run hangs.
LOST, HANGS = 10, 300
# In the environment of everything that a run has started.
MARK = "PODS_TEST"
SMALL = {"num_particles": 4, "max_new_tokens": 16, "limit": LIMIT}


class Pods:
    """Starts evaluations, all of one model and one config.

    Args:
      root: a directory for both.
    """

    def __init__(self, root):
        # Its answers depend on all of the prompt, so that a mix-up of any kind would show; two
        # heads of each kind, so that it can be cut in two.
        self.model = tiny.write_random(root / "model", num_kv_heads=2)
        self.config = root / "config.py"
        self.config.write_text(
            f"import runpy\n\ndef get_config():\n"
            f"    config = runpy.run_path({str(ROOT / 'configs/tiny_reasoner.py')!r})\n"
            f"    config = config['get_config']()\n"
            f"    for name in set(config.samplers) - {set(RUNS)!r}:\n"
            f"        del config.samplers[name]\n"
            f"    config.samplers.mh.num_blocks = 4\n"
            f"    config.samplers.mh.moves_per_block = 2\n"
            f"    return config\n"
        )
        self._compiled = root / "compiled"

    def command(self, workdir, *flags, **values):
        """The command line of an evaluation, fields of the config changed to ``values``."""
        fields = {"model": self.model} | SMALL | values
        return [
            *(sys.executable, "-m", "launch.evaluate", f"--config={self.config}"),
            *(f"--workdir={workdir}", f"--compilation_cache={self._compiled}"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *(f"--lost_seconds={LOST}", *flags),
        ]

    def alone(self, workdir, **values):
        """One process does it; what it printed."""
        run = Running([self.command(workdir, **values)])
        assert run.codes() == [0], run.said()
        return run.said()[0]

    def together(self, workdir, count, *flags, start=None, devices=1, **values):
        """Several processes do it; those of ``start`` only, if not all."""
        port = free_port()
        commands = [
            self.command(
                workdir,
                *(f"--coordinator=localhost:{port}", f"--num_processes={count}"),
                *(f"--process_id={index}", *flags),
                **values,
            )
            for index in (range(count) if start is None else start)
        ]
        return Running(commands, devices)


class Running:
    """Processes that were started together.

    Args:
      commands: of each.
      devices: that each of them sees.
    """

    def __init__(self, commands, devices=1):
        self._mark = uuid.uuid4().hex
        environment = os.environ | {
            MARK: self._mark,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
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
                self.end()
        return self._said

    def said(self):
        """All that each has printed, when all of them have ended."""
        return [out + err for out, err in self.outputs()]

    def left(self):
        """Ids of the processes that are still there, descendants of any degree too."""
        found = []
        mark = f"{MARK}={self._mark}".encode()
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    # What has ended and waits for its parent has no environment any more.
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
        return found

    def end(self):
        """Kills what is still there."""
        for process in self.left():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue


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
    """Item -> its record without the seconds; every line must be whole, and no item twice."""
    found = {}
    for name in shards(workdir):
        text = (pathlib.Path(workdir) / name).read_text()
        assert text.endswith("\n") or not text
        for record in map(json.loads, text.splitlines()):
            del record["seconds"]
            item = records.item_of(record)
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


def assert_same(workdir, reference):
    """The records of a workdir are those of another, the tokens exactly."""
    ours, theirs = read(workdir), read(reference)
    assert ours.keys() == theirs.keys()
    for item, record in ours.items():
        for own, other in zip(record["particles"], theirs[item]["particles"], strict=True):
            assert own["tokens"] == other["tokens"], item
        assert rounded(record) == theirs[item], item
