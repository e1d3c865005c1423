"""``psmc.evidence`` gathers what the engine and the results offer; they are tested there."""

import jax_power_smc as psmc
from jax_power_smc.engine import independent_runs
from jax_power_smc.results import evidence, pimh


def test_names_are_those_of_the_inner_modules():
    homes = (evidence, pimh, independent_runs)
    for name in psmc.evidence.__all__:
        value = getattr(psmc.evidence, name)
        assert any(getattr(home, name, None) is value for home in homes), name


def test_pool_is_the_public_one():
    assert psmc.evidence.pool is psmc.pool
