"""A job that is interrupted at random moments ends with what an undisturbed one has.

    python -m tests.soak --kills=20 --seed=7

An evaluation of the embedded model is started again and again in one workdir. Each start but the
last is interrupted, the kinds in random order and as often as each other:

    SIGKILL, SIGTERM, SIGHUP    sent to the process
    full disk                   nothing fits any more into the tmpfs of the workdir
    lost process                of two that share the job, one is killed

The moments are drawn over the job's records, and one in four over the time of a start. Between two
starts no line that was there is gone or changed; at the end the records are those of an undisturbed
job, and so is the table but for seconds. Anything else ends the soak with exit code 1; its workdir
is then kept. Where no tmpfs can be mounted, a limit on the size of files stands in for a full one.
"""

import argparse
import contextlib
import os
import pathlib
import random
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.cli.pods import HANGS, Running, free_port
from tests.paths import ROOT
from tests.soak.workdir import SoakError, compare, items, lines

FULL, LOST = "full disk", "lost process"
KINDS = ("SIGKILL", "SIGTERM", "SIGHUP", FULL, LOST)
DISK_BYTES = 2**26
# The share of moments in the start of a job; of a process that is then too late, another is tried.
IN_START, TRIES = 0.25, 5
# Seconds after which a process that says nothing is lost.
SILENT = 10
# Set in the mount namespace that the soak runs in.
NAMESPACE = "SOAK_NAMESPACE"
CONFIG = """
import runpy

def get_config():
    config = runpy.run_path({tiny!r})["get_config"]()
    for name in set(config.samplers) - {samplers!r}:
        del config.samplers[name]
    return config
"""


def main():
    """Runs the soak that the command line describes; its exit code."""
    options = parse()
    enter_namespace()
    # A soak under nohup ignores it, and so would the jobs.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, disk(pathlib.Path(directory)) as small:
        soak = Soak(pathlib.Path(directory), small, options)
        try:
            soak.run()
        except SoakError as fault:
            kept = tempfile.mkdtemp(prefix="soak-")
            shutil.copytree(small, kept, dirs_exist_ok=True)
            print(f"FAILED with --seed={options.seed}: {fault}\nThe workdir is kept in {kept}.")
            return 1
        finally:
            soak.stop()
    print(f"As the undisturbed job; {time.monotonic() - began:.0f} s.")
    return 0


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=20, help="how many interruptions")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--samplers", default="temperature_1,smc,swor,mh")
    parser.add_argument("--limit", type=int, default=20, help="problems")
    parser.add_argument("--seeds", default="(0,1,2)", help="of the job")
    options = parser.parse_args()
    if options.kills < len(KINDS):
        parser.error(f"kills must be at least {len(KINDS)}, one of each kind")
    return options


def enter_namespace():
    """Continues in a mount namespace, if the system allows one: mounts in it end with it."""
    prefix = ["unshare", "--mount", "--map-root-user"]
    if NAMESPACE in os.environ or not shutil.which(prefix[0]):
        return
    if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
        os.environ[NAMESPACE] = "1"
        os.execvp(prefix[0], [*prefix, sys.executable, "-m", "tests.soak", *sys.argv[1:]])


@contextlib.contextmanager
def disk(directory):
    """A small tmpfs if it can be mounted, or else an ordinary directory."""
    place = directory / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", os.fspath(place)]
    is_mounted = NAMESPACE in os.environ and subprocess.run(mount).returncode == 0
    if not is_mounted:
        print("No tmpfs can be mounted here: a limit on the size of files stands in for it.")
    try:
        yield place
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", os.fspath(place)], check=True)


class Soak:
    """The job, and the interruptions of it.

    Args:
      root: a directory for the undisturbed job.
      small: the disk of the other one.
      options: see ``parse``.
    """

    def __init__(self, root, small, options):
        self._options, self._rng = options, random.Random(options.seed)
        self._reference, self._workdir = root / "undisturbed", small / "interrupted"
        self._config = root / "config.py"
        tiny, samplers = str(ROOT / "configs/tiny_reasoner.py"), set(options.samplers.split(","))
        self._config.write_text(CONFIG.format(tiny=tiny, samplers=samplers))
        self._total, self._start_seconds, self._item_seconds = 0, 0.0, 0.0
        self._processes = []

    def run(self):
        """All of it; raises ``SoakError``."""
        self._undisturbed()
        kills = self._options.kills
        kinds = [kind for _ in range(kills // len(KINDS) + 1) for kind in self._shuffled()][:kills]
        goals = sorted(self._rng.uniform(0, self._total) for _ in kinds)
        for number, (kind, goal) in enumerate(zip(kinds, goals, strict=True), start=1):
            print(f"{number:2} of {kills}: {kind}", end=" ", flush=True)
            self._interrupt(kind, int(goal))
        self._to_the_end()
        compare(self._workdir, self._reference)
        before = lines(self._workdir)
        self._to_the_end()  # once more, with nothing left to do
        expect(lines(self._workdir) == before, "a start with nothing to do changed the records")

    def stop(self):
        """Ends what still runs."""
        for process in self._processes:
            process.kill()

    def _shuffled(self):
        return self._rng.sample(KINDS, len(KINDS))

    def _undisturbed(self):
        began = time.monotonic()
        running = self._start(self._reference)
        first = None
        while running.processes[0].poll() is None:
            if first is None and lines(self._reference):
                first = time.monotonic() - began
            expect(time.monotonic() - began < 2 * HANGS, "the undisturbed job hangs")
            time.sleep(0.01)
        seconds = time.monotonic() - began
        expect(running.codes() == [0], f"the undisturbed job failed: {running.said()}")
        self._total = len(items(self._reference))
        self._start_seconds, self._item_seconds = first, (seconds - first) / self._total
        print(f"{self._total} items took {seconds:.0f} s, {first:.0f} s of them before the first")

    def _interrupt(self, kind, goal):
        """Starts the job, interrupts it, and looks at what it has left."""
        before = lines(self._workdir)
        for number in range(TRIES):
            running = self._start(self._workdir, 2 if kind == LOST else 1)
            moment, is_early = self._wait(running, kind, goal, self._start_seconds / 2**number)
            at = len(lines(self._workdir))
            if is_hit := self._hit(running, kind):
                break
            expect(self._ended_well(running), f"it ended before it was hit: {running.said()}")
        expect(is_hit, f"it ended before it was hit, {TRIES} times")
        codes, said = running.codes(), running.said()
        self._free()
        print(f"{moment}, at {at} of {self._total} records: exit codes {codes}", flush=True)
        expect(not running.left_at_the_end, f"processes are left: {running.left_at_the_end}")
        self._check_end(kind, codes, said, is_early)
        after = lines(self._workdir)
        expect(not set(before) - set(after), "lines are gone, or changed, that were written before")
        items(self._workdir)

    def _wait(self, running, kind, goal, most_seconds):
        """Until the moment has come, or the job has ended.

        Returns which moment it was, and whether the job may not have been at work yet.
        """
        # Of two processes, the start is long, and mostly a matter of JAX's runtime.
        is_early = self._rng.random() < IN_START and kind != LOST
        count = len(lines(self._workdir))
        if is_early or count >= self._total:
            seconds = self._rng.uniform(0, most_seconds)
            time.sleep(seconds)
            return f"{seconds:.2f} s after the start", True
        deadline = time.monotonic() + HANGS
        # One more record at least: this start has then begun to write.
        goal = min(max(goal, count + 1), self._total)
        while len(lines(self._workdir)) < goal and all(p.poll() is None for p in running.processes):
            expect(time.monotonic() < deadline, f"no {goal} records within {HANGS} s")
            time.sleep(0.005)
        time.sleep(self._rng.uniform(0, 2 * self._item_seconds))
        return f"for {goal} records", False

    def _hit(self, running, kind):
        """Does what the kind says; False if the job had ended before."""
        process = self._rng.choice(running.processes)
        if any(each.poll() is not None for each in running.processes):
            return False
        if kind == FULL:
            self._fill(process.pid)
        else:
            process.send_signal(signal.SIGKILL if kind == LOST else signal.Signals[kind])
        return True

    def _check_end(self, kind, codes, said, is_early):
        """Whether the processes ended as they must."""
        is_complete = len(lines(self._workdir)) == self._total
        text = f"{kind}: exit codes {codes}; {said}"
        if kind == "SIGKILL":
            expect(codes == [-signal.SIGKILL] or (codes == [0] and is_complete), text)
        elif kind == LOST:
            other = [code for code in codes if code != -signal.SIGKILL]
            told = any("lost, so all stop" in each for each in said)
            expect(len(other) == 1 and (is_complete or (other == [1] and told)), text)
        elif kind == FULL:
            told = "No space left on device" in said[0] or "File too large" in said[0]
            expect((codes == [2] and told) or (codes == [0] and is_complete), text)
        else:
            # Before the handler is there, and after it is gone, the signal ends any program.
            bare = codes == [-signal.Signals[kind]] and (is_early or is_complete)
            told = is_complete or "Stopped with" in said[0]
            expect(bare or (codes == [0] and told), text)
        expect("Traceback" not in "".join(said), text)

    def _ended_well(self, running):
        return set(running.codes()) == {0} and len(lines(self._workdir)) == self._total

    def _to_the_end(self):
        before = len(lines(self._workdir))
        running = self._start(self._workdir)
        expect(running.codes() == [0], f"the resumed job failed: {running.said()}")
        found = f"{before} of {self._total} items were finished by an earlier start"
        expect(not before or found in running.said()[0], f"it did not find {before} items")

    def _start(self, workdir, count=1):
        options = self._options
        values = {"limit": options.limit, "seeds": options.seeds, "slots": 3, "num_particles": 4}
        values["max_new_tokens"] = 256
        command = [
            *(sys.executable, "-m", "launch.evaluate", f"--config={self._config}"),
            *(f"--workdir={workdir}", f"--lost_seconds={SILENT}"),
            f"--compilation_cache={ROOT / '.pytest_cache/soak'}",
            *(f"--config.{name}={value}" for name, value in values.items()),
        ]
        commands = [command]
        if count > 1:
            shared = [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"]
            commands = [[*command, *shared, f"--process_id={i}"] for i in range(count)]
        running = Running(commands)
        self._processes = running.processes
        return running

    def _fill(self, process):
        """Nothing more can be written to the workdir."""
        if not os.path.ismount(self._workdir.parent):
            sizes = [path.stat().st_size for path in self._workdir.glob("records*.jsonl")]
            most = max(sizes, default=0) + self._rng.randrange(2000)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (most, most))
            return
        with open(self._workdir.parent / "filler", "wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def _free(self):
        (self._workdir.parent / "filler").unlink(missing_ok=True)


def expect(condition, text):
    """``SoakError`` unless the condition holds."""
    if not condition:
        raise SoakError(text)


if __name__ == "__main__":
    sys.exit(main())
