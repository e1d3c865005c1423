"""The program around a program that a model wrote; it is run alone, as ``python -I sandbox_child.py``.

Reads one JSON object from stdin, gives up what the program has no need for, runs it, and if the
test finds nothing wrong sends the token. The first line that it sends says whether there is a
network.
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
# Of Python's audit events: starting processes, reaching others, and changing what is outside.
_REFUSED = frozenset(
    (
        *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile"),
        *("os.system", "subprocess.Popen", "pty.spawn", "os.kill", "os.killpg", "os.chmod"),
        *("os.chown", "os.setxattr", "os.removexattr", "ctypes.dlopen", "signal.pthread_kill"),
        *("socket.__new__", "socket.connect", "socket.bind"),
    )
)
# Their first arguments are paths; within the directory they are harmless.
_CHANGES = frozenset(
    (
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"),
        *("os.truncate", "os.utime", "shutil.rmtree", "shutil.move"),
    )
)


def main() -> None:
    """Never returns."""
    job = json.loads(sys.stdin.buffer.read())
    cut_off = end_with_parent_and_cut_off(job["parent"])
    limit(job)
    channel = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.write(channel, b"no network\n" if cut_off else b"network\n")
    token = job["token"].encode()
    sys.addaudithook(_refuse(os.getcwd()))
    try:
        run(job["code"], job["test"], job["entry_point"])
    except BaseException:  # also SystemExit
        os._exit(1)
    os.write(channel, token + b"\n")
    os._exit(0)


def run(code: str, test: str, entry_point: str) -> None:
    """Runs the code, the test, and the check that it defines."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses, for one, look there
    exec(compile(code, "solution", "exec"), module.__dict__)
    exec(compile(test, "test", "exec"), module.__dict__)
    module.__dict__["check"](module.__dict__[entry_point])


def end_with_parent_and_cut_off(parent: int) -> bool:
    """Has the kernel kill this process with its parent and take away the network, on Linux.

    Returns:
      Whether the network is gone.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    cut_off = library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
    # After that, because other rights than before make the kernel forget it.
    library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    return cut_off


def limit(job: dict[str, Any]) -> None:
    """Sets the limits that the system has."""
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
        except (ValueError, OSError):  # macOS has not all of them
            continue


def _refuse(directory: str) -> Any:
    """An audit hook; once added it cannot be removed."""
    inside = os.path.realpath(directory) + os.sep
    realpath, fspath, refused, changes = os.path.realpath, os.fsdecode, _REFUSED, _CHANGES
    allowed = (os.devnull,)

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a file that is open already
        place = fspath(path)
        return place not in allowed and not realpath(place).startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in refused:
            raise PermissionError(f"{event} is not allowed here")
        writes = event == "open" and arguments[2] & _WRITES
        if (writes or event in changes) and outside(arguments[0]):
            raise PermissionError(f"{event} is allowed in the working directory only")

    return hook


if __name__ == "__main__":
    main()
