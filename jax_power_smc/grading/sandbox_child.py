"""The two programs in which code is judged, started by ``sandbox`` with a JSON object of options.

    judge      executes the prompt's helpers and the tests, and writes the verdict to stdout
    candidate  executes the code under test, and answers the judge's calls

They share no interpreter and, if isolated, nothing but two pipes. What passes through those is
plain data (``encode``), so the candidate can answer wrongly, but neither change the tests nor what
the judge makes of an answer. It also never sees the tests. This file must not import the package,
which is not there where it runs.

Every program waits for the imports here, so there are few.
"""

from __future__ import annotations

import builtins
import itertools
import json
import math
import os
import sys
import types

TYPE_CHECKING = False  # that of the typing module would cost its import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any, NoReturn

STARTED, LOADED = b"started\n", b"loaded\n"
PASSED, FAILED, ABSENT, NOT_PLAIN = "passed", "failed", "absent", "not plain"

_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 64
# Bytes of one answer; characters of an exception's text; items of a generator.
_MAX_ANSWER, _MAX_TEXT, _MAX_ITEMS = 16 * 2**20, 1000, 100_000
_MAX_JSON_INT_BITS = 64
_CONTAINERS: dict[str, Any] = {
    **{kind.__name__: kind for kind in (list, tuple, set, frozenset, dict)},
    "iterator": lambda items: iter(list(items)),
}
_OTHERS: dict[str, Any] = {
    "int": lambda digits: int(digits, 16),
    "complex": complex,
    "range": range,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}


# --- Plain data -----------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """Plain data as JSON: text, floats, small integers as they are, all else as [kind, *parts].

    Raises:
      TypeError: for a value that is not plain.
    """
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _MAX_JSON_INT_BITS else ["int", hex(value)]
    if isinstance(value, dict):
        return ["dict", *([encode(key), encode(each)] for key, each in value.items())]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(encode, value)]
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if hasattr(value, "__next__"):
        return ["iterator", *map(encode, itertools.islice(value, _MAX_ITEMS))]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a scalar of NumPy
        return encode(value.item())
    raise TypeError(f"a {type(value).__name__} is not plain data")


def decode(value: Any) -> Any:
    """The inverse of ``encode``; raises an Exception of some kind for anything else."""
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise TypeError("not an encoded value")
        return value
    kind, *parts = value
    if kind == "dict":
        return {decode(key): decode(each) for key, each in parts}
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](map(decode, parts))
    return _OTHERS[kind](*parts)


# --- The programs ---------------------------------------------------------------------------------


def main() -> None:
    """Runs the program that the options name, and exits."""
    options = json.loads(sys.argv[1])
    if options["parent"]:
        die_with(options["parent"])
    cpu = math.ceil(options["seconds"]) + 1
    limit_resources(CPU=cpu, AS=options["memory"], FSIZE=options["file"])
    limit_resources(NOFILE=_OPEN_FILES, CORE=0)
    sys.path += options["libraries"]
    reading, writing = (os.fdopen(options[name], mode) for name, mode in _PIPES.items())
    if options["role"] == "judge":
        job, channel = json.loads(sys.stdin.buffer.read()), os.dup(1)
        _silence()
        os.write(channel, STARTED)
        judge(job, reading, writing, channel)
    _silence()
    answer_calls(reading, writing)
    os._exit(0)


_PIPES = {"reading": "rb", "writing": "wb"}


def judge(job: dict[str, str], answers: IO[bytes], calls: IO[bytes], channel: int) -> NoReturn:
    """Executes helpers and test, calls the ``check`` that the test defines, writes the verdict."""

    def end(verdict: str) -> NoReturn:
        # At once, so that no test can catch it.
        os.write(channel, verdict.encode() + b"\n")
        os._exit(0)

    def send(message: Any) -> None:
        try:
            calls.write(json.dumps(message).encode() + b"\n")
            calls.flush()
        except OSError:
            end(FAILED)

    def candidate(*arguments: Any, **named: Any) -> Any:
        try:
            call = encode([arguments, named])
        except TypeError:
            end(NOT_PLAIN)
        send(call)
        line = answers.readline(_MAX_ANSWER)
        try:
            if not line.endswith(b"\n"):
                end(FAILED)
            outcome, value, changed = json.loads(line)
            value, changed = decode(value), decode(changed)
            error = None if outcome == "returned" else _exception(outcome, value)
            _update(arguments, changed)
        except Exception:
            end(FAILED)
        if error is not None:
            raise error
        return value

    if answers.readline(len(STARTED)) != STARTED:
        end(ABSENT)
    send({"code": job["code"], "entry_point": job["entry_point"]})
    if answers.readline(len(LOADED)) != LOADED:
        end(FAILED)
    names = _new_module()
    try:
        _execute(job["helpers"], "prompt", names)
        names[job["entry_point"]] = candidate  # some tests use its name
        _execute(job["test"], "test", names)
        names["check"](candidate)
    except BaseException:  # also SystemExit
        end(FAILED)
    end(PASSED)


def answer_calls(calls: IO[bytes], answers: IO[bytes]) -> None:
    """Executes the code that is sent first, and then calls its function as often as asked."""
    answers.write(STARTED)
    answers.flush()
    job = json.loads(calls.readline())
    names = _new_module()
    _execute(job["code"], "solution", names)
    function = names[job["entry_point"]]
    answers.write(LOADED)
    answers.flush()
    for line in calls:
        arguments, named = decode(json.loads(line))
        answer = _answer(function, arguments, named)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(function: Callable[..., Any], arguments: Any, named: Any) -> list[Any]:
    """[outcome, value or text of an exception, the arguments as they are afterwards]."""
    try:
        outcome, value = "returned", encode(function(*arguments, **named))
    except Exception as error:
        kinds = (kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        outcome, value = next(kinds).__name__, str(error)[:_MAX_TEXT]
    try:
        return [outcome, value, encode(arguments)]
    except Exception:  # it put something into them that is not plain
        return [outcome, value, ["list"]]


def _exception(name: str, text: str) -> Exception:
    kind = getattr(builtins, name)
    if not issubclass(kind, Exception):
        raise TypeError(name)
    made: Exception = kind.__new__(kind, text)  # the constructors of some want more
    return made


def _update(arguments: Any, changed: Any) -> None:
    """Changes the lists, sets and dicts among arguments in place, as the function did."""
    for old, new in zip(arguments, changed, strict=False):
        if isinstance(old, list | set | dict) and type(old) is type(new) and old != new:
            old.clear()
            (old.extend if isinstance(old, list) else old.update)(new)


def _new_module() -> dict[str, Any]:
    """The names of a new module, which dataclasses look up."""
    sys.modules["solution"] = module = types.ModuleType("solution")
    return module.__dict__


def _execute(code: str, name: str, names: dict[str, Any]) -> None:
    exec(compile(code, name, "exec"), names)


def _silence() -> None:
    """Has nothing to read on stdin, and drops what is printed."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


# --- Limits, also of other graders' processes -----------------------------------------------------


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends (Linux only)."""
    if sys.platform == "linux":
        import ctypes
        import signal

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
        try:
            resource.setrlimit(kind, (least, least))
        except (ValueError, OSError):  # macOS lacks some of them
            continue


if __name__ == "__main__":
    main()
