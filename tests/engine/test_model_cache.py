"""Values by model and key: equal models share them, and a deleted model takes them along."""

import dataclasses
import gc

import pytest

from jax_power_smc.engine.model_cache import ModelCache


@dataclasses.dataclass(frozen=True)
class Model:
    name: str


def cache(most=2):
    return ModelCache(lambda: most)


def test_a_value_is_computed_once_for_equal_models():
    values, first = cache(), Model("a")
    assert values.get(first, "key", lambda: 1) == 1
    assert values.get(Model("a"), "key", lambda: 2) == 1
    assert values.get(first, "other key", lambda: 3) == 3
    assert values.get(Model("b"), "key", lambda: 4) == 4


def test_entries_of_no_model_stay():
    values = cache()
    assert values.get(None, "key", lambda: 1) == 1
    gc.collect()
    assert values.get(None, "key", lambda: 2) == 1


def test_the_least_recently_used_is_dropped():
    values = cache()
    for key in ("a", "b", "a", "c"):
        values.get(None, key, lambda: key)  # noqa: B023
    assert len(values) == 2
    assert values.get(None, "a", lambda: "new") == "a"
    assert values.get(None, "b", lambda: "new") == "new"


def test_a_deleted_model_takes_its_entries_along():
    values, model, other = cache(9), Model("a"), Model("b")
    for key in range(3):
        values.get(model, key, lambda: 0)
    values.get(other, 0, lambda: 5)
    assert len(values) == 4
    del model
    gc.collect()
    assert len(values) == 1
    assert values.get(other, 0, lambda: 6) == 5


def test_a_model_may_die_after_its_entries_were_evicted():
    values, model = cache(1), Model("a")
    values.get(model, 0, lambda: 0)
    values.get(None, 1, lambda: 1)
    del model
    gc.collect()
    assert len(values) == 1


def test_a_failed_computation_leaves_nothing():
    values = cache()
    with pytest.raises(ZeroDivisionError):
        values.get(None, "key", lambda: 1 / 0)
    assert len(values) == 0
    values.get(None, "key", lambda: 1)
    values.clear()
    assert len(values) == 0
