"""The boundary around code that a model wrote: bubblewrap, which sets up Linux's namespaces.

What is inside sees the system's programs and libraries and Python with its packages, all read-only,
and an empty, small /tmp; nothing of the user's files, of other processes, of the network or of the
environment. It has no privileges, cannot get any, can start nothing (``syscall_filter``), and ends
with the process that started it. Limits on memory and files are set inside, before the code runs.
"""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence

from jax_power_smc.core import checks
from jax_power_smc.grading import syscall_filter

BUBBLEWRAP, NONE = "bubblewrap", "none"
KINDS = (BUBBLEWRAP, NONE)
WRITABLE_BYTES = 16 * 2**20

_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_PROBE_SECONDS = 60.0
_INSTEAD = (
    "or pass --config.code_isolation=none (launch.grade: --code_isolation=none) to run code that a "
    "model wrote with all of your own rights."
)


def interpreter() -> list[str]:
    """Python without anything of the user's or the virtual environment's."""
    return [os.path.realpath(sys.executable), "-I", "-S"]


def libraries() -> list[str]:
    """The folders of installed packages, which that Python does not find on its own."""
    found = (os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    return list(dict.fromkeys(found))


def command(
    program: Sequence[str],
    files: Mapping[str, str],
    seccomp: int,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """What to execute instead of a program, so that it is isolated.

    Args:
      program: the program with its arguments.
      files: what it can read beside the system and Python with its packages; by the paths that
        these have there, where they are here.
      seccomp: the descriptor from which bubblewrap reads ``syscall_filter.program()``.
      environment: all the variables that it has.
    """
    variables = (environment or {}).items()
    return [
        shutil.which("bwrap") or "bwrap",
        *("--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv"),
        *(word for variable in variables for word in ("--setenv", *variable)),
        # First, because Python may be installed below it.
        *("--perms", "1777", "--size", str(WRITABLE_BYTES), "--tmpfs", "/tmp"),
        *_system(),
        *(word for path in _python() for word in ("--ro-bind", path, path)),
        *(word for there, here in files.items() for word in ("--ro-bind", here, there)),
        *(word for path in _DEVICES for word in ("--dev-bind", path, path)),
        *("--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(seccomp), "--"),
        *program,
    ]


def check(isolation: str) -> None:
    """Raises ValueError if the kind is unknown, or code cannot be isolated that way here."""
    checks.one_of("code_isolation", isolation, KINDS)
    if isolation == NONE:
        return
    if shutil.which("bwrap") is None:
        raise ValueError(
            "HumanEval runs code that the model wrote inside bubblewrap, which is not here; "
            f"install it (Debian, Ubuntu: apt-get install bubblewrap; Linux only), {_INSTEAD}"
        )
    if platform.machine() not in syscall_filter.MACHINES:
        raise ValueError(
            f"code_isolation is 'bubblewrap', for which this machine ({platform.machine()}) has "
            f"no list of system calls; use one of {', '.join(syscall_filter.MACHINES)}, {_INSTEAD}"
        )
    if why := _why_not():
        raise ValueError(
            f"bubblewrap does not work here ({why}); it needs version 0.7 or newer and a system "
            f"or a container that allows user namespaces; change that, {_INSTEAD}"
        )


def filter_descriptor() -> int:
    """A descriptor for one use of ``command``; close it once the process was started."""
    reading, writing = os.pipe()
    os.write(writing, syscall_filter.program())
    os.close(writing)
    return reading


def _why_not() -> str | None:
    """What bubblewrap complains of when it should start Python; None if it does start it."""
    seccomp = filter_descriptor()
    try:
        done = subprocess.run(
            command([*interpreter(), "-c", "import json"], {}, seccomp),
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(seccomp,),
            timeout=_PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        os.close(seccomp)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return (said[-1] if said else f"exit code {done.returncode}") if done.returncode else None


def _system() -> Iterator[str]:
    """Arguments for the folders of the system; some are links into /usr."""
    for path in map(pathlib.Path, _SYSTEM):
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), os.fspath(path))
        elif path.exists():
            yield from ("--ro-bind", os.fspath(path), os.fspath(path))


def _python() -> Iterator[str]:
    """What Python consists of, where the system's folders do not have it."""
    base = os.path.realpath(sys.base_prefix)
    parts = [interpreter()[0], *(os.path.join(base, each) for each in ("lib", "lib64"))]
    for path in (*parts, *libraries()):
        if os.path.exists(path) and not path.startswith("/usr/"):
            yield path
