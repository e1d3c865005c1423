"""Several independent runs of the same prompts, for ``results.evidence``."""

from collections.abc import Sequence
from typing import Any

import jax

from jax_power_smc.core import checks
from jax_power_smc.core.types import Params, TokenIds
from jax_power_smc.engine import sample
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.results.result import SampleResult

# A run's index is folded into a key as 32 bits.
LARGEST_RUN = 2**31 - 1


def independent_runs(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[TokenIds],
    *,
    key: jax.Array,
    num_runs: int,
    first_run: int = 0,
    **options: Any,
) -> list[SampleResult]:
    """Samples every prompt ``num_runs`` times, independently.

    Run r is ``sample`` with ``jax.random.fold_in(key, r)``, whatever ``num_runs`` is. It differs
    from ``sample`` with ``key`` itself.

    Args:
      model, params, prompts: as in ``sample``.
      key: one key for all runs; it may be reused for ``pool`` and ``pimh``.
      num_runs: R.
      first_run: index of the first run; more runs can be added to earlier ones.
      **options: the other arguments of ``sample``.

    Returns:
      R results.

    Raises:
      ValueError: naming the argument, its value and what is allowed.
    """
    num_runs = checks.integer("num_runs", num_runs, at_least=1, at_most=LARGEST_RUN)
    first_run = checks.integer("first_run", first_run, at_least=0, at_most=LARGEST_RUN)
    checks.key(key)
    return [
        sample.sample(model, params, prompts, key=jax.random.fold_in(key, run), **options)
        for run in range(first_run, first_run + num_runs)
    ]
