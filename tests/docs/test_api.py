import re

import jax_power_smc as psmc
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
NAMES = re.findall(r"^::: ([\w.]+)$", PAGE, flags=re.MULTILINE)


def test_the_reference_covers_the_public_surface():
    assert {f"jax_power_smc.{name}" for name in psmc.__all__} == set(NAMES)


def test_members_that_are_named_exist():
    named = re.findall(
        r"^::: jax_power_smc\.(\w+)\n    options:\n      members: \[([^]]+)\]", PAGE, re.MULTILINE
    )
    assert len(named) == PAGE.count("members:")
    for module, members in named:
        for member in members.split(", "):
            assert hasattr(getattr(psmc, module), member), f"{module}.{member}"
