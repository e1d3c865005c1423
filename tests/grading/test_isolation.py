"""The boundary around code that a model wrote: escapes, each with a canary outside."""

import ctypes
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import textwrap

import pytest

from jax_power_smc.grading import isolation, syscall_filter
from jax_power_smc.grading.sandbox import Sandbox
from tests.grading import escapes
from tests.grading.isolated import IN_TMP, needs_bubblewrap
from tests.paths import ROOT

SECONDS = 60.0
SECRET = "secret"
# An escape that raises has failed, too.
TEST = """
def check(attempt):
    try:
        found = attempt()
    except Exception:
        found = False
    assert found is True or isinstance(found, str) and "secret" in found
"""
# Another process of the user: it listens, and says so when it was reached.
PROCESS = """
import socket, sys
tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
tcp.bind(("127.0.0.1", 0))
unix.bind("\\0" + sys.argv[1])
for each in (tcp, unix):
    each.listen()
print(tcp.getsockname()[1], flush=True)
sys.stdin.read()
"""


class Canary:
    """What must not be reached: a file, a process with sockets, a shared memory segment."""

    def __init__(self, folder):
        self.file = folder / "canary"
        self.file.write_text(SECRET)
        self.key = os.getpid()
        self.abstract = f"psmc-{os.getpid()}-{folder.name}"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROCESS, self.abstract],
            env={"OTHER": SECRET},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.port = int(self.process.stdout.readline())
        self.limits = self._limits()

    def attempt(self, body, code_isolation):
        """Whether the program says that it has escaped."""
        known = {"canary": os.fspath(self.file), "pid": self.process.pid, "key": self.key}
        known |= {"port": self.port, "abstract": self.abstract}
        known |= {"SYS": syscall_filter.refused(platform.machine())}
        code = "import ctypes, os, socket, sys, time\n"
        code += "".join(f"{name} = {value!r}\n" for name, value in known.items())
        code += "def attempt():\n" + textwrap.indent(textwrap.dedent(body), "    ")
        return Sandbox(SECONDS, code_isolation).passes(code, "", TEST, "attempt")

    def is_untouched(self):
        return (
            sorted(os.listdir(self.file.parent)) == ["canary"]
            and self.file.read_text() == SECRET
            and self.file.stat().st_nlink == 1
            and self.process.poll() is None
            and self._limits() == self.limits
            and ctypes.CDLL(None).shmget(self.key, 0, 0) < 0
        )

    def _limits(self):
        return pathlib.Path(f"/proc/{self.process.pid}/limits").read_text()

    def close(self):
        segment = ctypes.CDLL(None).shmget(self.key, 0, 0)
        if segment >= 0:
            ctypes.CDLL(None).shmctl(segment, 0, None)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def canary(tmp_path):
    made = Canary(tmp_path)
    yield made
    made.close()


@needs_bubblewrap
@pytest.mark.parametrize("name", [*escapes.WORKING, *escapes.OTHERS])
def test_nothing_escapes(name, canary):
    body = (escapes.WORKING | escapes.OTHERS)[name]
    assert not canary.attempt(body, isolation.BUBBLEWRAP)
    assert canary.is_untouched()


@pytest.mark.skipif(sys.platform != "linux", reason="the escapes are for Linux")
@pytest.mark.parametrize("name", escapes.WORKING)
def test_the_escapes_work_in_an_ordinary_process(name, canary):
    assert canary.attempt(escapes.WORKING[name], isolation.NONE)


@needs_bubblewrap
def test_only_the_system_and_python_are_there():
    code = """
        import os
        def f(top, allowed):
            found = []
            for at, folders, names in os.walk(top):
                if at in allowed:
                    folders.clear()
                else:
                    found += [os.path.join(at, name) for name in names]
            return found, os.listdir(), dict(os.environ), os.getcwd()
    """
    home = str(pathlib.Path.home())
    allowed = (*isolation.libraries(), os.path.join(os.path.realpath(sys.base_prefix), "lib"))
    test = f"""
def check(f):
    files, here, environment, folder = f({home!r}, {allowed!r})
    assert not [path for path in files if path != {isolation.interpreter()[0]!r}]
    assert set(here) <= {IN_TMP!r} and folder == "/tmp"
    assert set(environment) == {{"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PWD", "LC_CTYPE"}}
    assert f({os.fspath(ROOT / "tests")!r}, [])[0] == []
    """
    assert Sandbox(SECONDS).passes(textwrap.dedent(code), "", textwrap.dedent(test), "f")


@needs_bubblewrap
def test_installed_packages_can_be_used():
    code = "import numpy as np\ndef f(x):\n    return np.sum(np.array(x))\n"
    assert Sandbox(SECONDS).passes(code, "", "def check(f):\n    assert f([1, 2]) == 3\n", "f")


@needs_bubblewrap
def test_the_isolation_works_here():
    isolation.check(isolation.BUBBLEWRAP)


def test_a_machine_without_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    isolation.check(isolation.NONE)
    with pytest.raises(
        ValueError, match=r"apt-get install bubblewrap.*--config\.code_isolation=no"
    ):
        isolation.check(isolation.BUBBLEWRAP)


def test_a_machine_on_which_it_fails_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create a new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: os.fspath(broken))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(ValueError, match=r"does not work here \(No permissions to create"):
        isolation.check(isolation.BUBBLEWRAP)
    broken.unlink()
    with pytest.raises(ValueError, match=r"does not work here \(.*No such file"):
        isolation.check(isolation.BUBBLEWRAP)


def test_an_unknown_machine_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/bwrap")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ValueError, match=r"this machine \(riscv64\) has no list of system calls"):
        isolation.check(isolation.BUBBLEWRAP)


def test_other_kinds_are_refused():
    with pytest.raises(
        ValueError, match="code_isolation is 'docker'; allowed are bubblewrap, none"
    ):
        isolation.check("docker")
