"""How programs are sharded: on two devices in ``test_layout`` and ``test_collectives``."""

import inspect

import pytest

from jax_power_smc.engine import mh_chains, programs, table_size
from jax_power_smc.engine.layout import ONE_DEVICE
from jax_power_smc.engine.program_specs import SPECS


@pytest.mark.parametrize("module", [programs, table_size])
def test_every_program_says_how_it_is_sharded(module):
    functions = {f for _, f in inspect.getmembers(module, inspect.isfunction)}
    own = {f for f in functions if f.__module__ == module.__name__ and f.__name__[0] != "_"}
    assert own and own <= set(SPECS)


def test_chains_add_their_programs():
    assert {mh_chains.start_batch, mh_chains.move_batch, mh_chains.finish_batch} <= set(SPECS)


def test_what_is_overwritten_is_donated():
    params, state = {"w": 0.0}, None
    of = {f.__name__: specs for f, specs in SPECS.items()}
    args = {"decode_chunk": (params, None, None, state), "compact": (state,), "insert": ()}
    donated = {name: of[name](ONE_DEVICE, given).donated for name, given in args.items()}
    assert donated == {"decode_chunk": (3,), "compact": (0,), "insert": (1,)}
