"""What .ci/run prints and returns, with a ``make`` that only claims to have run."""

import os
import shutil
import subprocess

import pytest

from tests.paths import ROOT

MAKE = """#!/bin/sh
echo "$1" >> "$CALLS"
echo "steps of $1"
echo "7 passed in 0.10s"
[ "$1" != "$FAILS" ]
"""


@pytest.fixture
def ci(tmp_path):
    (tmp_path / "repo/.ci").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / "repo/.ci/run")
    make = tmp_path / "bin/make"
    make.write_text(MAKE)
    make.chmod(0o755)
    # Where there is none, the script would install it.
    bubblewrap = tmp_path / "bin/bwrap"
    bubblewrap.write_text("#!/bin/sh\n")
    bubblewrap.chmod(0o755)

    def run(fails="", slow=False):
        # With a `date` whose clock gains 700 seconds whenever it is read.
        if slow:
            date = tmp_path / "bin/date"
            date.write_text('#!/bin/sh\necho x >> "$CLOCK"\necho $(($(wc -l < "$CLOCK") * 700))\n')
            date.chmod(0o755)
        return subprocess.run(
            ["sh", ".ci/run"],
            cwd=tmp_path / "repo",
            env={
                "PATH": f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
                "CALLS": str(tmp_path / "calls"),
                "CLOCK": str(tmp_path / "clock"),
                "FAILS": fails,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    run.calls = lambda: (tmp_path / "calls").read_text().split()
    return run


def test_every_step_is_shown_with_its_budget_before_the_closing_lines(ci):
    done = ci()
    assert done.returncode == 0, done.stderr
    steps = ["install", "lint", "test", "test-slow", "parity", "compiled", "soak-short"]
    assert ci.calls()[:7] == steps
    table, closing = done.stdout.split("budget\n")[-1].split("\n\n")
    rows = {row.split()[0]: row.split()[1:] for row in table.splitlines()}
    assert {name: row[1] for name, row in rows.items() if name != "test-cluster"} == {
        "install": "-",
        "lint": "60",
        "test": "600",
        "test-slow": "900",
        "parity": "600",
        "compiled": "300",
        "soak-short": "120",
        "isolation": "-",
    }
    assert "OVER BUDGET" not in table
    assert closing.splitlines()[-1] == "7 passed in 0.10s"


def test_a_step_over_its_budget_is_marked_and_does_not_fail(ci):
    done = ci(slow=True)
    assert done.returncode == 0
    table = done.stdout.split("budget\n")[-1]
    over = [row.split()[0] for row in table.splitlines() if row.endswith("OVER BUDGET")]
    assert over == ["lint", "test", "parity", "compiled", "soak-short"]


@pytest.mark.parametrize("target", ["lint", "test", "parity"])
def test_it_stops_at_the_first_step_that_fails(ci, target):
    done = ci(fails=target)
    assert done.returncode == 1
    assert ci.calls()[-1] == target
    assert done.stdout.endswith(f"steps of {target}\n7 passed in 0.10s\n")
