"""The public surface is lazy, whole and documented."""

import importlib
import json
import re
import subprocess
import sys

import pytest

import jax_power_smc as psmc
from tests.paths import ROOT

MODULES = {
    "adapters": "jax_power_smc.models.adapters",
    "cost_model": "jax_power_smc.theory.cost_model",
    "evidence": "jax_power_smc.evidence",
    "exact": "jax_power_smc.theory.exact",
    "plain": "jax_power_smc.plain",
    "testing": "jax_power_smc.testing",
    "theory": "jax_power_smc.theory",
}


def in_a_new_process(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_imports_nothing_else():
    code = """
import json, sys
before = set(sys.modules)
import jax_power_smc
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    modules = in_a_new_process(code)
    assert [m for m in modules if m.startswith("jax_power_smc")] == ["jax_power_smc"]
    assert not {"jax", "jaxlib", "numpy", "transformers"} & set(modules)
    # What is left is a handful of the standard library (typing, importlib and what they import).
    assert len(modules) < 30, modules


def test_importing_every_name_registers_nothing_with_jax():
    """No monitoring listener, no change of JAX's settings."""
    code = """
import json
import jax
from jax._src import monitoring

def settings():
    return {name: repr(value) for name, value in jax.config.values.items()}

def listeners():
    return [len(value) for name, value in sorted(vars(monitoring).items())
            if name.endswith("_listeners") and isinstance(value, list)]

before, heard = settings(), listeners()
from jax_power_smc import *
after = settings()
print(json.dumps([heard, listeners(), sorted(k for k in after if before.get(k) != after[k])]))
"""
    before, after, changed = in_a_new_process(code)
    assert before and before == after
    assert changed == []


def test_a_star_import_binds_every_public_name():
    code = """
import json
from jax_power_smc import *
print(json.dumps(sorted(globals())))
"""
    assert set(psmc.__all__) <= set(in_a_new_process(code))


@pytest.mark.parametrize("name", psmc.__all__)
def test_public_names_resolve_and_are_listed(name):
    value = getattr(psmc, name)
    assert name in dir(psmc)
    assert getattr(psmc, name) is value
    if name in MODULES:
        assert value is importlib.import_module(MODULES[name])
    else:
        assert value.__name__ == name and value.__module__.startswith("jax_power_smc.")


def test_names_can_be_imported_in_any_order():
    """A submodule of the same name, imported first, does not hide a public name."""
    code = """
import importlib, json, pkgutil
import jax_power_smc as psmc
for name in ("engine.sample", "engine.engine", "theory.exact", "models.checkpoints.load"):
    importlib.import_module(f"jax_power_smc.{name}")
print(json.dumps([callable(psmc.sample), callable(psmc.load), callable(psmc.stream),
                  callable(psmc.exact.enumerate), callable(psmc.adapters.from_nnx)]))
"""
    assert in_a_new_process(code) == [True] * 5


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="'jax_power_smc' has no attribute 'nonsense'"):
        _ = psmc.nonsense
    with pytest.raises(ImportError, match="nonsense"):
        exec("from jax_power_smc import nonsense")


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING, the table of homes and ``__all__`` agree."""
    source = (ROOT / "jax_power_smc" / "__init__.py").read_text()
    imports = r"^    from ([\w.]+) import \(?\s*(\w+) as \2"
    seen = {name: module for module, name in re.findall(imports, source, flags=re.MULTILINE)}
    assert sorted(seen) == sorted(psmc.__all__) == psmc.__all__
    for name, module in seen.items():
        if name in MODULES:
            assert f"{module}.{name}" == MODULES[name]
        else:
            assert module == getattr(psmc, name).__module__ or name in vars(
                importlib.import_module(module)
            )


def test_the_version_is_written_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", psmc.__version__)
    setup = (ROOT / "setup.cfg").read_text()
    assert "version = attr: jax_power_smc.__version__" in setup


def test_evidence_gathers_names_of_inner_modules():
    """``psmc.evidence`` has nothing of its own; what it names is tested where it lives."""
    for name in psmc.evidence.__all__:
        value = getattr(psmc.evidence, name)
        assert value.__module__.split(".")[1] in ("results", "engine"), name
    assert psmc.evidence.pool is psmc.pool
