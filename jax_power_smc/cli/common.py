"""What the launchers share: one-sentence errors, the compilation cache, stopping on signals."""

import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import jax
from absl import app, flags, logging
from etils import epath

from jax_power_smc.cli.output import prepare_output
from jax_power_smc.core.sanitize import on_one_line

BAD_INPUT = 2
# The exit code of a program that Ctrl-C interrupted.
INTERRUPTED = 128 + signal.SIGINT
# Limit for the cache of compiled programs. JAX has a limit of its own, but to enforce it reads the
# whole directory for every program that it writes.
COMPILATION_CACHE_BYTES = 2**31
_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def launch(main: Callable[[Any], Any], required: Sequence[str]) -> None:
    """Parses the flags and passes them to ``main``; bad input ends in one sentence and exit code 2.

    Only warnings are logged, unless ``--verbosity`` asks for more. Compiled programs are cached:
    see ``keep_compiled_programs``. Output that nobody reads stops nothing: see ``output``.
    """
    prepare_output()

    def guarded(argv: Sequence[str]) -> None:
        with plain_errors():
            if len(argv) > 1:
                raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
            keep_compiled_programs(flags.FLAGS.compilation_cache)
            main(flags.FLAGS)

    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Directory in which compiled programs are cached for later runs; 'off' for "
        f"none. Default: {_CACHE_VARIABLE}, or jax_power_smc in the user's cache directory.",
    )
    flags.mark_flags_as_required(required)
    app.run(guarded, flags_parser=_parse_flags)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns bad input into its sentence on stderr and exit code 2, and Ctrl-C into one as well.

    Bad input is a ``ValueError``, an ``OSError``, or an error of absl about flags or usage.

    With ``--verbosity=1`` the traceback is logged too.
    """
    try:
        yield
    except (ValueError, OSError, flags.Error, app.UsageError) as error:
        logging.debug("The traceback of the error below.", exc_info=True)
        print(f"error: {sentence(error)}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt:
        logging.debug("Where it was interrupted.", exc_info=True)
        print("error: interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def sentence(error: Exception) -> str:
    """The error message on one line, for readers who do not know the code."""
    if isinstance(error, OSError) and error.strerror:
        prefix = f"{error.filename}: " if error.filename is not None else ""
        return on_one_line(f"{prefix}{error.strerror}.")
    return on_one_line(str(error)) or type(error).__name__


def keep_compiled_programs(directory: str | None) -> None:
    """Turns on JAX's compilation cache for all programs, however small.

    Args:
      directory: of the cache, local or remote (gs://); "off" for no cache; None for that of the
        environment variable ``JAX_COMPILATION_CACHE_DIR``, or else the user's cache directory.

    Raises:
      OSError: if a directory that was named cannot be made; the default one is then done without.
    """
    if directory == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    chosen = directory or os.environ.get(_CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = epath.Path(chosen or f"{base}/jax_power_smc").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if chosen:
            raise
        logging.info("No compilation cache: %s", sentence(error))
        return
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
    # By default JAX caches only programs that took a second to compile; small models never do.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if "://" not in os.fspath(path):
        with contextlib.suppress(OSError):  # another run may be doing the same
            drop_oldest(pathlib.Path(path), COMPILATION_CACHE_BYTES)


def drop_oldest(directory: pathlib.Path, limit: int) -> None:
    """Removes the oldest files of a directory above ``limit`` bytes until half of that is left."""
    files = sorted(
        (entry.stat().st_mtime, entry.stat().st_size, entry.path)
        for entry in os.scandir(directory)
        if entry.is_file()
    )
    size = sum(each for _, each, _ in files)
    if size <= limit:
        return
    for _, each, path in files:
        if size <= limit // 2:
            break
        pathlib.Path(path).unlink(missing_ok=True)
        size -= each


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags into ``flags.FLAGS``; returns the arguments that are not flags."""
    with plain_errors():
        try:
            rest = flags.FLAGS(argv)
        except (ValueError, OSError, flags.Error):
            raise
        except Exception as error:  # a config file is a program, and can fail in any way
            raise ValueError(
                f"a flag or the config file cannot be used ({type(error).__name__}: {error})."
            ) from error
    if flags.FLAGS["verbosity"].using_default_value:
        # Otherwise absl raises it to INFO, at which the checkpoint library is verbose.
        logging.set_verbosity(logging.WARNING)
    return rest


class StopRequest:
    """Whether the program was asked to stop, and by which signal, such as "SIGTERM"."""

    name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, SIGTERM, SIGHUP and the first Ctrl-C only set the request, polled between steps.

    A second Ctrl-C interrupts at once. A SIGHUP that was ignored before, as by nohup, still is.
    Must be entered in the main thread.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
