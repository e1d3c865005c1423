"""How close samplers come to the power distribution, by their evidence.

``KL(q_out || pi_alpha) <= log Z - E[log Z_hat]`` for the drawn sequence, so the gap
log Z - E[log Z_hat] bounds a sampler's error with no other knowledge than log Z. On the tables log
Z is exact (``tables``); on language models it is not known, and the figures are mean and standard
deviation of log Z_hat: higher is better, the difference between two rows is that of their bounds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jax_power_smc import engine
from jax_power_smc.benchmarks import tables
from jax_power_smc.benchmarks.records import Write
from jax_power_smc.models.load import LoadedModel
from jax_power_smc.samplers import PowerSMC, Sampler, WithoutReplacement
from jax_power_smc.target import PowerTarget


@dataclasses.dataclass(frozen=True)
class Setting:
    """One sampler of the comparison.

    Attributes:
      name: "smc" (the published order, as the paper describes it) or "swor".
      num_particles: N.
      ramp_share: length of the exponent ramp as a share of T; 0 for none.
    """

    name: str
    num_particles: int
    ramp_share: float = 0.0

    def sampler(self, horizon: int) -> Sampler:
        """The sampler for T tokens.

        Raises:
          ValueError: for another name.
        """
        ramp = round(self.ramp_share * horizon)
        if self.name == "smc":
            return PowerSMC(self.num_particles, ramp_tokens=ramp, order="published")
        if self.name == "swor":
            return WithoutReplacement(self.num_particles, ramp_tokens=ramp, early_stop=0.0)
        raise ValueError(f"sampler is {self.name!r}; allowed are smc and swor.")


# (what is being measured, settings done, settings in all)
Report = Callable[[str, int, int], None]


def measure_tables(
    grid: Sequence[dict[str, Any]],
    settings: Sequence[Setting],
    *,
    vocab_size: int,
    alpha: float,
    runs: int,
    write: Write,
    report: Report,
) -> None:
    """Gap, deviation and mean log p of every setting on every table.

    Args:
      grid: tables as dicts with kind, horizon, entropy and seed.
      settings: what to compare.
      vocab_size: V of the tables.
      alpha: exponent of the target.
      runs: independent runs of each sampler on each table.
      write: receives the figures.
      report: called before every setting.
    """
    prompt = [0]
    total, done = len(grid) * len(settings), 0
    for table in grid:
        horizon = table["horizon"]
        model, params = tables.make_table(
            vocab_size, horizon, table["entropy"], table["kind"], table["seed"]
        )
        log_z = tables.exact_log_evidence(model, params, prompt, alpha, horizon)
        for setting in settings:
            report(_title(table), done, total)
            done += 1
            result = engine.sample(
                model,
                params,
                [prompt] * runs,
                key=jax.random.key(table["seed"]),
                target=PowerTarget(alpha),
                sampler=setting.sampler(horizon),
                max_new_tokens=horizon,
            )
            evidence = np.asarray(result.log_evidence, np.float64)
            about = {**table, **dataclasses.asdict(setting), "alpha": alpha, "runs": runs}
            write("gap", log_z - evidence.mean(), "nats", **about)
            write("gap_error", _error(evidence), "nats", **about)
            write("sd_log_evidence", evidence.std(ddof=1), "nats", **about)
            write("mean_log_prob", _drawn_log_prob(result).mean(), "nats", **about)


def measure_model(
    lm: LoadedModel,
    name: str,
    prompts: Sequence[list[int]],
    settings: Sequence[Setting],
    *,
    alpha: float,
    runs: int,
    max_new_tokens: int,
    write: Write,
    report: Report,
) -> None:
    """Mean log Z_hat over prompts and runs, its deviation between runs, and mean log p.

    Args:
      lm: the language model.
      name: what it is called in the figures.
      prompts: token ids.
      settings, alpha, write, report: as for ``measure_tables``.
      runs: independent runs per prompt.
      max_new_tokens: T.
    """
    for done, setting in enumerate(settings):
        report(name, done, len(settings))
        result = engine.sample(
            lm.model,
            lm.params,
            [prompt for prompt in prompts for _ in range(runs)],
            key=jax.random.key(0),
            target=PowerTarget(alpha, lm.eos_ids),
            sampler=setting.sampler(max_new_tokens),
            max_new_tokens=max_new_tokens,
        )
        evidence = np.asarray(result.log_evidence, np.float64).reshape(len(prompts), runs)
        about = {
            "model": name,
            "prompts": len(prompts),
            "max_new_tokens": max_new_tokens,
            **dataclasses.asdict(setting),
            "alpha": alpha,
            "runs": runs,
        }
        write("mean_log_evidence", evidence.mean(), "nats", **about)
        write("sd_log_evidence", evidence.std(axis=1, ddof=1).mean(), "nats", **about)
        write("mean_log_prob", _drawn_log_prob(result).mean(), "nats", **about)


def _title(table: dict[str, Any]) -> str:
    return (
        f"{table['kind']} table, T {table['horizon']}, {table['entropy']} nats, "
        f"seed {table['seed']}"
    )


def _error(evidence: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(evidence.std(ddof=1) / np.sqrt(len(evidence)))


def _drawn_log_prob(result: Any) -> np.ndarray:
    """[P], log p of the drawn particles."""
    log_probs = np.asarray(result.log_probs, np.float64)
    return np.take_along_axis(log_probs, np.asarray(result.choice)[:, None], axis=1)[:, 0]
