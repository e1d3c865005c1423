"""The sandbox: that a verdict cannot be forged, and that nothing outlives it."""

import os
import subprocess
import sys
import textwrap

import pytest

from jax_power_smc.core.subprocesses import WorkerError
from jax_power_smc.grading import isolation, sandbox
from jax_power_smc.grading.sandbox import Sandbox
from tests.grading.isolated import HERE, IN_TMP, needs_bubblewrap
from tests.grading.processes import is_alive, wait_until
from tests.paths import ROOT

SECONDS = 60.0
BOTH = [pytest.param(isolation.BUBBLEWRAP, marks=needs_bubblewrap), isolation.NONE]
HELPERS = "import math\n\ndef twice(x):\n    return 2 * x\n"
TEST = """
def check(candidate):
    for x in (1, 2, 30):
        assert candidate(x) == twice(x)
        assert not candidate(x) != twice(x)
"""

# Each is a whole program that does not solve the problem.
FORGERIES = {
    "exits early": "import os\nos._exit(0)\n",
    "exits when called": "import os\ndef f(x):\n    os._exit(0)\n",
    "raises SystemExit": "def f(x):\n    raise SystemExit(0)\n",
    "exits in an atexit hook": """
        import atexit, sys
        atexit.register(sys.exit, 0)
        def f(x):
            sys.exit(0)
    """,
    "prints the verdict": """
        import os
        for fd in range(64):
            try:
                os.write(fd, b"started\\npassed\\n")
            except OSError:
                pass
        os._exit(0)
    """,
    "prints the verdict, later": """
        def f(x):
            import os
            for fd in range(64):
                try:
                    os.write(fd, b"passed\\n")
                except OSError:
                    pass
    """,
    "equals everything": """
        class Any(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __index__(self): return self
        def f(x):
            return Any(0)
    """,
    "equals everything, a list": """
        class Any(list):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
        def f(x):
            return Any()
    """,
    "equals everything, and is not plain": """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
        def f(x):
            return Any()
    """,
    "changes the helpers": """
        twice = int
        def f(x):
            return x
    """,
    "changes builtins": """
        import builtins, sys
        builtins.AssertionError = ValueError
        builtins.__build_class__ = builtins.compile = builtins.exec = lambda *args, **named: None
        sys.settrace(lambda *args: None)
        def f(x):
            return x
    """,
    "changes the module of the test": """
        import sys
        for module in list(sys.modules.values()):
            try:
                module.check = module.judge = module.end = lambda *args: None
                module.FAILED = module.ABSENT = "passed"
            except Exception:
                pass
        def f(x):
            return x
    """,
    "walks the frames": """
        import sys
        def f(x):
            frame, found = sys._getframe(), []
            while frame:
                found += [*frame.f_locals.values(), *frame.f_globals.values()]
                frame = frame.f_back
            for each in found:
                if callable(getattr(each, "write", None)):
                    try:
                        each.write(b"passed\\n")
                        each.flush()
                    except Exception:
                        pass
            raise SystemExit
    """,
    "looks for the test in memory": """
        import gc
        def f(x):
            for each in gc.get_objects():
                if isinstance(each, dict) and any("assert candidate" in str(v) for v in each):
                    return 2 * x
    """,
    "answers ahead": """
        import gc, io
        def f(x):
            for each in gc.get_objects():
                if isinstance(each, io.BufferedWriter):
                    for _ in range(9):
                        each.write(b'["returned", true, ["list"]]\\n')
            return 0
    """,
    "answers nothing": """
        def f(x):
            pass
    """,
}

# What the candidate's process sends instead of an answer.
ANSWERS = {
    "nothing": "b''",
    "an empty line": "b'\\n'",
    "no JSON": "b'passed\\n'",
    "an object": "b'{}\\n'",
    "something else": 'b\'["returned", {"a": 1}, ["list"]]\\n\'',
    "too few parts": "b'[\"returned\"]\\n'",
    "unknown kind": 'b\'["returned", ["eval", "1"], ["list"]]\\n\'',
    "kind that is a list": 'b\'["returned", [[], 1], ["list"]]\\n\'',
    "malformed dict": 'b\'["returned", ["dict", 1], ["list"]]\\n\'',
    "unhashable": 'b\'["returned", ["set", ["list"]], ["list"]]\\n\'',
    "exit as an exception": 'b\'["SystemExit", "", ["list"]]\\n\'',
    "function as an exception": 'b\'["print", "", ["list"]]\\n\'',
    "number as an exception": 'b\'[5, "", ["list"]]\\n\'',
    "deep": "b'[' * 10**6 + b']' * 10**6 + b'\\n'",
    "long": "b'\"' + b'x' * 2**25 + b'\"\\n'",
    "endless": "b'[' * 2**26",
    "digits": "b'[\"returned\", ' + b'9' * 10**6 + b', [\"list\"]]\\n'",
    "not UTF-8": 'b\'["returned", "\\xff", ["list"]]\\n\'',
    "huge range": 'b\'["returned", ["list", ["iterator", ["range", 0, 1]]], 7]\\n\'',
}


def judged(code, code_isolation=HERE, helpers=HELPERS, test=TEST):
    return Sandbox(SECONDS, code_isolation).passes(textwrap.dedent(code), helpers, test, "f")


@pytest.mark.parametrize("code_isolation", BOTH)
def test_right_programs_pass(code_isolation):
    assert judged("def f(x):\n    return x + x\n", code_isolation)


@pytest.mark.parametrize("name", FORGERIES)
def test_verdicts_cannot_be_forged(name):
    assert not judged(FORGERIES[name])


@pytest.mark.parametrize("name", ANSWERS)
def test_only_plain_data_is_an_answer(name):
    # If the judge took any of these for an exception or a value, this test would pass.
    test = "def check(f):\n    try:\n        f(1)\n    except BaseException:\n        pass\n"
    code = f"""
        import gc, io, os
        def f(x):
            for each in gc.get_objects():
                if isinstance(each, io.BufferedWriter):
                    each.write({ANSWERS[name]})
                    each.flush()
            os._exit(0)
    """
    assert not judged(code, test=test)
    assert judged(code.replace(ANSWERS[name], 'b\'["KeyError", "", ["list"]]\\n\''), test=test)


def test_tests_see_what_the_function_does():
    code = """
        def f(what, *args, **named):
            if what == "raise":
                raise KeyError("no")
            if what == "own":
                raise type("Own", (LookupError,), {})("mine")
            if what == "unicode":
                b"\\xff".decode()
            if what == "sort":
                args[0].sort()
                args[1]["new"] = {1, 2}
                args[2].clear()
            return args, named
    """
    test = """
def raised(*args):
    try:
        candidate(*args)
    except Exception as error:
        return type(error), error.args

def check(given):
    global candidate
    candidate = given
    assert raised("raise") == (KeyError, ("'no'",))
    assert raised("own") == (LookupError, ("mine",))
    assert raised("unicode")[0] is UnicodeDecodeError
    values, table, some = [3, 1, 2], {}, {5}
    candidate("sort", values, table, some)
    assert values == [1, 2, 3] and table == {"new": {1, 2}} and some == set()
    assert candidate("echo", 1, a=(2,)) == ((1,), {"a": (2,)})
    assert f("echo", 1.5) == ((1.5,), {})
"""
    assert judged(code, helpers="", test=test)


def test_a_function_cannot_be_passed_to_the_program():
    with pytest.raises(WorkerError, match="its tests pass something to the function that is not"):
        judged("def f(x):\n    return 1\n", test="def check(f):\n    f(lambda: 1)\n")


@pytest.mark.parametrize("test", ["", "def check(:", "def check(f):\n    raise SystemExit\n"])
def test_a_test_that_ends_in_another_way_fails(test):
    assert not judged("def f(x):\n    return 1\n", test=test)


@pytest.mark.parametrize("code_isolation", BOTH)
def test_the_environment_is_empty_and_the_directory_its_own(code_isolation, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    code = """
        import os, sys
        def f():
            return os.environ.get("SECRET"), os.listdir(), sys.stdin.read()
    """
    test = f"""
def check(f):
    secret, here, read = f()
    assert (secret, read) == (None, "") and set(here) <= {IN_TMP!r}
"""
    assert judged(code, code_isolation, test=test)


@pytest.mark.parametrize("code_isolation", BOTH)
def test_a_sandbox_that_does_not_start_is_an_error(code_isolation, monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "_PROGRAM", tmp_path / "absent.py")
    with pytest.raises(WorkerError, match="its sandbox did not start"):
        judged("def f(x): pass", code_isolation)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills them at once")
@pytest.mark.parametrize("code_isolation", BOTH)
def test_programs_end_with_a_parent_that_is_killed(code_isolation, tmp_path):
    program = f"""
import threading, time
from jax_power_smc.grading.sandbox import Sandbox
sandbox = Sandbox(600.0, {code_isolation!r})
loop = "def f():\\n    while True: pass\\n"
job = (loop, "", "def check(f): f()", "f")
threading.Thread(target=sandbox.passes, args=job, daemon=True).start()
time.sleep(3)  # by then it is running the loop
print(*(each._process.popen.pid for each in sandbox._processes.values()), flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "TMPDIR": os.fspath(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        started = [int(pid) for pid in parent.stdout.readline().split()]
        pids = [pid for each in started for pid in family(each)]
        assert len(pids) >= 2 and all(map(is_alive, pids))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until(lambda: not any(map(is_alive, pids)))


def family(pid):
    """The process and all below it."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [pid, *(each for child in file.read().split() for each in family(int(child)))]


# The CPU time of processes counts for whoever waits for them, which is this one for all of them if
# it is a subreaper: bubblewrap does not wait for what it has started.
COST = """
import contextlib, ctypes, os, resource, time
from jax_power_smc.grading.sandbox import Sandbox
from tests.grading.test_sandbox import HELPERS, SECONDS, TEST

PR_SET_CHILD_SUBREAPER, PROGRAMS = 36, 12
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

def spent():
    kinds = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in kinds)

def judge():
    assert Sandbox(SECONDS).passes("def f(x):\\n    return 2 * x\\n", HELPERS, TEST, "f")
    with contextlib.suppress(ChildProcessError):  # when all of them have been waited for
        while True:
            os.waitpid(-1, 0)

judge()
before = spent()
for _ in range(PROGRAMS):
    judge()
print((spent() - before) / PROGRAMS)
"""


@needs_bubblewrap
def test_two_cores_judge_20_programs_a_second():
    done = subprocess.run(
        [sys.executable, "-c", COST], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # Of CPU time, because other tests run meanwhile; at least what two starts of Python take.
    assert 0.01 < float(done.stdout) < 2 / 20
