"""Runs one model-written program; started by ``sandbox`` as ``python -I sandbox_child.py``.

Reads a JSON object from stdin, gives up rights that the program does not need, runs it, and sends
the token if the test passes. The first line it sends says whether the network is still reachable.
"""

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
    limit_resources(job)
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
    """On Linux, removes the network and has the kernel kill this process with its parent.

    False if the network is still there.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    isolated = libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
    # Only now, because a change of credentials clears it.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    return isolated


def limit_resources(job: dict[str, Any]) -> None:
    """Sets whichever limits the system supports."""
    try:
        import resource
    except ImportError:
        return
    cpu = math.ceil(job["seconds"]) + 1
    limits = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_AS: job["memory"],
        resource.RLIMIT_FSIZE: job["file"],
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (least, least))
        except (ValueError, OSError):  # macOS lacks some of them
            continue


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
