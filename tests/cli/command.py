"""Runs a launcher's command line: once as its users do, or many times at the cost of one import."""

import json
import re
import subprocess
import sys

from tests.paths import ROOT

# Imports once and runs every case in a process of its own.
PROGRAM = """
import gc, importlib, json, os, sys
import transformers  # what takes longest, and a launcher imports late

launcher = importlib.import_module(sys.argv[1])
gc.freeze()  # or every process copies and collects what was imported, as it ends
for number, arguments in enumerate(json.loads(sys.argv[2])):
    child = os.fork()
    if not child:
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), fd)
        sys.argv = ["launcher", *arguments]
        launcher.run()
    with open(f"{number}.code", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


def outcomes(launcher, cases, directory):
    """name -> (exit code, stdout, stderr) of every case, run inside ``directory``.

    Args:
      launcher: name of a module of ``jax_power_smc.cli``.
      cases: name -> arguments.
      directory: an empty one.
    """
    module = f"jax_power_smc.cli.{launcher}"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, module, json.dumps(list(cases.values()))],
        cwd=directory,
        check=True,
        timeout=300,
    )
    return {
        name: tuple((directory / f"{i}.{kind}").read_text() for kind in ("code", "out", "err"))
        for i, name in enumerate(cases)
    }


def call(launcher, *arguments):
    """The real command line, from the root of the repository: (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{launcher}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return str(done.returncode), done.stdout, done.stderr


def assert_refused(outcome, message):
    """One sentence that contains ``message`` on stderr, exit code 2, and no traceback."""
    code, _, err = outcome
    assert code == "2", err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert not re.search(r"[.!?] [A-Z]", err)
    assert message in err
