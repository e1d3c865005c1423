"""How close samplers come to the power distribution, by their evidence.

``KL(q_out || pi_alpha) <= log Z - E[log Z_hat]`` for the drawn sequence, so the gap
log Z - E[log Z_hat] bounds a sampler's error with no other knowledge than log Z. On the tables log
Z is exact (``tables``). On language models it is not known, and the gap is an estimate: against
the pooled evidence of a reference setting, which is itself low on average.

Metropolis-Hastings has no evidence; what it can be judged by is the mean log p of its output
against that of the power distribution, which is exact on the tables. Its chains share their cuts
within a call, so its runs are not quite independent.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jax_power_smc.benchmarks import markov_models
from jax_power_smc.benchmarks.records import Write
from jax_power_smc.core import prng
from jax_power_smc.engine import sample
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.results.result import SampleResult
from jax_power_smc.samplers import MetropolisHastings, PowerSMC, Sampler, WithoutReplacement
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.theory import cost_model


@dataclasses.dataclass(frozen=True)
class Setting:
    """One sampler of the comparison.

    Attributes:
      name: "smc" (the published order, as the paper describes it), "swor", or "mh": one chain that
        is given as many tokens as N particles need.
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
        if self.name == "mh":
            blocks = min(MetropolisHastings().num_blocks, horizon)
            moves = cost_model.equal_cost_moves(self.num_particles, blocks, "global")
            return MetropolisHastings(blocks, moves, "global")
        raise ValueError(f"sampler is {self.name!r}; allowed are smc, swor and mh.")


@dataclasses.dataclass(frozen=True)
class Questions:
    """What a language model is asked.

    Attributes:
      texts: the prompts.
      target: what to sample from.
      max_new_tokens: T.
      is_right: (index of the prompt, response) -> whether it is right; None where nothing is.
    """

    texts: Sequence[str]
    target: PowerTarget
    max_new_tokens: int
    is_right: Callable[[int, str], bool] | None = None


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
        model, params = markov_models.make_table(
            vocab_size, horizon, table["entropy"], table["kind"], table["seed"]
        )
        exact = markov_models.exact_moments(model, params, prompt, alpha, horizon)
        write("exact_log_evidence", exact.log_evidence, "nats", **table, alpha=alpha)
        write("exact_mean_log_prob", exact.mean_log_prob, "nats", **table, alpha=alpha)
        for setting in settings:
            report(_title(table), done, total)
            done += 1
            result = sample.sample(
                model,
                params,
                [prompt] * runs,
                key=prng.seed_key(table["seed"]),
                target=PowerTarget(alpha),
                sampler=setting.sampler(horizon),
                max_new_tokens=horizon,
            )
            about = {**table, **dataclasses.asdict(setting), "alpha": alpha, "runs": runs}
            if setting.name != "mh":
                evidence = np.asarray(result.log_evidence, np.float64)
                write("gap", exact.log_evidence - evidence.mean(), "nats", **about)
                write("gap_error", _error(evidence), "nats", **about)
                write("sd_log_evidence", evidence.std(ddof=1), "nats", **about)
            _write_output(result, write, about)


def measure_model(
    lm: LoadedModel,
    name: str,
    questions: Questions,
    settings: Sequence[Setting],
    *,
    runs: int,
    write: Write,
    report: Report,
) -> None:
    """Evidence over prompts and runs, its deviation between runs, mean log p and accuracy.

    The estimated gap is that of ``evidence.kl_figure`` with the runs of a reference setting, the
    largest "swor" without a ramp; there is none if no such setting is among them. The reference
    misses what all its runs missed, so a gap may come out negative.

    Args:
      lm: the language model.
      name: what it is called in the figures.
      questions: what it is asked.
      settings, write, report: as for ``measure_tables``.
      runs: independent runs per prompt.
    """
    prompts = [lm.encode(text) for text in questions.texts]
    about = {
        "model": name,
        "prompts": len(prompts),
        "max_new_tokens": questions.max_new_tokens,
        "alpha": questions.target.alpha,
        "runs": runs,
    }
    found: dict[Setting, np.ndarray] = {}  # log Z_hat [P, R]
    for done, setting in enumerate(settings):
        report(name, done, len(settings))
        result = sample.sample(
            lm.model,
            lm.params,
            [prompt for prompt in prompts for _ in range(runs)],
            key=prng.seed_key(0),
            target=questions.target,
            sampler=setting.sampler(questions.max_new_tokens),
            max_new_tokens=questions.max_new_tokens,
            tokenizer=lm.tokenizer,
        )
        row = {**about, **dataclasses.asdict(setting)}
        if setting.name != "mh":
            found[setting] = np.asarray(result.log_evidence, np.float64).reshape(-1, runs)
            write("mean_log_evidence", found[setting].mean(), "nats", **row)
            spread = found[setting].std(axis=1, ddof=1)
            write("sd_log_evidence", spread.mean(), "nats", **row)
        _write_output(result, write, row)
        if questions.is_right is not None:
            texts = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in result.draw()]
            right = [questions.is_right(i // runs, text) for i, text in enumerate(texts)]
            write("accuracy", float(np.mean(right)), "share", **row)
    references = [s for s in found if s.name == "swor" and not s.ramp_share]
    if not references:
        return
    reference = found[max(references, key=lambda s: s.num_particles)]
    log_z = np.logaddexp.reduce(reference, axis=1) - np.log(runs)  # [P]
    for setting, evidence in found.items():
        row = {**about, **dataclasses.asdict(setting)}
        write("estimated_gap", (log_z - evidence.mean(axis=1)).mean(), "nats", **row)


def _title(table: dict[str, Any]) -> str:
    return (
        f"{table['kind']} table, T {table['horizon']}, {table['entropy']} nats, "
        f"seed {table['seed']}"
    )


def _write_output(result: SampleResult, write: Write, about: dict[str, Any]) -> None:
    """Figures that every sampler has: of the drawn sequences, and what they cost."""
    log_probs = np.asarray(result.log_probs, np.float64)
    drawn = np.take_along_axis(log_probs, np.asarray(result.choice)[:, None], axis=1)
    lengths = np.take_along_axis(
        np.asarray(result.lengths), np.asarray(result.choice)[:, None], axis=1
    )
    write("mean_log_prob", drawn.mean(), "nats", **about)
    write("mean_length", lengths.mean(), "tokens", **about)
    write("model_tokens", np.asarray(result.info.model_tokens).mean(), "tokens", **about)


def _error(evidence: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(evidence.std(ddof=1) / np.sqrt(len(evidence)))
