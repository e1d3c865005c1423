"""Theorem 1 of arXiv 2602.10273, measured on the token distributions of real decodes.

The sequences are drawn by Power-SMC. At each of their steps the model's p_t is known in full, so
the variance that a proposal's temperature causes in the weight is a sum over the vocabulary, not an
estimate (``weight_variance.weight_moments``; docs/math.md, eqs. 6 to 9). All temperatures are
compared on the same steps, those of sequences drawn at 1/alpha; a proposal at another temperature
would itself lead to other steps. They are also the steps of survivors: resampling has discarded
particles whose steps were costly.

At 1/alpha a step multiplies the weight by S_t whatever token is drawn, and ``-log S_t =
(alpha - 1) H_alpha(p_t)`` is its cost; the costs show where a sequence loses its weight.

Letters: T tokens, V vocabulary, K temperatures.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_power_smc.benchmarks import scoring
from jax_power_smc.benchmarks.records import Write
from jax_power_smc.core import prng
from jax_power_smc.engine import sample
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.samplers import PowerSMC
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.theory import weight_variance

# Share of the steps that count as the costliest.
COSTLIEST_SHARE = 0.1
# Tokens of text that are shown before a costly token.
_CONTEXT = 16


class Decode(NamedTuple):
    """One drawn sequence.

    Attributes:
      tokens: [T] ids, the end token included.
      log_prob: [T], log p_t of each token.
      log_sum: [T], log S_t.
      log_relative_variance: [K, T], of the incremental weight at each temperature; -inf for a
        weight that does not vary.
    """

    tokens: list[int]
    log_prob: np.ndarray
    log_sum: np.ndarray
    log_relative_variance: np.ndarray


def temperature_grid(temperatures: Sequence[float], alpha: float) -> list[float]:
    """The temperatures with 1/alpha and 1 among them, ascending, each once."""
    return sorted({float(t) for t in (*temperatures, 1 / alpha, 1.0)})


def costliest_share(log_sum: np.ndarray, share: float = COSTLIEST_SHARE) -> float:
    """The share of the total cost that the costliest steps have.

    Args:
      log_sum: [T], log S_t.
      share: of the T steps, rounded up to a whole number.

    Returns:
      Between ``share`` and 1; NaN if no step costs anything.
    """
    costs = np.sort(-np.asarray(log_sum, np.float64))[::-1]
    total = costs.sum()
    # Minus a rounding error, so that a tenth of 30 steps is 3.
    count = math.ceil(share * len(costs) - 1e-9)
    return float(costs[:count].sum() / total) if total > 0 else float("nan")


def measure(
    lm: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    alpha: float,
    num_particles: int,
    max_new_tokens: int,
    temperatures: Sequence[float],
    num_costliest: int,
    write: Write,
    progress: Callable[[str, int, int], None],
) -> None:
    """Variance of the weight by temperature, and the cost of every step, on one draw per prompt.

    Args:
      lm: the language model; its end tokens end a sequence.
      prompts: token ids.
      alpha: exponent, greater than 1.
      num_particles: N of the Power-SMC that draws the sequences.
      max_new_tokens: the cap.
      temperatures: of the proposal; 1/alpha and 1 are added.
      num_costliest: number of the costliest tokens that are written again, by rank.
      write: receives the figures.
      progress: called before every sequence.
    """
    progress("sequences drawn by Power-SMC", 0, len(prompts))
    result = sample.sample(
        lm.model,
        lm.params,
        prompts,
        key=prng.seed_key(0),
        target=PowerTarget(alpha, lm.eos_ids),
        sampler=PowerSMC(num_particles),
        max_new_tokens=max_new_tokens,
    )
    grid = temperature_grid(temperatures, alpha)
    decodes = []
    for i, (prompt, tokens) in enumerate(zip(prompts, result.draw(), strict=True)):
        progress("token distributions", i, len(prompts))
        log_p = scoring.token_distributions(lm.model, lm.params, prompt, tokens)
        log_sum, spread = _moments(log_p, np.float32(alpha), np.asarray(grid, np.float32))
        drawn = log_p[np.arange(len(tokens)), tokens]
        decodes.append(Decode(tokens, drawn, np.asarray(log_sum), np.asarray(spread)))
    about = {
        "alpha": alpha,
        "prompts": len(prompts),
        "num_particles": num_particles,
        "max_new_tokens": max_new_tokens,
    }
    _write_temperatures(grid, decodes, write, about)
    _write_costs(decodes, lm.tokenizer, num_costliest, write, about)


@jax.jit
def _moments(
    log_p: jax.Array, alpha: jax.Array, temperatures: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log_p [T, V], alpha [], temperatures [K] -> log S [T], log relative variance [K, T]."""

    def spread(temperature: jax.Array) -> jax.Array:
        return weight_variance.weight_moments(log_p, alpha, temperature).log_relative_variance

    # One temperature at a time: [K, T, V] would not fit in memory for a large vocabulary.
    return weight_variance.log_power_sum(log_p, alpha), jax.lax.map(spread, temperatures)


def _write_temperatures(
    grid: Sequence[float], decodes: Sequence[Decode], write: Write, about: dict[str, Any]
) -> None:
    """Four figures per temperature, over the steps of all sequences or per sequence."""
    for k, temperature in enumerate(grid):
        by_sequence = [x.log_relative_variance[k].astype(np.float64) for x in decodes]
        steps = np.concatenate(by_sequence)
        with np.errstate(over="ignore"):  # infinite if far below 1/alpha
            relative = np.exp(steps)
        labels = {**about, "temperature": temperature, "steps": len(steps)}
        write("mean_relative_variance", relative.mean(), "1", **labels)
        write("max_relative_variance", relative.max(), "1", **labels)
        write("share_above_one", (relative > 1).mean(), "share", **labels)
        # log E[w^2] / E[w]^2 of a product of independent factors is the sum of their logs.
        moments = [np.logaddexp(0, x).sum() for x in by_sequence]
        write("log_second_moment", float(np.mean(moments)), "nats per sequence", **labels)


def _write_costs(
    decodes: Sequence[Decode],
    tokenizer: Any,
    num_costliest: int,
    write: Write,
    about: dict[str, Any],
) -> None:
    """The cost of every step and every sequence, then the costliest tokens overall."""
    listed = []
    for i, decode in enumerate(decodes):
        texts = [text_at(tokenizer, decode.tokens, t) for t in range(len(decode.tokens))]
        tokens = [
            {"prompt": i, "step": t, "log_prob": float(log_prob), "token": token}
            for t, ((_, token), log_prob) in enumerate(zip(texts, decode.log_prob, strict=True))
        ]
        costs = weight_variance.weight_costs(decode.log_sum, [token for _, token in texts])
        for x in sorted(costs, key=lambda x: x.step):
            write("step_cost", x.cost, "nats", **about, **tokens[x.step])
        labels = {**about, "prompt": i, "steps": len(costs)}
        write("sequence_cost", sum(x.cost for x in costs), "nats", **labels)
        write(
            "costliest_share",
            costliest_share(decode.log_sum),
            "share",
            **labels,
            of=COSTLIEST_SHARE,
        )
        listed += [(x.cost, tokens[x.step], texts[x.step][0]) for x in costs[:num_costliest]]
    listed.sort(key=lambda x: -x[0])
    for cost, token, before in listed[:num_costliest]:
        write("costliest", cost, "nats", **about, **token, before=before)


def text_at(tokenizer: Any, tokens: Sequence[int], step: int) -> tuple[str, str]:
    """The text of the last tokens before a step, and that of its token.

    A token's text is what it adds to the text before it: when decoded alone, some tokenizers drop
    its leading space.
    """
    before, after = (
        tokenizer.decode(
            list(tokens[max(0, step - _CONTEXT) : end]), clean_up_tokenization_spaces=False
        )
        for end in (step, step + 1)
    )
    if after.startswith(before):
        return before, after[len(before) :]
    # The token completes a character whose first bytes came before it.
    return before, tokenizer.decode([tokens[step]], clean_up_tokenization_spaces=False)
