"""Several processes for one job: joining them, and one sentence when one of them is missing.

    python -m launch.evaluate ... --coordinator=host:port --num_processes=4 --process_id=2

Under SLURM and Open MPI nothing needs to be said, and on a TPU slice ``--distributed`` alone: JAX
then finds out who takes part.

JAX's runtime ends a process with a stack trace when another one is lost. So the work is done in a
child, and what the user started watches it: it passes signals on, and when the runtime has ended
the child it says which process is missing.
"""

import contextlib
import ctypes
import functools
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import jax
from absl import flags

from jax_power_smc.cli.common import BAD_INPUT, plain_errors
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup

LOST = 1
# Within which the runtime ends a process, when it has found another one lost.
_SECONDS_TO_BE_ENDED = 10
_CHILD = "JAX_POWER_SMC_PROCESS"
_PR_SET_PDEATHSIG = 1
# What says in the environment that there are several processes: variable of their number. (A shell
# inside a SLURM allocation has SLURM_NTASKS too, but is one process until it says srun.)
_MANAGERS = {"SLURM": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
# How the runtime's last words begin; other libraries, and the job itself, log in this format too.
_LAST_WORDS = re.compile(
    r"^[EFWI]\d{4} .*(coordination_service|preemption_sync_manager|JAX distributed service)"
)
_MISSING = re.compile(r"Some timed out task names:\n((?:.*\d+\n)+)")
_DEAD = re.compile(r"unhealthy \(stopped sending heartbeats\):\n((?:.*\d+\n)+)")


def define_flags() -> None:
    """Of launchers that several processes can run."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if JAX cannot find it out.")
    flags.DEFINE_integer("num_processes", None, "How many processes do the job together.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_boolean("distributed", False, "Let JAX find out the processes of this cluster.")
    flags.DEFINE_integer(
        "join_seconds", 300, "How long to wait for all processes to start.", lower_bound=1
    )
    flags.DEFINE_integer(
        "lost_seconds", 30, "A process not heard of for so long is lost.", lower_bound=1
    )


def are_several(values: Any, environment: Mapping[str, str]) -> bool:
    """Whether the flags, or a cluster manager, say that there are several processes.

    Raises:
      ValueError: for flags that do not go together.
    """
    named = [values.coordinator, values.num_processes, values.process_id]
    if any(value is not None for value in named):
        if None in named:
            raise ValueError(
                f"--coordinator is {values.coordinator!r}, --num_processes "
                f"{values.num_processes!r} and --process_id {values.process_id!r}; give all three "
                "or none."
            )
        if ":" not in values.coordinator:
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
    """Inside, this process is one of its job's; ends together with the others.

    If the process is to be watched, the watch is what happens, and the body never runs.

    Args:
      values: of the flags.
    """
    if not are_several(values, os.environ):
        yield SINGLE_PROCESS
        return
    if _CHILD not in os.environ:
        raise SystemExit(_watch(sys.orig_argv))
    _end_with_parent()
    with _saying_who_is_missing(values.join_seconds):
        jax.distributed.initialize(
            values.coordinator,
            values.num_processes,
            values.process_id,
            # Longer than the service waits, which says who is missing.
            initialization_timeout=values.join_seconds + 30,
            heartbeat_timeout_seconds=values.lost_seconds,
        )
    processes = ProcessGroup(jax.process_index(), jax.process_count())
    try:
        yield processes
    except BaseException as error:
        # What fails may be an exchange with a process that is lost: the runtime is given the time
        # to end this one too, and to say which it was.
        if not processes.all_fail(values.lost_seconds + _SECONDS_TO_BE_ENDED):
            _leave(error)
        jax.distributed.shutdown()
        raise
    # The first one may have much to write down still, and the runtime waits for minutes only.
    processes.barrier("all have ended")
    # Without this the first one to leave would look lost to the others.
    jax.distributed.shutdown()


def _leave(error: BaseException) -> NoReturn:
    """Says what failed and ends this process, so that the others, which go on, find it lost.

    At once: the runtime would have it wait for them, minutes on end.
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


@contextlib.contextmanager
def _saying_who_is_missing(seconds: int) -> Iterator[None]:
    """Lets the service, which knows who has come, give up before those that ask it do.

    ``jax.distributed.initialize`` does not pass this time on. Where the runtime has no such
    setting, all that can be said is that someone is missing.
    """
    from jax._src.lib import _jax

    name = "get_distributed_runtime_service"
    start = getattr(_jax, name, None)
    if start is None or "cluster_register_timeout" not in (start.__doc__ or ""):
        yield
        return
    setattr(_jax, name, functools.partial(start, cluster_register_timeout=seconds))
    try:
        yield
    finally:
        setattr(_jax, name, start)


def _watch(command: Sequence[str]) -> int:
    """Runs the command in a child and returns its exit code, or says why it was ended."""
    child = subprocess.Popen(
        command, env=os.environ | {_CHILD: str(os.getpid())}, stderr=subprocess.PIPE, text=True
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    # Ctrl-C reaches the whole group; this one must outlive the child.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    assert child.stderr is not None
    held: list[str] = []
    for line in child.stderr:
        if held or _LAST_WORDS.match(line):
            held.append(line)
        else:
            print(line, end="", file=sys.stderr, flush=True)
    code = child.wait()
    words = "".join(held)
    # The runtime aborts the child; what else that does to it (a crash, an error) is of no interest.
    if code not in (0, BAD_INPUT) and (sentence := explain(words)):
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        return LOST
    print(words, end="", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


def explain(words: str) -> str | None:
    """The sentence for the last words of JAX's runtime, or None if they say something else."""
    goes_on = (
        "What is finished is recorded; the same command goes on, with any number of processes."
    )
    if found := _DEAD.search(words):
        return f"{_processes(found[1])} lost, so all stop. {goes_on}"
    if found := _MISSING.search(words):
        return f"{_processes(found[1])} missing: not started, or without a way to the coordinator."
    if "RegisterTask" in words:
        return "not all processes have come together in time; look at what process 0 says."
    if "coordination" in words.lower() or "distributed service" in words:
        return f"process 0 was lost, so all stop. {goes_on}"
    return None


def _processes(names: str) -> str:
    """Names of tasks, one per line, as "process 2 is" or "processes 1 and 3 are"."""
    numbers = sorted({int(re.findall(r"\d+", name)[-1]) for name in names.splitlines()})
    if len(numbers) == 1:
        return f"process {numbers[0]} is"
    return f"processes {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} are"


def _end_with_parent() -> None:
    """If the watching process is killed, so is this one: nobody would hear of it otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[_CHILD]):  # it was killed before
            os.kill(os.getpid(), signal.SIGKILL)
