"""Runs one model-written program; started by ``sandbox`` as ``python -I sandbox_child.py``.

Reads a JSON object from stdin, gives up rights that the program does not need, runs it, and sends
the token if the test passes. The first line it sends says whether the network is still reachable.
"""

import contextlib
import ctypes
import json
import math
import os
import signal
import sys
import types
from typing import Any

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_OPEN_FILES = 64
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that are refused: starting processes, reaching others, changing files' rights.
_REFUSED = frozenset(
    (
        *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile"),
        *("os.system", "subprocess.Popen", "pty.spawn", "os.kill", "os.killpg", "os.chmod"),
        *("os.chown", "os.setxattr", "os.removexattr", "ctypes.dlopen", "signal.pthread_kill"),
        *("socket.__new__", "socket.connect", "socket.bind"),
    )
)
# Audit events whose first argument is a path; allowed inside the directory.
_CHANGES = frozenset(
    (
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"),
        *("os.truncate", "os.utime", "shutil.rmtree", "shutil.move"),
    )
)


def main() -> None:
    """Runs the job read from stdin, and exits."""
    job = json.loads(sys.stdin.buffer.read())
    isolated = isolate(job["parent"])
    cpu = math.ceil(job["seconds"]) + 1
    limit_resources(CPU=cpu, AS=job["memory"], FSIZE=job["file"], NOFILE=_OPEN_FILES, CORE=0)
    channel = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.write(channel, b"no network\n" if isolated else b"network\n")
    token = job["token"].encode()
    sys.addaudithook(_refuse(os.getcwd()))
    try:
        run(job["code"], job["test"], job["entry_point"])
    except BaseException:  # also SystemExit
        os._exit(1)
    os.write(channel, token + b"\n")
    os._exit(0)


def run(code: str, test: str, entry_point: str) -> None:
    """Executes the code and the test, and calls the ``check`` that the test defines."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses look it up there
    exec(compile(code, "solution", "exec"), module.__dict__)
    exec(compile(test, "test", "exec"), module.__dict__)
    module.__dict__["check"](module.__dict__[entry_point])


def isolate(parent: int) -> bool:
    """Removes the network if Linux allows it, and says so; this process dies with its parent."""
    libc = ctypes.CDLL(None)
    isolated = sys.platform == "linux" and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
    # Only now, because a change of credentials clears it.
    die_with(parent)
    return isolated


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before that
        os._exit(1)


def limit_resources(**limits: int) -> None:
    """Sets those of the limits, such as CPU or AS, that the system supports."""
    try:
        import resource
    except ImportError:
        return
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS lacks some of them
            resource.setrlimit(kind, (least, least))


def _refuse(directory: str) -> Any:
    """An audit hook; Python offers no way to remove one."""
    # Bound here, so that the program cannot replace them.
    inside = os.path.realpath(directory) + os.sep
    realpath, fspath, refused, changes = os.path.realpath, os.fsdecode, _REFUSED, _CHANGES
    allowed = (os.devnull,)

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # the descriptor of an open file
        name = fspath(path)
        return name not in allowed and not realpath(name).startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in refused:
            raise PermissionError(f"{event} is not allowed here")
        writes = event == "open" and arguments[2] & _WRITES
        if (writes or event in changes) and outside(arguments[0]):
            raise PermissionError(f"{event} is allowed in the working directory only")

    return hook


if __name__ == "__main__":
    main()
