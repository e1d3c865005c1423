"""Several processes for one job: how they join, and one sentence when one of them is missing.

    python -m launch.evaluate ... --coordinator=host:port --num_processes=4 --process_id=2

Under SLURM and Open MPI no flag is needed, and on a TPU slice only ``--distributed``: JAX then
finds the processes itself.

When a process is lost, JAX's runtime aborts the others with a stack trace. So the work is done in a
child, and the process that the user started watches it: it forwards signals, and when the runtime
has aborted the child it says which process was lost.
"""

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from jax_power_smc.cli.common import BAD_INPUT, INTERRUPTED, plain_errors
from jax_power_smc.core.key_value_store import KeyValueStore, StoreClient, StoreServer, addresses
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup

# The exit code when another process is lost or missing.
LOST = 1
# How soon the runtime ends a process after it has found another one lost.
_SECONDS_TO_BE_ENDED = 10
# How much longer the others wait for process 0 to say who is missing.
_GRACE_SECONDS = 10
_TOKEN = "jax_power_smc"
# Room for the addresses of process 0.
_LOCATION_BYTES = 4096
_CHILD = "JAX_POWER_SMC_PROCESS"
_PR_SET_PDEATHSIG = 1
# Cluster managers, and the environment variable in which each gives the number of processes. (A
# shell inside a SLURM allocation has SLURM_NTASKS too, but is one process until it calls srun.)
_MANAGERS = {"SLURM": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
# How the runtime's last words begin; other libraries, and the job itself, log in this format too.
_LAST_WORDS = re.compile(
    r"^[EFWI]\d{4} .*(coordination_service|preemption_sync_manager|JAX distributed service)"
)
_DEAD = re.compile(r"unhealthy \(stopped sending heartbeats\):\n((?:.*\d+\n)+)")


def define_flags() -> None:
    """Defines the flags of launchers that several processes can run together."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if JAX cannot find it.")
    flags.DEFINE_integer("num_processes", None, "How many processes share the job.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_boolean("distributed", False, "Let JAX find the processes of this cluster.")
    flags.DEFINE_integer(
        "join_seconds", 300, "How long to wait for all processes to start.", lower_bound=1
    )
    flags.DEFINE_integer(
        "lost_seconds", 30, "A process that is silent for so long counts as lost.", lower_bound=1
    )


def are_several(values: Any, environment: Mapping[str, str]) -> bool:
    """Whether the flags, or a cluster manager, say that there are several processes.

    Raises:
      ValueError: for flags that contradict each other.
    """
    named = [values.coordinator, values.num_processes, values.process_id]
    if any(value is not None for value in named):
        if None in named:
            raise ValueError(
                f"--coordinator is {values.coordinator!r}, --num_processes "
                f"{values.num_processes!r} and --process_id {values.process_id!r}; give all three "
                "or none."
            )
        if not re.fullmatch(r".+:\d+", values.coordinator):
            raise ValueError(f"--coordinator is {values.coordinator!r}; it must be host:port.")
        if values.num_processes < 1:
            raise ValueError(f"--num_processes is {values.num_processes}; it must be at least 1.")
        if not 0 <= values.process_id < values.num_processes:
            raise ValueError(
                f"--process_id is {values.process_id}; it must lie in [0, {values.num_processes})."
            )
        return True
    sizes = [environment.get(name, "1") for name in _MANAGERS.values()]
    return values.distributed or any(size.isdigit() and int(size) > 1 for size in sizes)


@contextlib.contextmanager
def joined(values: Any) -> Iterator[ProcessGroup]:
    """Inside, this process is one of its job's; they end together.

    With several processes the work is done in a child of the process that the user started, which
    only watches: there, the body never runs.
    """
    if not are_several(values, os.environ):
        yield SINGLE_PROCESS
        return
    if _CHILD not in os.environ:
        raise SystemExit(_watch(sys.orig_argv))
    _end_with_parent()
    processes = _join_by_flags(values) if values.coordinator else _join_by_cluster(values)
    try:
        yield processes
    except BaseException as error:
        # The failure may be that of an exchange with a lost process: give the runtime the time to
        # end this process too, and to say which one was lost.
        if not processes.all_fail(values.lost_seconds + _SECONDS_TO_BE_ENDED):
            _leave(error)
        _part(processes)
        raise
    # Process 0 may still have much to write, and the runtime waits for minutes only.
    processes.barrier("all have ended")
    _part(processes)


def _join_by_flags(values: Any) -> ProcessGroup:
    """Joins at the coordinator's port, where process 0 serves the store.

    The store knows who has come. JAX's own service then listens at another port, which process 0
    chooses, and finds all processes waiting.
    """
    host, port = values.coordinator.rsplit(":", 1)
    index, count = values.process_id, values.num_processes
    deadline = time.monotonic() + values.join_seconds
    store: KeyValueStore
    if index == 0:
        store = StoreServer(_TOKEN, int(port))
    else:
        try:
            store = StoreClient([host.strip("[]")], int(port), _TOKEN, values.join_seconds)
        except TimeoutError as error:
            raise SystemExit(_lost(f"process 0 is missing: {error}.")) from None
    store.set(f"joined/{index}", "yes")
    names = [f"joined/{other}" for other in range(count)]
    try:
        all_here = store.wait(names, deadline - time.monotonic() + (index > 0) * _GRACE_SECONDS)
    except ConnectionError:  # process 0 has given up
        all_here = False
    if not all_here:
        missing = [name for name in names if name not in store.keys("joined/")]
        reason = "not started, or unable to reach the coordinator"
        raise SystemExit(_lost(f"{_processes(missing)} missing: {reason}."))
    processes = ProcessGroup(index, count, store)
    chosen = processes.broadcast("port of JAX's service", str(_free_port()))
    _initialize(values, f"{host}:{chosen}", count, index)
    return processes


def _join_by_cluster(values: Any) -> ProcessGroup:
    """Lets JAX find the processes; process 0 then tells the others where its store is."""
    _initialize(values)
    index, count = jax.process_index(), jax.process_count()
    server = StoreServer(secrets.token_hex(16)) if index == 0 else None
    location = [addresses(), server.port, server.token] if server else []
    message = np.frombuffer(json.dumps(location).encode().ljust(_LOCATION_BYTES), np.uint8)
    told = multihost_utils.broadcast_one_to_all(message)
    if server is not None:
        return ProcessGroup(index, count, server)
    hosts, port, token = json.loads(np.asarray(told).tobytes())
    return ProcessGroup(index, count, StoreClient(hosts, port, token, values.join_seconds))


def _initialize(
    values: Any, coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    jax.distributed.initialize(
        coordinator,
        count,
        index,
        initialization_timeout=values.join_seconds,
        heartbeat_timeout_seconds=values.lost_seconds,
    )


def _part(processes: ProcessGroup) -> None:
    """Leaves together with the others; without this the first to leave would look lost."""
    jax.distributed.shutdown()
    processes.store.close()


def _free_port() -> int:
    with socket.create_server(("", 0)) as chosen:
        return chosen.getsockname()[1]


def _lost(sentence: str) -> int:
    """Prints the sentence; the exit code."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return LOST


def _leave(error: BaseException) -> NoReturn:
    """Says what failed and ends this process at once, so that the others find it lost.

    The runtime would have it wait for the others, which are still at work, for minutes.
    """
    code: Any = LOST
    try:
        with plain_errors():
            raise error
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _watch(command: Sequence[str]) -> int:
    """Runs the command in a child and returns its exit code, or says why it was ended."""
    child = subprocess.Popen(
        command, env=os.environ | {_CHILD: str(os.getpid())}, stderr=subprocess.PIPE, text=True
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else the child ignores it as well
        signal.signal(signal.SIGHUP, pass_on)
    # Ctrl-C reaches the whole group; the watcher must outlive the child.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    assert child.stderr is not None
    last_words: list[str] = []
    with child.stderr:
        for line in child.stderr:
            if last_words or _LAST_WORDS.match(line):
                last_words.append(line)
            else:
                print(line, end="", file=sys.stderr, flush=True)
    code = child.wait()
    words = "".join(last_words)
    # The runtime has aborted the child; how exactly it then ended does not matter.
    if code not in (0, BAD_INPUT, INTERRUPTED) and (sentence := explain(words)):
        return _lost(sentence)
    print(words, end="", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


def explain(words: str) -> str | None:
    """The sentence for the last words of JAX's runtime, or None if they say something else."""
    resume = (
        "What is finished is recorded; the same command resumes the job, with any number of "
        "processes."
    )
    if found := _DEAD.search(words):
        return f"{_processes(found[1].splitlines())} lost, so all stop. {resume}"
    if "RegisterTask" in words:
        return "not all processes joined in time: some were not started, or cannot reach process 0."
    if "coordination" in words.lower() or "distributed service" in words:
        return f"process 0 was lost, so all stop. {resume}"
    return None


def _processes(names: Iterable[str]) -> str:
    """Names that end in the numbers of processes, as "process 2 is" or "processes 1 and 3 are"."""
    numbers = sorted({int(re.findall(r"\d+", name)[-1]) for name in names})
    if len(numbers) == 1:
        return f"process {numbers[0]} is"
    return f"processes {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} are"


def _end_with_parent() -> None:
    """If the watching process is killed, so is this one, which nothing would stop otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[_CHILD]):  # it had been killed already
            os.kill(os.getpid(), signal.SIGKILL)
