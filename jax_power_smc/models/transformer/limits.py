"""The numbers that a model may have: wider than any published model needs, and no wider.

A config comes from strangers. Arrays and loops are as large as its numbers say, and constants such
as an epsilon of 1e300 would make every answer noise without any error.
"""

import dataclasses
from typing import Any

from jax_power_smc.core import checks


@dataclasses.dataclass(frozen=True)
class Limit:
    """The numbers from ``low`` to ``high``; only the integers among them if these are integers."""

    low: float
    high: float

    def holds(self, value: Any) -> bool:
        """Whether the value is such a number."""
        of_kind = checks.as_integer if isinstance(self.low, int) else checks.as_number
        found = of_kind(value)
        return found is not None and self.low <= found <= self.high

    def __str__(self) -> str:
        if isinstance(self.low, int):
            least = "a positive integer" if self.low == 1 else f"an integer of at least {self.low}"
            return f"{least} {'and ' if self.low != 1 else 'of '}at most {self.high}"
        return f"a positive number in [{self.low:g}, {self.high:g}]"


_POSITIONS = Limit(1, 2**31 - 1)
_FACTOR = Limit(1e-6, 1e6)
# Field of ``TransformerConfig`` -> its limit. Gemma has 262,144 tokens; Llama 3.1 405B has 126
# layers, a stream of 16,384 and 128 heads.
LIMITS = {
    "vocab_size": Limit(1, 2**22),
    "hidden_size": Limit(1, 2**18),
    "num_layers": Limit(1, 2**12),
    "num_heads": Limit(1, 2**14),
    "num_kv_heads": Limit(1, 2**14),
    "head_dim": Limit(1, 2**14),
    "mlp_size": Limit(1, 2**20),
    "max_positions": _POSITIONS,
    "windows": Limit(0, 2**31 - 1),
    "rope_theta": Limit(1.0, 1e15),
    "local_rope_theta": Limit(1.0, 1e15),
    "norm_eps": Limit(1e-20, 1.0),
    "query_scalar": Limit(1e-6, 1e9),
    "query_multiplier": _FACTOR,
    "attention_softcap": _FACTOR,
    "final_softcap": _FACTOR,
    "embedding_multiplier": _FACTOR,
    "residual_multiplier": _FACTOR,
    "logits_divisor": _FACTOR,
}
# Field of ``RopeScaling`` -> the limit of it, or of each of its elements.
ROPE_LIMITS = {
    "factor": _FACTOR,
    # The logarithm of the context length of pretraining is a divisor.
    "original_positions": Limit(2, 2**31 - 1),
    "low_factor": _FACTOR,
    "high_factor": _FACTOR,
    "short_factors": _FACTOR,
    "long_factors": _FACTOR,
    "attention_factor": _FACTOR,
}
