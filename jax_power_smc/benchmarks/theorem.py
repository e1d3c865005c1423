"""Theorem 1 of arXiv 2602.10273, measured on the token distributions of real decodes.

The sequences are drawn by Power-SMC; at each of their steps the model's p_t is known in full, so
what a proposal at some temperature does to the weight there is a sum over the vocabulary and not
an estimate (``weight_variance.weight_moments``). All temperatures are judged on the same steps, those of
sequences drawn at 1/alpha: a proposal at another temperature would itself meet other ones. They
are the steps of survivors, too, and resampling has left behind the particles whose steps were dear.

At 1/alpha a step multiplies the weight by S_t whatever token is drawn, and ``-log S_t =
(alpha - 1) H_alpha(p_t)`` is what it costs; the costs say where a sequence loses its weight.

Letters: T tokens, V vocabulary, K temperatures.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jax_power_smc.benchmarks import scoring
from jax_power_smc.benchmarks.records import Write
from jax_power_smc.core import prng
from jax_power_smc.engine import sample
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.samplers import PowerSMC
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.theory import weight_variance

# Share of the steps that counts as the dearest ones.
DEAREST_SHARE = 0.1
# Tokens of text before a dear token, for the reader.
_CONTEXT = 16

# metric -> heading, of the figures of a temperature
_COLUMNS = {
    "mean_relative_variance": "mean",
    "max_relative_variance": "maximum",
    "share_above_one": "steps above 1",
    "log_second_moment": "per sequence, nats",
}


class Decode(NamedTuple):
    """What is kept of one drawn sequence.

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


def dearest_share(log_sum: np.ndarray, share: float = DEAREST_SHARE) -> float:
    """Which part of the total cost the dearest steps carry.

    Args:
      log_sum: [T], log S_t.
      share: of the T steps, rounded up to a whole number of them.

    Returns:
      Between ``share`` and 1; NaN if no step costs anything.
    """
    costs = np.sort(-np.asarray(log_sum, np.float64))[::-1]
    total = costs.sum()
    # Less a rounding error, so that a tenth of 30 steps is 3 of them.
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
    num_dearest: int,
    write: Write,
    report: Callable[[str, int, int], None],
) -> None:
    """Variance of the weight by temperature, and the cost of every step, on one draw per prompt.

    Args:
      lm: the language model; its end tokens end a sequence.
      prompts: token ids.
      alpha: exponent, greater than 1.
      num_particles: N of the Power-SMC that draws the sequences.
      max_new_tokens: the cap.
      temperatures: of the proposal; 1/alpha and 1 are added.
      num_dearest: how many of the dearest tokens are written once more, by rank.
      write: receives the figures.
      report: called before every sequence.
    """
    report("sequences drawn by Power-SMC", 0, len(prompts))
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
        report("token distributions", i, len(prompts))
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
    _write_costs(decodes, lm.tokenizer, num_dearest, write, about)


@jax.jit
def _moments(
    log_p: jax.Array, alpha: jax.Array, temperatures: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log_p [T, V], alpha [], temperatures [K] -> log S [T], log relative variance [K, T]."""

    def spread(temperature: jax.Array) -> jax.Array:
        return weight_variance.weight_moments(log_p, alpha, temperature).log_relative_variance

    # One temperature at a time: a [K, T, V] of a large vocabulary would fill the memory.
    return weight_variance.log_power_sum(log_p, alpha), jax.lax.map(spread, temperatures)


def _write_temperatures(
    grid: Sequence[float], decodes: Sequence[Decode], write: Write, about: dict[str, Any]
) -> None:
    """Four figures per temperature, over the steps of all sequences or per sequence."""
    for k, temperature in enumerate(grid):
        by_sequence = [x.log_relative_variance[k].astype(np.float64) for x in decodes]
        steps = np.concatenate(by_sequence)
        with np.errstate(over="ignore"):  # far below 1/alpha: then the figure is infinite
            relative = np.exp(steps)
        row = {**about, "temperature": temperature, "steps": len(steps)}
        write("mean_relative_variance", relative.mean(), "1", **row)
        write("max_relative_variance", relative.max(), "1", **row)
        write("share_above_one", (relative > 1).mean(), "share", **row)
        # log E[w^2] / E[w]^2 of a product of independent factors is the sum of their logs.
        moments = [np.logaddexp(0, x).sum() for x in by_sequence]
        write("log_second_moment", float(np.mean(moments)), "nats per sequence", **row)


def _write_costs(
    decodes: Sequence[Decode],
    tokenizer: Any,
    num_dearest: int,
    write: Write,
    about: dict[str, Any],
) -> None:
    """The cost of every step and of every sequence, then the dearest tokens of all."""
    listed = []
    for i, decode in enumerate(decodes):
        texts = [place(tokenizer, decode.tokens, t) for t in range(len(decode.tokens))]
        rows = [
            {"prompt": i, "step": t, "log_prob": float(log_prob), "token": token}
            for t, ((_, token), log_prob) in enumerate(zip(texts, decode.log_prob, strict=True))
        ]
        costs = weight_variance.weight_costs(decode.log_sum, [token for _, token in texts])
        for x in sorted(costs, key=lambda x: x.step):
            write("step_cost", x.cost, "nats", **about, **rows[x.step])
        row = {**about, "prompt": i, "steps": len(costs)}
        write("sequence_cost", sum(x.cost for x in costs), "nats", **row)
        write("dearest_share", dearest_share(decode.log_sum), "share", **row, of=DEAREST_SHARE)
        listed += [(x.cost, rows[x.step], texts[x.step][0]) for x in costs[:num_dearest]]
    listed.sort(key=lambda x: -x[0])
    for cost, row, before in listed[:num_dearest]:
        write("dearest", cost, "nats", **about, **row, before=before)


def place(tokenizer: Any, tokens: Sequence[int], step: int) -> tuple[str, str]:
    """The text of the last tokens before a step, and that of its token.

    The token's text is what it adds to the text before it: alone, some tokenizers leave out the
    space it begins with.
    """
    before, after = (
        tokenizer.decode(
            list(tokens[max(0, step - _CONTEXT) : end]), clean_up_tokenization_spaces=False
        )
        for end in (step, step + 1)
    )
    if after.startswith(before):
        return before, after[len(before) :]
    # The token completes a character whose first bytes stood before it.
    return before, tokenizer.decode([tokens[step]], clean_up_tokenization_spaces=False)


# --- For the terminal ---


def tables(lines: Sequence[dict[str, Any]]) -> list[RenderableType]:
    """What the benchmark found, from its lines: temperatures, sequences, dearest tokens."""
    return [_temperatures(lines), _sequences(lines), _dearest(lines)]


def _temperatures(lines: Sequence[dict[str, Any]]) -> RenderableType:
    cells: dict[float, dict[str, float | None]] = {}
    for x in lines:
        if x["metric"] in _COLUMNS:
            cells.setdefault(x["temperature"], {})[x["metric"]] = x["value"]
    first = next(x for x in lines if x["metric"] in _COLUMNS)
    alpha, steps = first["alpha"], first["steps"]
    table = _table("temperature", *_COLUMNS.values())
    for temperature, row in cells.items():
        name = f"{temperature:.3g}"
        name = f"1/alpha = {name}" if temperature == 1 / alpha else name
        values = (row[metric] for metric in _COLUMNS)
        table.add_row(name, *["infinite" if x is None else f"{x:.3g}" for x in values])
    title = (
        f"Relative variance of the incremental weight, alpha {alpha:g}, over the {steps} steps of "
        f"{first['prompts']} sequences;\n"
        "per sequence: the sum of log(1 + relative variance) over its steps, averaged"
    )
    return Group(title, table)


def _sequences(lines: Sequence[dict[str, Any]]) -> RenderableType:
    table = _table("prompt", "steps", "cost, nats", f"in the dearest {DEAREST_SHARE:.0%} of steps")
    shares = {x["prompt"]: x["value"] for x in lines if x["metric"] == "dearest_share"}
    for x in lines:
        if x["metric"] == "sequence_cost":
            share = shares[x["prompt"]]
            part = "none" if share is None else f"{share:.1%}"
            table.add_row(str(x["prompt"]), str(x["steps"]), f"{x['value']:.2f}", part)
    return Group("What each sequence cost its weight: (alpha - 1) H_alpha(p_t), summed", table)


def _dearest(lines: Sequence[dict[str, Any]]) -> RenderableType:
    table = _table("cost, nats", "prompt", "step", "p of the token")
    table.add_column("the text before it, and \\[the token]", no_wrap=True)
    for x in lines:
        if x["metric"] == "dearest":
            # Text: the decoded tokens may look like markup.
            text = Text(f"{_one_line(x['before'])}[{_one_line(x['token'])}]")
            numbers = f"{x['value']:.2f}", str(x["prompt"]), str(x["step"])
            table.add_row(*numbers, f"{math.exp(x['log_prob']):.2f}", text)
    return Group("The steps that cost the weights most", table)


def _table(*headings: str) -> Table:
    """A table of numbers."""
    table = Table(box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")
