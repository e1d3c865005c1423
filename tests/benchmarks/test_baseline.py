"""The other engine's process. (tests/cli/test_benchmark_rows.py decodes with it.)"""

import pytest

from jax_power_smc.benchmarks import baseline
from jax_power_smc.benchmarks.decode_worker import Work
from tests.paths import ROOT

WORK = Work("Ancestral", {}, [[1]], 1, 1)


def checkout(directory, source):
    package = directory / "jax_power_smc"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    return str(directory)


def test_a_checkout_is_told_from_other_directories(tmp_path):
    baseline.check(str(ROOT))
    with pytest.raises(ValueError, match="it must be a checkout of this repository"):
        baseline.check(str(tmp_path))


def test_the_process_imports_the_package_of_its_checkout_and_ends_with_the_context(tmp_path):
    place = checkout(tmp_path, "import sys; sys.exit(7)")
    with baseline.started(place) as there:
        with pytest.raises(OSError, match=f"the engine in {place} ended with exit code 7; its"):
            there.decode({"name": "tiny-reasoner"}, WORK)
        process = there._process
    with baseline.started(str(ROOT)) as there:
        process = there._process
        assert process.poll() is None
    assert process.returncode is not None and process.stdout.closed
