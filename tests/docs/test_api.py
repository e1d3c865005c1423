import importlib
import re

import jax_power_smc as psmc
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
NAMES = re.findall(r"^::: ([\w.]+)$", PAGE, flags=re.MULTILINE)


def test_the_reference_covers_the_public_surface():
    assert {f"jax_power_smc.{name}" for name in psmc.__all__} <= {
        *NAMES,
        "jax_power_smc.__version__",
    }


def test_every_name_of_the_reference_exists():
    for name in NAMES:
        module, _, last = name.rpartition(".")
        owner = importlib.import_module(module)
        assert hasattr(owner, last) or importlib.import_module(name), name


def test_members_that_are_named_exist():
    for name, members in re.findall(
        r"^::: ([\w.]+)\n    options:\n      members: \[([^]]+)\]", PAGE, flags=re.MULTILINE
    ):
        module = importlib.import_module(name)
        for member in members.split(", "):
            assert hasattr(module, member), f"{name}.{member}"
