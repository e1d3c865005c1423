"""A SLURM cluster of this machine alone, all of whose files are in one directory."""

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
# Debian's daemons are where only root's PATH leads.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
_SECONDS = 60


def missing():
    """The programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=_PATH)]


class Slurm:
    """Submits jobs to the cluster and waits for them.

    Args:
      directory: with its files.
    """

    def __init__(self, directory):
        self.environment = {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": _PATH}

    def call(self, *command, **options):
        """What one of SLURM's commands printed."""
        environment = os.environ | self.environment | options.pop("environment", {})
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def state(self, job):
        """Of a job, such as "RUNNING" or "COMPLETED"."""
        fields = dict(
            field.split("=", 1)
            for field in self.call("scontrol", "--oneliner", "show", "job", job).split()
            if "=" in field
        )
        return fields["JobState"]

    def wait(self, job, seconds):
        """Until the job has ended; its last state."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            assert time.monotonic() < deadline, f"job {job} is still {state}"
            time.sleep(0.2)
        return state


@contextlib.contextmanager
def cluster():
    """Inside, the cluster runs."""
    # Not where pytest has its files: names of sockets must be short.
    directory = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
    daemons = []
    try:
        _configure(directory)
        slurm = Slurm(directory)
        configuration = directory / "slurm.conf"
        for command in (
            _munged(directory),
            ["slurmctld", "-D", "-f", configuration],
            ["slurmd", "-D", "-f", configuration],
        ):
            with (directory / f"{command[0]}.out").open("wb") as out:
                daemons.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | slurm.environment,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )
            time.sleep(0.5)
        _wait_until_ready(slurm, daemons, directory)
        yield slurm
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _munged(directory):
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    files = {"key-file": key}
    for name, ending in (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log")):
        files[name] = directory / f"munge.{ending}"
    files["seed-file"] = directory / "munge.seed"
    options = [f"--{name}={path}" for name, path in files.items()]
    return ["munged", "--foreground", "--force", *options]


def _configure(directory):
    directory.chmod(0o755)  # or munged refuses
    for name in ("state", "spool"):
        (directory / name).mkdir()
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    with socket.socket() as one, socket.socket() as other:
        one.bind(("localhost", 0))
        other.bind(("localhost", 0))
        control, node = one.getsockname()[1], other.getsockname()[1]
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={directory / 'munge.socket'}",
        "CredType": "cred/munge",
        "StateSaveLocation": directory / "state",
        "SlurmdSpoolDir": directory / "spool",
        "SlurmctldPidFile": directory / "slurmctld.pid",
        "SlurmdPidFile": directory / "slurmd.pid",
        "SlurmctldPort": control,
        "SlurmdPort": node,
        # Nothing that only root or a kernel with control groups can do.
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "MinJobAge": 3600,
    }
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    # Two tasks are to run at once, however few processors there are.
    text += f"NodeName={host} NodeAddr=127.0.0.1 CPUs={max(2, os.cpu_count())}\n"
    text += "PartitionName=all Nodes=ALL Default=YES State=UP\n"
    (directory / "slurm.conf").write_text(text)


def _wait_until_ready(slurm, daemons, directory):
    deadline = time.monotonic() + _SECONDS
    while True:
        said = "".join(path.read_text() for path in directory.glob("*.out"))
        assert all(daemon.poll() is None for daemon in daemons), said
        with contextlib.suppress(AssertionError):  # the controller does not answer yet
            if slurm.call("sinfo", "--noheader", "--format=%t").strip() == "idle":
                return
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
