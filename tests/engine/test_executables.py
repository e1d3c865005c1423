"""Compiled programs: bounded in number, freed when they are evicted, and no owner of a model."""

import dataclasses
import gc
import pathlib
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.core.mesh import DATA_SHARDED, make_mesh
from jax_power_smc.engine import executables, program_specs
from jax_power_smc.engine.layout import ONE_DEVICE, Specs

pytestmark = pytest.mark.usefixtures("quick_compilation")

MAPS = pathlib.Path("/proc/self/maps")


def scale(x, *, by):
    """A program that is another one for every ``by``."""
    for _ in range(3):
        x = jnp.sin(x) * by
    return x


@pytest.fixture(autouse=True)
def only_this_program(monkeypatch):
    specs = Specs((DATA_SHARDED,), DATA_SHARDED, False)
    monkeypatch.setitem(program_specs.SPECS, scale, lambda layout, args: specs)
    executables.forget()
    yield
    executables.forget()


def run(by):
    return executables.call(scale, {"by": by}, (np.ones(3, np.float32),), ONE_DEVICE)


def mapped():
    gc.collect()
    return len(MAPS.read_text().splitlines())


@pytest.mark.skipif(not MAPS.is_file(), reason="the system does not list memory maps")
def test_a_process_may_compile_more_programs_than_it_can_keep(monkeypatch):
    most = 120
    monkeypatch.setattr(executables, "most_on_cpu", lambda: most)
    before = executables.compiled_count(scale)
    for by in range(most):
        run(by)
    full = mapped()
    for by in range(most, 300):
        run(by)
    assert executables.compiled_count(scale) - before == 300
    assert executables.cached_count() == most
    # The evicted programs are really gone, whatever JAX caches. (Each takes about 3 maps here.)
    assert mapped() < full + most / 2
    executables.forget()
    assert mapped() < full - most


@pytest.mark.parametrize(
    ("allowed", "most"), [("65530", 121), ("1048576", 250), ("100000", 185), ("9", 1), ("?", 121)]
)
def test_as_many_programs_are_kept_as_the_memory_maps_of_a_process_suffice_for(
    tmp_path, monkeypatch, allowed, most
):
    limit = tmp_path / "max_map_count"
    limit.write_text(f"{allowed}\n")
    monkeypatch.setattr(executables, "MAX_MAP_COUNT", limit)
    assert executables.most_on_cpu() == most
    limit.unlink()
    assert executables.most_on_cpu() == 121


def test_the_least_recently_used_program_is_evicted(monkeypatch):
    monkeypatch.setattr(executables, "most_on_cpu", lambda: 2)
    for by in (1, 2, 1, 3):
        run(by)
    before = executables.compiled_count()
    run(1)
    assert executables.compiled_count() == before
    run(2)
    assert executables.compiled_count() == before + 1 and executables.cached_count() == 2


def test_programs_do_not_pile_up_over_calls(monkeypatch):
    monkeypatch.setattr(executables, "most_on_cpu", lambda: 3)
    first = draw(psmc.TableLM(3), psmc.Ancestral(1.0, 2))
    for num in (3, 4):
        draw(psmc.TableLM(3), psmc.Ancestral(1.0, num))
        assert executables.cached_count() <= 3
    np.testing.assert_array_equal(draw(psmc.TableLM(3), psmc.Ancestral(1.0, 2)), first)


def draw(model, sampler=psmc.Ancestral(), **options):  # noqa: B008
    params = psmc.TableLM(model.vocab_size, getattr(model, "order", 1)).init(jax.random.key(0))
    result = psmc.sample(
        model,
        params,
        [[1]],
        key=jax.random.key(0),
        target=psmc.PowerTarget(2.0),
        sampler=sampler,
        max_new_tokens=2,
        **options,
    )
    return np.asarray(result.tokens)


@pytest.mark.parametrize("on_mesh", [False, True])
@pytest.mark.parametrize("sampler", [psmc.Ancestral(), psmc.MetropolisHastings(1, 1)])
def test_a_model_dies_after_it_was_used_and_its_programs_with_it(sampler, on_mesh):
    model = psmc.TableLM(4)
    draw(model, sampler, **({"mesh": make_mesh(2)} if on_mesh else {}))
    assert executables.cached_count() > 0
    own, kept = weakref.ref(model), executables.cached_count()
    del model
    gc.collect()
    assert own() is None
    # What is left was compiled for shapes alone, as inserting prompts into slots is.
    assert executables.cached_count() < kept


@pytest.mark.parametrize("on_mesh", [False, True])
def test_equal_models_share_programs(on_mesh):
    options = {"mesh": make_mesh(2)} if on_mesh else {}
    first = psmc.TableLM(4)
    draw(first, **options)
    before = executables.compiled_count()
    draw(psmc.TableLM(4), **options)
    assert executables.compiled_count() == before
    draw(psmc.TableLM(4, order=2), **options)
    assert executables.compiled_count() > before


@dataclasses.dataclass(frozen=True, slots=True)
class Unreferenced:
    """A model that does not support weak references."""

    vocab_size: int = 3

    def init_cache(self, params, num_rows, capacity):
        return psmc.TableLM(self.vocab_size).init_cache(params, num_rows, capacity)

    def extend(self, params, cache, tokens, position, count):
        return psmc.TableLM(self.vocab_size).extend(params, cache, tokens, position, count)


def test_a_model_without_weak_references_is_served_too():
    with pytest.raises(TypeError):
        weakref.ref(Unreferenced())
    draw(Unreferenced())
    before = executables.compiled_count()
    draw(Unreferenced())
    assert executables.compiled_count() == before


# --- what a program is compiled for ---

TABLE = psmc.TableLM(vocab_size=5, order=2)
LOGITS = TABLE.init(jax.random.key(4))


def draw_from(params, sampler=psmc.PowerSMC(4)):  # noqa: B008
    """The result of ``sample`` as arrays, and how many programs it compiled."""
    before = executables.compiled_count()
    result = psmc.sample(
        TABLE,
        params,
        [[1, 2], [3]],
        key=jax.random.key(1),
        target=psmc.PowerTarget(2.0, (1,)),
        sampler=sampler,
        max_new_tokens=6,
    )
    return np.asarray(result.tokens), executables.compiled_count() - before


@pytest.mark.parametrize("sampler", [psmc.PowerSMC(4), psmc.MetropolisHastings(2, 2, num_chains=2)])
def test_parameters_may_move_to_another_device_between_calls(sampler):
    first, _ = draw_from(LOGITS, sampler)
    for device, compiles in zip(jax.devices()[:3], (False, True, True), strict=True):
        tokens, compiled = draw_from(jax.device_put(LOGITS, device), sampler)
        np.testing.assert_array_equal(tokens, first)
        assert (compiled > 0) == compiles
    assert draw_from(jax.device_put(LOGITS, jax.devices()[1]), sampler)[1] == 0


def test_settings_that_change_a_program_compile_another():
    first, _ = draw_from(LOGITS)
    for setting in (
        jax.default_matmul_precision("highest"),
        jax.default_device(jax.devices()[1]),
        jax.threefry_partitionable(False),
    ):
        with setting:
            assert draw_from(LOGITS)[1] > 0
    tokens, compiled = draw_from(LOGITS)
    np.testing.assert_array_equal(tokens, first)
    assert compiled == 0


def test_an_ambient_mesh_changes_nothing():
    first, _ = draw_from(LOGITS)
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        tokens, compiled = draw_from(LOGITS)
        on_it = TABLE.init(jax.random.key(4))
        there, _ = draw_from(on_it)
    np.testing.assert_array_equal(tokens, first)
    assert compiled == 0
    np.testing.assert_array_equal(there, first)
