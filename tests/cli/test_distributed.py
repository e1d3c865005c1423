"""Whether there are several processes, how they join, and what is said when one is missing."""

import os
import re
import signal
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from jax_power_smc.cli import distributed
from jax_power_smc.cli.distributed import are_several, explain
from tests.cli.command import ROOT

# --- Are there several? -----------------------------------------------------------------------


def values(**given):
    flags = {"coordinator": None, "num_processes": None, "process_id": None, "distributed": False}
    return types.SimpleNamespace(**flags | given)


NAMED = {"coordinator": "host:1234", "num_processes": 4, "process_id": 3}


@pytest.mark.parametrize(
    ("given", "environment", "several"),
    [
        ({}, {}, False),
        (NAMED, {}, True),
        ({"distributed": True}, {}, True),
        ({}, {"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({}, {"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({}, {"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({}, {"SLURM_STEP_NUM_TASKS": "1"}, False),
        # A shell in an allocation of 4 tasks is one process, until it says srun.
        ({}, {"SLURM_NTASKS": "4"}, False),
        ({}, {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, False),
    ],
)
def test_flags_or_a_cluster_manager_say_that_there_are_several(given, environment, several):
    assert are_several(values(**given), environment) is several


@pytest.mark.parametrize("missing", NAMED)
def test_flags_that_name_the_processes_go_together(missing):
    with pytest.raises(ValueError, match=f"--{missing}.* None.*give all three or none"):
        are_several(values(**NAMED | {missing: None}), {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host"}, "--coordinator is 'host'; it must be host:port."),
        ({"coordinator": "host:a"}, "--coordinator is 'host:a'; it must be host:port."),
        ({"process_id": 4}, "--process_id is 4; it must lie in [0, 4)."),
        ({"process_id": -1}, "--process_id is -1; it must lie in [0, 4)."),
        ({"num_processes": 0, "process_id": 0}, "--num_processes is 0; it must be at least 1."),
    ],
)
def test_flags_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        are_several(values(**NAMED | given), {})


# --- The last words of JAX's runtime, as JAX 0.10 says them --------------------------------------

DIED = """\
E1127 18:07:35.867881    7770 coordination_service.cc:1549] [11264139738972624195] Use error \
polling to propagate the following error to all tasks: UNAVAILABLE: The following tasks are \
unhealthy (stopped sending heartbeats):
1
The tasks have crashed. Check the task logs for an earlier error, or scheduler events (e.g. \
preemption, eviction) to debug further. \
[type.googleapis.com/tensorflow.CoordinationServiceError='']
F1127 18:07:35.868488    7787 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. This most likely indicates that another task died; see the other task logs \
for more details. absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending \
heartbeats):
1
The tasks have crashed. Check the task logs for an earlier error, or scheduler events (e.g. \
preemption, eviction) to debug further.

RPC: /xla.coordination.CoordinationService/PollForError \
[type.googleapis.com/tensorflow.CoordinationServiceError='']
*** Check failure stack trace: ***
    @     0x7f4d2f640634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
    @     0x7f4d36aa71f5  (unknown)
"""
FIRST_DIED = """\
E1127 18:07:31.999014    7812 coordination_service_agent.cc:289] Polled an error from coordination \
service (this can be an error from this or another task).
F1127 18:07:31.999052    7812 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. This most likely indicates that another task died; see the other task logs \
for more details. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either \
the leader task was preempted/died/restarted unexpectedly or this task is experiencing network \
issues. Check earlier logs from 1) this task, 2) the leader (usually slice 0 task 0), and 3) \
cluster scheduler to debug further.
Additional GRPC error information from remote target coordination_service while calling \
/xla.coordination.CoordinationService/PollForError:
:UNKNOWN:Error received from peer  {grpc_message:"recvmsg:Connection reset by peer", grpc_status:14}
*** Check failure stack trace: ***
    @     0x7f3501440634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
NOT_ALL = """\
F1127 18:07:36.936130    7731 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded

RPC: /xla.coordination.CoordinationService/RegisterTask
*** Check failure stack trace: ***
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (DIED, "process 1 is lost, so all stop."),
        (DIED.replace("\n1\n", "\n3\n1\n2\n"), "processes 1, 2 and 3 are lost, so all stop."),
        (FIRST_DIED, "process 0 was lost, so all stop."),
        (NOT_ALL, "not all processes joined in time: some were not started, or cannot reach proc"),
    ],
)
def test_last_words_become_a_sentence(words, sentence):
    assert explain(words).startswith(sentence)


def test_other_last_words_are_not_explained():
    assert explain("F1127 18:07:36.9  7731 buffer.cc:80] Check failed: size > 0\n") is None
    assert explain("") is None


# --- The watch ----------------------------------------------------------------------------------


@pytest.fixture
def watch(capfd):
    """A function of a program: watches it; exit code, stdout and stderr."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def watch(program):
        code = distributed._watch(
            [sys.executable, "-c", f"import os, signal, sys, time\n{program}"]
        )
        return code, *capfd.readouterr()

    yield watch
    for number, handler in before.items():
        signal.signal(number, handler)


def aborts(words):
    """A program with these last words."""
    return f"sys.stderr.write({words!r})\nsys.stderr.flush()\nos.abort()"


def test_the_watch_passes_on_what_the_work_says(watch):
    program = "print('out')\nprint('error: no.', file=sys.stderr)\nsys.exit(2)"
    assert watch(program) == (2, "out\n", "error: no.\n")


def test_the_watch_says_who_is_missing_instead_of_a_stack_trace(watch):
    usual = "W1127 18:07:30.000000 7770 grading.py:80] No network.\n\nusual\n"
    expected = f"{usual}error: {explain(DIED)}\n"
    assert watch(aborts(usual + DIED)) == (distributed.LOST, "", expected)


def test_last_words_without_an_explanation_are_shown(watch):
    words = "F1127 no\n  at all\n"
    assert watch(aborts(words)) == (128 + signal.SIGABRT, "", words)


@pytest.mark.parametrize("end", ["sys.exit(1)", "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_last_words_are_explained_however_the_process_then_ends(watch, end):
    program = f"sys.stderr.write({FIRST_DIED!r})\nsys.stderr.flush()\n{end}"
    assert watch(program) == (distributed.LOST, "", f"error: {explain(FIRST_DIED)}\n")


@pytest.mark.parametrize("code", [0, 2])
def test_words_of_a_process_that_ended_by_itself_are_shown(watch, code):
    program = f"sys.stderr.write({FIRST_DIED!r})\nsys.exit({code})"
    assert watch(program) == (code, "", FIRST_DIED)


def test_the_watch_passes_signals_on(watch):
    program = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\nsys.exit(1)"
    )
    assert watch(program) == (0, "", "")


# --- Joining ------------------------------------------------------------------------------------


@pytest.fixture
def join(monkeypatch):
    """A function of the processes that start: what each says when it joins, or its group."""
    initialized = []
    monkeypatch.setattr(distributed, "_initialize", lambda *args: initialized.append(args[1:]))
    monkeypatch.setattr(distributed, "_GRACE_SECONDS", 2)

    def join(count, started, seconds):
        port = distributed._free_port()

        def one(index):
            own = values(
                coordinator=f"localhost:{port}",
                num_processes=count,
                process_id=index,
                join_seconds=seconds,
            )
            try:
                return distributed._join_by_flags(own)
            except SystemExit as end:
                return end.code

        with ThreadPoolExecutor(len(started)) as pool:
            return list(pool.map(one, started)), initialized

    return join


def test_processes_join_at_the_coordinator_and_share_a_store(join):
    groups, initialized = join(3, [2, 0, 1], 20)
    assert [(group.index, group.count) for group in groups] == [(2, 3), (0, 3), (1, 3)]
    (where,) = {where for where, *_ in initialized}
    assert re.fullmatch(r"localhost:\d+", where)
    assert sorted(rest for _, *rest in initialized) == [[3, 0], [3, 1], [3, 2]]
    groups[0].store.set("a", "1")
    assert all(group.store.wait(["a"], 10) for group in groups)
    for group in groups:
        group.store.close()


def test_processes_that_do_not_come_are_named_by_all(join, capsys):
    codes, initialized = join(4, [0, 2], 1)
    assert codes == [distributed.LOST] * 2 and not initialized
    sentence = "processes 1 and 3 are missing: not started, or unable to reach the coordinator."
    assert capsys.readouterr().err == f"error: {sentence}\n" * 2


def test_without_process_0_the_others_say_so(join, capsys):
    assert join(2, [1], 1) == ([distributed.LOST], [])
    assert re.fullmatch(
        r"error: process 0 is missing: nothing answers at localhost, port \d+\.\n",
        capsys.readouterr().err,
    )


# --- Real processes -----------------------------------------------------------------------------

PROGRAM = """
from absl import flags
from jax_power_smc.cli import distributed

distributed.define_flags()
flags.FLAGS(["program", "--join_seconds=120", "--lost_seconds=60"])
with distributed.joined(flags.FLAGS) as group:
    said = group.gather("all", f"{group.index} of {group.count}")
    print(*said, group.broadcast("one", f"from {group.index}"), sep=", ")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with a parent")
def test_processes_that_a_cluster_manager_starts_join_and_share_a_store():
    port = distributed._free_port()  # what JAX makes of the id is another one, and likely free
    manager = {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_MCA_orte_hnp_uri": f"{port * 2**12}.0;tcp://127.0.0.1:{port}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ
            | manager
            | {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
            | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for rank in ("0", "1")
    ]
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    for out in printed:
        assert "0 of 2, 1 of 2, from 0\n" in out
