"""The sandbox: what a model-written program can and cannot do."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest

from jax_power_smc.grading import sandbox
from jax_power_smc.grading.sandbox import Sandbox
from jax_power_smc.grading.subprocesses import GradingError
from tests.grading.processes import is_alive, wait_until
from tests.paths import ROOT

SECONDS = 20.0


def test_nothing_outside_the_directory_is_changed(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("1")
    runner = Sandbox(SECONDS)
    test = "def check(candidate):\n    candidate()\n"
    for action in (
        f"open({os.fspath(kept)!r}, 'w')",
        f"__import__('os').remove({os.fspath(kept)!r})",
    ):
        assert not runner.passes(f"def f():\n    {action}\n", test, "f")
    assert runner.passes(f"def f():\n    open({os.fspath(kept)!r})\n", test, "f")
    assert kept.read_text() == "1"


def test_the_environment_is_empty_and_the_directory_its_own(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    code = """
        import os, sys
        def f():
            return os.environ.get("SECRET"), os.listdir(), sys.stdin.read()
    """
    test = "def check(f):\n    assert f() == (None, [], '')\n"
    assert Sandbox(SECONDS).passes(textwrap.dedent(code), test, "f")


def test_a_network_that_stays_reachable_is_warned_of_once(monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "_warned_of_network", threading.Event())
    monkeypatch.setattr(Sandbox, "_run", lambda self, job, directory: ["network"])
    for _ in range(2):
        assert not Sandbox(SECONDS).passes("", "", "f")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "network" in caplog.text


def test_a_sandbox_that_does_not_start_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "_PROGRAM", tmp_path / "absent.py")
    with pytest.raises(GradingError, match="its sandbox did not start"):
        Sandbox(SECONDS).passes("def f(): pass", "def check(f): pass", "f")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills them at once")
def test_programs_end_with_a_parent_that_is_killed(tmp_path):
    program = """
import threading, time
from jax_power_smc.grading.sandbox import Sandbox
sandbox = Sandbox(600.0)
loop = "def f():\\n    while True: pass\\n"
test = "def check(f): f()"
threading.Thread(target=sandbox.passes, args=(loop, test, "f"), daemon=True).start()
while sandbox._process is None:
    time.sleep(0.01)
time.sleep(1)  # by then it is running the loop
print(sandbox._process.popen.pid, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "TMPDIR": os.fspath(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until(lambda: not is_alive(pid))
