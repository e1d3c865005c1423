"""The pool: whatever one response does, the others get their verdicts."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jax_power_smc.core.worker_process import WorkerProcess
from jax_power_smc.grading.base import Verdict
from jax_power_smc.grading.pool import PooledGrader, default_processes
from tests.grading.processes import is_alive, wait_until
from tests.paths import ROOT

SECONDS = 1.0


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.fspath(pathlib.Path(__file__).parent))


def pool(processes=1, seconds=SECONDS, module="misbehaving", merges=False, memory=2**30):
    make = functools.partial(WorkerProcess, module, seconds, memory)
    return PooledGrader("string", make, processes, merges)


def all_of(grader):
    done = []
    while grader.pending:
        done += grader.finished(wait=True)
    return dict(done)


def test_verdicts_come_in_the_order_of_the_responses_and_duplicates_are_graded_once():
    with pool() as grader:
        grader.submit("tag", "b", ["a", "b", "a", *["sleep 0.3"] * 30])
        began = time.monotonic()
        assert grader.pending == 1
        ((tag, verdicts),) = grader.finished(wait=True)
        assert time.monotonic() - began < 8  # 9 s if each were graded
        assert tag == "tag" and grader.pending == 0
    assert [each.correct for each in verdicts] == [False, True, *[False] * 31]
    assert verdicts[0] == Verdict("a", False, False) and verdicts[1] == Verdict("b", True, True)
    assert [each.parsed for each in verdicts] == ["a", "b", "a", *["sleep 0.3"] * 30]


@pytest.mark.parametrize(
    ("response", "note"),
    [
        ("hang", "took longer than 1 s"),
        ("spin", "took longer than 1 s"),
        ("crash", "its process was ended by SIGSEGV"),
        ("hog", "needed too much memory"),
        ("raise x", "failed with KeyError"),
    ],
)
def test_a_failure_concerns_one_response_only(response, note):
    with pool() as grader:
        grader.submit(0, "good", ["good", response, "bad"])
        grader.submit(1, "good", ["good"])
        done = all_of(grader)
    assert done[0] == [
        Verdict("good", True, True),
        Verdict(None, False, False, note),
        Verdict("bad", False, False),
    ]
    assert done[1] == [Verdict("good", True, True)]


def test_other_responses_are_graded_while_one_hangs():
    with pool(processes=2, seconds=30) as grader:
        grader.submit("slow", "x", ["hang"])
        for number in range(50):
            grader.submit(number, "x", ["x", str(number)])
        done = {}
        while len(done) < 50:
            done |= dict(grader.finished(wait=True))
        assert "slow" not in done and grader.pending == 1
        assert all(done[number][0].correct for number in range(50))
        assert grader.finished() == []


def test_submitting_never_blocks():
    with pool(seconds=30) as grader:
        began = time.monotonic()
        for number in range(20):
            grader.submit(number, "x", ["hang", "x" * 10**6])
        assert time.monotonic() - began < 1
        assert grader.pending == 20


def test_a_worker_that_died_between_jobs_is_replaced():
    with pool() as grader:
        grader.submit(0, "x", ["x"])
        all_of(grader)
        (worker,) = grader._workers
        worker._process.kill()
        os.waitid(os.P_PID, worker._process.popen.pid, os.WEXITED | os.WNOWAIT)
        grader.submit(1, "x", ["x"])
        assert all_of(grader) == {1: [Verdict("x", True, True)]}


def test_sigterm_to_the_whole_job_spoils_no_verdict():
    with pool(seconds=60) as grader:
        grader.submit(0, "x", ["sleep 0.5", "x"])
        wait_until(lambda: grader._workers[0]._process is not None)
        grader._workers[0]._process.popen.send_signal(signal.SIGTERM)
        assert [each.note for each in all_of(grader)[0]] == [None, None]


def test_any_text_gets_through_and_noise_does_not():
    texts = ["print", "\x00", "\udcff", "a\nb", "é", "", "9" * 200_000]
    with pool() as grader:
        grader.submit(0, "print", texts)
        assert [each.parsed for each in all_of(grader)[0]] == texts


def test_a_submission_without_responses_is_finished():
    with pool() as grader:
        grader.submit("none", "x", [])
        assert grader.finished(wait=True) == [("none", [])]


def test_closing_drops_pending_submissions_and_kills_the_workers():
    grader = pool(processes=2, seconds=60)
    for number in range(10):
        grader.submit(number, "x", ["hang"])
    wait_until(lambda: sum(worker._process is not None for worker in grader._workers) == 2)
    pids = [worker._process.popen.pid for worker in grader._workers]
    began = time.monotonic()
    grader.close()
    assert time.monotonic() - began < 5
    assert grader.pending == 0 and grader.finished(wait=True) == []
    assert not any(map(is_alive, pids))
    with pytest.raises(ValueError, match="the grader is closed"):
        grader.submit(0, "x", ["x"])
    grader.close()


def test_a_worker_that_cannot_start_is_an_error():
    with pool(module="no_such_module") as grader:
        grader.submit(0, "x", ["x"])
        with pytest.raises(OSError, match="cannot start: ModuleNotFoundError"):
            grader.finished(wait=True)


def test_an_invalid_reference_answer_is_refused_at_once():
    with pool() as grader:
        with pytest.raises(ValueError, match="gold is None"):
            grader.submit(0, None, ["x"])
        assert grader.pending == 0


def test_equal_answers_get_equal_texts():
    with pool(merges=True) as grader:
        grader.submit(0, r"\frac{1}{2}", ["ab", "ac", r"\frac{1}{2}", "b"])
        assert [each.parsed for each in all_of(grader)[0]] == ["a", "a", r"\frac{1}{2}", "b"]
        grader.submit(1, "x", ["merge-hang", "ac", "x"])
        assert [each.parsed for each in all_of(grader)[1]] == ["merge-hang", "ac", "x"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills them at once")
@pytest.mark.parametrize("response", ["hang", "spin"])
def test_workers_die_with_a_killed_parent(response, tmp_path):
    program = f"""
import functools, pathlib, time
from jax_power_smc.grading.pool import PooledGrader
from jax_power_smc.core.worker_process import WorkerProcess
make = functools.partial(WorkerProcess, "misbehaving", 600.0, 2**30)
grader = PooledGrader("string", make, 1)
grader.submit(0, "x", ["x"])
grader.finished(wait=True)
grader.submit(1, "x", [{response!r}])
path = pathlib.Path({os.fspath(tmp_path)!r})
(path / "new").write_text(str(grader._workers[0]._process.popen.pid))
(path / "new").rename(path / "pid")
time.sleep(600)
"""
    path = os.pathsep.join((os.environ["PYTHONPATH"], os.fspath(ROOT)))
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        wait_until((tmp_path / "pid").exists, seconds=60)
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not is_alive(pid))


def test_one_cpu_is_left_to_the_caller():
    assert [default_processes(cpus) for cpus in (None, 1, 2, 4, 64)] == [1, 1, 1, 3, 8]
