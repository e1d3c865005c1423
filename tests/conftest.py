"""Strict numerics for every test; no network, no accelerator."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def stories():
    """Directory of the stories260K checkpoint; skips where it is absent."""
    directory = SHARED / "models" / "stories260K"
    if not directory.is_dir():
        pytest.skip("../shared/models/stories260K is absent")
    return directory
