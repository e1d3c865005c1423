"""The step of a layer on its cache: cuDNN's arguments, and when it is asked for."""

import functools

import jax
import numpy as np
import pytest

from jax_power_smc.models.transformer import cached_attention
from jax_power_smc.models.transformer.attention import Scoring
from tests.models.transformer.test_kernels import arrays


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_library_is_asked_for_the_same_attention(scale):
    # cuDNN's arguments are those of the library's other implementation.
    positions, live = [0, 63, 20, 5, 64], [1, 1, 1, 0, 0]
    args = arrays(positions, live, dim=16, heads=2, group=3, capacity=64)
    scoring = Scoring(scale)
    library = functools.partial(cached_attention.by_library, "xla", scoring)
    plain = functools.partial(cached_attention.decode, "flat", scoring)
    found, expected = jax.jit(library)(*args), jax.jit(plain)(*args)
    np.testing.assert_allclose(found[0][:3], expected[0][:3], atol=1e-5)
    assert np.isfinite(found[0]).all()
    for leaf, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize(
    ("dtype", "dim", "scoring", "serves"),
    [
        ("bfloat16", 128, Scoring(1.0), True),
        ("float16", 64, Scoring(1.0), True),
        ("float32", 128, Scoring(1.0), False),
        ("bfloat16", 256, Scoring(1.0), False),
        ("bfloat16", 100, Scoring(1.0), False),
        ("bfloat16", 128, Scoring(1.0, softcap=5.0), False),
        ("bfloat16", 128, Scoring(1.0, window=9), False),
    ],
)
def test_what_cudnn_serves(monkeypatch, dtype, dim, scoring, serves):
    q = jax.ShapeDtypeStruct((4, 2, 3, dim), dtype)
    cached_attention._has_cudnn.cache_clear()
    assert not cached_attention._cudnn_serves(q, scoring)  # it is no dependency
    monkeypatch.setattr(cached_attention, "_has_cudnn", lambda: True)
    assert cached_attention._cudnn_serves(q, scoring) == serves


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, None])
def test_whether_cudnn_is_there_is_asked_of_jax(monkeypatch, error):
    def library(q, k, v, implementation):
        assert implementation == "cudnn"
        if error is not None:
            raise error("cuDNN is not detected.")
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    cached_attention._has_cudnn.cache_clear()
    assert cached_attention._has_cudnn() == (error is None)
    cached_attention._has_cudnn.cache_clear()


def test_a_gpu_with_cudnn_gets_it(monkeypatch):
    monkeypatch.setattr(cached_attention, "_cudnn_serves", lambda q, scoring: True)
    asked = []

    def library(implementation, scoring, q, new_keys, new_values, *rest):
        asked.append(implementation)
        return (q, *rest[:2])

    monkeypatch.setattr(cached_attention, "by_library", library)
    args = arrays([3, 5], [1, 1], dim=16, capacity=64)
    step = jax.jit(functools.partial(cached_attention.decode, "flat", Scoring(1.0)))
    module = str(jax.export.export(step, platforms=["cuda"])(*args).mlir_module())
    assert asked == ["cudnn"] and "dot_general" not in module
    module = str(jax.export.export(step, platforms=["cpu"])(*args).mlir_module())
    assert "dot_general" in module
