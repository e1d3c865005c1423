"""Strict numerics for every test; no network, no accelerator."""

import importlib.metadata
import os

from tests.paths import SHARED

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# make test sets the first: most programs of tests run for milliseconds, so what counts is the time
# to compile them. The second halves that time again. (XLA aborts on a flag that it does not know.)
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1" and importlib.metadata.version(
    "jaxlib"
).startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import pytest

from jax_power_smc.engine import executables, slot_plan

# For tests of meshes; what is not on a mesh runs on the first device. Programs that tests start
# have one device unless they ask for more.
NUM_DEVICES = 8

jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

STORIES = SHARED / "models/stories260K"

# For tests that use the ``stories`` fixture.
needs_stories = pytest.mark.skipif(
    not STORIES.is_dir(), reason=f"{SHARED}/models/stories260K is absent"
)


def pytest_configure(config):
    """Compiled programs are kept in .pytest_cache, for other processes and later runs.

    Launchers that tests start use the same directory.
    """
    directory = os.fspath(config.cache.mkdir("jax"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = directory
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def growing():
    """For tests in which the number of rows follows the load, as it does on a CPU."""


@pytest.fixture(autouse=True)
def one_number_of_rows(request, monkeypatch):
    """Tables have all their rows from the beginning: every size is a set of programs to compile."""
    if "growing" not in request.fixturenames:
        monkeypatch.setattr(slot_plan, "row_ladder", lambda most: (most,))


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules whose programs run for milliseconds: what counts is the time to compile them."""
    yield from _optimizations(False)


@pytest.fixture(scope="module")
def full_optimization():
    """For modules that inspect compiled programs."""
    yield from _optimizations(True)


def _optimizations(wanted):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not wanted)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def stories():
    """Directory of the stories260K checkpoint; its tests are marked ``needs_stories``."""
    return STORIES


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops a module's compiled programs after it: a process may have 65,530 memory maps on Linux,
    a few hundred programs use them up, and the compiler then aborts."""
    yield
    jax.clear_caches()
    executables.forget()
