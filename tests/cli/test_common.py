"""Errors as one sentence, quiet logs, stopping when asked to, progress."""

import json
import os
import signal
import subprocess
import sys

import jax
import pytest
from absl import app, flags

from jax_power_smc.cli.common import (
    drop_oldest,
    keep_compiled_programs,
    plain_errors,
    sentence,
    stop_on_signals,
)

# Imports once and runs every case in a process of its own.
PROGRAM = """
import json, os, signal, sys
from absl import flags, logging
from jax_power_smc.cli.common import launch, stop_on_signals

flags.DEFINE_integer("size", 1, "A number.")

def main(values):
    logging.info("some information")
    logging.warning("some warning")
    if values.size < 1:
        raise ValueError("size is too\\n  small.")
    if values.size > 9:
        open("no/such/file")
    if values.size == 9:
        raise KeyError("a bug")
    if values.size == 8:
        with stop_on_signals():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
    if values.size == 7:
        raise ValueError("a model said \\x1b[31m red \\u202e it")
    if values.size == 2:
        import jax
        hits = []
        jax.monitoring.register_event_listener(
            lambda event, **_: hits.append("hits" in event.rsplit("/")[-1])
        )
        jax.block_until_ready(jax.jit(lambda x: x * 3)(2))
        print(sum(hits), "hits")
    print("done")

for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), fd)
        sys.argv = ["program", *arguments]
        launch(main, [])
    with open(f"{number}.code", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
CASES = {
    "good": [],
    "debug": ["--verbosity=1"],
    "value": ["--size=0"],
    "traceback": ["--size=0", "--verbosity=1"],
    "file": ["--size=10"],
    "bug": ["--size=9"],
    "two interrupts": ["--size=8"],
    "control characters": ["--size=7"],
    "unknown flag": ["--sise=3"],
    "bad flag": ["--size=three"],
    "compiles": ["--size=2", "--compilation_cache=programs"],
    "compiles again": ["--size=2", "--compilation_cache=programs"],
    "keeps nothing": ["--size=2", "--compilation_cache=off"],
    "bad cache": ["--compilation_cache=0.out/programs"],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """name -> (exit code, stdout, stderr)"""
    root = tmp_path_factory.mktemp("launch")
    subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(CASES.values()))],
        cwd=root,
        check=True,
        timeout=120,
    )
    return {
        name: tuple((root / f"{i}.{kind}").read_text() for kind in ("code", "out", "err"))
        for i, name in enumerate(CASES)
    }


def test_a_good_run_is_quiet_but_for_warnings(outcomes):
    code, out, err = outcomes["good"]
    assert (code, out) == ("0", "done\n")
    assert "some warning" in err and "some information" not in err


def test_verbosity_shows_more(outcomes):
    assert "some information" in outcomes["debug"][2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("value", "error: size is too small."),
        ("file", "error: no/such/file: No such file or directory."),
        ("unknown flag", "error: Unknown command line flag 'sise'. Did you mean: size ?"),
        ("bad flag", "error: flag --size=three: invalid literal for int()"),
        ("control characters", "error: a model said <U+001B>[31m red <U+202E> it"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(name, message, outcomes):
    code, out, err = outcomes[name]
    assert (code, out) == ("2", "")
    lines = [line for line in err.splitlines() if "some warning" not in line]
    assert len(lines) == 1 and lines[0].startswith(message)


def test_the_traceback_is_there_for_those_who_ask(outcomes):
    code, _, err = outcomes["traceback"]
    assert code == "2" and "Traceback" in err and "error: size is too small." in err


def test_a_bug_keeps_its_traceback(outcomes):
    code, _, err = outcomes["bug"]
    assert code == "1" and "Traceback" in err and "a bug" in err


def test_compiled_programs_are_kept_for_the_next_run(outcomes):
    hits = {
        name: outcomes[name][1].split()[0]
        for name in ("compiles", "compiles again", "keeps nothing")
    }
    assert hits["compiles"] == hits["keeps nothing"] == "0"
    assert int(hits["compiles again"]) > 0


def test_the_oldest_programs_are_dropped_when_they_are_too_many(tmp_path):
    for age, name in enumerate("dcba"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (0, 1000 - age))
    drop_oldest(tmp_path, 40)
    assert len(list(tmp_path.iterdir())) == 4
    drop_oldest(tmp_path, 39)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_a_cache_that_cannot_be_made_is_refused_only_if_it_was_asked_for(
    outcomes, tmp_path, monkeypatch
):
    code, _, err = outcomes["bad cache"]
    assert code == "2" and err.startswith("error: ") and "0.out" in err
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    before = jax.config.jax_compilation_cache_dir
    keep_compiled_programs(None)
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\n  b"), "a b"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file", "x.txt"), "x.txt: No such file."),
        (OSError(28, "No space left"), "No space left."),
        (OSError("strange"), "strange"),
    ],
)
def test_sentences(error, text):
    assert sentence(error) == text


@pytest.mark.parametrize(
    "error", [ValueError("no"), OSError("no"), app.UsageError("no"), flags.Error("no")]
)
def test_plain_errors_exits_with_2(error, capsys):
    with pytest.raises(SystemExit) as stop, plain_errors():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no\n"


def test_plain_errors_leaves_bugs_alone():
    with pytest.raises(TypeError), plain_errors():
        raise TypeError("a bug")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_sets_the_request(number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.name == number.name
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interrupt_of_a_program_is_no_traceback(outcomes):
    code, _, err = outcomes["two interrupts"]
    lines = [line for line in err.splitlines() if "some warning" not in line]
    assert code == "130" and lines == ["error: interrupted."]


def test_a_terminal_that_hangs_up_is_a_request_to_stop_unless_it_was_ignored():
    before = signal.getsignal(signal.SIGHUP)
    try:
        for ignored in (False, True):
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
            with stop_on_signals() as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                assert stop.name == (None if ignored else "SIGHUP")
            assert signal.getsignal(signal.SIGHUP) == (
                signal.SIG_IGN if ignored else signal.SIG_DFL
            )
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_is_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
