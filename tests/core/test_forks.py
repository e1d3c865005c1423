"""Whether a process was forked after JAX was used; with JAX in use: tests/engine/test_engine.py."""

import subprocess
import sys

from tests.paths import ROOT

PROGRAM = """
import os, sys
from jax_power_smc.core.forks import refuse_forked

def in_child():
    child = os.fork()
    if not child:
        try:
            refuse_forked()
            refuse_forked()
        except RuntimeError as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

before = in_child()  # of a parent that has not used it, a child may
refuse_forked()
refuse_forked()  # the one that was first may go on
print(before, in_child())
"""


def test_only_a_child_of_a_process_that_used_it_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    sentence, codes = done.stdout.splitlines()
    assert codes == "0 1"
    assert sentence.startswith("this process was forked from one in which JAX was in use")
