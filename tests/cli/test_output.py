"""Programs whose output nobody reads go on to the end."""

import os
import pty
import subprocess
import sys

import pytest

from tests.paths import ROOT

PROGRAM = """
import sys
from jax_power_smc.cli.output import outlive_readers

file = open("first", "w") if sys.argv[1] == "late" else None
outlive_readers()
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
    lines = [f"line {n} \\ud800\n" for n in range(3)]
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        process = start(tmp_path, stdout=full, stderr=subprocess.PIPE)
    _, err = process.communicate("\n", timeout=60)
    assert process.returncode != 0 and "No space left on device" in err
    assert not (tmp_path / "done").exists()
