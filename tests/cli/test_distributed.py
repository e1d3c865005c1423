"""Whether there are several processes, and what is said when one is missing."""

import re
import signal
import sys
import threading
import types

import jax
import pytest

from jax_power_smc.cli import distributed
from jax_power_smc.cli.distributed import are_several, explain
from jax_power_smc.core import process_group as library
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup, Stop

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
NOT_STARTED = """\
W1127 18:07:36.934527    7789 coordination_service.cc:388] [2118994559028185622] \
ConnectAfterBarrierPasses: DEADLINE_EXCEEDED: Barrier timed out. Id: \
[Init]Wait_for_all_tasks_to_register::0. This usually happens because a task triggered the barrier \
too early or too slowly. Please look at the task logs (both timed out and first task) to debug \
further.
# of tasks that reached the barrier: 2/4.
The first task at the barrier: 0. Some timed out task names:
3
1
 [type.googleapis.com/tensorflow.CoordinationServiceError='']
F1127 18:07:36.936130    7731 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. absl::Status: DEADLINE_EXCEEDED: Barrier timed out. Id: \
[Init]Wait_for_all_tasks_to_register::0.
# of tasks that reached the barrier: 2/4.
The first task at the barrier: 0. Some timed out task names:
3
1


RPC: /xla.coordination.CoordinationService/RegisterTask \
[type.googleapis.com/tensorflow.CoordinationServiceError='']
*** Check failure stack trace: ***
"""
NO_COORDINATOR = """\
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
        (NOT_STARTED, "processes 1 and 3 are missing: not started, or without a way to the "),
        (NO_COORDINATOR, "not all processes have come together in time; look at what process 0"),
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


# --- What the job asks --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_shares_are_disjoint_whole_and_even(count):
    items = list(range(7))
    shares = [ProcessGroup(index, count).shard(items) for index in range(count)]
    assert sorted(item for share in shares for item in share) == items
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_is_the_first_and_waits_for_nobody():
    assert SINGLE_PROCESS.is_first and not ProcessGroup(1, 2).is_first
    SINGLE_PROCESS.barrier("nobody")  # no runtime is there to ask


def test_who_waits_for_a_lost_process_leaves_the_end_to_the_runtime(monkeypatch):
    def fail(name, timeout):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE")

    slept = []
    client = types.SimpleNamespace(wait_at_barrier=fail)
    monkeypatch.setattr(library.distributed.global_state, "client", client)
    monkeypatch.setattr(library.time, "sleep", slept.append)
    with pytest.raises(jax.errors.JaxRuntimeError):
        ProcessGroup(1, 2).barrier("all")
    assert slept == [library._SECONDS_TO_BE_ENDED]


class Service:
    """The runtime's store of keys; a key is in a directory only behind a slash."""

    def __init__(self):
        self.keys, self.looks = {}, 0

    def key_value_set(self, key, value, allow_overwrite=False):
        self.keys[key] = value

    def key_value_dir_get(self, key):
        self.looks += 1
        return [(name, value) for name, value in self.keys.items() if name.startswith(f"{key}/")]


@pytest.fixture
def service(monkeypatch):
    one = Service()
    monkeypatch.setattr(library.distributed.global_state, "client", one)
    return one


def test_a_process_alone_stops_when_it_is_asked_to():
    asked = []
    stop = Stop(SINGLE_PROCESS, lambda: bool(asked), in_step=False)
    assert not stop()
    asked.append(True)
    assert stop()
    asked.clear()
    assert stop()  # there is no way back


def test_all_stop_when_one_is_asked_to(service, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(library.time, "monotonic", lambda: now[0])
    asked = []
    one = Stop(ProcessGroup(0, 2), lambda: bool(asked), in_step=False)
    other = Stop(ProcessGroup(1, 2), lambda: False, in_step=False)
    assert not one() and not other()
    asked.append(True)
    assert one()
    assert not other()  # it has looked just now, and asking the runtime takes time
    assert service.looks == 2
    now[0] += 2
    assert other() and other()
    assert service.looks == 3


def test_in_step_nobody_stops_before_all_know(monkeypatch):
    monkeypatch.setattr(
        library.multihost_utils, "process_allgather", lambda own: library.np.array([own, True])
    )
    assert Stop(ProcessGroup(0, 2), lambda: False, in_step=True)()
    monkeypatch.setattr(
        library.multihost_utils, "process_allgather", lambda own: library.np.array([own, False])
    )
    assert not Stop(ProcessGroup(0, 2), lambda: False, in_step=True)()


def test_who_has_nothing_more_to_do_still_passes_on_that_it_is_asked_to_stop(monkeypatch, service):
    passed = threading.Event()
    service.wait_at_barrier = lambda name, timeout: passed.wait(60)
    monkeypatch.setattr(library, "_SECONDS_BETWEEN_LOOKS", 0.01)
    asked = []
    stop = Stop(ProcessGroup(0, 2), lambda: bool(asked), in_step=False)

    def meanwhile():
        stop.pass_on()
        if len(service.keys) or asked:
            passed.set()
        asked.append(True)

    ProcessGroup(0, 2).barrier("all", meanwhile)
    assert service.keys


def test_in_step_nothing_is_passed_on(monkeypatch):
    # The others would not take part in the exchange.
    monkeypatch.delattr(library.multihost_utils, "process_allgather")
    Stop(ProcessGroup(0, 2), lambda: True, in_step=True).pass_on()


def test_all_are_told_what_the_first_one_says(service):
    service.blocking_key_value_get = lambda key, timeout: service.keys[key]
    assert [ProcessGroup(index, 3).broadcast("what", f"{index}") for index in range(3)] == ["0"] * 3
    assert SINGLE_PROCESS.broadcast("what", "alone") == "alone"


@pytest.mark.parametrize(("others", "all_fail"), [((), False), ((0,), False), ((0, 2), True)])
def test_whether_all_have_failed(monkeypatch, service, others, all_fail):
    monkeypatch.setattr(library, "_SECONDS_BETWEEN_LOOKS", 0.01)
    service.keys = {f"failed/{index}": "yes" for index in others}
    assert ProcessGroup(1, 3).all_fail(0.05) is all_fail
