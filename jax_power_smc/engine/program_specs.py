"""How the arguments and results of each program are sharded on a mesh, and what is donated.

Each program is written for the prompts of one device; every data shard runs it for its own.
"""

from collections.abc import Callable
from typing import Any

from jax_power_smc.core.mesh import DATA_SHARDED, PER_DEVICE, REPLICATED
from jax_power_smc.engine import programs, table_size
from jax_power_smc.engine.layout import Layout, Specs
from jax_power_smc.engine.state import DecodeState, RowTable, SharedInputs

_EACH = DATA_SHARDED


def _specs(layout: Layout) -> tuple[Any, Any]:
    """How ``PromptInputs`` and a ``DecodeState`` are sharded."""
    rows = RowTable(*[DATA_SHARDED] * len(RowTable._fields))._replace(cache=PER_DEVICE)  # type: ignore[arg-type]
    return DATA_SHARDED, DecodeState(DATA_SHARDED, rows)  # type: ignore[arg-type]


def _shared_specs(layout: Layout) -> Any:
    return SharedInputs(REPLICATED, layout.logits, REPLICATED)  # type: ignore[arg-type]


def _insert_specs(layout: Layout, args: Any) -> Specs:
    del args
    inputs, state = _specs(layout)
    given = (inputs, state, _EACH, _EACH, _EACH, _EACH, PER_DEVICE)
    return Specs(given, (inputs, state), False, (1,))


def _decode_chunk_specs(layout: Layout, args: Any) -> Specs:
    inputs, state = _specs(layout)
    given = (layout.params(args[0]), _shared_specs(layout), inputs, state, _EACH, REPLICATED)
    return Specs(given, (state, _EACH, _EACH), (False, True, True), (3,))


def _compact_specs(layout: Layout, args: Any) -> Specs:
    del args
    _, state = _specs(layout)
    return Specs((state,), state, False, (0,))


def _resize_specs(layout: Layout, args: Any) -> Specs:
    _, state = _specs(layout)
    # Not donated: no array of another size fits into its memory.
    return Specs((layout.params(args[0]), state), state, False)


def _reset_specs(layout: Layout, args: Any) -> Specs:
    _, state = _specs(layout)
    return Specs((layout.params(args[0]), state.rows), state.rows, False, (1,))


# How the arguments and results of each program are sharded; ``mh_chains`` adds its own.
SPECS: dict[programs.Program, Callable[[Layout, Any], Specs]] = {
    programs.start: lambda layout, args: Specs(
        (layout.params(args[0]), REPLICATED), _specs(layout)[1], False
    ),
    programs.prefill: lambda layout, args: Specs(
        (layout.params(args[0]), _EACH, _EACH), PER_DEVICE, False
    ),
    programs.insert: _insert_specs,
    programs.uniforms: lambda layout, args: Specs((_EACH, _EACH), _EACH, False),
    programs.decode_chunk: _decode_chunk_specs,
    programs.finalize: lambda layout, args: Specs(
        (_shared_specs(layout), _EACH, _EACH, _EACH), _EACH, True
    ),
    programs.suspend: lambda layout, args: Specs((_EACH, _EACH, _EACH), (_EACH, _EACH), False),
    programs.cancel: lambda layout, args: Specs((_EACH, _EACH), _EACH, False),
    table_size.compact: _compact_specs,
    table_size.resize: _resize_specs,
    table_size.reset: _reset_specs,
    programs.write_states: lambda layout, args: Specs(
        (REPLICATED, REPLICATED, REPLICATED), REPLICATED, False, (0,)
    ),
}
