"""Programs whose output nobody reads go on to the end, and what they print does nothing."""

import contextlib
import os
import pty
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT

PROGRAM = """
import sys
from jax_power_smc.cli.output import prepare_output

file = open("first", "w") if sys.argv[1] == "late" else None
prepare_output()
for number in range(3):
    print("line", number, "\\ud800", flush=True)
    print("line", number, file=sys.stderr)
sys.stdin.readline()
print("more", flush=True)
print("and the rest, when it ends")
open("done", "w").write("well")
"""


def start(directory, how="early", before="", **streams):
    command = [sys.executable, "-c", PROGRAM, how]
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {before}', "sh", *command],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        text=True,
        **streams,
    )


def is_done(process, directory):
    """Lets it go on to its end."""
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == 0
    return (directory / "done").read_text() == "well"


def test_what_is_read_is_as_ever(tmp_path):
    process = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate("\n", timeout=60)
    lines = [f"line {n} <U+D800>\n" for n in range(3)]
    assert out == "".join([*lines, "more\nand the rest, when it ends\n"])
    assert err == "line 0\nline 1\nline 2\n" and process.returncode == 0


def test_a_reader_that_has_ended(tmp_path):
    process = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline().startswith("line 0")
    process.stdout.close()
    assert is_done(process, tmp_path)


def test_a_terminal_that_is_closed(tmp_path):
    ours, theirs = pty.openpty()
    process = start(tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert b"line 0" in os.read(ours, 100)
    os.close(ours)
    assert is_done(process, tmp_path)


@pytest.mark.parametrize("how", ["early", "late"])
@pytest.mark.parametrize("before", [">&-", "2>&-", ">&- 2>&-"])
def test_descriptors_that_were_closed_from_the_start(tmp_path, before, how):
    assert is_done(start(tmp_path, how, before, stderr=subprocess.DEVNULL), tmp_path)
    # A file that has got the number of stdout gets none of its output.
    assert how == "early" or (tmp_path / "first").read_text() == ""


HOSTILE_PROGRAM = """
import logging as other_logging, sys, warnings
from absl import logging
from jax_power_smc.cli.output import prepare_output
from jax_power_smc.core.progress import ProgressDisplay
from jax_power_smc.report import summary_tables, tables

HOSTILE = "\\x1b]0;evil\\x07 \\x1b[2J\\x9b31m \\x08\\rover \\u202e"
prepare_output()
print("1", HOSTILE)
print("2", HOSTILE, file=sys.stderr)
sys.stdout.writelines(["3", HOSTILE, "\\n"])
logging.warning("4 %s", HOSTILE)
other_logging.getLogger("transformers").warning("5 %s", HOSTILE)
warnings.warn("6" + HOSTILE)
for number, stream in enumerate((sys.stdout, sys.stderr), start=7):
    with ProgressDisplay(0.0, stream=stream) as display:
        display.update(f"{number} {HOSTILE}", 1, 2, HOSTILE)
        print("9" + HOSTILE)
        print("10" + HOSTILE, file=sys.stderr)
        logging.warning("11 %s", HOSTILE)
tables.print_tables([tables.text_table("12" + HOSTILE, [HOSTILE], [[HOSTILE]])])
raise RuntimeError("13" + HOSTILE)
"""


@pytest.mark.parametrize("on_terminal", [True, False])
def test_whoever_prints_it_no_text_does_anything_to_a_terminal(on_terminal):
    ours, theirs = pty.openpty() if on_terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", HOSTILE_PROGRAM],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    out = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while read := os.read(ours, 2**16):
            out += read
    os.close(ours)
    assert process.wait(60) == 1
    text = out.decode()
    # Each of them is there, and for each escape sequence what it was.
    for number in range(1, 14):
        shown = rf"(?<!\d){number} ?<U\+001B>\]0;evil<U\+0007>"
        assert re.search(shown, text), (number, text)
    assert text.count("<U+001B>]0;evil<U+0007>") == text.count("]0;evil") >= 18
    assert "]0;evil\x07" not in text and "\x1b[2J" not in text
    assert not re.search("[\x07\x08\x80-\x9f\u202e]", text)
    # The bars of a terminal move the cursor; nothing else does.
    assert ("\x1b" in text) == on_terminal and "\rover" not in text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        process = start(tmp_path, stdout=full, stderr=subprocess.PIPE)
    _, err = process.communicate("\n", timeout=60)
    assert process.returncode != 0 and "No space left on device" in err
    assert not (tmp_path / "done").exists()
